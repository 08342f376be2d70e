"""Results of scripts/bench_train.py: ratios with their spread, the CSV, the table and the picture."""

from __future__ import annotations

import csv
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

FIELDS = (
    "cell", "contestant", "batch", "optimizer", "hot", "inner_dim", "seconds_per_step", "samples_per_second",
    "ratio_to_reference", "ratio_to_reference_low", "ratio_to_reference_high",
    "ratio_to_ours", "ratio_to_ours_low", "ratio_to_ours_high",
    "peak_mb", "gpu_mb", "repeats", "note", "machine", "threads", "commit", "reference_commit", "settings",
)  # fmt: skip
IDENTITY = ("settings", "commit", "reference_commit", "machine")
Row = dict[str, str | float | int]


def median_ratio(base: Sequence[float], other: Sequence[float]) -> tuple[float, float, float] | None:
    """Median, lowest and highest of base / other, repeat by repeat: how many times as fast `other` is.

    Two programs that run one after the other meet the same neighbours on the machine, so they are compared within a
    repeat. None where no repeat has both. Seconds that are not positive (noise above a short difference) do not count.
    """
    pairs = zip(base, other, strict=True)
    ratios = [b / o for b, o in pairs if math.isfinite(b) and math.isfinite(o) and b > 0 and o > 0]
    return (statistics.median(ratios), min(ratios), max(ratios)) if ratios else None


def rounded(value: float) -> float:
    """Four significant digits."""
    return float(f"{value:.4g}")


def compare(seconds: Mapping[str, Sequence[float]], batch: int) -> dict[str, Row]:
    """Contestant -> its seconds a step and ratios; `seconds` has one value a repeat, nan where a repeat failed."""
    rows: dict[str, Row] = {}
    for name, values in seconds.items():
        valid = [value for value in values if math.isfinite(value) and value > 0]
        row: Row = {"repeats": len(valid)}
        if valid:
            middle = statistics.median(valid)
            row |= {"seconds_per_step": rounded(middle), "samples_per_second": rounded(batch / middle)}
        for base in ("reference", "ours"):
            ratios = median_ratio(seconds[base], values) if base in seconds else None
            if ratios:
                keys = (f"ratio_to_{base}", f"ratio_to_{base}_low", f"ratio_to_{base}_high")
                row |= zip(keys, map(rounded, ratios), strict=True)
        rows[name] = row
    return rows


def read_rows(path: Path) -> list[Row]:
    """Rows of an earlier run, if there was one."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def write_rows(path: Path, rows: Sequence[Row], fields: Sequence[str] = FIELDS) -> None:
    """Write aside and rename: a run that is killed here still has its earlier results."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with open(aside, "w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=fields, restval="", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(aside, path)


def is_finished(rows: Sequence[Row], cell: str, notes: Mapping[str, str], identity: Row) -> bool:
    """Whether a cell was measured before with the same settings, code and machine.

    `notes` maps each contestant to the reason why it would be left out now ("" where it would run): one that failed, or
    was not installed then and is now, makes the cell unfinished.
    """
    found = {
        row["contestant"]: row["note"]
        for row in rows
        if row["cell"] == cell and all(str(row[key]) == str(identity[key]) for key in IDENTITY)
    }
    return all(found.get(name) == note for name, note in notes.items())


def replace_cell(rows: Sequence[Row], cell: str, new: Sequence[Row]) -> list[Row]:
    """Rows with those of one cell exchanged."""
    return [row for row in rows if row["cell"] != cell] + list(new)


def number(row: Row, key: str) -> float | None:
    """A value of a row that may come from the CSV, None where it is empty."""
    value = row.get(key, "")
    return None if value == "" else float(value)


def shown_ratio(row: Row, base: str) -> str:
    """1.92 (1.85-2.01)"""
    values = [number(row, f"ratio_to_{base}{suffix}") for suffix in ("", "_low", "_high")]
    return "" if None in values else "{:.2f} ({:.2f}-{:.2f})".format(*values)


def markdown(rows: Sequence[Row]) -> str:
    """One table of all cells."""
    lines = [
        "| cell | contestant | ms/step | samples/s | x reference | x ours | peak MB | |",
        "|---|---|---:|---:|---|---|---:|---|",
    ]
    for row in rows:
        seconds, speed, peak = (number(row, key) for key in ("seconds_per_step", "samples_per_second", "peak_mb"))
        cells = (
            row["cell"],
            row["contestant"],
            "" if seconds is None else f"{1000 * seconds:.2f}",
            "" if speed is None else f"{speed:.0f}",
            shown_ratio(row, "reference"),
            shown_ratio(row, "ours"),
            "" if peak is None else f"{peak:.0f}",
            row.get("note", ""),
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def draw(rows: Sequence[Row], path: Path) -> bool:
    """The ratios to the reference with their spread as a picture; False without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    measured = [row for row in rows if number(row, "ratio_to_reference") and row["contestant"] != "reference"]
    if not measured:
        return False
    cells = list(dict.fromkeys(row["cell"] for row in measured))
    names = list(dict.fromkeys(row["contestant"] for row in measured))
    figure, axes = plt.subplots(figsize=(8, 1.5 + 0.5 * len(cells)), layout="constrained")
    for place, name in enumerate(names):
        mine = [row for row in measured if row["contestant"] == name]
        middle, low, high = ([number(row, f"ratio_to_reference{s}") for row in mine] for s in ("", "_low", "_high"))
        heights = [cells.index(row["cell"]) + 0.7 * (place + 0.5) / len(names) - 0.35 for row in mine]
        spread = [[m - a for m, a in zip(middle, low, strict=True)], [b - m for m, b in zip(middle, high, strict=True)]]
        axes.errorbar(middle, heights, xerr=spread, fmt="o", capsize=2, label=name)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_yticks(range(len(cells)), cells)
    axes.invert_yaxis()
    axes.grid(axis="x", which="both", alpha=0.3)
    axes.set_xlabel("samples/s over the reference's: median, lowest and highest of the repeats")
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return True
