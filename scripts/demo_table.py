"""Print the result events of metrics files as one small table.

python scripts/demo_table.py demo_output/single-layer.jsonl demo_output/mlet.jsonl
"""

import json
import sys
from pathlib import Path

HEADER = ("model", "AUC", "logloss", "NE", "training MB", "inference MB", "train s")


def result_of(path: Path) -> dict:
    """The result event, which is the file's last line."""
    event = json.loads(path.read_text().splitlines()[-1])
    if event["event"] != "result":
        raise SystemExit(f"error: {path} ends before its result event: the run did not finish")
    return event


def main() -> None:
    """One row a file, and the teacher's row where the data was generated."""
    paths = [Path(argument) for argument in sys.argv[1:]]
    results = [result_of(path) for path in paths]
    rows = [HEADER]
    for path, result in zip(paths, results, strict=True):
        test = result["test"]
        rows.append(
            (
                path.stem,
                f"{test['auc']:.4f}",
                f"{test['logloss']:.4f}",
                f"{test['ne']:.4f}",
                f"{result['train_bytes'] / 1e6:.1f}",
                f"{result['inference_bytes'] / 1e6:.1f}",
                f"{result['train_seconds']:.0f}",
            )
        )
    teacher = results[0].get("teacher")
    if teacher:
        best = (f"{teacher['auc']:.4f}", f"{teacher['logloss']:.4f}", f"{teacher['ne']:.4f}")
        rows.append(("best reachable", *best, "", "", ""))
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    print(f"\nTest split, {results[0]['test']['samples']} rows:")
    for row in rows:
        print(
            "  ".join(
                cell.ljust(width) if not c else cell.rjust(width)
                for c, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
        )


if __name__ == "__main__":
    main()
