"""The study of scripts/composition.sh, which says how to run it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from metrics_table import result_of
from study import Method, Outcome, model_folder, parse, report, run_file, run_one

RATES = tuple(f"--emb-learning-rate-multiplier={rate}" for rate in ("2", "8"))
MLET = "--mlet-inner-dim=64"
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
    Method(name + suffix, f"{flags} {mlet}", RATES)
    for name, flags in TRICKS.items()
    for suffix, mlet in (("", ""), ("-mlet", MLET))
)
BASE = (
    "--data-generation=dataset --arch-sparse-feature-size=8 --arch-mlp-bot=13-256-64-8 --arch-mlp-top=512-256-1 "
    "--loss-function=bce --learning-rate=0.2 --mini-batch-size=128 --test-mini-batch-size=4096 --print-freq=1000000"
)


def bits_of(method: Method) -> tuple[int, ...]:
    """What the tables of a method can be stored in after collapse: integers are for plain tables."""
    return (16,) if "--qr-flag" in method.flags or "--md-flag" in method.flags else (16, 8, 4)


def quantized(every: str, outcomes: Sequence[Outcome], flags: argparse.Namespace) -> list[Outcome]:
    """The same models with their tables in fewer bits."""
    more = []
    for outcome in outcomes:
        for bits in bits_of(outcome.method):
            method, results = Method(f"{outcome.method.name}-{bits}bit", outcome.method.flags), {}
            for seed in flags.seeds:
                model = model_folder(run_file(flags.work, outcome.method, outcome.setting, seed)) / "last"
                path = run_file(flags.work, method, outcome.setting, seed)
                what = f"--load-model={model} --inference-only --quantize-emb-with-bit={bits} --numpy-rand-seed={seed}"
                run_one(path, f"{every} {method.flags} {outcome.setting} {what}", threads=1)
                results[seed] = result_of(path)
            more.append(Outcome(method, outcome.setting, results))
    return more


def main() -> int:
    """Run the study on the command line's data."""
    flags = parse(__doc__, "1 2 3", [method.name for method in METHODS])
    data = f"--data-set=kaggle --raw-data-file={flags.data}" if flags.data else "--data-set=criteo-synthetic"
    return report(f"{BASE} {data}", METHODS, flags, derive=quantized)


if __name__ == "__main__":
    sys.exit(main())
