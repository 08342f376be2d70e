#!/usr/bin/env bash
# What training made of a run's tables, and what a step does to them: pictures and a short report from a checkpoint.
#
#   python dlrm_mlet.py ... --mlet-inner-dim=64 --save-model=run --metrics-file=run.jsonl --spectra   # the run
#   bash scripts/analyse.sh run                              # its state when it ended: run/analysis/report.md and pictures
#   bash scripts/analyse.sh run/best --batches 100           # the best state; 100 training batches in place of 20
#   bash scripts/analyse.sh run --metrics-file run.jsonl --out pictures      # another file of --spectra; where to write
#   bash scripts/analyse.sh run --store /data/store          # the prepared data, if it has moved since
#
# Paths are relative to the current folder, as for the driver: call it where the run was started. The run's prepared store
# must be there, the raw data need not. Pictures need pip install matplotlib; without it the report has numbers only.
# Memory: the tables as trained plus as collapsed; no optimizer state. Time: seconds, and for large tables one pass over them.
# Results: OUT/report.md, report.json (all numbers), spectra.png, outside.png, law.png, trajectories.png.
set -euo pipefail
here="$PWD"
cd "$(dirname "$0")/.."
root="$PWD"
source scripts/env.sh requirements.txt
cd "$here"
exec "$PYTHON" "$root/scripts/analyse.py" "$@"
