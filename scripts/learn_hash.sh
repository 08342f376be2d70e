#!/usr/bin/env bash
# Learn maps to fewer rows from the first part of the training rows, then train on the rest with them: two stages, one file between.
#
#   bash scripts/learn_hash.sh maps.safetensors <flags of the run>
#   bash scripts/learn_hash.sh maps.safetensors --data-generation=dataset --raw-data-file=train.txt --arch-sparse-feature-size=8 \
#       --arch-mlp-bot=13-256-64-8 --arch-mlp-top=512-256-1 --loss-function=bce --optimizer=adam --learning-rate=0.001 \
#       --emb-learning-rate-multiplier=10 --mini-batch-size=512 --print-freq=1000 --hash-compression=100 --save-onnx=model.onnx
#
# With older days in a file of their own, the maps are learned from that one, and the model is trained on all rows of train.txt:
#   bash scripts/learn_hash.sh maps.safetensors <flags as above> --hash-history-file=older_days.txt     # no row of it may be in train.txt
#
# Without --hash-method the method is `learned`. A maps file that is there is used as it is: the second stage can be repeated with other
# models, rates and seeds. The driver alone does the same in one go (--hash-method=learned --hash-map-file=maps.safetensors ...).
set -euo pipefail
here="$PWD"
cd "$(dirname "$0")/.."
source scripts/env.sh requirements.txt
driver="$PWD/dlrm_mlet.py"
cd "$here"
if [ "${1:-}" = "--help" ] || [ "${1:-}" = "-h" ]; then
    sed -n '2,/^set/p' "$(dirname "$driver")/scripts/learn_hash.sh" | grep '^#'
    exit 0
fi
if [ $# -lt 2 ] || [ "${1#-}" != "$1" ]; then
    echo "error: first a file for the maps, then the flags of the run" >&2
    exit 2
fi
maps="$1"
shift
method="--hash-method=learned"
for flag in "$@"; do
    case "$flag" in --hash-method | --hash-method=*) method="" ;; esac
done
if [ ! -e "$maps" ]; then
    "$PYTHON" "$driver" $method "$@" --hash-map-file="$maps" --hash-learn-only --hash-report
fi
"$PYTHON" "$driver" $method "$@" --hash-map-file="$maps"
