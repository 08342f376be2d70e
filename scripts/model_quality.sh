#!/usr/bin/env bash
# Plain (single-layer) quality of every model on Frappe and MovieLens-1M, in the benchmarks' kind of settings: width 10, MLP
# 400-400-400, Adam, batch normalisation, dropout, L2 on embeddings, early stop on validation AUC.
#
#   bash scripts/model_quality.sh frappe ../data/frappe                                    # 10 models, 3 seeds: about an hour on 2 cores
#   bash scripts/model_quality.sh movielens-1m ../data/movielens1m --only deepfm dcn-v2 --seeds "1 2"
#   bash scripts/model_quality.sh frappe ../data/frappe -- --mlet-inner-dim=64             # the same with MLET (name another WORK)
#
# Results: WORK (frappe_output, movielens-1m_output)/*.jsonl and table.md; test metrics at the best validation AUC. A restart goes on where it was interrupted.
set -euo pipefail
export CALLER="$PWD"
cd "$(dirname "$0")/.."
source scripts/env.sh requirements.txt
set_name="${1:---help}"
[ $# -eq 0 ] || shift
exec "$PYTHON" scripts/model_quality.py "$set_name" --work "${WORK:-${set_name}_output}" "$@"
