#!/usr/bin/env bash
# Over-fitting of tables over five epochs and its cures (arXiv 2505.05605 and rivals), each tuned alike, over seeds. The first
# line of the output says whether plain collapses on the data at all: where it does not, a cure proves nothing.
#
#   bash scripts/reproduce_multi_epoch.sh train.txt --jobs 2                    # Criteo Kaggle's format
#   bash scripts/reproduce_multi_epoch.sh train.txt --seeds "1 2" --only plain re-init fal-log convergence
#   bash scripts/reproduce_multi_epoch.sh --dataset=synthetic --only plain re-init
#   bash scripts/reproduce_multi_epoch.sh ../data/globo --dataset=globo         # labels click and long_dwell, split by time: plain, re-init, fal-log
#   bash scripts/reproduce_multi_epoch.sh --dataset=multitask-synthetic         # labels click, cart and checkout
#   bash scripts/reproduce_multi_epoch.sh --dataset=synthetic --scale=smoke     # three minutes: plain, re-init, fal-log
#
# Six settings a method are compared on validation over the first two seeds, the chosen one is run with all. --only takes methods (also
# weight-decay, id-dropout, re-init-rare) and convergence; what was not run is marked so.
#
#   scale   runs  minutes (2 cores)                                               memory   disk
#   smoke     18  3, 20,000 generated rows                                        0.6 GB   20 MB
#   small    180  45 on 80,000 Criteo rows; some 5 hours on a million             0.7 GB   100 MB (each --vocabulary-min-count has its own store)
#   paper    180  five epochs of 45.8 million rows a run: a GPU's days            README, "At full size"
#
# Results: WORK (reproduce_multi_epoch_SET[_SCALE]_output)/*.jsonl, table.md, cells.csv, epochs.png (needs matplotlib); a restart goes on.
set -euo pipefail
export CALLER="$PWD"
cd "$(dirname "$0")/.."
source scripts/env.sh requirements.txt
exec "$PYTHON" scripts/reproduce_multi_epoch.py "$@"
