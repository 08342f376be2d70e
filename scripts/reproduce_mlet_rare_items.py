"""The study of scripts/reproduce_mlet_rare_items.sh, which says how to run it."""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mlet_grid import COMMON, MODELS, Cell
from mlet_study import place_of, read_flags, run
from mlet_tables import Found, quality_table
from paired_difference import interval
from rare_items import COLUMNS, RARE_IDS, RAREST, Row, check_comparable, compare, counts_text, read_runs
from rare_pictures import draw
from study_report import gap_text

# recipe -> widths, by scale
GRIDS = {
    "smoke": {"single": (4,), "mlet-64": (4,)},
    "small": {"single": (4, 8), "mlet-64": (4, 8), "fixed-w2-64": (4, 8), "matched-64": (4, 8)},
    "paper": {"single": (4, 8, 16), "mlet-64": (4, 8, 16), "fixed-w2-64": (4, 8, 16), "matched-64": (4, 8, 16)},
}
AT = {"matched-64": (COMMON,)}
TITLES = {  # of a group of bins, and of its first column
    RAREST: ("By how often the rarest id of a row occurs in training", "occurrences"),
    RARE_IDS: ("By how many of a row's ids are rare (fewer than {below} occurrences in training)", "rare ids"),
}


def rows_of(single: Cell, found: Found) -> dict[Cell, list[Row]]:
    """Each other recipe of this model, width and rate against the single layer, bin by bin."""
    runs = {
        cell: read_runs([outcome.files[seed] for seed in sorted(outcome.files)])
        for cell, outcome in found.items()
        if (cell.model, cell.dim, cell.how) == (single.model, single.dim, single.how)
    }
    base = runs.pop(single)
    for other in runs.values():
        check_comparable(base, other)
    return {cell: compare(base, other, tables=False) for cell, other in runs.items()}


def bins_table(rows: dict[Cell, list[Row]], group: str, column: str) -> str:
    """A row a bin: the single layer's AUC, and the differences of the others with their intervals."""
    lines = [
        f"| {column} | rows | single | " + " | ".join(f"{cell.recipe} minus single (95 %)" for cell in rows) + " |"
    ]
    lines += ["|" + "---|" * (3 + len(rows))]
    for bins in zip(*rows.values(), strict=True):
        first = bins[0]
        if first["table"] == group:
            single = "one class" if first["auc_base"] is None else f"{first['auc_base']:.4f}"
            cells = [counts_text(first) or first["bin"], f"{first['samples']:,}", single]
            lines.append(f"| {' | '.join(cells + [gain_text(each) for each in bins])} |")
    return "\n".join(lines)


def gain_text(row: Row) -> str:
    """A difference in AUC with its interval."""
    if row["auc_difference"] is None:
        return ""
    return gap_text(*(row[f"auc_{name}"] for name in ("difference", "difference_low", "difference_high")))


def half_gains(single: Cell, other: Cell, found: Found) -> list[tuple[float, float]]:
    """Seed by seed the mean gain of the rarer half of the bins and of the other half; nothing of a single bin."""
    by_seed = []
    for seed, base in found[single].results.items():
        gains = [
            theirs["auc"] - ours["auc"]
            for ours, theirs in zip(
                *(run["by_frequency"]["rarest"]["bins"] for run in (base, found[other].results[seed])), strict=True
            )
            if ours["auc"] is not None and theirs["auc"] is not None
        ]
        half = len(gains) // 2
        if not half:
            return []
        by_seed.append((statistics.mean(gains[:half]), statistics.mean(gains[-half:])))
    return by_seed


def rarity_gain(single: Cell, other: Cell, found: Found) -> str:
    """By how much more the rarer half of the bins gains than the other half: the mean over seeds, with its interval."""
    gains = half_gains(single, other, found)
    return gap_text(*interval([rare - common for rare, common in gains])) if gains else "undefined (one bin)"


def average_table(found: Found) -> str:
    """A row a recipe, width and rate: what both halves of the bins gain, mean over the models with their interval."""
    lines = [
        "| recipe | d | table rate | models | gain of the rarer half of the bins (95 %, models) | of the other half | "
        "rarer minus other |",
        "|" + "---|" * 7,
    ]
    groups: dict[tuple[str, int, str], list[tuple[float, float]]] = {}
    for cell in found:
        single = replace(cell, recipe="single")
        if cell != single and single in found and (by_seed := half_gains(single, cell, found)):
            means = tuple(statistics.mean(half) for half in zip(*by_seed, strict=True))
            groups.setdefault((cell.recipe, cell.dim, cell.how), []).append(means)
    for (recipe, dim, how), gains in groups.items():
        if len(gains) > 1:
            rare, common = zip(*gains, strict=True)
            apart = [first - second for first, second in gains]
            texts = [gap_text(*interval(list(values))) for values in (rare, common, apart)]
            lines.append(f"| {' | '.join([recipe, str(dim), how, str(len(gains)), *texts])} |")
    return "\n".join(lines)


def write_bins(rows: Sequence[tuple[Cell, Row]], path: Path) -> None:
    """All bins of all recipes, with both metrics."""
    names = ("model", "recipe", "dim", "how")
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*names, *COLUMNS])
        writer.writeheader()
        writer.writerows({name: getattr(cell, name) for name in names} | row for cell, row in rows)


def rare_report(every: Sequence[Cell], found: Found, flags: argparse.Namespace) -> str:
    """A section a model, width and rate."""
    text, of_all = [f"Measured on {place_of(found, flags)}.", ""], []
    if len({cell.model for cell in found}) > 1:
        text += ["### On average over the models", "", average_table(found), ""]
    below = next(iter(next(iter(found.values())).results.values()))["by_frequency"]["rare_ids"]["below"]
    for single in [cell for cell in every if cell.recipe == "single" and cell in found]:
        text += [f"### {single.model}, d = {single.dim}, {single.how} table rate", ""]
        rows = rows_of(single, found)
        if not rows:
            text += ["Nothing that the single layer is compared with was run.", ""]
            continue
        of_all += [(cell, row) for cell, found_rows in rows.items() for row in found_rows]
        gains = [f"{cell.recipe} {rarity_gain(single, cell, found)}" for cell in rows]
        text += [f"Gain of the rarer half of the bins minus gain of the other half: {'; '.join(gains)}.", ""]
        for group, (heading, column) in TITLES.items():
            text += [f"{heading.format(below=below)}:", "", bins_table(rows, group, column), ""]
    write_bins(of_all, flags.work / "rare_items.csv")
    drawn = draw(of_all, flags.work / "rare_items.png") if of_all else ""
    return "\n".join([*text, "### Quality over all rows", "", quality_table(every, found), "", drawn]).rstrip()


def main() -> int:
    """DLRM unless --models names others."""
    flags = read_flags(__doc__, GRIDS, MODELS, ["dlrm"], smoke="1 2")
    lacks = "two seeds" if len(flags.seeds) < 2 else "the single layer" if "single" not in flags.only else ""
    lacks = lacks or ("another recipe than the single layer" if flags.only == ["single"] else "")
    if lacks:
        print(f"error: differences need {lacks}", file=sys.stderr)
        return 2
    return run(flags, GRIDS[flags.scale], flags.models, AT, rare_report, "rare_items", "by_frequency")


if __name__ == "__main__":
    sys.exit(main())
