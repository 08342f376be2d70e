"""The parts that preparing writes: records and bags of some consecutive rows, with temporary ids.

A temporary id counts the values of a table by first appearance over all rows. A work folder holds
    parts.jsonl       a header with the store's key, then one line a finished part
    00000.rows        its records, then lengths and ids of its bags, as bytes
    00000.new.arrow   one row of lists: the values that got their ids in this part, and what is known of its rows
A line is written after its files, with their checksum: what does not agree is read again.
"""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from sources import Position

MANIFEST = "parts.jsonl"
PACK_ROWS = 4096  # records are filled so many at a time: they stay in the cache while column after column comes in

Bags = dict[str, tuple[np.ndarray, np.ndarray]]  # multi-hot table -> lengths int32 [rows], ids int32


@dataclass
class Part:
    """A finished part, as its line in the manifest says."""

    name: str
    checksum: int
    rows: int
    raw_rows: int
    skipped: int
    problem: str
    end: Position
    unlabelled: dict[str, int]  # rows that lack a label
    types: dict[str, str]  # of the columns of a record
    bag_ids: dict[str, int]  # ids in the bags of each multi-hot table
    kinds: dict[str, str]  # of the tables' values, see `TableIndex`

    @property
    def record(self) -> np.dtype:
        """Type of its records."""
        return record_type({name: np.dtype(type_name) for name, type_name in self.types.items()})


def record_type(columns: Mapping[str, np.dtype]) -> np.dtype:
    """One record of these columns, wide ones first so that all lie at multiples of their size."""
    ordered = sorted(columns.items(), key=lambda column: -column[1].itemsize)
    offsets = np.cumsum([0, *(dtype.itemsize for _, dtype in ordered)]).tolist()
    widest = ordered[0][1].itemsize
    return np.dtype(
        {
            "names": [name for name, _ in ordered],
            "formats": [dtype for _, dtype in ordered],
            "offsets": offsets[:-1],
            "itemsize": -(-offsets[-1] // widest) * widest,
        }
    )


def narrowest(values: np.ndarray) -> np.dtype:
    """The smallest type that holds these integers; float32 for other numbers."""
    if values.dtype.kind == "f":
        return np.dtype(np.float32)
    if not len(values):
        return np.dtype(np.uint8)
    low, high = int(values.min()), int(values.max())
    types = (np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.int64)
    return np.dtype(next(t for t in types if np.iinfo(t).min <= low and high <= np.iinfo(t).max))


def id_type(n: int) -> np.dtype:
    """The narrowest type for the ids 0 to n, the unknown id."""
    return np.dtype(next(dtype for dtype in (np.uint8, np.uint16, np.int32) if n <= np.iinfo(dtype).max))


def common_type(one: np.dtype, other: np.dtype) -> np.dtype:
    """A type for the values of both."""
    common = np.promote_types(one, other)
    return np.dtype(np.float32) if common.kind == "f" else common


def pack(columns: Mapping[str, np.ndarray], record: np.dtype, target: np.ndarray) -> None:
    """Fill the records `target` [n] of type `record` with columns [n]."""
    for start in range(0, len(target), PACK_ROWS):
        rows = slice(start, start + PACK_ROWS)
        for name in record.names:
            target[name][rows] = columns[name][rows]


def write_part(
    part: Part, records: np.ndarray, bags: Bags, extra: dict[str, pl.Series], folder: Path, manifest: io.TextIOBase
) -> None:
    """Write a part's files, then its line."""
    new = io.BytesIO()
    pl.DataFrame({name: [values] for name, values in extra.items()}).write_ipc(new)
    rows = [records.view(np.uint8).data, *(array.view(np.uint8).data for bag in bags.values() for array in bag)]
    part.checksum = 0
    for suffix, buffers in (("rows", rows), ("new.arrow", [new.getbuffer()])):
        with open(folder / f"{part.name}.{suffix}", "wb") as file:
            for buffer in buffers:
                part.checksum = zlib.crc32(buffer, part.checksum)
                file.write(buffer)
    manifest.write(json.dumps(vars(part)) + "\n")
    manifest.flush()


def read_part(folder: Path, part: Part) -> tuple[np.ndarray, Bags]:
    """Records [rows] and bags of a part."""
    content = np.fromfile(folder / f"{part.name}.rows", np.uint8)
    return _cut(content, part)


def _cut(content: np.ndarray, part: Part) -> tuple[np.ndarray, Bags]:
    at = part.rows * part.record.itemsize
    records, bags = content[:at].view(part.record), {}
    for table, count in part.bag_ids.items():
        middle, end = at + 4 * part.rows, at + 4 * part.rows + 4 * count
        bags[table] = content[at:middle].view(np.int32), content[middle:end].view(np.int32)
        at = end
    return records, bags


def finished_parts(folder: Path, header: dict[str, Any]) -> Iterator[tuple[Part, np.ndarray, Bags, pl.DataFrame]]:
    """The parts of a former run with the same header that are as they were written, with all that they hold."""
    for line in _manifest_lines(folder, header):
        part = Part(**line)
        try:
            rows = np.fromfile(folder / f"{part.name}.rows", np.uint8)
            new = (folder / f"{part.name}.new.arrow").read_bytes()
        except OSError:
            return
        if zlib.crc32(new, zlib.crc32(rows.data)) != part.checksum:
            return
        yield part, *_cut(rows, part), pl.read_ipc(new)


def _manifest_lines(folder: Path, header: dict[str, Any]) -> Sequence[dict[str, Any]]:
    try:
        lines = (folder / MANIFEST).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    parsed = []
    for line in lines:
        try:
            parsed.append(json.loads(line))
        except ValueError:  # the last line of a killed run
            break
    return parsed[1:] if parsed and parsed[0] == header else []
