"""The study of scripts/composition.sh, which says how to run it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence

from metrics_table import result_of
from study import AUTHORS_BASE as BASE
from study import Method, Outcome, Study, is_done
from study_flags import data_flags, parse
from study_report import report

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


def bits_of(method: Method) -> tuple[int, ...]:
    """What the tables of a method can be stored in after collapse: integers are for plain tables."""
    return (16,) if "--qr-flag" in method.flags or "--md-flag" in method.flags else (16, 8, 4)


def quantized(study: Study, outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The same models with their tables in fewer bits."""
    more = []
    for outcome in outcomes:
        for bits in bits_of(outcome.method):
            method, results = Method(f"{outcome.method.name}-{bits}bit", outcome.method.flags), {}
            for seed in study.seeds:
                path = study.file_of(method, outcome.setting, seed)
                model = study.model_of(outcome.method, outcome.setting, seed) / "last"
                if not is_done(path) and not model.is_dir():  # somebody needed the space: train it again
                    study.file_of(outcome.method, outcome.setting, seed).unlink()
                    study.run(outcome.method, outcome.setting, seed)
                what = f"--load-model={shlex.quote(str(model))} --inference-only --quantize-emb-with-bit={bits}"
                study.run(method, outcome.setting, seed, what)
                results[seed] = result_of(path)
            more.append(Outcome(method, outcome.setting, results))
    return more


def main() -> int:
    """Run the study on the command line's data."""
    flags = parse(__doc__, "1 2 3", [method.name for method in METHODS])
    return report(f"{BASE} {data_flags(flags)}", METHODS, flags, derive=quantized)


if __name__ == "__main__":
    sys.exit(main())
