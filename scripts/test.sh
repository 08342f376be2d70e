#!/usr/bin/env bash
# Lint and test. The first call sets up .venv if no environment is active.
#
#   bash scripts/test.sh                       # everything but the slow tests: 5 to 6 minutes on 2 cores
#   bash scripts/test.sh --all                 # the slow ones too: under 40 minutes
#   bash scripts/test.sh tests/mlet -k collapse    # anything else goes to pytest
#
# The whole suite runs in as many processes as there are cores (JOBS=1: in one), what is named in one.
# Tests on real data look for it in $DLRM_MLET_DATA, else ../shared/data, and skip with a reason where it is absent.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/env.sh requirements-dev.txt
if [ "${1:-}" = "--all" ]; then
    shift
    set -- -m "slow or not slow" -n "${JOBS:-auto}" "$@"
elif [ $# -eq 0 ]; then
    set -- -n "${JOBS:-auto}"
fi
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # the models are tiny: threads would only wait for one another
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
exec "$PYTHON" -m pytest "$@"
