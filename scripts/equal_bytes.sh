#!/usr/bin/env bash
# How small can a model of equal AUC be? MLET, a linear end of the bottom MLP, re-initialised epochs, fewer rows by hashing or a learned map, and fewer bits, alone and
# together, against a tuned single layer of d = 64 of one epoch, by the bytes of the served model (maps included).
#
#   bash scripts/equal_bytes.sh train.txt --jobs 2                                  # Criteo Kaggle's format
#   bash scripts/equal_bytes.sh train.txt --only single reinit reinit+modulo --seeds "1 2 3"
#   bash scripts/equal_bytes.sh train.txt --only reinit mlet+reinit fixed+reinit --dims 4 --in-32-bits    # what MLET adds, and its control
#   bash scripts/equal_bytes.sh --dataset=synthetic --scale=smoke                   # three minutes, built-in data
#
# Adam at 0.001, batch 512. Each recipe is tuned over four table rates (MLET's lower, as its W2 multiplies them), on validation, over the first two seeds; those that re-initialise
# their tables train five epochs and serve the one of the best validation AUC. Learned maps give up the half of the rows that they are learned from.
#
#   scale   runs  minutes (2 cores)                                memory   disk
#   smoke     12  3, 20,000 generated rows; and 12 short ones       0.6 GB   20 MB and a model
#   small    385  55 on 80,000 Criteo rows; and 700 for the bits    0.8 GB   30 MB and a model a job (100 MB)
#   paper    385  a run 0.5 to 5 hours at 45.8 million rows on 2 cores: a GPU's days
#
# Results: WORK (equal_bytes_SET[_SCALE]_output)/*.jsonl, table.md, cells.csv, bytes.png (needs matplotlib); a restart goes on.
set -euo pipefail
export CALLER="$PWD"
cd "$(dirname "$0")/.."
source scripts/env.sh requirements.txt
exec "$PYTHON" scripts/equal_bytes.py "$@"
