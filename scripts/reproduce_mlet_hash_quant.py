"""The study of scripts/reproduce_mlet_hash_quant.sh, which says how to run it."""

from __future__ import annotations

import csv
import re
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlet_grid import COMMON, PRESETS, SGD, TUNED, Cell, base_of, dense_of, method_of
from mlet_study import SETS
from mlet_tables import NOT_RUN, chosen_rate
from quantized_runs import quantized
from study import Method, Outcome, Study
from study_flags import absent_of, parse
from study_pictures import picture
from study_report import difference, run_study, spread

HASHES = {
    "none": "",
    "modulo-4": "--hash-method=modulo --hash-compression=4",
    "modulo-20": "--hash-method=modulo --hash-compression=20",
    "double-20": "--hash-method=double --hash-compression=20",
}
RECIPES = ("single", "mlet-64", "fixed-w2-64")
# hashes and recipes by scale
GRIDS = {
    "smoke": (("modulo-4",), RECIPES[:2]),
    "small": (tuple(HASHES)[:3], RECIPES),
    "paper": (tuple(HASHES), RECIPES),
}
DIM = 8


def methods_of(hashes: Sequence[str], recipes: Sequence[str], how: str, dense: int) -> list[Method]:
    """A method a recipe and hash, at the common table rate or tuned over the recipe's five."""
    methods = []
    for hash_name in hashes:
        for recipe in recipes:
            made = method_of(Cell("dlrm", recipe, DIM, how), SGD, dense)
            methods.append(Method(f"{recipe}.{hash_name}", f"{made.flags} {HASHES[hash_name]}".strip(), made.grid))
    return methods


def is_common(outcome: Outcome) -> bool:
    """At the common table rate, at which nothing is chosen. What is in fewer bits was tuned."""
    return len(outcome.method.grid) == 1 and parts_of(outcome)[2] == "32"


def tables_of(outcomes: Sequence[Outcome], every: Sequence[Method]) -> str:
    """At the common rate a row a hash and recipe; tuned a row a hash, number of bits and recipe.

    Each with its difference to the single layer of the same hash and bits.
    """
    common = {each.method.name: each for each in outcomes if is_common(each)}
    tuned = {each.method.name: each for each in outcomes if not is_common(each)}
    names = [method.name.partition(".")[::2] for method in every if len(method.grid) > 1]
    head = "| hash | bits | recipe | rate x | AUC | logloss | minus single, same hash and bits (95 %) | inference MB |"
    parts = []
    for title, found, widths in (
        ("At the common table rate", common, ("32",)),
        ("Tuned", tuned, ("32", "16", "8", "4")),
    ):
        lines = [f"### {title}", "", head, "|" + "---|" * 8]
        for hash_name in dict.fromkeys(name for _, name in names):
            for bits in widths:
                suffix = "" if bits == "32" else f"-{bits}bit"
                single = found.get(f"single.{hash_name}{suffix}")
                for recipe in dict.fromkeys(recipe for recipe, _ in names):
                    outcome = found.get(f"{recipe}.{hash_name}{suffix}")
                    lines.append(row_of(outcome, single, [hash_name, bits, recipe]))
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def row_of(outcome: Outcome | None, single: Outcome | None, names: Sequence[str]) -> str:
    """One line of Markdown."""
    cells = [NOT_RUN, "", "", "", ""]
    if outcome:
        cells = [chosen_rate(outcome), spread(outcome.values("auc")), spread(outcome.values("logloss"))]
        cells += [difference(single, outcome) if single else NOT_RUN, f"{bytes_of(outcome) / 1e6:.2f}"]
    return f"| {' | '.join([*names, *cells])} |"


def draw(outcomes: Sequence[Outcome], path: Path) -> str:
    """AUC against bytes, tuned: a line a recipe and hash over its bits; returns what was drawn, or why not."""
    lines: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    for each in outcomes:
        recipe, hash_name, _ = parts_of(each)
        aucs = each.values("auc")
        reach = statistics.stdev(aucs) if len(aucs) > 1 else 0
        lines.setdefault((recipe, hash_name), []).append((bytes_of(each) / 1e6, statistics.mean(aucs), reach))

    def on(axes: Any) -> None:
        for (recipe, hash_name), points in lines.items():
            style = {"color": f"C{RECIPES.index(recipe)}", "marker": "os^D"[list(HASHES).index(hash_name)]}
            axes[0, 0].errorbar(
                *zip(*sorted(points), strict=True), label=f"{recipe}, {hash_name}", capsize=2, elinewidth=0.7, **style
            )
        what = "inference MB (each in 32, 16, 8 and 4 bits; bars: a standard deviation over seeds)"
        axes[0, 0].set(xscale="log", xlabel=what, ylabel="test AUC")
        axes[0, 0].legend(fontsize=7)
        axes[0, 0].grid(alpha=0.3)

    return picture(path, on, figsize=(9, 5))


def bytes_of(outcome: Outcome) -> int:
    """Of the served model."""
    return next(iter(outcome.results.values()))["inference_bytes"]


def parts_of(outcome: Outcome) -> tuple[str, str, str]:
    """Recipe, hash and bits."""
    recipe, _, rest = outcome.method.name.partition(".")
    hash_name, bits = re.fullmatch(r"(.*?)(?:-(16|8|4)bit)?", rest).groups()
    return recipe, hash_name, bits or "32"


def write_cells(outcomes: Sequence[Outcome], path: Path) -> None:
    """All numbers, a line a recipe, hash, number of bits and kind of rate."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        head = ["recipe", "hash", "bits", "rate", "setting", "seeds", "auc", "auc_std", "logloss", "inference_bytes"]
        writer.writerow(head)
        for each in outcomes:
            aucs = each.values("auc")
            spread_of = statistics.stdev(aucs) if len(aucs) > 1 else ""
            numbers = [
                len(aucs),
                statistics.mean(aucs),
                spread_of,
                statistics.mean(each.values("logloss")),
                bytes_of(each),
            ]
            writer.writerow([*parts_of(each), COMMON if is_common(each) else TUNED, each.setting, *numbers])


def main() -> int:
    """Run the study on the command line's data."""
    flags = parse(
        __doc__, "1 2 3 4 5", RECIPES, data_sets=SETS,
        add=lambda parser: parser.add_argument(
            "--hashes", nargs="+", choices=HASHES, metavar="HASH", help=f"of {', '.join(HASHES)}; default by scale"
        ),
    )  # fmt: skip
    flags.preset = next(iter(PRESETS))
    hashes, recipes = GRIDS[flags.scale]
    every = [each for how in (TUNED, COMMON) for each in methods_of(hashes, recipes, how, dense_of(flags))]
    wanted = [each for each in every if each.name.partition(".")[0] in flags.only]
    wanted = [each for each in wanted if not flags.hashes or each.name.partition(".")[2] in flags.hashes]
    absent = absent_of(flags.hashes or (), hashes, flags.scale) or absent_of(flags.named, recipes, flags.scale)
    if absent:
        print(f"error: {absent}", file=sys.stderr)
        return 2

    def render(outcomes: Sequence[Outcome]) -> str:
        write_cells(outcomes, flags.work / "cells.csv")
        drawn = draw([each for each in outcomes if not is_common(each)], flags.work / "bytes.png")
        return f"{tables_of(outcomes, every)}\n\n{drawn}"

    def in_fewer_bits(study: Study, outcomes: Sequence[Outcome]) -> list[Outcome]:
        return quantized(study, [each for each in outcomes if not is_common(each)])

    return run_study(
        base_of(flags, SGD),
        wanted,
        flags,
        render,
        in_fewer_bits,
        also=[each for each in every if each not in wanted],
    )


if __name__ == "__main__":
    sys.exit(main())
