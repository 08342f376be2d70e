#!/usr/bin/env bash
# Plain (single-layer) quality of every model on Frappe and MovieLens-1M, in the benchmarks' kind of settings: width 10, MLP
# 400-400-400, Adam, batch normalisation, dropout, L2 on embeddings, early stop on validation AUC.
#
#   bash scripts/model_quality.sh ../data/frappe --dataset=frappe                                #  10 models, 3 seeds: about an hour on 2 cores, MovieLens-1M two
#   bash scripts/model_quality.sh ../data/frappe --dataset=frappe --scale=smoke --only deepfm    #  one epoch: does it work here?
#   bash scripts/model_quality.sh ../data/movielens1m --dataset=movielens-1m --only deepfm dcn-v2 --seeds "1 2"
#   bash scripts/model_quality.sh ../data/frappe --dataset=frappe -- --mlet-inner-dim=64         #  the same with MLET (name another WORK)
#
# Results: WORK (model_quality_SET[_SCALE]_output)/*.jsonl and table.md; test metrics at the best validation AUC. A restart goes on where it was interrupted.
set -euo pipefail
export CALLER="$PWD"
cd "$(dirname "$0")/.."
source scripts/env.sh requirements.txt
exec "$PYTHON" scripts/model_quality.py "$@"
