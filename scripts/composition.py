"""The study of scripts/composition.sh, which says how to run it."""

from __future__ import annotations

import sys

from quantized_runs import quantized
from study import AUTHORS_BASE as BASE
from study import Method
from study_flags import data_flags, parse
from study_report import report

MLET = "--mlet-inner-dim=64"
RATES = (16, 64, 128)  # of single layers; W2 multiplies MLET's by K/16
QR = "--qr-flag --qr-collisions=4 --qr-operation="
TRICKS = {
    "d8": "",
    "d4": "--arch-sparse-feature-size=4 --arch-mlp-bot=13-256-64-4",
    "d2": "--arch-sparse-feature-size=2 --arch-mlp-bot=13-256-64-2",
    "qr-mult": f"{QR}mult",
    "qr-add": f"{QR}add",
    "qr-concat": f"{QR}concat --arch-sparse-feature-size=4",  # two parts of width 4 side by side
    "md": "--md-flag",
}
METHODS = tuple(
    Method(name + suffix, f"{flags} {mlet}", tuple(f"--emb-learning-rate-multiplier={r // lift}" for r in RATES))
    for name, flags in TRICKS.items()
    for suffix, mlet, lift in (("", "", 1), ("-mlet", MLET, 4))
)


def main() -> int:
    """Run the study on the command line's data."""
    flags = parse(__doc__, "1 2 3", [method.name for method in METHODS])
    return report(f"{BASE} {data_flags(flags)}", METHODS, flags, derive=quantized)


if __name__ == "__main__":
    sys.exit(main())
