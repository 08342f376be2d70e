"""What scripts/bench_train.sh measures: the cells and contestants, as data.

A `run` cell is measured from outside: whole processes of both drivers on the same file. A `step` cell is the step
alone, on batches that are drawn beforehand: multi-hot data can only be had that way (the reference draws its random
bags one by one, which takes longer than the step), and a kernel library such as FBGEMM has no driver at all.

Legend: B batch, T tables, n rows of a table, d embedding dimension, K MLET inner dimension, L lookups of a batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

# Criteo Kaggle's distinct ids a column
KAGGLE_ROWS = (
    1_460, 583, 10_131_227, 2_202_608, 305, 24, 12_517, 633, 3, 93_145, 5_683, 8_351_593, 3_194,
    27, 14_992, 5_461_306, 10, 5_652, 2_173, 4, 7_046_547, 18, 15, 286_181, 105, 142_572,
)  # fmt: skip
WARM_UP_STEPS = 3
RATES = {"sgd": 0.1, "adagrad": 0.01, "rwsadagrad": 0.01}


class Contestant(NamedTuple):
    """A program, and what it is given beside the cell's flags."""

    program: str  # reference, ours or fbgemm
    inner_dim: int = 0
    flags: tuple[str, ...] = ()


CONTESTANTS = {
    "reference": Contestant("reference"),
    "ours": Contestant("ours"),
    "ours-bf16": Contestant("ours", flags=("--precision=bf16",)),
    "ours-bf16-compile": Contestant("ours", flags=("--precision=bf16", "--compile")),
    "ours-k64": Contestant("ours", 64, ("--mlet-inner-dim=64",)),
    "ours-k128": Contestant("ours", 128, ("--mlet-inner-dim=128",)),
    "fbgemm": Contestant("fbgemm"),
}


@dataclass(frozen=True)
class Shape:
    """Model and ids of a step that is measured alone. Widths are dashed as in the drivers' flags."""

    tables: tuple[int, ...]
    dim: int
    bottom: str
    top: str
    hot: int = 1  # ids a bag
    zipf: bool = True  # else uniform

    def capped(self, rows: int) -> Shape:
        """Tables of at most so many rows."""
        return replace(self, tables=tuple(min(rows, n) for n in self.tables))

    def needed_bytes(self, batch: int, contestant: Contestant) -> int:
        """About what training holds: the tables, and a few copies of one batch's rows (gradient, sorted, summed)."""
        width = 4 * (contestant.inner_dim or self.dim)
        lookups = batch * len(self.tables) * self.hot
        return sum(self.tables) * width + 4 * lookups * width + 500_000_000


def kaggle_shape(hot: int, cap: int = 1_000_000, dim: int = 16) -> Shape:
    """The 26 tables of Criteo Kaggle, the largest of them cut as --max-ind-range does."""
    return Shape(KAGGLE_ROWS, dim, f"13-512-256-64-{dim}", "512-256-1", hot).capped(cap)


# bench/dlrm_s_benchmark.sh of the reference, its ids uniform
REFERENCE_SHAPE = Shape((1_000_000,) * 8, 64, "512-512-64", "1024-1024-1024-1", hot=100, zipf=False)


@dataclass(frozen=True)
class Cell:
    """One comparison: the same data, batch and optimizer for all its contestants."""

    name: str
    batch: int
    optimizer: str
    contestants: tuple[str, ...]
    shape: Shape | None = None  # None: whole processes on the generated file

    @property
    def rate(self) -> float:
        return RATES[self.optimizer]

    @property
    def hot(self) -> int:
        return self.shape.hot if self.shape else 1

    def needed_bytes(self) -> int:
        """For all workers of a step cell, which live side by side."""
        assert self.shape
        return sum(self.shape.needed_bytes(self.batch, CONTESTANTS[name]) for name in self.contestants)


def _cells() -> Iterable[Cell]:
    plain, bf16, mlet = ("reference", "ours"), ("ours-bf16", "ours-bf16-compile"), ("ours-k64", "ours-k128")
    for optimizer in ("sgd", "rwsadagrad"):
        for batch in (128, 2048, 8192):
            yield Cell(f"run-{batch}-{optimizer}", batch, optimizer, (*plain, *bf16, *mlet))
    for optimizer in ("sgd", "rwsadagrad"):
        for batch in (128, 2048):
            contestants = (*plain, "ours-bf16", *mlet, "fbgemm")
            yield Cell(f"step-{batch}-{optimizer}", batch, optimizer, contestants, kaggle_shape(1))
        for batch in (128, 2048, 8192):
            contestants = (*plain, "ours-bf16", *mlet, "fbgemm")
            yield Cell(f"step-{batch}-10hot-{optimizer}", batch, optimizer, contestants, kaggle_shape(10))
        contestants = (*plain, "ours-bf16", "fbgemm")
        yield Cell(f"step-reference-shape-{optimizer}", 2048, optimizer, contestants, REFERENCE_SHAPE)
    contestants = (*plain, "ours-bf16", "fbgemm")
    yield Cell("step-2048-10hot-full-sgd", 2048, "sgd", contestants, kaggle_shape(10, cap=max(KAGGLE_ROWS)))


CELLS = {cell.name: cell for cell in _cells()}


@dataclass(frozen=True)
class Scale:
    """How much is measured: seconds to see that it works, or for real."""

    rows: int  # of the generated file
    repeats: int
    short: dict[int, int]  # batch -> steps of the short run
    long: dict[int, int]
    block_seconds: float  # of a block of steps of a step cell
    drawn: int  # batches drawn beforehand
    table_rows: int  # cap of a step cell's tables
    cells: tuple[str, ...]


SCALES = {
    "smoke": Scale(20_000, 1, {128: 2, 2048: 1, 8192: 1}, {128: 30, 2048: 8, 8192: 2}, 0.2, 2, 1_000,
        ("run-128-sgd", "step-128-sgd")),
    # 8 to 10 s between the short and the long run at 20, 100 and 400 ms a step
    "full": Scale(500_000, 5, {128: 20, 2048: 10, 8192: 5}, {128: 520, 2048: 110, 8192: 30}, 3.0, 8, max(KAGGLE_ROWS),
        tuple(CELLS)),
}  # fmt: skip


def run_flags(cell: Cell) -> list[str]:
    """What both drivers take alike."""
    return [
        "--arch-sparse-feature-size=16",
        "--arch-mlp-bot=13-512-256-64-16",
        "--arch-mlp-top=512-256-1",
        "--data-generation=dataset",
        "--data-set=kaggle",
        "--loss-function=bce",
        "--round-targets=True",
        f"--learning-rate={cell.rate}",
        f"--optimizer={cell.optimizer}",
        f"--mini-batch-size={cell.batch}",
        "--print-freq=1000000",
        "--test-mini-batch-size=16384",
    ]


def step_flags(shape: Shape, batch: int, optimizer: str) -> list[str]:
    """Our driver's flags for a model of this shape; the batches come from elsewhere."""
    return [
        "--data-generation=random",
        f"--arch-embedding-size={'-'.join(map(str, shape.tables))}",
        f"--arch-sparse-feature-size={shape.dim}",
        f"--arch-mlp-bot={shape.bottom}",
        f"--arch-mlp-top={shape.top}",
        f"--num-indices-per-lookup={shape.hot}",
        "--num-indices-per-lookup-fixed",
        "--loss-function=bce",
        f"--learning-rate={RATES[optimizer]}",
        f"--optimizer={optimizer}",
        f"--mini-batch-size={batch}",
        "--num-batches=1000000",
    ]


def step_spec(
    contestant: Contestant, shape: Shape, batch: int, optimizer: str, batches: str, more: Sequence[str] = ()
) -> dict:
    """What a worker of bench_step.py is told, but for paths and device. `more`: flags for our driver alone."""
    more = more if contestant.program == "ours" else ()
    return {
        "program": contestant.program,
        "shape": asdict(shape),
        "optimizer": optimizer,
        "rate": RATES[optimizer],
        "flags": [*step_flags(shape, batch, optimizer), *contestant.flags, *more],
        "batches": batches,
        "warm_up": WARM_UP_STEPS,
    }
