#!/usr/bin/env bash
# Rare items: test AUC and logloss by decile of how often a row's rarest id occurs in the training rows, and by how many rare ids
# a row has, single-layer against MLET, paired over seeds, each difference with its 95 % interval; with --tables by each table's id too.
#
# Runs first (--frequency-report makes them write the figures; the same data and seeds for both models, any other flags):
#
#   for seed in 1 2 3 4 5; do
#       flags="--data-generation=dataset --data-set=criteo-synthetic --arch-sparse-feature-size=8 --arch-mlp-bot=13-128-32-8
#           --arch-mlp-top=128-64-1 --loss-function=bce --optimizer=adagrad --learning-rate=0.03 --mini-batch-size=128
#           --test-mini-batch-size=4096 --print-freq=1000 --numpy-rand-seed=$seed --frequency-report"
#       python dlrm_mlet.py $flags --metrics-file=single-$seed.jsonl
#       python dlrm_mlet.py $flags --metrics-file=mlet-$seed.jsonl --mlet-inner-dim=64
#   done
#
# Then (seconds; files are looked for from the current folder):
#
#   bash scripts/rare_items.sh single-*.jsonl --against mlet-*.jsonl                 # MLET minus single-layer
#   bash scripts/rare_items.sh single-*.jsonl --against mlet-*.jsonl --tables --csv rare.csv --png rare.png
#
# The picture needs pip install matplotlib. Exit code 2: the runs cannot be compared, one line says why.
set -euo pipefail
here="$PWD"
cd "$(dirname "$0")/.."
source scripts/env.sh requirements.txt
script="$PWD/scripts/rare_items.py"
cd "$here"
exec "$PYTHON" "$script" "$@"
