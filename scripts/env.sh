# Sourced by the other scripts: makes $PYTHON one that has the requirements.
#   - an active environment (venv or conda) is used as it is, and told what it lacks;
#   - otherwise .venv is made beside this checkout and filled with pip. pip's own settings (PIP_INDEX_URL,
#     PIP_EXTRA_INDEX_URL, pip.conf) choose the CPU or the CUDA build of torch.
# Usage: source scripts/env.sh [requirements file]

requirements="${1:-requirements.txt}"
if [ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]; then
    PYTHON="$(command -v python || command -v python3)"
    "$PYTHON" - "$requirements" <<'CHECK' || exit 2
import importlib.metadata as metadata
import sys

missing = []
pending = [sys.argv[1]]
while pending:
    for line in open(pending.pop(), encoding="utf-8"):
        line = line.split("#")[0].strip()
        if line.startswith("-r"):
            pending.append(line[2:].strip())
        elif line:
            try:
                metadata.version(line.split("==")[0])
            except metadata.PackageNotFoundError:
                missing.append(line)
if missing:
    sys.exit(f"error: the active environment lacks {', '.join(missing)}: pip install -r {sys.argv[1]}")
CHECK
else
    base="$(command -v python3 || command -v python)"
    "$base" -c 'import sys; sys.exit("error: Python 3.11 or later is needed" if sys.version_info < (3, 11) else 0)' || exit 2
    stamp=".venv/.installed-$(cat requirements.txt "$requirements" | cksum | cut -d' ' -f1)"
    if [ ! -e "$stamp" ]; then
        echo "Setting up .venv (once) ..." >&2
        "$base" -m venv .venv && .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$requirements" || exit 2
        touch "$stamp"
    fi
    PYTHON="$PWD/.venv/bin/python"
fi
