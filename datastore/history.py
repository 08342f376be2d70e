"""Rows of older days as a store of their own, in the ids of another store: maps to fewer rows are learned from them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from datastore.assemble import facts_of_rows, write_encoded
from datastore.collect import Collected
from datastore.index import TableIndex
from datastore.reader import Store
from datastore.schema import SCHEMA
from datastore.vocabulary import read_index
from sources import Layout, Source, Split


class FixedIndex(TableIndex):
    """A finished vocabulary in place of one that grows: what it lacks becomes the unknown id."""

    def grow(self, column: pl.Series) -> tuple[np.ndarray, pl.Series]:
        """Ids [m] int32 of a column's values, and no new values."""
        return self.encode(column), pl.Series(self.name, [], pl.Int64)

    def count(self, ids: np.ndarray) -> None:
        """Nothing: the rows are counted when they are all there."""


def fixed_indexes(directory: Path, schema: dict[str, Any]) -> dict[str, TableIndex]:
    """The vocabularies of a store, for `datastore.collect.collect`."""
    return {table: read_index(directory, schema, table, FixedIndex) for table in schema["tables"]}


def check_columns(layout: Layout, schema: dict[str, Any], name: str) -> None:
    """Raises ValueError where raw rows do not have the columns of a store, naming the first kind that differs."""
    known = {column: each["transform"] for column, each in schema["dense"].items()}
    for what, there, here in (
        ("labels", list(layout.labels), list(schema["labels"])),
        ("dense columns", list(layout.dense.items()), list(known.items())),
        ("categorical columns", list(layout.tables), list(schema["tables"])),
        ("multi-hot columns", list(layout.multi_hot), list(schema["multi_hot"])),
    ):
        if there != here:
            raise ValueError(f"{name} has other {what} than the data: {_listed(there)}, not {_listed(here)}")


def _listed(columns: list) -> str:
    return ", ".join(column if isinstance(column, str) else " ".join(column) for column in columns) or "none"


def history_key(checksum: str, store_key: str) -> str:
    """Sixteen hexadecimal digits that name the history of a store, by the checksum of its raw rows."""
    return hashlib.sha256(f"{checksum} in the ids of {store_key}".encode()).hexdigest()[:16]


def write_history(source: Source, done: Collected, target: Path, schema: dict[str, Any], checksum: str) -> None:
    """Write a store that is all training part into the empty directory `target`, without a vocabulary of its own.

    Args:
        source: the raw rows. done: the same, encoded by `fixed_indexes`.
        schema: of the store whose ids they have. checksum: of the raw rows.
    """
    rows = sum(part.rows for part in done.parts)
    split = Split(((0, rows),), (rows, rows), (rows, rows), "history: all rows")
    write_encoded(done, split, schema["tables"], target)
    own = {"key": history_key(checksum, schema["key"]), **facts_of_rows(source, done, split, checksum)}
    (target / SCHEMA).write_text(json.dumps(schema | own, indent=1) + "\n")
    np.save(target / "counts.npy", np.concatenate(Store(target).counts_in(range(rows))))


def share_among(
    history: Store, store: Store, rows: np.ndarray | range, sample: int = 4096, chunk: int = 1 << 18
) -> float:
    """Which share of the history's rows is among some rows of the store whose ids it has, by a sample of them.

    Rows are the same if all dense values, one-hot ids and labels are: the same events, or such as nothing tells apart.

    Args:
        history, store: both with the same columns. rows: of the store.
        sample: rows of the history, evenly spaced. chunk: rows of the store at once.
    """
    columns = [
        *store.schema["labels"],
        *store.schema["dense"],
        *(t for t in store.tables if t not in store.schema["multi_hot"]),
    ]
    chosen = np.unique(np.linspace(0, len(history) - 1, sample).astype(np.int64))
    known = _fingerprints(history.records(chosen), columns)
    found = np.zeros(len(known), bool)
    for at in range(0, len(rows), chunk):
        part = rows[at : at + chunk]
        found |= np.isin(
            known, _fingerprints(store.records(part if isinstance(part, range) else np.sort(part)), columns)
        )
    return float(found.mean())


def _fingerprints(records: np.ndarray, columns: list[str]) -> np.ndarray:
    """One uint64 a record. Through float64, which holds what any store's types hold."""
    prints = np.zeros(len(records), np.uint64)
    for column in columns:
        prints = (prints ^ (records[column].astype(np.float64) + 0.0).view(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        prints ^= prints >> np.uint64(29)  # what only the high bits of a float say would never reach the low ones
    return prints
