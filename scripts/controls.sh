#!/usr/bin/env bash
# What is MLET's gain made of? A single layer and MLET, both tuned, and MLET with one effect after another taken away:
# rate and start (matched, scaled), the learning of W2 (fixed-w2), the cross-category term (masked).
#
#   bash scripts/controls.sh train.txt                                 # Criteo format: 36 runs a seed; 80,000 rows: 40 minutes on 2 cores
#   bash scripts/controls.sh train.txt --only single-tuned mlet-tuned --seeds "1 2 3"
#   bash scripts/controls.sh train.txt -- --optimizer=adam --learning-rate=0.001 --mini-batch-size=512
#   bash scripts/controls.sh --dataset=synthetic                       # the built-in planted data
#   bash scripts/controls.sh train.txt --jobs 2 -- --frequency-report  # two runs at a time, a thread each; then scripts/rare_items.sh
#
# Each -tuned method picks the table rate with the best mean validation AUC out of the same five; the others share one rate, as
# the papers compare. Results: WORK (controls_SET[_SCALE]_output)/*.jsonl and table.md; a restart goes on where it was interrupted.
set -euo pipefail
export CALLER="$PWD"
cd "$(dirname "$0")/.."
source scripts/env.sh requirements.txt
exec "$PYTHON" scripts/controls.py "$@"
