#!/usr/bin/env bash
# Learned maps for those who have one set of rows only: two maps, two models, the mean of their scores (cross-fitting).
#
#   bash scripts/cross_fit_hash.sh train.txt                                    # Criteo format; 80,000 rows: 12 runs a seed
#   bash scripts/cross_fit_hash.sh train.txt --budgets 100 --seeds "1 2 3" --only modulo frequency learned --jobs 2
#
# One map is learned from the first half of the training rows and its model trained on the second, the other the reverse. A row is
# scored by both. Beside them: rivals that train on all rows, at the same number of rows a table, alone and, at equal bytes, as the mean of
# two seeds. Scores come from the collapsed models. Results: WORK (cross_fit_hash_SET[_SCALE]_output)/*.jsonl and table.md; a restart goes on.
set -euo pipefail
export CALLER="$PWD"
cd "$(dirname "$0")/.."
source scripts/env.sh requirements.txt
exec "$PYTHON" scripts/cross_fit_hash.py "$@"
