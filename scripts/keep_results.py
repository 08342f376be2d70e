"""Gather the results of a study's runs into one file of JSON lines that can be kept beside its tables.

python scripts/keep_results.py multi_epoch_criteo_output --to results/reproduce_multi_epoch/criteo

writes TO/runs.jsonl, one line a run: its name, seed, flags that differ from the driver's defaults, versions, checksum
of the data, metrics after each epoch, losses across boundaries, and the result; and copies the study's tables
(*.md, *.csv) and pictures. Folders are left out: they say where something lay, not what it was.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from study import is_done  # noqa: E402

KEPT = "runs.jsonl"
COPIED = ("*.csv", "*.png")
# absolute paths but for their last part: of the picture, in quotes, and plain ones
FOLDERS = re.compile(r"(?<=Picture: )/.*/|(?<=')/[^'\n]*/(?=[^'/\n]+')|(?<=[=\s])/\S*/(?=\S)")
QUALITIES = ("auc", "logloss", "ne", "accuracy")


def driver_defaults() -> dict:
    """The driver's flags where none is given."""
    from dlrm_mlet import parse_flags

    return vars(parse_flags([]))


def comparable(config: dict, defaults: dict) -> dict:
    """Flags that are not the driver's defaults, less those that name a place."""
    return {
        name: value
        for name, value in config.items()
        if value != defaults.get(name) and not (isinstance(value, str) and "/" in value)
    }


def record_of(path: Path, defaults: dict) -> dict:
    """One run as one object."""
    events = [json.loads(line) for line in path.read_text().splitlines()]
    result = events[-1]
    evaluations = [
        {key: event[key] for key in ("split", "epoch", "iteration", *QUALITIES, "tasks") if key in event}
        for event in events
        if event["event"] == "eval"
    ]
    boundaries = [
        {key: event[key] for key in ("epoch", "last", "first", "jump_percent")}
        for event in events
        if event["event"] == "boundary"
    ]
    kept = {key: value for key, value in result.items() if key not in ("event", "config", "hash", "by_frequency")}
    config = comparable(result["config"], defaults)
    return {"run": path.stem, **kept, "config": config, "evaluations": evaluations, "boundaries": boundaries}


def keep(files: list[Path], work: Path, to: Path, add: bool = False) -> None:
    """Write what is kept of these runs and of their study's tables; to `add`: runs that lie there and not here stay."""
    from mlet.files import atomic_file

    defaults = driver_defaults()
    lines = {path.stem: json.dumps(record_of(path, defaults)) + "\n" for path in files}
    if add and (to / KEPT).exists():
        lines = {json.loads(line)["run"]: line for line in (to / KEPT).open()} | lines
    to.mkdir(parents=True, exist_ok=True)
    with atomic_file(to / KEPT, "w") as out:
        out.writelines(line for _, line in sorted(lines.items()))
    for pattern in COPIED:
        for path in work.glob(pattern):
            shutil.copy(path, to / path.name)
    for table in work.glob("*.md"):
        (to / table.name).write_text(FOLDERS.sub("", table.read_text()))


def main() -> int:
    """Gather what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder of a study")
    parser.add_argument("--to", type=Path, required=True, help="folder to keep its results in")
    parser.add_argument("--add", action="store_true", help="runs that TO has and the study has not stay there")
    flags = parser.parse_args()
    files = [path for path in sorted(flags.work.glob("*.jsonl")) if is_done(path)]
    if not files:
        print(f"error: {flags.work} holds no finished run", file=sys.stderr)
        return 2
    if flags.to.resolve() == flags.work.resolve():
        print(f"error: --to {flags.to} is the study's own folder", file=sys.stderr)
        return 2
    try:
        keep(files, flags.work, flags.to, flags.add)
    except KeyError as error:  # while the runs are read: nothing is written yet
        print(f"error: a run lacks {error}; nothing in {flags.to} is changed", file=sys.stderr)
        return 2
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{len(files)} runs in {flags.to / 'runs.jsonl'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
