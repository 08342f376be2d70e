#!/usr/bin/env bash
# Does MLET help rare items most (arXiv 2309.15881)? Test AUC by how often a row's rarest id occurs in training and by how many rare ids a
# row has: MLET, a fixed random W2 and a single layer with MLET's rate and start, each minus the single layer, paired over seeds.
#
#   bash scripts/reproduce_mlet_rare_items.sh train.txt --jobs 2                               # Criteo Kaggle's format
#   bash scripts/reproduce_mlet_rare_items.sh train.txt --dims 4 --models deepfm dcn-v2        # runs of reproduce_mlet_models.sh will do
#   bash scripts/reproduce_mlet_rare_items.sh ../data/movielens1m --dataset=movielens-1m --models deepfm
#   bash scripts/reproduce_mlet_rare_items.sh --dataset=synthetic --scale=smoke                # two minutes, built-in data
#
# The published claim names no figure. At the common table rate, as the papers compare, and with five rates each to choose from.
#
#   scale   runs  minutes (2 cores)                                memory   disk
#   smoke     20  2, 20,000 generated rows                         0.6 GB   20 MB
#   small    160  8 on 80,000 Criteo rows                          0.8 GB   30 MB + 20 kB a run
#   paper    240  a run 1 to 2 hours at 45.8 million rows on 2 cores: a GPU's days
#
# With --work=FOLDER of reproduce_mlet_dlrm.sh, or of reproduce_mlet_models.sh (models other than dlrm alone), its runs are read and not run again. Results: WORK
# (reproduce_mlet_rare_items_SET[_SCALE]_output)/*.jsonl, rare_items.md, rare_items.csv, rare_items.png (needs matplotlib); a restart goes on where it was interrupted.
set -euo pipefail
export CALLER="$PWD"
cd "$(dirname "$0")/.."
source scripts/env.sh requirements.txt
exec "$PYTHON" scripts/reproduce_mlet_rare_items.py "$@"
