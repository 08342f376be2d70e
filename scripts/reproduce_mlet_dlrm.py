"""The study of scripts/reproduce_mlet_dlrm.sh, which says how to run it."""

from __future__ import annotations

import sys

from mlet_grid import COMMON
from mlet_study import read_flags, run, widths_report

# recipe -> widths, by scale
GRIDS = {
    "smoke": {"single": (2, 4, 8), "mlet-64": (2,)},
    "small": {
        "single": (2, 4, 8, 16, 32, 64),
        "mlet-64": (2, 4, 8, 16),
        "mlet-128": (2, 4, 8, 16),
        "fixed-w2-64": (2, 4, 8, 16),
        "matched-64": (2, 4, 8, 16),
        "masked-64": (8,),
    },
    "paper": {
        "single": (4, 8, 16, 32, 64, 128),
        "mlet-32": (4, 8, 16),
        "mlet-64": (4, 8, 16, 32),
        "mlet-128": (4, 8, 16, 32, 64),
        "fixed-w2-64": (4, 8, 16, 32),
        "matched-64": (4, 8, 16, 32),
        "masked-64": (8,),
    },
}
AT = {"matched-64": (COMMON,), "masked-64": (COMMON,)}  # controls of the common rate


def main() -> int:
    """DLRM alone."""
    flags = read_flags(__doc__, GRIDS, ["dlrm"])
    return run(flags, GRIDS[flags.scale], ["dlrm"], AT, widths_report)


if __name__ == "__main__":
    sys.exit(main())
