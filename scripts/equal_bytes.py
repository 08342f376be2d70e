"""The study of scripts/equal_bytes.sh, which says how to run it."""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlet_tables import chosen_rate
from quantized_runs import quantized
from study import AUTHORS_BASE, Method, Outcome
from study_flags import DATA_SETS, absent_of, data_flags, parse
from study_pictures import picture
from study_report import difference, gap, run_study, spread
from study_widen import RATE

RATES = tuple(f"{RATE}={rate}" for rate in (2, 5, 10, 20))
MLET_RATES = tuple(f"{RATE}={rate}" for rate in (0.3, 0.8, 2, 5))  # lower: W2 multiplies them, see mlet_grid.py
REFERENCE = "single.64"
SETS = ("criteo", "synthetic", "movielens-1m", "globo")
MARGIN = 0.001  # of AUC: below it a loss is called none
BASE = f"{AUTHORS_BASE} --optimizer=adam --learning-rate=0.001 --mini-batch-size=512"
PARTS = {
    "single": "",
    "linear": "--arch-mlp-bot-end=linear",
    "mlet": "--mlet-inner-dim=64",
    "fixed": "--mlet-inner-dim=64 --mlet-w2-rate-multiplier=0",  # MLET's control: a W2 that never learns
    "matched": "--emb-init=uniform-2",  # a control, too: a single layer that starts as wide as MLET, sqrt(64 / 16)
    "reinit": "--emb-reinit=epoch --nepochs=5",
    "modulo": "--hash-method=modulo --hash-compression=10",
    "frequency": "--hash-method=frequency --hash-compression=10",
    "learned": "--hash-method=learned --hash-compression=10 --hash-history=0.5",
}
CONTROLS = {"fixed": "with a random W2", "matched": "with MLET's start"}
ALL_ROWS = " --hash-history=0"
# recipe -> widths
RECIPES = {
    "single": (64, 16, 4, 2),
    "linear": (64, 16, 4, 2),
    "mlet": (4, 2),
    "reinit": (64, 4, 2),
    "modulo": (4,),
    "frequency": (4,),
    "learned": (4,),
    "mlet+reinit": (4, 2),
    "reinit+modulo": (4, 2),
    "reinit+frequency": (4,),
    "mlet+reinit+modulo": (4, 2),
    "linear+mlet": (4, 2),
    "linear+mlet+reinit": (4, 2),
    "fixed+reinit": (4,),
    "linear+fixed+reinit": (4,),
    "matched+reinit": (4,),
    "linear+matched+reinit": (4,),
    "linear+reinit": (4, 2),
    "linear+reinit+modulo": (4, 2),
}
GRIDS = {"smoke": {"single": (64, 4), "reinit+modulo": (4,)}, "small": RECIPES, "paper": RECIPES}


def methods_of(scale: str, only: Sequence[str], dense: int, dims: Sequence[int] = ()) -> list[Method]:
    """A method a recipe and width, of `dims` where they are given; the reference is always there."""
    return [
        Method(f"{recipe}.{dim}", flags_of(recipe, dim, dense), MLET_RATES if has_w2(recipe) else RATES)
        for recipe, widths in GRIDS[scale].items()
        for dim in widths
        if (recipe in only and (not dims or dim in dims)) or f"{recipe}.{dim}" == REFERENCE
    ]


def has_w2(recipe: str) -> bool:
    """Whether its tables are products."""
    return bool({"mlet", "fixed"} & set(recipe.split("+")))


def flags_of(recipe: str, dim: int, dense: int) -> str:
    """The driver's flags of a recipe: its parts' together. A map that needs no label is fitted to all rows."""
    parts = recipe.split("+")
    text = " ".join(PARTS[part] for part in parts).strip()
    text += ALL_ROWS if {"modulo", "frequency"} & set(parts) else ""
    width = f"--arch-sparse-feature-size={dim}" + (f" --arch-mlp-bot={dense}-256-64-{dim}" if dense else "")
    return f"{width} {text}".strip()


def bytes_of(outcome: Outcome) -> int:
    """Of the served model, maps included; the smallest over the seeds and the largest hardly differ."""
    return round(statistics.median(result["inference_bytes"] for result in outcome.results.values()))


def tables_of(outcomes: Sequence[Outcome]) -> str:
    """All, the largest first, with their difference to the reference; and the line of those that lose nothing."""
    reference = reference_of(outcomes)
    lines = [f"| recipe | bits | rate x | AUC | minus {REFERENCE} (95 %) | MB | times smaller |", "|" + "---|" * 7]
    for outcome in sorted(outcomes, key=bytes_of, reverse=True):
        name, bits = names_of(outcome)
        cells = [name, bits, chosen_rate(outcome), spread(outcome.values("auc"))]
        cells += [difference(reference, outcome) if reference else "", f"{bytes_of(outcome) / 1e6:.2f}"]
        cells += [f"{bytes_of(reference) / bytes_of(outcome):.1f}" if reference else ""]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def mlet_table(outcomes: Sequence[Outcome]) -> str:
    """What MLET adds to a recipe, in 32 bits, beside what its controls add; nothing if it was not run."""
    of_name = {each.method.name: each for each in outcomes if names_of(each)[1] == "32"}
    head = ["recipe", "without MLET", "with", "difference (95 %)", *(f"{text} (95 %)" for text in CONTROLS.values())]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for name, outcome in of_name.items():
        recipe, _, dim = name.partition(".")
        parts = [part for part in recipe.split("+") if part != "mlet"] or ["single"]
        plain = of_name.get(f"{'+'.join(parts)}.{dim}")
        if "mlet" in recipe and plain:
            controls = [of_name.get(name.replace("mlet", control)) for control in CONTROLS]
            cells = [f"{'+'.join(parts)}.{dim}", *(spread(each.values("auc")) for each in (plain, outcome))]
            cells += [difference(plain, each) if each else "" for each in (outcome, *controls)]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(["### What MLET adds", "", *lines]) if len(lines) > 2 else ""


def reference_of(outcomes: Sequence[Outcome]) -> Outcome | None:
    """The single layer that all are compared with; none where its runs failed."""
    return next((outcome for outcome in outcomes if outcome.method.name == REFERENCE), None)


def names_of(outcome: Outcome) -> tuple[str, str]:
    """Recipe with its width, bits."""
    name, _, bits = outcome.method.name.partition("-")
    return name, bits.removesuffix("bit") or "32"


def verdict(outcomes: Sequence[Outcome]) -> str:
    """The smallest model that is not worse than the reference: on the mean, and for certain."""
    reference = reference_of(outcomes)
    if reference is None:
        return f"How small can a model of equal AUC be? {REFERENCE}, which says what is equal, was not trained."
    if len(reference.results) < 2:
        return "How small can a model of equal AUC be? One seed says nothing about that."

    def smallest(is_good) -> str:  # noqa: ANN001
        good = [each for each in outcomes if is_good(*interval_of(reference, each))]
        if not good:
            return "none"
        best = min(good, key=bytes_of)
        factor = bytes_of(reference) / bytes_of(best)
        return f"{' in '.join(names_of(best))} bits, {bytes_of(best) / 1e6:.2f} MB, {factor:.1f} times smaller"

    on_average = smallest(lambda mean, low, high: mean >= 0)
    certain = smallest(lambda mean, low, high: low >= -MARGIN)
    plain = [each for each in outcomes if names_of(each)[0].startswith("single.")]
    size = f"{bytes_of(reference) / 1e6:.2f} MB"
    return (
        f"How small can a model of the AUC of a tuned single layer of d = 64 be ({size})? Smallest with no lower mean: "
        f"{on_average}. Smallest whose interval excludes a loss of {MARGIN}: {certain}. Single layers in any width and "
        f"bits alone: {min_of(plain, reference)}."
    )


def min_of(outcomes: Sequence[Outcome], reference: Outcome) -> str:
    """The smallest of these with no lower mean than the reference."""
    best = min((each for each in outcomes if interval_of(reference, each)[0] >= 0), key=bytes_of)
    return f"{' in '.join(names_of(best))} bits, {bytes_of(reference) / bytes_of(best):.1f} times smaller"


def interval_of(reference: Outcome, other: Outcome) -> tuple[float, float, float]:
    """Mean of the paired differences in AUC and the ends of its interval."""
    return (0.0, 0.0, 0.0) if other is reference else gap(reference, other)


def write_cells(outcomes: Sequence[Outcome], path: Path) -> None:
    """All numbers, a line a recipe, width and bits."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["recipe", "bits", "setting", "seeds", "auc", "auc_std", "logloss", "inference_bytes"])
        for each in outcomes:
            aucs = each.values("auc")
            numbers = [
                statistics.mean(aucs),
                statistics.stdev(aucs) if len(aucs) > 1 else "",
                statistics.mean(each.values("logloss")),
            ]
            writer.writerow([*names_of(each), each.setting, len(aucs), *numbers, bytes_of(each)])


def draw(outcomes: Sequence[Outcome], path: Path) -> str:
    """AUC against bytes, a line a recipe and width over its bits; returns what was drawn, or why not."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for each in outcomes:
        point = (bytes_of(each) / 1e6, statistics.mean(each.values("auc")))
        lines.setdefault(names_of(each)[0], []).append(point)
    reference = reference_of(outcomes)

    def on(axes: Any) -> None:
        axis = axes[0, 0]
        for number, (name, points) in enumerate(lines.items()):
            style = {"linestyle": "--" if name.startswith("single") else "-", "marker": "os^Dv"[number % 5]}
            axis.plot(*zip(*sorted(points), strict=True), color=f"C{number % 10}", label=name, **style)
        if reference:
            axis.axhline(statistics.mean(reference.values("auc")), color="gray", linewidth=1)
        what = "inference MB, maps included (each recipe in 32, 16, 8 and 4 bits)"
        axis.set(xscale="log", xlabel=what, ylabel="test AUC")
        axis.legend(fontsize=7, ncols=2)
        axis.grid(alpha=0.3)

    return picture(path, on, figsize=(9, 5))


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The study's own arguments."""
    every = sorted({dim for dims in RECIPES.values() for dim in dims})
    parser.add_argument("--dims", nargs="+", type=int, choices=every, default=[], help="of the widths, these only")
    parser.add_argument(
        "--in-32-bits", action="store_true", help="no evaluations in fewer bits: two thirds of the time"
    )


def main() -> int:
    """Run the study on the command line's data."""
    flags = parse(__doc__, "1 2 3 4 5", list(RECIPES), data_sets=SETS, tuning=2, add=add_flags)
    dense = DATA_SETS[flags.dataset].dense
    if absent := absent_of(flags.named, list(GRIDS[flags.scale]), flags.scale):
        print(f"error: {absent}", file=sys.stderr)
        return 2
    wanted = methods_of(flags.scale, flags.only, dense, flags.dims)

    def render(outcomes: Sequence[Outcome]) -> str:
        write_cells(outcomes, flags.work / "cells.csv")
        parts = (tables_of(outcomes), mlet_table(outcomes), draw(outcomes, flags.work / "bytes.png"))
        return "\n\n".join(filter(None, parts))

    return run_study(
        f"{BASE} {data_flags(flags)}",
        wanted,
        flags,
        render,
        None if flags.in_32_bits else quantized,
        also=[each for each in methods_of(flags.scale, list(RECIPES), dense) if each not in wanted],
        headline=verdict,
    )


if __name__ == "__main__":
    sys.exit(main())
