"""Raw data formats: what a source is, and the register of them.

A source knows one raw format. It yields blocks of raw rows as data frames and says how the rows are split; everything
else (ids, storage, restart, batches) is the same for all formats and lives in `store`.

To add a format: write one file with a class that has the attributes of `Source`, and add one `register_source`
line at the bottom of this file. `--data-set` and its help list it from then on. Text formats build on `sources.text`.

Legend: B batch, N raw rows, M dense features, T tables (categorical columns), L lookups of a batch, S labels trained.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import polars as pl
import torch

Position = dict[str, int]  # where in the raw data reading goes on; opaque to all but the source, JSON-ready

GROUP = "__group"  # the column of a block that `Layout.grouped` asks for
TRANSFORMS = ("log1p", "none", "standard")


class DataError(ValueError):
    """A raw row that cannot be read. The message names file, line, column and value."""


class Batch(NamedTuple):
    """One training step's input.

    One-hot data has `ids` [B, T] and no `offsets`. Multi-hot data has the ids of all bags in one row, table 0's
    samples first: `ids` [L] and `offsets` [T * B + 1], where bag (t, b) is ids[offsets[t*B+b] : offsets[t*B+b+1]].
    """

    dense: torch.Tensor  # float32 [B, M]
    ids: torch.Tensor  # int64 [B, T] or [L]
    offsets: torch.Tensor | None  # int64 [T * B + 1]
    labels: torch.Tensor  # float32 [B, S], a column a task; NaN where one of several is missing


@dataclass(frozen=True)
class Layout:
    """The columns of a data set.

    Args:
        labels: one or more label columns, the one that is trained by default first.
        dense: name -> transform, what the model sees of a raw value x: "log1p": log(x + 1); "none": x;
            "standard": (x - mean) / std over the training part. A missing value counts as 0 ("standard": as the mean).
        tables: categorical columns, each with a vocabulary and an embedding table of its own.
        multi_hot: those of them whose cells hold any number of values, also none.
        grouped: blocks carry the column GROUP (integer), by which `Source.split` tells the parts apart.
    """

    labels: tuple[str, ...]
    dense: dict[str, str]
    tables: tuple[str, ...]
    multi_hot: tuple[str, ...] = ()
    grouped: bool = False

    def __post_init__(self) -> None:
        names = [*self.labels, *self.dense, *self.tables]
        if not self.labels or not self.tables:
            raise ValueError("a data set needs at least one label and one categorical column")
        if len(set(names)) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"column {twice!r} is named twice")
        for name, transform in self.dense.items():
            if transform not in TRANSFORMS:
                raise ValueError(f"dense column {name!r}: transform {transform!r} is none of {', '.join(TRANSFORMS)}")


class Block(NamedTuple):
    """Some consecutive raw rows, parsed but not yet encoded.

    `frame` has the layout's columns, in any order. Labels: Int8, 0 or 1, null where unknown. Dense: integers or finite
    floats, null where missing. Tables: integers or strings, null where missing (the value 0 or ""); multi-hot: lists
    of them, null for an empty bag.
    """

    frame: pl.DataFrame
    end: Position  # the next block begins here: `blocks(end)` yields the rest
    skipped: int = 0  # bad rows left out (--bad-rows=skip) ...
    problem: str = ""  # ... and what was wrong with the first of them


class Groups(NamedTuple):
    """The values of the GROUP column over all N raw rows, as runs of equal values."""

    values: np.ndarray  # int64 [runs]
    lengths: np.ndarray  # int64 [runs]

    def per_row(self, dtype: type = np.int32) -> np.ndarray:
        """One value a raw row [N]."""
        return np.repeat(self.values.astype(dtype), self.lengths)


@dataclass(frozen=True)
class Split:
    """Row ranges [start, stop) of the store; the training part as one range per day, for per-day shuffling.

    Where the parts do not lie one behind the other in the raw data, `part_of_row` uint8 [N] says which part each raw
    row belongs to (see PARTS): the store then holds the rows part by part, in raw order within each.
    """

    train_days: tuple[tuple[int, int], ...]
    val: tuple[int, int]
    test: tuple[int, int]
    description: str
    part_of_row: np.ndarray | None = field(default=None, compare=False, repr=False)


PARTS = {"train": 0, "val": 1, "test": 2}


def split_by_part(part_of_row: np.ndarray, description: str) -> Split:
    """A split by part number (see PARTS) of each raw row. Raises DataError where a part is empty."""
    part_of_row = part_of_row.astype(np.uint8)
    sizes = np.bincount(part_of_row, minlength=3).tolist()
    for name, number in PARTS.items():
        if not sizes[number]:
            raise DataError(f"of {len(part_of_row)} rows none falls into the {name} part ({description})")
    train, val, test = sizes
    in_order = bool((np.diff(part_of_row.astype(np.int8)) >= 0).all())
    return Split(
        train_days=((0, train),),
        val=(train, train + val),
        test=(train + val, train + val + test),
        description=description,
        part_of_row=None if in_order else part_of_row,
    )


def random_split(rows: int, seed: int, tenths: tuple[int, int, int] = (8, 1, 1)) -> Split:
    """Train, validation and test drawn without replacement by a permutation of all rows (legacy NumPy generator)."""
    part_of_row = np.empty(rows, np.uint8)
    order = np.random.RandomState(seed).permutation(rows)
    bounds = [rows * sum(tenths[:i]) // sum(tenths) for i in range(4)]
    for part in range(3):
        part_of_row[order[bounds[part] : bounds[part + 1]]] = part
    return split_by_part(part_of_row, f"random {':'.join(map(str, tenths))} by a permutation of all rows, seed {seed}")


def blocks_of_slices(
    rows: int,
    size: int,
    start: Position | None,
    frame_of: Callable[[int, int], pl.DataFrame],
    skipped: int,
    problem: str,
) -> Iterator[Block]:
    """Blocks of a data set that is held in memory: `frame_of(first, stop)` for `size` rows at a time, from `start` on.

    The first block of all carries the count of bad rows and the first problem.
    """
    for row in range(start["row"] if start else 0, max(rows, 1), size):
        stop = min(row + size, rows)
        yield Block(frame_of(row, stop), {"row": stop}, *((skipped, problem) if row == 0 else ()))


@dataclass(frozen=True)
class SourceOptions:
    """What a source may need beside the raw path; each source takes what concerns it."""

    synthetic_rows: int = 0
    synthetic_seed: int = 0
    work_folder: Path = Path(".dlrm_store")
    bad_rows: str = "fail"  # or "skip"
    settings: dict[str, str] = field(default_factory=dict)  # --data-option name=value


def take_settings(given: dict[str, str], defaults: dict[str, Any]) -> dict[str, Any]:
    """A source's settings: its defaults, overridden by what the user gave, in the type of the default.

    A default that is a tuple lists the choices, the first of which holds.

    Raises:
        ValueError: an unknown name, or a value of the wrong type or outside the choices.
    """
    settings = {name: value[0] if isinstance(value, tuple) else value for name, value in defaults.items()}
    for name, text in given.items():
        if name not in defaults:
            known = ", ".join(defaults) or "none"
            raise ValueError(f"--data-option={name}={text}: this data set has no such option (it has: {known})")
        default = defaults[name]
        if isinstance(default, tuple):
            if text not in map(str, default):
                raise ValueError(f"--data-option={name}={text}: choose from {', '.join(map(str, default))}")
            settings[name] = next(value for value in default if str(value) == text)
            continue
        try:
            settings[name] = type(default)(text)
        except ValueError:
            raise ValueError(f"--data-option={name}={text} is no {type(default).__name__}") from None
    return settings


class Source(Protocol):
    """One raw format. A class is registered with `register_source` and built as Class(raw_data_file, options)."""

    layout: Layout
    paths: tuple[Path, ...]  # the raw files, in reading order; their checksum tells changed data
    settings: dict[str, Any]  # what changes the rows beside the raw files: part of the store's key, JSON-ready

    def blocks(self, start: Position | None = None) -> Iterator[Block]:
        """Yield the raw rows in order, from the beginning or a block's `end`. Raises DataError on a bad row."""

    def split(self, rows: int, groups: Groups | None) -> Split:
        """Say which of `rows` raw rows are training, validation and test; `groups` where the layout is grouped."""

    def best_auc_scores(self) -> np.ndarray | None:
        """The generating model's own probability of each raw row, [N] of the first label or [N, labels], where it is
        known (optional method)."""

    @staticmethod
    def scoring_blocks(path: Path, settings: dict[str, Any]) -> Iterator[Block]:
        """Rows to score in the raw format, labels optional (optional; else a table with the columns' names is read)."""


_SOURCES: dict[str, tuple[str, str]] = {}


def register_source(name: str, module: str, class_name: str) -> None:
    """Register a format under the name that `--data-set` takes. Raises ValueError on a duplicate."""
    if name in _SOURCES:
        raise ValueError(f"data set {name!r} is already registered by {'.'.join(_SOURCES[name])}")
    _SOURCES[name] = (module, class_name)


def source_names() -> tuple[str, ...]:
    """Names that `--data-set` takes."""
    return tuple(sorted(_SOURCES))


def source_class(name: str) -> type:
    """The class registered under a name. Raises ValueError for an unknown name."""
    if name not in _SOURCES:
        raise ValueError(f"data set {name!r} is not known; choose from {', '.join(source_names())}")
    module, class_name = _SOURCES[name]
    return getattr(importlib.import_module(module), class_name)


def open_source(name: str, raw_data_file: str, options: SourceOptions) -> Source:
    """Build the source `name` for a raw path. Raises ValueError for an unknown name or an unusable path."""
    return source_class(name)(raw_data_file, options)


register_source("kaggle", "sources.kaggle", "KaggleSource")
register_source("terabyte", "sources.terabyte", "TerabyteSource")
register_source("criteo-synthetic", "sources.criteo_synthetic", "CriteoSyntheticSource")
register_source("multitask-synthetic", "sources.multitask", "MultitaskSource")
register_source("avazu", "sources.avazu", "AvazuSource")
register_source("libfm", "sources.libfm", "LibfmSource")
register_source("frappe", "sources.libfm", "FrappeSource")
register_source("movielens-1m", "sources.movielens", "MovieLens1MSource")
register_source("globo", "sources.globo", "GloboSource")
register_source("adult", "sources.adult", "AdultSource")
register_source("ali-ccp", "sources.ali_ccp", "AliCcpSource")
register_source("kuairand", "sources.kuairand", "KuaiRandSource")
register_source("schema", "sources.schema", "SchemaSource")
