"""Raw data formats: what a source is, and the register of them.

A source knows one raw format. It yields blocks of raw rows and says how the rows are split; everything else
(ids, storage, batches) is the same for all formats and lives in `data_utils.py`.

To add a format: write one file with a class that has the attributes of `Source`, and add one `register_source`
line at the bottom of this file. `--data-set` and its help list it from then on.

Legend: B batch, n rows of a block, M dense features, T tables (categorical columns), L lookups of a batch.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch


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
    labels: torch.Tensor  # float32 [B, 1]


class RawBlock(NamedTuple):
    """Some consecutive raw rows, parsed but not yet encoded."""

    labels: np.ndarray  # int8 [n, 1]; shape [n, 0] for unlabelled rows
    dense: np.ndarray  # int32 [n, M]
    values: np.ndarray  # uint32 [n, T], missing = 0


@dataclass(frozen=True)
class Split:
    """Row ranges [start, stop) of the raw rows; the training part as one range per day, for per-day shuffling."""

    train_days: tuple[tuple[int, int], ...]
    val: tuple[int, int]
    test: tuple[int, int]
    description: str


@dataclass(frozen=True)
class SourceOptions:
    """What a source may need beside the raw path; each source takes what concerns it."""

    synthetic_rows: int = 0
    synthetic_seed: int = 0
    work_folder: Path = Path(".dlrm_store")


class Source(Protocol):
    """One raw format. `path` is the raw file; a class is registered with `register_source`."""

    path: Path
    label_names: tuple[str, ...]
    dense_names: tuple[str, ...]
    table_names: tuple[str, ...]
    dense_transform: str  # "log1p": the model sees log(x + 1); "none"

    def blocks(self) -> Iterator[RawBlock]:
        """Yield the raw rows in file order. Raises DataError on the first row that cannot be read."""

    def split(self, rows: int) -> Split:
        """Say which of `rows` raw rows are training, validation and test."""

    def best_auc_scores(self) -> np.ndarray | None:
        """Return the generating model's own click probability of each raw row, where it is known (planted data)."""


_SOURCES: dict[str, tuple[str, str]] = {}


def register_source(name: str, module: str, class_name: str) -> None:
    """Register a format under the name that `--data-set` takes. Raises ValueError on a duplicate."""
    if name in _SOURCES:
        raise ValueError(f"data set {name!r} is already registered by {'.'.join(_SOURCES[name])}")
    _SOURCES[name] = (module, class_name)


def source_names() -> tuple[str, ...]:
    """Names that `--data-set` takes."""
    return tuple(sorted(_SOURCES))


def open_source(name: str, raw_data_file: str, options: SourceOptions) -> Source:
    """Build the source `name` for a raw path. Raises ValueError for an unknown name or an unusable path."""
    if name not in _SOURCES:
        raise ValueError(f"data set {name!r} is not known; choose from {', '.join(source_names())}")
    module, class_name = _SOURCES[name]
    return getattr(importlib.import_module(module), class_name)(raw_data_file, options)


register_source("kaggle", "sources.kaggle", "KaggleSource")
register_source("criteo-synthetic", "sources.criteo_synthetic", "CriteoSyntheticSource")
