"""Test AUC and logloss by how rare a row's ids are, of runs against other runs of the same seeds.

python scripts/rare_items.py single-*.jsonl --against mlet-*.jsonl        # MLET minus single-layer

Each file is a --metrics-file of a run with --frequency-report. Differences are paired by seed; their 95 % intervals are
Student's over the seeds, a bin at a time: of ten bins without any effect, some exclude zero in two of five cases.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from metrics_table import result_of  # noqa: E402 (the scripts are no package)
from paired_difference import interval  # noqa: E402

METRICS = ("auc", "logloss")
FIGURES = ("base", "against", "difference", "difference_low", "difference_high")
COLUMNS = ("table", "bin", "count_low", "count_high", "samples", "positives", "seeds") + tuple(
    f"{metric}_{figure}" for metric in METRICS for figure in FIGURES
)
RAREST, RARE_IDS = "(rarest)", "(rare ids)"  # in place of a table's name
GROUPS = {RAREST: "occurrences in training of a row's rarest id", RARE_IDS: "rare ids of a row"}
Row = dict[str, Any]  # of COLUMNS; a figure is None where the metric is undefined


def read_runs(paths: Sequence[Path]) -> dict[int, tuple[Path, dict]]:
    """Seed -> file and its result event. Raises ValueError where one has no report, or a seed is there twice."""
    found: dict[int, tuple[Path, dict]] = {}
    for path in paths:
        event = result_of(path)
        if not event.get("by_frequency"):
            raise ValueError(f"{path} has no figures by frequency: run it with --frequency-report")
        if event["seed"] in found:
            raise ValueError(f"{path}: seed {event['seed']} is there twice, first in {found[event['seed']][0]}")
        found[event["seed"]] = path, event
    return found


def check_comparable(base: dict[int, tuple[Path, dict]], other: dict[int, tuple[Path, dict]]) -> None:
    """Raises ValueError unless the seeds are the same, and all runs have the same data, split and bins."""
    if base.keys() != other.keys() or len(base) < 2:
        raise ValueError(f"seeds {sorted(base)} against {sorted(other)}: give the same seeds, at least two")
    (first_path, first), *others = [*base.values(), *other.values()]
    for path, event in others:
        for what, same in (
            ("other raw data", event["data_sha256"] == first["data_sha256"]),
            ("another data set, label or split", event["data"] == first["data"]),
            (
                "other bins: they were trained on other rows or ids (see --num-batches, --data-sub-sample-rate and the "
                "--vocabulary flags)",
                _bins_of(event["by_frequency"]) == _bins_of(first["by_frequency"]),
            ),
        ):
            if not same:
                raise ValueError(f"{path} and {first_path} have {what}")


def _bins_of(report: dict) -> list:
    """What two reports must have in common: tables, bins, the rows and positives in each, and what a rare id is."""
    return [report["rare_ids"]["below"]] + [
        (table, number, *(cell.get(key) for key in ("low", "high", "samples", "positives")))
        for table, number, cell in cells_of(report, tables=True)
    ]


def cells_of(report: dict, tables: bool) -> Iterator[tuple[str, str, dict]]:
    """Table, bin, figures, in the order of the output; bin "all" has all rows, "no id" those whose bags are empty."""
    yield RAREST, "all", report["all"]
    groups = {RAREST: report["rarest"], RARE_IDS: report["rare_ids"]} | (report["tables"] if tables else {})
    for table, parts in groups.items():
        for number, cell in enumerate(parts["bins"], 1):
            yield table, str(number), cell
        if parts["empty"]:
            yield table, "no id", parts["empty"]


def compare(base: dict[int, tuple[Path, dict]], other: dict[int, tuple[Path, dict]], tables: bool) -> list[Row]:
    """A row a bin: the mean of both models over the seeds, and their paired difference with its interval."""
    seeds = sorted(base)
    by_bin = [
        list(zip(*(cells_of(runs[seed][1]["by_frequency"], tables) for seed in seeds), strict=True))
        for runs in (base, other)
    ]
    rows = []
    for of_base, of_other in zip(*by_bin, strict=True):
        table, number, cell = of_base[0]
        row = {"table": table, "bin": number, "count_low": cell.get("low"), "count_high": cell.get("high")}
        row |= {"samples": cell["samples"], "positives": cell["positives"], "seeds": len(seeds)}
        for metric in METRICS:
            values = [[figures[metric] for _, _, figures in of_seeds] for of_seeds in (of_base, of_other)]
            row |= {f"{metric}_{name}": value for name, value in zip(FIGURES, paired(*values), strict=True)}
        rows.append(row)
    return rows


def paired(base: list[float | None], other: list[float | None]) -> tuple[float | None, ...]:
    """FIGURES of one metric, given its values by seed."""
    if None in base + other:  # one class only, which depends on the labels: in all runs or in none
        return (None,) * len(FIGURES)
    differences = [second - first for first, second in zip(base, other, strict=True)]
    return statistics.mean(base), statistics.mean(other), *interval(differences)


def counts_text(row: Row) -> str:
    """0, or 1-3: the counts in a bin."""
    low, high = row["count_low"], row["count_high"]
    return "" if low is None else str(low) if low == high else f"{low}-{high}"


def text_of(rows: Sequence[Row], below: int) -> str:
    """A table of text for each group of rows; ids that occur fewer than `below` times are rare."""
    titles = {
        RAREST: "By how often the rarest id of a row occurs in training:",
        RARE_IDS: f"By how many ids of a row occur fewer than {below} times in training:",
    }
    lines = []
    header = ["bin", "count", "rows", "positives"]
    header += [f"{metric} {name}" for metric in METRICS for name in ("base", "against", "difference [95 %]")]
    for table in dict.fromkeys(row["table"] for row in rows):
        lines += ["", titles.get(table, f"By how often the id of table {table} occurs in training:")]
        cells = [header] + [cells_text(row) for row in rows if row["table"] == table]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines += ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]
    return "\n".join(lines)


def cells_text(row: Row) -> list[str]:
    """One line of the text."""
    cells = [row["bin"], counts_text(row), str(row["samples"]), str(row["positives"])]
    for metric in METRICS:
        base, against, *difference = (row[f"{metric}_{name}"] for name in FIGURES)
        if base is None:
            cells += ["undefined", "undefined", ""]
        else:
            cells += [f"{base:.5f}", f"{against:.5f}", "{:+.5f} [{:+.5f}, {:+.5f}]".format(*difference)]
    return cells


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """All figures, undefined ones empty."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def with_intervals(axis: Any, places: Sequence[float], points: Sequence[tuple], **style: Any) -> None:
    """Points, each a value and the ends of its interval, as dots with bars."""
    middle, *ends = zip(*points, strict=True) if points else ((), (), ())
    reach = [[abs(m - end) for m, end in zip(middle, each, strict=True)] for each in ends]
    axis.errorbar(places, middle, reach, fmt="o", **style)


def draw(rows: Sequence[Row], path: Path) -> None:
    """Differences by the rarest id and by the number of rare ids with their intervals: AUC above, logloss below."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        len(METRICS), len(GROUPS), figsize=(11, 6), sharex="col", sharey="row", layout="constrained"
    )
    for column, (group, title) in enumerate(GROUPS.items()):
        chosen = [row for row in rows if row["table"] == group]
        for axis, metric in zip(axes[:, column], METRICS, strict=True):
            shown = [(place, row) for place, row in enumerate(chosen) if row[f"{metric}_base"] is not None]
            points = [tuple(row[f"{metric}_{name}"] for name in FIGURES[2:]) for _, row in shown]
            with_intervals(axis, [place for place, _ in shown], points, capsize=3)
            axis.axhline(0, color="gray", linewidth=1)
            axis.grid(axis="y", alpha=0.3)
        labels = [counts_text(row) or row["bin"] for row in chosen]
        axes[-1, column].set_xticks(range(len(chosen)), labels, rotation=45, ha="right")
        axes[-1, column].set_xlabel(title)
    for axis, metric in zip(axes[:, 0], METRICS, strict=True):
        axis.set_ylabel(f"{metric}, difference")
    figure.suptitle(f"--against minus base, {rows[0]['seeds']} seeds, 95 % intervals", fontsize="medium")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", nargs="+", type=Path, help="metrics files, such as those of the single-layer runs")
    parser.add_argument("--against", nargs="+", type=Path, required=True, help="metrics files, such as those of MLET")
    parser.add_argument("--tables", action="store_true", help="also by each table's own id")
    parser.add_argument("--csv", type=Path, help="write all figures there")
    parser.add_argument("--png", type=Path, help="draw the differences, but for the tables (needs matplotlib)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Read, compare, print; runs that cannot be compared are one line and exit code 2."""
    flags = parse(arguments)
    try:
        if flags.png and importlib.util.find_spec("matplotlib") is None:
            raise ValueError("--png needs matplotlib: pip install matplotlib")
        base, other = read_runs(flags.base), read_runs(flags.against)
        check_comparable(base, other)
        rows = compare(base, other, flags.tables)
        if flags.csv:
            write_csv(rows, flags.csv)
        if flags.png:
            draw(rows, flags.png)
        print(f"{len(base)} seeds, {rows[0]['samples']} test rows; differences are --against minus base")
        print(text_of(rows, next(iter(base.values()))[1]["by_frequency"]["rare_ids"]["below"]))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
