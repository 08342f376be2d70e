#!/usr/bin/env bash
# Does MLET keep its gain beside hashing and quantisation (claimed in the OpenReview version of arXiv 2309.15881, without figures)? DLRM,
# d = 8: single layer, MLET and a fixed random W2, with no, four and twenty times fewer rows, served in 32, 16, 8 and 4 bits.
#
#   bash scripts/reproduce_mlet_hash_quant.sh train.txt --jobs 2                               # Criteo Kaggle's format
#   bash scripts/reproduce_mlet_hash_quant.sh train.txt --hashes none modulo-20 --only single mlet-64 --seeds "1 2 3"
#   bash scripts/reproduce_mlet_hash_quant.sh --dataset=synthetic --scale=smoke                # two minutes, built-in data
#
# All are tuned over five table rates, on validation. The chosen model is trained once more, saved, evaluated
# in fewer bits, and removed. With quotient-remainder and mixed-dimension tables: scripts/composition.sh.
#
#   scale   runs  minutes (2 cores)                                memory   disk
#   smoke     10  1, 20,000 generated rows; and 8 short ones       0.6 GB   20 MB and a model
#   small    225  25 on 80,000 Criteo rows; and 180 short ones     0.8 GB   30 MB and a model a job (50 MB with MLET)
#   paper    300  a run 1 to 2 hours at 45.8 million rows on 2 cores: a GPU's days
#
# Results: WORK (reproduce_mlet_hash_quant_SET[_SCALE]_output)/*.jsonl, table.md, cells.csv, bytes.png (needs matplotlib); a restart goes on where it was interrupted.
set -euo pipefail
export CALLER="$PWD"
cd "$(dirname "$0")/.."
source scripts/env.sh requirements.txt
exec "$PYTHON" scripts/reproduce_mlet_hash_quant.py "$@"
