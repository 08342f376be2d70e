"""The cells of the MLET papers' tables: a model, a recipe, a width, at the common table rate or tuned over five.

MLET's W2 ~ N(0, 0.25^2) multiplies a table's rate: by k/16 under SGD (mlet/analysis.py), by 0.2 k where each entry is
stepped by its own measure. So each recipe has a grid of five rates of its own, about where that factor puts the
optimum. The first is the common one, at which the papers compare.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import model_quality
from metrics_table import result_of
from study import Method
from study_flags import DATA_SETS, data_flags
from study_widen import RATE

MODELS = ("dlrm", "wide-deep", "deepfm", "xdeepfm", "dcn", "dcn-v2", "nfm", "pnn", "pnn-outer", "autoint")
COMMON, TUNED = "common", "tuned"
BENCHMARK = ("frappe", "movielens-1m")  # in the benchmarks' settings; others in the authors'
PRESETS = {
    "fixed": {},
    "authors": {"avazu": "--data-option fields=authors --data-option ids=sqlite --test-freq=30000",
                "criteo": "--test-freq=3000"},
}  # fmt: skip


@dataclass(frozen=True)
class Optimizer:
    """How the models of a study are trained.

    Args:
        flags: for the driver.
        rates: table rates that single layers are tuned over; the first is the common one.
        lift: k times this is what W2 multiplies a table's rate by, so that MLET's best rates are so much lower.
    """

    flags: str
    rates: tuple[float, ...]
    lift: float


SGD_LIFT = 0.25**2  # sum over k of w2^2: a step of W1 is the gradient times w2, and comes back times w2
ENTRY_LIFT = 0.25 * (2 / math.pi) ** 0.5  # sum over k of |w2|: Adagrad's and Adam's first steps are the rate in size
SGD = Optimizer("--learning-rate=0.2 --mini-batch-size=128", (1, 32, 64, 128, 256), SGD_LIFT)
ADAGRAD = Optimizer("--optimizer=adagrad --learning-rate=0.02 --mini-batch-size=256", (1, 0.1, 0.3, 3, 10), ENTRY_LIFT)
ADAM = Optimizer("--optimizer=adam --learning-rate=0.001 --mini-batch-size=256", (1, 3, 8, 25, 50), ENTRY_LIFT)
BENCHMARKS = Optimizer("", (5, 1, 2, 10, 20), ENTRY_LIFT)  # Adam; the rest stands in the benchmarks' settings


@dataclass(frozen=True)
class Cell:
    """One place of a table."""

    model: str
    recipe: str
    dim: int
    how: str

    @property
    def kind(self) -> str:
        """The recipe without its k."""
        return self.recipe.rpartition("-")[0] or self.recipe

    @property
    def inner(self) -> int:
        """k; 0 for the plain single layer."""
        return 0 if self.recipe == "single" else int(self.recipe.rpartition("-")[2])


KINDS = {
    "mlet": "",
    "fixed-w2": " --mlet-w2-rate-multiplier=0",
    "masked": " --mlet-cross-term=masked --emb-l2=0",  # the penalty moves all rows
    "scaled": " --mlet-init=scaled",
}


def recipe_flags(cell: Cell) -> str:
    """The driver's flags of a recipe: single, mlet-K, and the controls matched-K, fixed-w2-K, masked-K, scaled-K."""
    if cell.kind == "single":
        return ""
    if cell.kind == "matched":  # a single layer that starts as wide as MLET and has its rate
        return f"--emb-init=uniform-{(cell.inner / 16) ** 0.5:g}"
    return f"--mlet-inner-dim={cell.inner}{KINDS[cell.kind]}"


def rates_of(cell: Cell, optimizer: Optimizer) -> tuple[float, ...]:
    """Table rates that a cell's best is chosen from, the common one first."""
    factor = cell.inner * optimizer.lift
    common = optimizer.rates[0] * (factor if cell.kind == "matched" else 1)
    if cell.how == COMMON:
        return (common,)
    lower = factor if cell.kind in ("mlet", "fixed-w2", "masked") else 1
    return tuple(dict.fromkeys((common, *(float(f"{rate / lower:.3g}") for rate in optimizer.rates[1:]))))


def method_of(cell: Cell, optimizer: Optimizer, dense: int) -> Method:
    """What the study runs for a cell. Cells at both rates share their runs at the common one."""
    flags = f"--arch-model={cell.model} --arch-sparse-feature-size={cell.dim} {recipe_flags(cell)}".rstrip()
    if dense:
        flags += f" --arch-mlp-bot={dense}-256-64-{cell.dim}"
    grid = tuple(f"{RATE}={rate:g}" for rate in rates_of(cell, optimizer))
    return Method(f"{cell.model}.{cell.recipe}.{cell.dim}", flags, grid)


def optimizer_of(flags: argparse.Namespace, models: Sequence[str]) -> Optimizer:
    """As the authors trained: SGD for DLRM, Adagrad for the other models, but their preset apart, Adam for these.

    At Adagrad's 0.02 the dense layers of some seeds never learn from 80,000 rows: AUC scatters by 0.01 to 0.04.
    """
    if flags.dataset in BENCHMARK:
        return BENCHMARKS
    if list(models) == ["dlrm"]:
        return SGD
    return ADAGRAD if flags.preset == "authors" else ADAM


def base_of(flags: argparse.Namespace, optimizer: Optimizer) -> str:
    """Flags of all runs."""
    if flags.dataset in BENCHMARK:
        own = f"{model_quality.base_of(flags)} {model_quality.TOWER}"
        return f"{own} --frequency-report {data_flags(flags)}"
    preset = PRESETS[flags.preset].get(flags.dataset, "")
    return (
        f"--data-generation=dataset --arch-mlp-top=512-256-1 --loss-function=bce {optimizer.flags} --frequency-report "
        f"--test-mini-batch-size=4096 --print-freq=1000000 {preset} {data_flags(flags)}"
    )


def dense_of(flags: argparse.Namespace) -> int:
    """Dense features: the Avazu authors' hour is one."""
    return 1 if flags.dataset == "avazu" and flags.preset == "authors" else DATA_SETS[flags.dataset].dense


def cells(models: Sequence[str], widths: dict[str, Sequence[int]], how: dict[str, Sequence[str]]) -> list[Cell]:
    """All cells of a grid: `widths` of each recipe, and at which rates it is run; tuned single layers come first."""
    return [
        Cell(model, recipe, dim, rate)
        for rate in (TUNED, COMMON)
        for model in models
        for recipe, dims in widths.items()
        for dim in dims
        if rate in how.get(recipe, (COMMON, TUNED))
    ]


def as_the_authors(path: Path) -> dict:
    """A run's result whose best evaluation is that of the highest test accuracy: they chose on what they reported."""
    events = [json.loads(line) for line in path.read_text().splitlines()]
    by_split = {"test": [], "val": []}
    for event in events:
        if event["event"] == "eval":
            by_split[event["split"]].append(event)
    test = max(by_split["test"], key=lambda event: event["accuracy"])
    val = next(event for event in by_split["val"] if event["iteration"] == test["iteration"])
    return result_of(path) | {"best": {"test": test, "val": val}}
