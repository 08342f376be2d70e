"""The study of scripts/controls.sh, which says how to run it.

With the authors' W2 ~ N(0, 0.25^2) a table's effective rate is K/16 of the nominal one and its initial rows are
sqrt(K/16) as wide (papers: arXiv 2006.05623, 2309.15881; the algebra: mlet/analysis.py). So each method gets the same
grid of table rates, and MLET's effects are taken away one by one.
"""

from __future__ import annotations

import sys

from study import AUTHORS_BASE as BASE
from study import Method
from study_flags import data_flags, parse
from study_report import report

INNER_DIM = 64
SCALE = 2  # sqrt(INNER_DIM) * 0.25: how much wider MLET's product starts than a single layer
RATES = tuple(f"--emb-learning-rate-multiplier={rate}" for rate in ("8", "16", "32", "64", "128"))
MLET = f"--mlet-inner-dim={INNER_DIM}"
METHODS = (
    Method("single-tuned", "", RATES),
    Method("single-tuned-wide", f"--emb-init=uniform-{SCALE}", RATES),
    Method("mlet-tuned", MLET, RATES),
    Method("mlet-scaled-tuned", f"{MLET} --mlet-init=scaled", RATES),
    Method("fixed-w2-tuned", f"{MLET} --mlet-w2-rate-multiplier=0", RATES),
    Method("masked-tuned", f"{MLET} --mlet-cross-term=masked", RATES),
    # at one common rate, as the papers compare
    Method("single"),
    Method("mlet", MLET),
    Method("mlet-scaled", f"{MLET} --mlet-init=scaled"),
    Method("matched", f"--emb-init=uniform-{SCALE} --emb-learning-rate-multiplier={SCALE**2}"),
    Method("fixed-w2", f"{MLET} --mlet-w2-rate-multiplier=0"),
    Method("masked", f"{MLET} --mlet-cross-term=masked"),
)


def main() -> int:
    """Run the study on the command line's data."""
    flags = parse(__doc__, "1 2 3 4 5", [method.name for method in METHODS])
    return report(f"{BASE} {data_flags(flags)}", METHODS, flags)


if __name__ == "__main__":
    sys.exit(main())
