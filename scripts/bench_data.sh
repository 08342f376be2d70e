#!/usr/bin/env bash
# Preparing and reading data, measured: rows a second, peak memory, size of the store, beside the reference's own
# preprocessing on the same generated files. Every figure of preparing is a cold run minus a warm one, so that imports and
# model building cancel; the two programs run in turn.
#
#   bash scripts/bench_data.sh                              # ours alone, 1 and 5 million rows: 2 minutes, 3 GB of disk
#   bash scripts/bench_data.sh ../dlrm                      # beside the reference (its part: about 3 minutes a million rows)
#   ROWS="1000000 5000000 20000000" bash scripts/bench_data.sh ../dlrm        # the table of the README: 12 GB of disk
#
# The reference: git clone https://github.com/facebookresearch/dlrm ../dlrm && git -C ../dlrm checkout 090956e. It needs
# numpy below 2, and tensorboard: REFERENCE_PYTHON names a Python that has them (and torch). It is run on the first REFERENCE_ROWS
# (1000000) of those sizes only. WORK names the folder for the generated files and stores (bench_output).
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/env.sh requirements.txt
exec "$PYTHON" scripts/bench_data.py --rows ${ROWS:-1000000 5000000} --work "${WORK:-bench_output}" \
    --reference "${1:-}" --reference-python "${REFERENCE_PYTHON:-$PYTHON}" --reference-rows "${REFERENCE_ROWS:-1000000}" \
    --repeats "${REPEATS:-3}"
