#!/usr/bin/env bash
# MLET on the CTR models of arXiv 2309.15881: every model x width x k, how much narrower at equal AUC, and the average over the models
# (published: 5.8x, at most 16x). Models: dlrm, wide-deep, deepfm, xdeepfm, dcn, dcn-v2, nfm, pnn, pnn-outer, autoint.
#
#   bash scripts/reproduce_mlet_models.sh train.txt --jobs 2                                   # Criteo Kaggle's format
#   bash scripts/reproduce_mlet_models.sh train.txt --models dlrm deepfm --only single mlet-64 --seeds "1 2 3"
#   bash scripts/reproduce_mlet_models.sh ../data/frappe --dataset=frappe --models deepfm      # and movielens-1m, globo, avazu
#   bash scripts/reproduce_mlet_models.sh --dataset=synthetic --scale=smoke --models deepfm    # two minutes, built-in data
#   bash scripts/reproduce_mlet_models.sh train.txt --scale=paper --device=cuda --jobs 4       # 45,840,617 rows
#
# Trained for one epoch, batch 256, with Adam at 0.001; --preset=authors: Adagrad at 0.02, as the authors' last runs, at which models of
# some seeds fail on small data. Frappe and MovieLens-1M in the benchmarks' settings (scripts/model_quality.sh). At the common table rate, and with five table rates each to choose from on validation;
# a fixed random W2 stands beside MLET as its control.
#
#   scale   runs a model  minutes a model (2 cores)              memory   disk
#   smoke     20          2, 20,000 generated rows               0.7 GB   20 MB
#   small    200          12 on 80,000 Criteo rows               0.9 GB   30 MB + 20 kB a run
#   paper    450          a run hours at 45.8 million rows on 2 cores: a GPU's days
#
# Results: WORK (reproduce_mlet_models_SET[_SCALE]_output)/*.jsonl, table.md, cells.csv, widths.png (needs matplotlib). A restart goes on where it was
# interrupted, and cells that were not run are marked so.
set -euo pipefail
export CALLER="$PWD"
cd "$(dirname "$0")/.."
source scripts/env.sh requirements.txt
exec "$PYTHON" scripts/reproduce_mlet_models.py "$@"
