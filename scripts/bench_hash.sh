#!/usr/bin/env bash
# What making an id -> row map costs: seconds and peak memory of hash methods on tables of 1e5, 1e6 and 1e7 ids with a tenth as many
# rows, embeddings of 8 dimensions and Zipf counts, every id seen at least once. Prints a Markdown table.
#
#   bash scripts/bench_hash.sh                                  # 2 to 4 minutes, 2 GB of memory
#   bash scripts/bench_hash.sh --cells 3e7/3e6                  # 5 to 15 minutes, 5 GB
#   bash scripts/bench_hash.sh --cells 1e5/1e4 --methods learned learned-weighted learned-frequency modulo
#
# Every cell is a fresh process, whose peak memory holds the interpreter and the history (embedding and counts) as well: modulo, which
# stores nothing, shows how much that is. Seconds are of the map alone.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/env.sh requirements.txt
exec "$PYTHON" scripts/bench_hash.py "$@"
