"""Raw value -> id of one table, growing part by part, in memory that the distinct values alone decide."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import polars as pl
import pyarrow as pa

MAX_IDS = 2**31 - 2  # ids are int32, and the unknown id is one more


class IntegerIndex:
    """Integers -> ids in order of arrival: sorted arrays, so that a value costs 8 (or 12) bytes.

    A large sorted array and a small one in front of it, merged when the small one has grown to an eighth: inserting
    costs a copy of the small one only.
    """

    def __init__(self) -> None:
        self._count = 0
        self._levels: list[tuple[np.ndarray, np.ndarray]] = []  # (sorted values, their ids), the largest first

    def __len__(self) -> int:
        return self._count

    def find(self, values: np.ndarray) -> np.ndarray:
        """Ids [m] int32 of values [m]; -1 where a value has none."""
        ids = np.full(len(values), -1, np.int32)
        order = np.argsort(values)  # searching in order keeps the search in the cache
        ordered = values[order]
        for keys, key_ids in self._levels:
            if ordered.dtype != keys.dtype:
                ordered = ordered.astype(np.int64)
            place = np.searchsorted(keys, ordered).clip(max=len(keys) - 1)
            hit = keys[place] == ordered
            ids[order[hit]] = key_ids[place[hit]]
        return ids

    def add(self, values: np.ndarray) -> None:
        """Append new, distinct values [m]; they get the next ids."""
        if not len(values):
            return
        ids = np.arange(self._count, self._count + len(values), dtype=np.int32)
        order = np.argsort(values)
        self._levels.append((values[order], ids[order]))
        self._count += len(values)
        while len(self._levels) > 1 and (
            len(self._levels) > 2 or len(self._levels[-1][0]) * 8 >= len(self._levels[0][0])
        ):
            self._merge_last_two()

    def _merge_last_two(self) -> None:
        (values, ids), (new_values, new_ids) = self._levels[-2:]
        if values.dtype != new_values.dtype:
            values, new_values = values.astype(np.int64), new_values.astype(np.int64)
        where = np.searchsorted(values, new_values)
        self._levels[-2:] = [(np.insert(values, where, new_values), np.insert(ids, where, new_ids))]

    def values_by_id(self) -> np.ndarray:
        """The value of each id [n]."""
        if not self._levels:
            return np.empty(0, np.int64)
        values = np.empty(self._count, np.result_type(*(level[0].dtype for level in self._levels)))
        for keys, ids in self._levels:
            values[ids] = keys
        return values


class TextIndex:
    """Texts -> ids in order of arrival."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._ids)

    def find(self, values: Sequence[str]) -> np.ndarray:
        """As in `IntegerIndex`."""
        get = self._ids.get
        return np.fromiter((get(value, -1) for value in values), np.int32, len(values))

    def add(self, values: Sequence[str]) -> None:
        """As in `IntegerIndex`."""
        self._ids.update(zip(values, range(len(self._ids), len(self._ids) + len(values)), strict=True))

    def values_by_id(self) -> list[str]:
        """The value of each id [n]."""
        return list(self._ids)


class TableIndex:
    """The vocabulary of one table: what kind of values it has, how they are capped, and their ids.

    Args:
        name: of the table, for messages.
        cap: > 0: values count modulo this (text by its CRC-32), as in DLRM's --max-ind-range.
    """

    def __init__(self, name: str, cap: int = -1) -> None:
        self.name, self.cap = name, cap
        self.kind = ""  # "integer" or "text", by the first column seen
        self._index: IntegerIndex | TextIndex | None = None
        self._counts = np.zeros(1024, np.int64)  # room for more ids than there are

    @classmethod
    def of_values(cls, name: str, cap: int, kind: str, values: pl.Series) -> TableIndex:
        """A finished vocabulary: the value of each id."""
        index = cls(name, cap)
        index.take_up(kind, values)
        return index

    def __len__(self) -> int:
        return 0 if self._index is None else len(self._index)

    def grow(self, column: pl.Series) -> tuple[np.ndarray, pl.Series]:
        """Ids [m] int32 of a column's values and the values that are new, which get the next ids."""
        self._see(column)
        codes, distinct = self._factorize(column)
        ids = self._index.find(distinct)
        missing = np.flatnonzero(ids < 0)
        ids[missing] = np.arange(len(self), len(self) + len(missing), dtype=np.int32)
        new = distinct[missing] if isinstance(distinct, np.ndarray) else [distinct[i] for i in missing]
        self._add(new)
        self._counts[ids] += np.bincount(codes, minlength=len(ids))
        return ids[codes], pl.Series(self.name, new)

    @property
    def counts(self) -> np.ndarray:
        """How often each id was seen [n] int64."""
        return self._counts[: len(self)]

    def count(self, ids: np.ndarray) -> None:
        """Count ids that a former run has encoded."""
        self._counts[: len(self)] += np.bincount(ids, minlength=len(self))

    def take_up(self, kind: str, values: pl.Series) -> None:
        """Take up the kind and the new values that a former run has found, in their order."""
        self.kind = kind
        if len(values):
            self._load(values)

    def encode(self, column: pl.Series) -> np.ndarray:
        """Ids [m] int32; a value outside the vocabulary becomes len(self), the unknown id."""
        if self._index is None or not len(self):
            return np.zeros(len(column), np.int32)
        codes, distinct = self._factorize(self._as_kind(column))
        ids = self._index.find(distinct)
        ids[ids < 0] = len(self)
        return ids[codes]

    def values_by_id(self) -> pl.Series:
        """The value of each id [n]."""
        values = [] if self._index is None else self._index.values_by_id()
        return pl.Series("value", values, dtype=None if len(values) else pl.Int64)

    def _see(self, column: pl.Series) -> None:
        kind = "text" if column.dtype == pl.String else "integer"
        if self.kind and kind != self.kind:
            raise ValueError(f"table {self.name}: {self.kind} values first, then {kind}")
        self.kind = kind
        if self._index is None:
            self._index = TextIndex() if kind == "text" and self.cap <= 0 else IntegerIndex()

    def _as_kind(self, column: pl.Series) -> pl.Series:
        """A column of rows to be scored, read by another reader perhaps, in the vocabulary's kind."""
        if self.kind == "text":
            return column.cast(pl.String)
        return column.cast(pl.Int64, strict=False).fill_null(-1) if column.dtype == pl.String else column

    def _load(self, values: pl.Series) -> None:
        if self._index is None:
            self._index = TextIndex() if values.dtype == pl.String else IntegerIndex()
        self._add(values.to_list() if isinstance(self._index, TextIndex) else values.to_numpy())

    def _add(self, values: np.ndarray | list[str]) -> None:
        if len(self) + len(values) > MAX_IDS:
            raise ValueError(f"table {self.name}: more than {MAX_IDS} ids: cap them with --max-ind-range")
        self._index.add(values)
        if len(self) > len(self._counts):
            self._counts = np.pad(self._counts, (0, 2 * len(self) - len(self._counts)))

    def _factorize(self, column: pl.Series) -> tuple[np.ndarray, np.ndarray | list[str]]:
        """Codes [m] and the distinct values, in order of first appearance; missing values are 0 or ""."""
        if column.dtype == pl.String:
            codes, distinct = _dictionary((column.fill_null("") if column.null_count() else column).to_arrow())
            if self.cap <= 0:
                return codes, distinct.to_pylist()
            values = np.array([zlib.crc32(text.encode()) for text in distinct.to_pylist()], np.uint32)
        else:
            codes, values = None, _integers(column.fill_null(0) if column.null_count() else column)
        if self.cap > 0:
            values = (values % values.dtype.type(self.cap)).astype(np.uint32)
        inner, distinct = _dictionary(pa.array(values))
        return inner if codes is None else inner[codes], distinct.to_numpy()


def _integers(column: pl.Series) -> np.ndarray:
    if column.dtype == pl.UInt32:
        return column.to_numpy()
    if column.dtype == pl.UInt64 and len(column) and column.max() >= 2**63:
        raise ValueError(f"table {column.name}: the value {column.max()} lies above {2**63 - 1}")
    return column.cast(pl.Int64).to_numpy()


def _dictionary(values: pa.Array) -> tuple[np.ndarray, pa.Array]:
    encoded = values.dictionary_encode()
    return encoded.indices.to_numpy(zero_copy_only=False), encoded.dictionary
