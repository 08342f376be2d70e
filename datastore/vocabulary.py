"""Everything that turns raw rows into model input, kept beside every exported model."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from datastore.collect import encode_table
from datastore.index import TableIndex
from datastore.schema import SCHEMA, read_schema
from datastore.transform import DenseTransform
from mlet.files import atomic_directory
from sources import Batch, Layout, source_class
from sources.table import table_blocks


class Vocabulary:
    """Raw rows -> batches, by a store's vocabularies and transforms.

    Args:
        directory: a store, or the vocabulary directory beside an exported file.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self.schema = read_schema(self.directory)
        self.layout = Layout(
            labels=tuple(self.schema["labels"]),
            dense={name: column["transform"] for name, column in self.schema["dense"].items()},
            tables=tuple(self.schema["tables"]),
            multi_hot=tuple(self.schema["multi_hot"]),
        )
        self._transform = DenseTransform(self.schema["dense"])
        self._indexes = {name: read_index(self.directory, self.schema, name) for name in self.layout.tables}

    def encode(self, frame: pl.DataFrame) -> Batch:
        """Raw rows as one batch, without labels (the labels are empty, [B, 0]); unknown values get the unknown id."""
        dense = self._transform({name: self._raw_dense(frame[name]) for name in self.layout.dense}, frame.height)
        ids, lengths = [], []
        for table in self.layout.tables:
            index, is_bag = self._indexes[table], table in self.layout.multi_hot
            encoded, sizes, _ = encode_table(frame[table], lambda column, i=index: (i.encode(column), None), is_bag)
            lengths.append(np.ones(frame.height, np.int64) if sizes is None else sizes)
            ids.append(encoded.astype(np.int64))
        labels = torch.empty(frame.height, 0)
        if not self.layout.multi_hot:
            return Batch(dense, torch.from_numpy(np.stack(ids, axis=1)), None, labels)
        offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths), dtype=np.int64)])
        return Batch(dense, torch.from_numpy(np.concatenate(ids)), torch.from_numpy(offsets), labels)

    def _raw_dense(self, column: pl.Series) -> np.ndarray:
        missing = float("nan") if self.layout.dense[column.name] == "standard" else 0.0
        return column.cast(pl.Float32).fill_null(missing).to_numpy()

    def encode_file(self, path: str | Path, rows: int = 16384) -> Iterator[Batch]:
        """Encode a file of raw rows in the data set's format, with or without labels, some rows at a time.

        Data sets that have no format of raw rows (those joined of several files) are read from a table, see
        `sources.table`.
        """
        source = source_class(self.schema["data_set"])
        if hasattr(source, "scoring_blocks"):
            blocks = source.scoring_blocks(Path(path), self.schema["settings"])
        else:
            blocks = table_blocks(Path(path), self.layout)
        with contextlib.closing(blocks):
            for block in blocks:
                for frame in block.frame.iter_slices(rows):
                    yield self.encode(frame)


def read_index(directory: Path, schema: dict[str, Any], table: str, kind: type[TableIndex] = TableIndex) -> TableIndex:
    """The vocabulary of one table, of a store or of a directory that `save_vocabulary` wrote."""
    values = pl.read_parquet(directory / "vocabulary" / f"{table}.parquet")["value"]
    return kind.of_values(table, schema["options"]["max_ind_range"], schema["kinds"][table], values)


def save_vocabulary(store: str | Path, target: str | Path) -> None:
    """Copy what `Vocabulary` needs from a store to the directory `target`, for use without the store."""
    with atomic_directory(target, marker=SCHEMA) as folder:
        shutil.copytree(Path(store) / "vocabulary", folder / "vocabulary")
        shutil.copyfile(Path(store) / SCHEMA, folder / SCHEMA)
