"""The study of scripts/reproduce_mlet_models.sh, which says how to run it."""

from __future__ import annotations

import sys

from mlet_grid import MODELS
from reproduce_mlet_dlrm import MODEL_GRIDS, read_flags, study


def main() -> int:
    """All models."""
    flags = read_flags(__doc__, MODEL_GRIDS, MODELS)
    return study(flags, MODEL_GRIDS[flags.scale], MODELS)


if __name__ == "__main__":
    sys.exit(main())
