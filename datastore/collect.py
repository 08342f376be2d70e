"""Raw rows -> encoded parts on disk: the long half of preparing, which a later run takes up where it was interrupted.

A work folder holds
    parts.jsonl           a header with the store's key, then one line a finished part
    00000.rows.arrow      its rows: labels, dense values and temporary ids (in order of appearance over all rows)
    00000.new.arrow       one row of lists: the values that got their ids in this part, and what is known of its rows
A line is written after its files, with their checksum: what does not agree is read again.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import zlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from datastore.index import TableIndex
from datastore.progress import Progress
from datastore.schema import FORMAT_VERSION, StoreOptions
from sources import GROUP, Block, DataError, Groups, Layout, Position, Source

PART_ROWS = 400_000  # at least, less at a file's end: what a killed run has to read again
MANIFEST = "parts.jsonl"


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
    dense_types: dict[str, str]
    kinds: dict[str, str]  # of the tables' values, see `TableIndex`


@dataclass
class Collected:
    """All parts of a data set, and what is known once the last row is read."""

    folder: Path
    parts: list[Part] = field(default_factory=list)
    indexes: dict[str, TableIndex] = field(default_factory=dict)
    groups: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    kept: list[np.ndarray] = field(default_factory=list)  # bool [raw rows] a part, where rows are sub-sampled
    sampled: bool = False

    @property
    def raw_rows(self) -> int:
        """Rows read, dropped ones included, bad ones not."""
        return sum(part.raw_rows for part in self.parts)

    def all_groups(self) -> Groups | None:
        """GROUP over all raw rows; None if the layout has none."""
        if not self.groups:
            return None
        return Groups(*(np.concatenate(arrays) for arrays in zip(*self.groups, strict=True)))

    def kept_rows(self) -> np.ndarray | None:
        """Which raw rows are left after sub-sampling, bool; None: all."""
        return np.concatenate(self.kept) if self.sampled else None

    def rows_of(self, part: Part) -> pl.DataFrame:
        """A part's rows."""
        return pl.read_ipc((self.folder / f"{part.name}.rows.arrow").read_bytes())  # bytes: no mapped file counts


def collect(source: Source, options: StoreOptions, folder: Path, key: str, progress: Progress) -> Collected:
    """Read what is not read yet of a source into parts.

    Raises:
        DataError: a raw row cannot be read; the parts before it stay. OSError: unreadable, out of disk.
    """
    done = _take_up(source.layout, options, folder, key)
    progress.resume(done.parts[-1].end if done.parts else None, done.raw_rows, sum(p.skipped for p in done.parts))
    start = done.parts[-1].end if done.parts else None
    rng = np.random.RandomState(options.sub_sample_seed)
    if done.sampled:
        rng.uniform(size=done.raw_rows)
    with (
        open(folder / MANIFEST, "a", encoding="utf-8") as manifest,  # closed last: a part may still be written
        ThreadPoolExecutor(os.cpu_count()) as pool,  # polars, pyarrow and NumPy release the interpreter lock
        ThreadPoolExecutor(1) as writer,
    ):
        written: Future | None = None
        for blocks in _by_part(source.blocks(start), progress):
            part = _encode(blocks, f"{len(done.parts):05d}", source.layout, done, pool, rng, options)
            if written is not None:
                written.result()
            written = writer.submit(_write, *part, folder, manifest)
            done.parts.append(part[0])
        if written is not None:
            written.result()
    if not done.raw_rows:
        raise DataError(f"{', '.join(map(str, source.paths))}: no rows")
    return done


def _by_part(blocks: Iterator[Block], progress: Progress) -> Iterator[list[Block]]:
    """Blocks together until they make a part; a part never crosses a file's end."""
    waiting: list[Block] = []
    for block in blocks:
        progress.add(block)
        waiting.append(block)
        at_file_end = "offset" not in block.end and "file" in block.end
        if at_file_end or sum(b.frame.height for b in waiting) >= PART_ROWS:
            yield waiting
            waiting = []
    if waiting:
        yield waiting


# -------------------------------------------------------------------------------------------------------- encode


def _encode(
    blocks: list[Block],
    name: str,
    layout: Layout,
    done: Collected,
    pool: ThreadPoolExecutor,
    rng: np.random.RandomState,
    options: StoreOptions,
) -> tuple[Part, pl.DataFrame, dict[str, pl.Series]]:
    """A part's rows with ids, its line, and the lists of its second file; the indexes grow."""
    frame = pl.concat([block.frame for block in blocks]) if len(blocks) > 1 else blocks[0].frame
    raw_rows, extra = frame.height, {}
    if layout.grouped:
        runs = _runs(frame[GROUP].to_numpy())
        done.groups.append(runs)
        extra |= {"__group_values": pl.Series(runs[0]), "__group_lengths": pl.Series(runs[1])}
    if done.sampled:
        # the draws of the reference on a fresh cache: one a raw row
        kept = (frame[layout.labels[0]].fill_null(0).to_numpy() != 0) | (
            rng.uniform(size=raw_rows) >= options.sub_sample_rate
        )
        done.kept.append(kept)
        extra["__kept"] = pl.Series(np.packbits(kept))
        frame = frame.filter(pl.Series(kept))

    def encode(table: str) -> tuple[pl.Series, pl.Series]:
        return encode_table(frame[table], done.indexes[table].grow, table in layout.multi_hot)

    ids = pool.map(encode, layout.tables)
    values = pool.map(lambda c: _dense_values(frame[c], layout.dense[c]), layout.dense)
    dense = dict(zip(layout.dense, values, strict=True))
    columns = [frame[label].fill_null(-1).cast(pl.Int8) for label in layout.labels]
    columns += [pl.Series(column, values) for column, values in dense.items()]
    for table, (encoded, new) in zip(layout.tables, ids, strict=True):
        columns.append(encoded.alias(table))
        extra[table] = new
    part = Part(
        name,
        checksum=0,
        rows=frame.height,
        raw_rows=raw_rows,
        skipped=sum(block.skipped for block in blocks),
        problem=next((block.problem for block in blocks if block.problem), ""),
        end=blocks[-1].end,
        unlabelled={label: frame[label].null_count() for label in layout.labels},
        dense_types={column: values.dtype.name for column, values in dense.items()},
        kinds={table: done.indexes[table].kind for table in layout.tables},
    )
    return part, pl.DataFrame(columns), extra


def encode_table(column: pl.Series, grow: Any, multi_hot: bool) -> tuple[pl.Series, pl.Series]:
    """Ids of a column, as numbers or, multi-hot, as lists of numbers; `grow` is `TableIndex.grow`."""
    if not multi_hot:
        ids, new = grow(column)
        return pl.Series(narrow(ids)), new
    lengths = column.list.len().fill_null(0).to_numpy()
    ids, new = grow(column.filter(pl.Series(lengths > 0)).explode())
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    return pl.Series(pl.from_arrow(pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(ids)))), new


def narrow(values: np.ndarray) -> np.ndarray:
    """The same integers in the smallest type that holds them."""
    if not len(values):
        return values.astype(np.uint8)
    low, high = int(values.min()), int(values.max())
    for dtype in (np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32):
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return values.astype(dtype, copy=False)
    return values.astype(np.int64, copy=False)


def _dense_values(column: pl.Series, transform: str) -> np.ndarray:
    """Integers in their narrowest type, other numbers as float32; a missing value is 0, or NaN where it stands for
    the mean."""
    if transform == "standard":
        return column.cast(pl.Float32).fill_null(float("nan")).to_numpy()
    column = column.fill_null(0)
    return narrow(column.to_numpy()) if column.dtype.is_integer() else column.cast(pl.Float32).to_numpy()


def _runs(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    starts = np.flatnonzero(np.concatenate([[len(values) > 0], values[1:] != values[:-1]]))
    return values[starts].astype(np.int64), np.diff(np.append(starts, len(values)))


# ------------------------------------------------------------------------------------------------ write, take up


def _write(part: Part, rows: pl.DataFrame, extra: dict[str, pl.Series], folder: Path, manifest: io.TextIOBase) -> None:
    part.checksum = 0
    new = pl.DataFrame({name: [values] for name, values in extra.items()})
    for suffix, frame in (("rows", rows), ("new", new)):
        content = io.BytesIO()
        frame.write_ipc(content)
        part.checksum = zlib.crc32(content.getbuffer(), part.checksum)
        with open(folder / f"{part.name}.{suffix}.arrow", "wb") as file:
            file.write(content.getbuffer())
    manifest.write(json.dumps(vars(part)) + "\n")
    manifest.flush()


def _take_up(layout: Layout, options: StoreOptions, folder: Path, key: str) -> Collected:
    """What a former run of the same key has finished; anything else in the folder is cleared."""
    done = Collected(folder, sampled=bool(options.sub_sample_rate))
    done.indexes = {table: TableIndex(table, options.max_ind_range) for table in layout.tables}
    header = {"format": FORMAT_VERSION, "key": key}
    lines = _manifest_lines(folder, header)
    for line in lines:
        part = Part(**line)
        extra = _read_new(folder, part)
        if extra is None:
            break
        done.parts.append(part)
        for table, index in done.indexes.items():
            index.take_up(part.kinds[table], extra[table][0])
        if layout.grouped:
            done.groups.append((extra["__group_values"][0].to_numpy(), extra["__group_lengths"][0].to_numpy()))
        if done.sampled:
            done.kept.append(np.unpackbits(extra["__kept"][0].to_numpy(), count=part.raw_rows).astype(bool))
    if not done.parts:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    with open(folder / MANIFEST, "w", encoding="utf-8") as manifest:
        manifest.writelines(json.dumps(line) + "\n" for line in [header, *map(vars, done.parts)])
    return done


def _manifest_lines(folder: Path, header: dict[str, Any]) -> list[dict[str, Any]]:
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


def _read_new(folder: Path, part: Part) -> pl.DataFrame | None:
    """The second file of a part, if both are what was written."""
    checksum = 0
    try:
        for suffix in ("rows", "new"):
            checksum = zlib.crc32((folder / f"{part.name}.{suffix}.arrow").read_bytes(), checksum)
    except OSError:
        return None
    if checksum != part.checksum:
        return None
    return pl.read_ipc((folder / f"{part.name}.new.arrow").read_bytes())
