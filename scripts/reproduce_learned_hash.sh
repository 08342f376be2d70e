#!/usr/bin/env bash
# Learned maps to fewer rows against the hashing trick and its rivals (arXiv 2203.15837), over row budgets and seeds.
#
#   bash scripts/reproduce_learned_hash.sh train.txt --jobs 2                       # Criteo Kaggle's format
#   bash scripts/reproduce_learned_hash.sh train.txt --seeds "1 2" --budgets 10 100 --only full modulo frequency learned
#   bash scripts/reproduce_learned_hash.sh --dataset=synthetic                      # built-in planted data, with the best possible map as a ceiling
#   bash scripts/reproduce_learned_hash.sh ../data/movielens1m --dataset=movielens-1m     # and globo
#   bash scripts/reproduce_learned_hash.sh --dataset=synthetic --scale=smoke        # two minutes
#
# Two comparisons: "later half", all train on the later half of the rows, and history is free for those who learn from it; "all rows",
# rivals train on all rows, while learned maps give up the half that they are learned from. --only takes methods, --budgets compressions.
#
#   scale   runs  minutes (2 cores)                                               memory   disk
#   smoke     20  2, one budget, 20,000 generated rows                            0.6 GB   20 MB
#   small    370  50 on 80,000 Criteo rows; some 5 hours on a million             0.8 GB   30 MB + 10 kB a run
#   paper    370  a run 0.5 to 2 hours at 45.8 million rows: a GPU's days         README, "At full size"
#
# Results: WORK (reproduce_learned_hash_SET[_SCALE]_output)/*.jsonl, cells.csv, table.md, budgets.png (needs matplotlib); a restart goes on.
set -euo pipefail
export CALLER="$PWD"
cd "$(dirname "$0")/.."
source scripts/env.sh requirements.txt
exec "$PYTHON" scripts/reproduce_learned_hash.py "$@"
