#!/usr/bin/env bash
# Inference, measured: rows a second of one collapsed model as ONNX file (fp32, 8-bit tables), in torch, and in the
# reference's DLRM_Net, all with the same weights and batches, taking turns. Fails if their scores differ.
#
#   bash scripts/bench_inference.sh                 # ours alone: 90 seconds, 2.5 GB of memory, 0.5 GB of disk
#   bash scripts/bench_inference.sh ../dlrm         # beside the reference, the table of the README: 2 minutes, 3 GB, 0.7 GB
#   ROWS="100 20000 5000" BATCHES="1 256" bash scripts/bench_inference.sh ../dlrm       # your tables and batch sizes
#
# The reference: git clone https://github.com/facebookresearch/dlrm ../dlrm && git -C ../dlrm checkout 090956e. It needs
# numpy below 2, and tensorboard: REFERENCE_PYTHON names a Python that has them (and torch).
# Others: DIM (16), BOTTOM (13-512-256-64-16), TOP (512-256-1), SKEW (1: ids uniform; 3: id = rows * u^3, most lookups hit
# few rows), THREADS (all cores), ROUNDS (7), WORK (bench_output: the files and inference.csv).
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/env.sh requirements.txt
exec "$PYTHON" scripts/bench_inference.py --reference "${1:-}" --reference-python "${REFERENCE_PYTHON:-$PYTHON}" \
    --work "${WORK:-bench_output}" ${ROWS:+--rows $ROWS} --batches ${BATCHES:-1 128 2048 8192} --dim "${DIM:-16}" \
    --bottom "${BOTTOM:-13-512-256-64-16}" --top "${TOP:-512-256-1}" --skew "${SKEW:-1}" \
    --threads "${THREADS:-0}" --rounds "${ROUNDS:-7}"
