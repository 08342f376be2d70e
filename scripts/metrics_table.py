"""Print the results in metrics files as one small table: a row a file, or mean +- standard deviation over seeds.

python scripts/metrics_table.py demo_output/single-layer.jsonl demo_output/mlet.jsonl
python scripts/metrics_table.py runs/*.jsonl        # mlet-1.jsonl, mlet-2.jsonl ... are the seeds of "mlet"
"""

import json
import re
import statistics
import sys
from pathlib import Path

HEADER = ("model", "runs", "AUC", "logloss", "NE", "training MB", "inference MB", "train s")


def result_of(path: Path) -> dict:
    """The result event, which is the file's last line. Raises ValueError, naming the file, where there is none."""
    try:
        event = json.loads(path.read_text().splitlines()[-1])
    except (OSError, IndexError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    if event.get("event") != "result" or not event.get("test"):
        raise ValueError(f"{path} has no test result at its end: the run did not finish, or tested nothing")
    return event


def grouped(paths: list[Path]) -> dict[str, list[dict]]:
    """File stem without its seed -> results."""
    groups: dict[str, list[dict]] = {}
    for path in paths:
        groups.setdefault(re.sub(r"-\d+$", "", path.stem), []).append(result_of(path))
    return groups


def mean(values: list[float | None], digits: int) -> str:
    """One value, or mean +- standard deviation; "-" where one is undefined."""
    if None in values:
        return "-"
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{statistics.mean(values):.{digits}f} ±{statistics.stdev(values):.{digits}f}"


def row_of(name: str, results: list[dict]) -> tuple[str, ...]:
    """One row of the table."""
    tests = [result["test"] for result in results]
    quality = (mean([test[metric] for test in tests], 4) for metric in ("auc", "logloss", "ne"))
    sizes = (f"{results[0][key] / 1e6:.1f}" for key in ("train_bytes", "inference_bytes"))
    return name, str(len(results)), *quality, *sizes, mean([result["train_seconds"] for result in results], 0)


def main() -> int:
    """Read the files named on the command line, print the table."""
    if not sys.argv[1:]:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        groups = grouped([Path(argument) for argument in sys.argv[1:]])
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    rows = [HEADER] + [row_of(name, results) for name, results in groups.items()]
    first = next(iter(groups.values()))[0]
    if first.get("teacher"):
        best = (mean([first["teacher"][metric]], 4) for metric in ("auc", "logloss", "ne"))
        rows.append(("best reachable", "", *best, "", "", ""))
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    print(f"\nTest split, {first['test']['samples']} rows:")
    for row in rows:
        name, *cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join([name, *(cell.strip().rjust(len(cell)) for cell in cells)]).rstrip())
    return 0


if __name__ == "__main__":
    sys.exit(main())
