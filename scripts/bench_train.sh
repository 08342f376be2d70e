#!/usr/bin/env bash
# Training speed and memory beside the reference driver (and FBGEMM's kernels), on the same machine, data and flags.
#
#   bash scripts/bench_train.sh ../dlrm                       # everything: about 3 hours on 2 cores, 12 GB of memory, 2 GB of disk
#   bash scripts/bench_train.sh ../dlrm --scale smoke         # see that it works: 1 to 3 minutes
#   bash scripts/bench_train.sh ../dlrm --use-gpu             # both on the first CUDA device
#   bash scripts/bench_train.sh ../dlrm --list                # names of the cells
#   bash scripts/bench_train.sh ../dlrm --only run-2048-sgd step-2048-10hot-sgd --contestants reference ours ours-bf16
#   bash scripts/bench_train.sh ../dlrm --longer 4 -- --num-workers=1         # longer runs; flags behind -- go to both drivers
#
# The reference: git clone https://github.com/facebookresearch/dlrm ../dlrm && git -C ../dlrm checkout 090956e. It needs numpy below 2,
# scikit-learn and tensorboard: REFERENCE_PYTHON names a Python that has them and the same torch. FBGEMM's rows need
# pip install --no-deps fbgemm-gpu-cpu==1.8.0 (for the torch version that it names), the picture pip install matplotlib.
# REPEATS, ROWS (of the generated file), BATCHES (drawn beforehand for a step cell) and WORK (bench_output) may be set.
#
# How: cells run-* time whole processes from outside, a long run minus a short one, so that imports, reading and evaluation cancel.
# Cells step-* time the step alone on batches drawn beforehand, in one process a contestant that take turns; flags behind -- reach our driver
# only there. Every ratio is taken within a repeat; the table shows its median, lowest and highest. Peak memory is of the whole
# process. step-* cells run with OMP_WAIT_POLICY=PASSIVE, since their processes wait side by side. Results: WORK/train.csv and WORK/train.png; a restart goes on where it was
# interrupted (--again measures anew; a cell's rows are replaced together). Exit code 1: a contestant failed, the last column says why.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/env.sh requirements.txt
exec "$PYTHON" scripts/bench_train.py --reference-python "${REFERENCE_PYTHON:-$PYTHON}" --work "${WORK:-bench_output}" \
    --rows "${ROWS:-0}" --repeats "${REPEATS:-0}" --batches "${BATCHES:-0}" "$@"
