#!/usr/bin/env bash
# How the cost of a training step grows: time and peak memory against rows per table (1e4 to 3e7), tables (8 to 200), d, k,
# ids a bag and batch, one at a time from a base of 26 tables of 1e5 rows, d = 16, one-hot, batch 2048, with a single layer
# and with MLET (k = 64). The factor rows has 4 tables (--rows-tables). Points that do not fit into memory are skipped and say so.
#
#   bash scripts/bench_growth.sh                              # 64 points, 3 rounds: about 40 minutes on 2 cores, memory as available
#   bash scripts/bench_growth.sh --scale smoke                # see that it works: 1 to 3 minutes
#   bash scripts/bench_growth.sh --factors rows batch --optimizer rwsadagrad -- --precision=bf16
#
# Every point is a fresh process in every round (its steps alone, on Zipf ids drawn beforehand). Results: WORK/growth.csv (a row a
# point and round), WORK/growth.png (pip install matplotlib); a restart goes on where it was interrupted. WORK (bench_output) and REPEATS
# may be set. The disk holds one set of batches at a time: at most 100 MB.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/env.sh requirements.txt
exec "$PYTHON" scripts/bench_growth.py --work "${WORK:-bench_output}" --repeats "${REPEATS:-0}" "$@"
