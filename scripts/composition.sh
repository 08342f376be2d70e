#!/usr/bin/env bash
# What MLET composes with, and what each combination costs in AUC and bytes: quotient-remainder tables, mixed dimensions and
# smaller widths, each trained as a single layer and with MLET, then stored in 16, 8 and 4 bits (integers: plain tables only).
#
#   bash scripts/composition.sh train.txt                   # Criteo format: 42 runs a seed, and 26 for the bits; 80,000 rows: 10 minutes on 2 cores (--jobs 2)
#   bash scripts/composition.sh train.txt --only d8 d8-mlet d4-mlet --seeds "1 2 3 4 5" --jobs 2
#   bash scripts/composition.sh --dataset=synthetic         # the built-in planted data
#
# Each method takes the best of three table rates by mean validation AUC, MLET's lower by the factor K/16 that W2 multiplies them by. Flags behind -- go to all runs (a method's own win). Results: WORK
# (composition_SET[_SCALE]_output)/*.jsonl, a model at a time (50 MB at 80,000 rows) and table.md; a restart goes on where it was interrupted.
set -euo pipefail
export CALLER="$PWD"
cd "$(dirname "$0")/.."
source scripts/env.sh requirements.txt
exec "$PYTHON" scripts/composition.py "$@"
