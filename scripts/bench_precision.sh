#!/usr/bin/env bash
# What bf16 costs in quality: test AUC, logloss and NE of runs in fp32 and in bf16, the same seeds, paired.
#
#   bash scripts/bench_precision.sh                     # synthetic rows: about 1 hour on 2 cores without bf16 arithmetic, 2 GB of memory
#   bash scripts/bench_precision.sh train.txt           # a file in the Criteo format
#   ROWS=2000000 BATCH=2048 RATE=0.1 SEEDS="1 2 3 4 5" FLAGS=--precision=bf16 bash scripts/bench_precision.sh [train.txt]
#
# FLAGS is what the second runs have more (also --emb-precision=bf16, or --compile), MORE what both have. Runs that are
# done are not run again. Results: WORK (precision_output)/*.jsonl.
set -euo pipefail
raw="${1:-}"
[ -z "$raw" ] || raw="$(realpath "$raw")"
cd "$(dirname "$0")/.."
source scripts/env.sh requirements.txt
work="${WORK:-precision_output}"
flags="${FLAGS:---precision=bf16}"
mkdir -p "$work"
data="--data-set=criteo-synthetic --synthetic-rows=${ROWS:-2000000}"
[ -z "$raw" ] || data="--data-set=kaggle --raw-data-file=$raw"
for seed in ${SEEDS:-1 2 3 4 5}; do
    for name in fp32 other; do
        out="$work/$name-$seed.jsonl"
        if [ -f "$out" ] && grep -q '"event": "result"' "$out"; then continue; fi
        # shellcheck disable=SC2046,SC2086 (flags are words)
        "$PYTHON" dlrm_mlet.py --data-generation=dataset $data --processed-data-file="$work/store" --arch-sparse-feature-size=16 \
            --arch-mlp-bot=13-512-256-64-16 --arch-mlp-top=512-256-1 --loss-function=bce --learning-rate="${RATE:-0.1}" \
            --mini-batch-size="${BATCH:-2048}" --test-mini-batch-size=16384 --print-freq=1000000 --numpy-rand-seed="$seed" \
            --metrics-file="$out" ${MORE:-} $([ $name = fp32 ] || echo $flags) > /dev/null
        echo "$out"
    done
done
"$PYTHON" scripts/paired_difference.py "$work"/fp32-*.jsonl --against "$work"/other-*.jsonl
