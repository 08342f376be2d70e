#!/usr/bin/env bash
# Learned maps to fewer rows against the hashing trick and its rivals (arXiv 2203.15837), over row budgets and seeds.
#
#   bash scripts/reproduce_learned_hash.sh train.txt                                    # Criteo Kaggle's format; 80,000 rows: 375 runs, hours on 2 cores
#   bash scripts/reproduce_learned_hash.sh train.txt --seeds "1 2" --only full modulo frequency learned --jobs 2
#   bash scripts/reproduce_learned_hash.sh --dataset=synthetic                     # built-in planted data, with the best possible map as a ceiling
#   bash scripts/reproduce_learned_hash.sh ../data/movielens1m --dataset=movielens-1m  # and: --dataset=globo
#
# Two comparisons: "later half", all train on the later half of the rows, and history is free for those who learn from it; "all rows",
# rivals train on all rows, while learned maps give up the half that they are learned from. --only takes methods, --budgets compressions.
# Results: WORK (reproduce_learned_hash_SET_output)/*.jsonl, cells.csv, table.md, budgets.png (needs matplotlib); a restart goes on.
set -euo pipefail
export CALLER="$PWD"
cd "$(dirname "$0")/.."
source scripts/env.sh requirements.txt
exec "$PYTHON" scripts/reproduce_learned_hash.py "$@"
