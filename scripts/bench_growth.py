"""The measurements of scripts/bench_growth.sh, which says how to run it.

One factor at a time moves away from a base point, with a single layer (k = 0) and with MLET (k = 64). Every point is
a fresh process in every round, so that its peak memory is its own.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench_cells import RATES, Contestant, Shape, step_spec
from bench_process import (
    ROOT,
    ContestantError,
    StepWorker,
    available_bytes,
    describe_machine,
    draw_batches,
)
from bench_results import Row, number, read_rows, write_rows

from datastore.provenance import commit_of

BASE = {"rows": 100_000, "tables": 26, "dim": 16, "hot": 1, "batch": 2048}
INNER_DIMS = (0, 64)
SERIES = {
    "rows": (10_000, 30_000, 100_000, 300_000, 1_000_000, 3_000_000, 10_000_000, 30_000_000),
    "tables": (8, 16, 26, 50, 100, 200),
    "dim": (4, 8, 16, 32, 64, 128),
    "k": (32, 64, 128, 256, 512),
    "hot": (1, 2, 5, 10, 20, 50, 100),
    "batch": (128, 512, 2048, 8192, 32_768),
}
SMOKE = {"rows": (10_000, 30_000), "hot": (1, 4), "batch": (128, 512)}
LABELS = {"rows": "rows per table", "tables": "tables", "dim": "d", "k": "k", "hot": "ids a bag", "batch": "batch"}
FIELDS = (
    "factor", "value", "inner_dim", "rows", "tables", "dim", "hot", "batch", "round", "seconds_per_step", "peak_mb",
    "note", "machine", "threads", "commit", "settings",
)  # fmt: skip
IDENTITY = ("machine", "commit", "settings")
KINDS = ((0.25, "flat"), (0.8, "below linear"), (1.2, "linear"), (math.inf, "above linear"))  # by slope, log over log


@dataclass(frozen=True)
class Point:
    """One model and batch; `factor` is what differs from the base point."""

    factor: str
    value: int
    inner_dim: int
    rows: int
    tables: int
    dim: int
    hot: int
    batch: int

    @property
    def shape(self) -> Shape:
        return Shape((self.rows,) * self.tables, self.dim, f"13-512-256-64-{self.dim}", "512-256-1", self.hot)

    @property
    def contestant(self) -> Contestant:
        flags = (f"--mlet-inner-dim={self.inner_dim}",) if self.inner_dim else ()
        return Contestant("ours", self.inner_dim, flags)

    @property
    def name(self) -> str:
        return f"{self.factor} {self.value}, k {self.inner_dim}"


def points(series: dict[str, Sequence[int]], rows_tables: int) -> Iterator[Point]:
    """All points, factor by factor."""
    for factor, values in series.items():
        for value in values:
            if factor == "k":
                yield Point(factor, value, value, **BASE)
                continue
            changed = BASE | {factor: value}
            if factor == "rows":
                changed["tables"] = rows_tables
            for inner_dim in INNER_DIMS:
                if not inner_dim or inner_dim > changed["dim"]:  # MLET needs k > d
                    yield Point(factor, value, inner_dim, **changed)


def measure(point: Point, work: Path, flags: argparse.Namespace) -> Row:
    """Seconds a step and peak MB of one point, or why it has none."""
    needed, available = point.shape.needed_bytes(point.batch, point.contestant), available_bytes()
    if available is not None and needed > available:
        return {"note": f"skipped: needs about {needed / 1e9:.1f} GB of memory, {available / 1e9:.1f} GB are free"}
    batches = work / "growth.npz"
    try:
        draw_batches(batches, point.shape, point.batch, flags.batches)
        spec = step_spec(point.contestant, point.shape, point.batch, flags.optimizer, str(batches), flags.more)
        spec |= {"root": str(ROOT), "use_gpu": flags.use_gpu}
        worker = StepWorker(sys.executable, spec, work / "growth.log")
        try:
            steps = worker.steps_in(flags.seconds)
            seconds = worker.run(steps) / steps
        finally:
            worker.close()
    except ContestantError as error:
        return {"note": f"failed: {error}"}
    finally:
        batches.unlink(missing_ok=True)
    return {"seconds_per_step": seconds, "peak_mb": round(worker.peak_mb), "note": ""}


def measure_all(flags: argparse.Namespace, identity: Row) -> list[Row]:
    """Rounds over all points into the CSV; what it holds of the same code and settings is not measured again."""
    path = flags.work / "growth.csv"
    rows = [row for row in read_rows(path) if all(str(row[key]) == str(identity[key]) for key in IDENTITY)]
    done = {(row["factor"], row["value"], row["inner_dim"], row["round"]) for row in rows if not row["note"]}
    rows = [row for row in rows if not row["note"]]
    for turn in range(1, flags.repeats + 1):
        for point in points(flags.series, flags.rows_tables):
            if (point.factor, str(point.value), str(point.inner_dim), str(turn)) in done:
                continue
            row = vars(point) | {"round": turn} | measure(point, flags.work, flags) | identity
            rows.append(row)
            write_rows(path, rows, FIELDS)
            seconds = row.get("seconds_per_step")
            said = f"{1000 * seconds:.2f} ms a step, {row['peak_mb']} MB" if seconds else row["note"]
            print(f"round {turn}: {point.name}: {said}", flush=True)
    return read_rows(path)


@dataclass(frozen=True)
class Curve:
    """One factor at one k: medians over the rounds at the values that were measured."""

    factor: str
    inner_dim: int
    values: list[int]
    seconds: list[float]
    low: list[float]
    high: list[float]
    peak_mb: list[float]
    skipped: list[int]


def curves(rows: Sequence[Row]) -> list[Curve]:
    """The CSV's rows as curves; the factor k is one curve over k."""
    found: dict[tuple[str, int], dict[int, list[Row]]] = {}
    for row in rows:
        line = (row["factor"], -1 if row["factor"] == "k" else int(row["inner_dim"]))
        found.setdefault(line, {}).setdefault(int(row["value"]), []).append(row)
    result = []
    for (factor, inner_dim), by_value in found.items():
        curve = Curve(factor, inner_dim, [], [], [], [], [], [])
        for value, some in sorted(by_value.items()):
            seconds = [s for s in (number(row, "seconds_per_step") for row in some) if s is not None]
            if not seconds:
                curve.skipped.append(value)
                continue
            curve.values.append(value)
            curve.seconds.append(statistics.median(seconds))
            curve.low.append(min(seconds))
            curve.high.append(max(seconds))
            curve.peak_mb.append(statistics.median(p for p in (number(row, "peak_mb") for row in some) if p))
        result.append(curve)
    return result


def slopes(values: Sequence[int], costs: Sequence[float]) -> list[float]:
    """Between neighbours: 1 where cost grows as the factor does, 0 where it does not grow."""
    pairs = zip(values[:-1], values[1:], costs[:-1], costs[1:], strict=True)
    return [math.log(d / c) / math.log(b / a) for a, b, c, d in pairs]


def stretches(values: Sequence[int], costs: Sequence[float]) -> str:
    """Where cost is flat, linear or above: "flat 128 to 512, linear 512 to 8192"."""
    found: list[list] = []
    for slope, low, high in zip(slopes(values, costs), values[:-1], values[1:], strict=True):
        kind = next(name for limit, name in KINDS if slope <= limit)
        if found and found[-1][0] == kind:
            found[-1][2] = high
        else:
            found.append([kind, low, high])
    return ", ".join(f"{kind} {low} to {high}" for kind, low, high in found)


def title(curve: Curve) -> str:
    """rows per table, k=64"""
    return LABELS[curve.factor] + (f", k={curve.inner_dim}" if curve.inner_dim >= 0 else "")


def report(lines: Sequence[Curve]) -> str:
    """A table of all points, and in words where cost stops being linear."""
    out = ["| factor | value | ms/step | peak MB |", "|---|---:|---|---:|"]
    for curve in lines:
        for at, value in enumerate(curve.values):
            middle, low, high = (1000 * part[at] for part in (curve.seconds, curve.low, curve.high))
            out.append(f"| {title(curve)} | {value} | {middle:.2f} ({low:.2f}-{high:.2f}) | {curve.peak_mb[at]:.0f} |")
        out += [f"| {title(curve)} | {value} | not measured | |" for value in curve.skipped]
    out.append("")
    for curve in lines:
        if len(curve.values) > 1:
            time, memory = (stretches(curve.values, cost) for cost in (curve.seconds, curve.peak_mb))
            out.append(f"* {title(curve)}: time {time}; memory {memory}")
    return "\n".join(out)


def draw(lines: Sequence[Curve], path: Path) -> bool:
    """Small multiples, time above and memory below, with a dotted line of linear growth; False without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullFormatter

    factors = list(dict.fromkeys(curve.factor for curve in lines))
    size = (0.6 + 2.5 * len(factors), 5.4)
    figure, axes = plt.subplots(2, len(factors), figsize=size, sharey="row", squeeze=False, layout="constrained")
    for column, factor in enumerate(factors):
        for curve in (line for line in lines if line.factor == factor and line.values):
            for axis, costs in ((axes[0, column], [1000 * s for s in curve.seconds]), (axes[1, column], curve.peak_mb)):
                name = f"k={curve.inner_dim}" if curve.inner_dim > 0 else "MLET" if curve.inner_dim else "single layer"
                (drawn,) = axis.plot(curve.values, costs, marker="o", markersize=3, label=name)
                ends = [curve.values[0], curve.values[-1]]
                # linear growth that meets the last point
                guide = [costs[-1] * value / curve.values[-1] for value in ends]
                axis.plot(ends, guide, ":", color=drawn.get_color(), linewidth=1)
        for axis in axes[:, column]:
            axis.set(xscale="log", yscale="log")
            axis.xaxis.set_minor_formatter(NullFormatter())  # labels between decades would overlap
            if factor not in ("rows", "batch"):  # few decades: label what was measured
                measured = sorted({value for line in lines if line.factor == factor for value in line.values})
                axis.set_xticks(measured, measured, fontsize="x-small")
            axis.grid(alpha=0.3)
            axis.legend(fontsize="x-small")
        axes[1, column].set_xlabel(LABELS[factor])
    for axis, label in zip(axes[:, 0], ("ms a step", "peak memory, MB"), strict=True):
        axis.set_ylabel(label)
        costs = [c for line in lines for c in (line.peak_mb if "MB" in label else [1000 * s for s in line.seconds])]
        axis.set_ylim(min(costs) / 1.5, max(costs) * 1.5)  # the dotted lines need not be seen to their ends
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return True


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """What stands behind -- goes to the driver as it is."""
    split = list(arguments).index("--") if "--" in arguments else len(arguments)
    parser = argparse.ArgumentParser(prog="bench_growth.py", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--work", type=Path, default=Path("bench_output"), help="folder for results")
    add("--scale", choices=("smoke", "full"), default="full")
    add("--factors", nargs="+", metavar="FACTOR", choices=SERIES, help="default: all of the scale")
    add("--repeats", type=int, default=0, help="rounds; 0: 3, smoke 1")
    add("--batches", type=int, default=4, help="batches drawn beforehand")
    add("--seconds", type=float, default=0, help="of steps at each point; 0: 3, smoke 0.2")
    add("--rows-tables", type=int, default=4, help="tables of the factor rows: 26 of the largest would need 50 GB")
    add("--optimizer", choices=RATES, default="sgd")
    add("--use-gpu", action="store_true", help="on the first CUDA device; memory is still the process's own")
    flags = parser.parse_args(arguments[:split])
    flags.more = list(arguments[split + 1 :])
    smoke = flags.scale == "smoke"
    flags.repeats, flags.seconds = flags.repeats or (1 if smoke else 3), flags.seconds or (0.2 if smoke else 3.0)
    series = SMOKE if smoke else SERIES
    flags.series = {name: series.get(name, SERIES[name][:2]) for name in flags.factors or series}
    if min(flags.repeats, flags.batches, flags.rows_tables) < 1 or flags.seconds <= 0:
        parser.error("--repeats, --batches, --rows-tables and --seconds must be positive")
    return flags


def main(arguments: Sequence[str]) -> int:
    """Measure, print, draw; 1 where a point failed, 2 with one line where the request cannot be met."""
    flags = parse(arguments)
    try:
        flags.work = flags.work.resolve()
        flags.work.mkdir(parents=True, exist_ok=True)
        about = describe_machine()
        machine = ", ".join(f"{name} {about[name]}" for name in ("cpu_name", "cores", "gpu", "torch") if about[name])
        print(f"{machine}, threads {about['threads']}", flush=True)
        identity: Row = {"machine": machine, "threads": about["threads"], "commit": commit_of(ROOT) or "unknown"}
        identity["settings"] = (
            f"{flags.optimizer}, {flags.rows_tables} tables for rows, {flags.batches} batches, {flags.seconds} s, "
            f"gpu {flags.use_gpu}, flags {' '.join(flags.more)}"
        )
        rows = measure_all(flags, identity)
    except (ValueError, OSError) as error:
        print(f"bench_growth.py: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130  # the points that are finished are in the CSV
    lines = curves(rows)
    picture = flags.work / "growth.png"
    print(f"\n{report(lines)}\n\n{flags.work / 'growth.csv'}")
    print(picture if draw(lines, picture) else "no picture: it needs pip install matplotlib")
    return int(any(row["note"].startswith("failed") for row in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
