"""The study of scripts/reproduce_mlet_hash_quant.sh, which says how to run it."""

from __future__ import annotations

import csv
import re
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from mlet_grid import PRESETS, SGD, TUNED, Cell, base_of, dense_of, method_of
from mlet_study import SETS
from mlet_tables import NOT_RUN
from quantized_runs import quantized
from study import Method, Outcome
from study_flags import parse
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


def methods_of(hashes: Sequence[str], recipes: Sequence[str], optimizer, dense: int) -> list[Method]:  # noqa: ANN001
    """A method a recipe and hash, tuned over the recipe's five table rates."""
    methods = []
    for hash_name in hashes:
        for recipe in recipes:
            made = method_of(Cell("dlrm", recipe, DIM, TUNED), optimizer, dense)
            methods.append(Method(f"{recipe}.{hash_name}", f"{made.flags} {HASHES[hash_name]}".strip(), made.grid))
    return methods


def tables_of(outcomes: Sequence[Outcome], every: Sequence[Method]) -> str:
    """A row a hash, number of bits and recipe, with its difference to the single layer of the same hash and bits."""
    found = {outcome.method.name: outcome for outcome in outcomes}
    lines = [
        "| hash | bits | recipe | rate x | AUC | logloss | minus single, same hash and bits (95 %) | inference MB |"
    ]
    lines += ["|" + "---|" * 8]
    for hash_name in dict.fromkeys(method.name.partition(".")[2] for method in every):
        for bits in ("32", "16", "8", "4"):
            suffix = "" if bits == "32" else f"-{bits}bit"
            single = found.get(f"single.{hash_name}{suffix}")
            for recipe in dict.fromkeys(method.name.partition(".")[0] for method in every):
                lines.append(row_of(found.get(f"{recipe}.{hash_name}{suffix}"), single, [hash_name, bits, recipe]))
    return "\n".join(lines)


def row_of(outcome: Outcome | None, single: Outcome | None, names: Sequence[str]) -> str:
    """One line of Markdown."""
    cells = [NOT_RUN, "", "", "", ""]
    if outcome:
        size = next(iter(outcome.results.values()))["inference_bytes"] / 1e6
        cells = [outcome.setting.rpartition("=")[2], spread(outcome.values("auc")), spread(outcome.values("logloss"))]
        cells += [difference(single, outcome) if single else NOT_RUN, f"{size:.2f}"]
    return f"| {' | '.join([*names, *cells])} |"


def write_cells(outcomes: Sequence[Outcome], path: Path) -> None:
    """All numbers, a line a recipe, hash and number of bits."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["recipe", "hash", "bits", "setting", "seeds", "auc", "auc_std", "logloss", "inference_bytes"])
        for each in outcomes:
            recipe, _, rest = each.method.name.partition(".")
            hash_name, bits = re.fullmatch(r"(.*?)(?:-(16|8|4)bit)?", rest).groups()
            aucs, size = each.values("auc"), next(iter(each.results.values()))["inference_bytes"]
            spread_of = statistics.stdev(aucs) if len(aucs) > 1 else ""
            numbers = [len(aucs), statistics.mean(aucs), spread_of, statistics.mean(each.values("logloss")), size]
            writer.writerow([recipe, hash_name, bits or 32, each.setting, *numbers])


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
    every = methods_of(hashes, recipes, SGD, dense_of(flags))
    wanted = [each for each in every if each.name.partition(".")[0] in flags.only]
    wanted = [each for each in wanted if not flags.hashes or each.name.partition(".")[2] in flags.hashes]

    if not wanted:
        print(f"error: the hashes of --scale={flags.scale} are {', '.join(hashes)}", file=sys.stderr)
        return 2

    def render(outcomes: Sequence[Outcome]) -> str:
        write_cells(outcomes, flags.work / "cells.csv")
        return tables_of(outcomes, every)

    return run_study(
        base_of(flags, SGD),
        wanted,
        flags,
        render,
        quantized,
        also=[each for each in every if each not in wanted],
    )


if __name__ == "__main__":
    sys.exit(main())
