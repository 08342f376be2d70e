#!/usr/bin/env bash
# The whole path on built-in data: generate -> train single-layer and MLET at the same d -> collapse -> export to
# ONNX -> check in onnxruntime -> one small table. Under 3 minutes of training on 2 cores, 1 GB of memory, 200 MB of
# disk in demo_output/ and .dlrm_store/. The first call sets up .venv if no environment is active.
#
#   bash scripts/demo.sh                         # as it is
#   ROWS=100000 bash scripts/demo.sh             # less data
#   bash scripts/demo.sh --learning-rate=0.02    # further flags go to both runs
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/env.sh requirements.txt
mkdir -p demo_output

train() {
    local name="$1"
    shift
    echo "== $name"
    "$PYTHON" dlrm_mlet.py --data-generation=dataset --data-set=criteo-synthetic --synthetic-rows="${ROWS:-400000}" \
        --arch-sparse-feature-size=8 --arch-mlp-bot=13-128-32-8 --arch-mlp-top=128-64-1 \
        --loss-function=bce --optimizer=adagrad --learning-rate=0.03 --mini-batch-size=128 --test-mini-batch-size=4096 \
        --print-freq=500 --print-time --num-workers=1 \
        --save-collapsed="demo_output/$name.safetensors" --save-onnx="demo_output/$name.onnx" \
        --metrics-file="demo_output/$name.jsonl" "$@"
}

train single-layer "$@"
train mlet --mlet-inner-dim=64 "$@"
"$PYTHON" scripts/metrics_table.py demo_output/single-layer.jsonl demo_output/mlet.jsonl
