#!/usr/bin/env bash
# MLET on DLRM (arXiv 2006.05623): AUC, logloss and accuracy against the width d of single layers and of MLET; how much narrower MLET is
# at equal AUC (published: 4x to 8x on Criteo Kaggle and Avazu, 40 million rows); its training time (published: +25 %).
#
#   bash scripts/reproduce_mlet_dlrm.sh train.txt --jobs 2                                    # Criteo Kaggle's format
#   bash scripts/reproduce_mlet_dlrm.sh avazu.csv --dataset=avazu --preset=authors            # their constant hour, their choice of epoch
#   bash scripts/reproduce_mlet_dlrm.sh --dataset=synthetic --scale=smoke                     # two minutes, built-in data
#   bash scripts/reproduce_mlet_dlrm.sh train.txt --dims 4 8 16 --only single mlet-64 --rates tuned --seeds "1 2 3" -- --precision=bf16
#   bash scripts/reproduce_mlet_dlrm.sh train.txt --scale=paper --device=cuda --jobs 4        # 45,840,617 rows
#
# Sets: criteo, synthetic, avazu, movielens-1m, frappe, globo (the folders: README, "Data sets"). Every cell is run at the common table rate, as the papers
# compare, and tuned: single layer and MLET choose from five rates each, on validation. Beside MLET: a fixed
# random W2, a single layer with MLET's rate and start (matched), and W2 trained without the cross-category term (masked).
#
#   scale   runs  minutes (2 cores)                       memory   disk
#   smoke     20  2, 20,000 generated rows                0.6 GB   20 MB
#   small    475  50 on 80,000 Criteo rows; 10 times as long on a million
#                                                         0.8 GB   30 MB + 20 kB a run
#   paper    675  a run 1 to 2 hours at 45.8 million rows on 2 cores: a GPU's days
#                                                         see README, "At full size"
#
# Results: WORK (reproduce_mlet_dlrm_SET[_SCALE]_output)/*.jsonl, table.md, cells.csv, widths.png (needs matplotlib). A restart goes on where it was
# interrupted, and cells that were not run are marked so.
set -euo pipefail
export CALLER="$PWD"
cd "$(dirname "$0")/.."
source scripts/env.sh requirements.txt
exec "$PYTHON" scripts/reproduce_mlet_dlrm.py "$@"
