"""The study of scripts/reproduce_mlet_models.sh, which says how to run it."""

from __future__ import annotations

import sys

from mlet_grid import MODELS
from mlet_study import read_flags, run, widths_report

# recipe -> widths, by scale
GRIDS = {
    "smoke": {"single": (2, 4, 8), "mlet-64": (2,)},
    "small": {"single": (2, 4, 16, 64), "mlet-64": (2, 4), "fixed-w2-64": (2, 4)},
    "paper": {
        "single": (4, 8, 16, 32, 64, 128),
        "mlet-32": (4, 8, 16),
        "mlet-64": (4, 8, 16),
        "mlet-128": (4, 8, 16),
        "fixed-w2-64": (4, 8, 16),
    },
}


def main() -> int:
    """All models."""
    flags = read_flags(__doc__, GRIDS, MODELS)
    return run(flags, GRIDS[flags.scale], MODELS, {}, widths_report)


if __name__ == "__main__":
    sys.exit(main())
