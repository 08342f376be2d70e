"""What the studies' command lines have in common, and the data sets that they run on."""

from __future__ import annotations

import argparse
import math
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

SCALES = ("smoke", "small", "paper")
PAPER_ROWS = 45_840_617  # Criteo Kaggle's train.txt


@dataclass(frozen=True)
class DataSet:
    """A data set as studies name it.

    Args:
        flags: for the driver.
        dense: how many dense features there are.
        rows: of a set that is generated, by scale; a set that is not is as large as its file.
    """

    flags: str
    dense: int = 0
    rows: Mapping[str, int] = field(default_factory=dict)


DATA_SETS = {
    "synthetic": DataSet("--data-set=criteo-synthetic", 13, {"smoke": 20_000, "small": 1_000_000, "paper": PAPER_ROWS}),
    "criteo": DataSet("--data-set=kaggle", 13),
    "avazu": DataSet("--data-set=avazu"),
    "movielens-1m": DataSet("--data-set=movielens-1m"),
    "frappe": DataSet("--data-set=frappe"),
    "globo": DataSet("--data-set=globo"),
    "multitask-synthetic": DataSet(
        "--data-set=multitask-synthetic", 13, {"smoke": 20_000, "small": 300_000, "paper": PAPER_ROWS}
    ),
}


class OneLineParser(argparse.ArgumentParser):
    """A bad value is one line and exit code 2."""

    def error(self, message: str) -> None:
        self.exit(2, f"{self.prog}: error: {message}\n")


def seed_list(text: str) -> list[int]:
    """Whole numbers with blanks between them, each once."""
    try:
        seeds = [int(word) for word in text.split()]
    except ValueError:
        seeds = []
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0 or max(seeds) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text!r}: give different whole numbers below 2**32, blanks between them")
    return seeds


def count(least: int, most: float = math.inf) -> Callable[[str], int]:
    """An argument's type: a whole number of at least `least`, at most `most`."""
    which = f"of at least {least}" if most == math.inf else f"from {least} to {most}"

    def convert(text: str) -> int:
        if not text.isdigit() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number {which}")
        return int(text)

    return convert


def parse(
    description: str,
    seeds: str,
    methods: Sequence[str],
    default: Sequence[str] | None = None,
    *,
    data_sets: Sequence[str] = ("criteo", "synthetic"),
    tuning: int = 0,
    smoke: str = "1",
    add: Callable[[argparse.ArgumentParser], None] | None = None,
) -> argparse.Namespace:
    """The command line that studies share; what stands behind -- goes to all runs of the driver, as `more`.

    Args:
        description: of the study.
        seeds, smoke: what --seeds is by default, and at --scale=smoke.
        methods: what --only may name.
        default: what is run without --only; all unless it is given.
        data_sets: what --dataset may name.
        tuning: what --tuning-seeds is by default.
        add: adds the study's own arguments.
    """
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    behind = "What stands behind -- goes to every run of the driver."
    parser = OneLineParser(description=description, epilog=behind, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", default="", help="raw data, as the driver's --raw-data-file")
    parser.add_argument("--dataset", choices=data_sets, help=f"default {data_sets[0]}")
    parser.add_argument("--scale", choices=SCALES, default="small", help="cells, seeds, generated rows; default small")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the runs train; default cpu")
    parser.add_argument(
        "--work", type=Path, help="folder of runs and prepared data; else WORK, or SCRIPT_DATASET_output"
    )
    help_of_kept = "folder of results/: its runs are taken up and not made anew where they have this study's flags"
    parser.add_argument("--kept", type=Path, metavar="FOLDER", help=help_of_kept)
    parser.add_argument("--seeds", type=seed_list, help=f"blanks between them; {seeds}, or {smoke} at --scale=smoke")
    default = list(methods if default is None else default)
    usual = "all" if default == list(methods) else ", ".join(default) or "by set"
    which = f"of {', '.join(methods)}; default {usual}"
    parser.add_argument("--only", nargs="+", choices=methods, default=default, metavar="METHOD", help=which)
    help_of_tuning = f"seeds, from the first, that settings are compared over on validation; 0: all; default {tuning}"
    parser.add_argument("--tuning-seeds", type=count(0), default=tuning, metavar="N", help=help_of_tuning)
    help_of_widen = "where a grid of table rates has its best at its end, try the next beyond, up to N; default 0"
    parser.add_argument("--widen", type=count(0, 9), default=0, metavar="N", help=help_of_widen)
    parser.add_argument("--jobs", type=count(1), default=1, help="runs at a time; default 1")
    if add:
        add(parser)
    flags = parser.parse_args(sys.argv[1:split])
    flags.named = flags.only if len(flags.only) < len(methods) else []  # what is asked for by name has to be there
    flags.dataset = flags.dataset or data_sets[0]
    check_data(flags, data_sets, parser)
    flags.seeds = flags.seeds or seed_list(smoke if flags.scale == "smoke" else seeds)
    caller = Path(os.environ.get("CALLER", "."))  # where the shell script was called from, before it changed folder
    scale = "" if flags.scale == "small" else f"{flags.scale}_"
    work = flags.work or os.environ.get("WORK") or f"{Path(sys.argv[0]).stem}_{flags.dataset}_{scale}output"
    flags.work = (caller / work).resolve()
    flags.kept = (caller / flags.kept).resolve() if flags.kept else None
    flags.data = shlex.quote(str((caller / flags.data).resolve())) if flags.data else ""
    flags.more = shlex.join([*(["--use-gpu"] if flags.device == "cuda" else []), *sys.argv[split + 1 :]])
    return flags


def absent_of(named: Sequence[str], there: Sequence[str], scale: str) -> str:
    """What is asked for by name and the scale has not, as a sentence; nothing if it has all."""
    return next((f"{name}: --scale={scale} has {', '.join(there)}" for name in named if name not in there), "")


def check_data(flags: argparse.Namespace, data_sets: Sequence[str], parser: argparse.ArgumentParser) -> None:
    """Ends in one line where the set is generated and there is data, none where it is not, or no such device."""
    if not (flags.data or DATA_SETS[flags.dataset].rows):
        parser.error(f"give the data of --dataset={flags.dataset} (or another of {', '.join(data_sets)})")
    if flags.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            parser.error("--device=cuda: torch sees no CUDA device")
    if flags.data and DATA_SETS[flags.dataset].rows:
        parser.error(f"--dataset={flags.dataset} is generated: give no data")


def data_flags(flags: argparse.Namespace) -> str:
    """The driver's flags for the data that the command line names."""
    data = DATA_SETS[flags.dataset]
    if data.rows:
        return f"{data.flags} --synthetic-rows={data.rows[flags.scale]}"
    return f"{data.flags} --raw-data-file={flags.data}"
