#!/usr/bin/env bash
# Over-fitting of tables over five epochs and its cures (arXiv 2505.05605 and rivals), each tuned alike, over seeds. The first
# line of the output says whether plain collapses on the data at all: where it does not, a cure proves nothing.
#
#   bash scripts/reproduce_multi_epoch.sh train.txt                           # Criteo Kaggle's format; 80,000 rows: 180 runs, 70 minutes of one core
#   bash scripts/reproduce_multi_epoch.sh train.txt --seeds "1 2" --only plain re-init fal-log convergence --jobs 2
#   bash scripts/reproduce_multi_epoch.sh --dataset=synthetic                    # 1,000,000 rows, built in: some 10 hours of one core; --only fewer
#   bash scripts/reproduce_multi_epoch.sh ../data/globo --dataset=globo          # labels click and long_dwell, split by time: plain, re-init, fal-log
#   bash scripts/reproduce_multi_epoch.sh --dataset=multitask-synthetic          # labels click, cart and checkout
#
# Memory: 0.7 GB a run at 80,000 rows. Disk: the prepared data (25 MB at 80,000 rows; four times, as each --vocabulary-min-count has
# its own). Six settings a method are compared on validation over the first two seeds, the chosen one is run with all. --only takes methods (also
# weight-decay, id-dropout, re-init-rare) and convergence; what was not run is marked so. Results: WORK (reproduce_multi_epoch_SET_output)/*.jsonl,
# table.md, cells.csv, epochs.png (needs matplotlib); a restart goes on.
set -euo pipefail
export CALLER="$PWD"
cd "$(dirname "$0")/.."
source scripts/env.sh requirements.txt
exec "$PYTHON" scripts/reproduce_multi_epoch.py "$@"
