"""Raw rows -> encoded parts on disk: the long half of preparing, from which an interrupted run goes on."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl

from datastore.index import TableIndex
from datastore.parts import (
    MANIFEST,
    Bags,
    Part,
    common_type,
    finished_parts,
    id_type,
    narrowest,
    pack,
    read_part,
    record_type,
    write_part,
)
from datastore.progress import Progress
from datastore.schema import FORMAT_VERSION, StoreOptions
from sources import GROUP, Block, DataError, Groups, Layout, Source

PART_ROWS = 400_000  # at least, less at a file's end: what a killed run has to read again


@dataclass
class Collected:
    """All parts of a data set, and what is known of them so far."""

    folder: Path
    layout: Layout
    indexes: dict[str, TableIndex]
    sampled: bool
    parts: list[Part] = field(default_factory=list)
    types: dict[str, np.dtype] = field(default_factory=dict)  # of the columns of a record, wide enough for all parts
    groups: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    kept: list[np.ndarray] = field(default_factory=list)  # bool [raw rows] a part, where rows are sub-sampled

    @property
    def one_hot(self) -> list[str]:
        """Tables that lie in the records."""
        return [table for table in self.layout.tables if table not in self.layout.multi_hot]

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

    def read(self, part: Part) -> tuple[np.ndarray, Bags]:
        """A part's records and bags."""
        return read_part(self.folder, part)

    def widen(self, types: dict[str, np.dtype]) -> None:
        """Make room for the columns of one more part."""
        for name, dtype in types.items():
            self.types[name] = common_type(self.types.get(name, dtype), dtype)


def collect(
    source: Source,
    options: StoreOptions,
    folder: Path,
    key: str,
    progress: Progress,
    indexes: dict[str, TableIndex] | None = None,
) -> Collected:
    """Read what is not read yet of a source into parts. `indexes` are the tables' vocabularies; None: new ones.

    Raises:
        DataError: a raw row cannot be read; the parts before it stay. OSError: unreadable, out of disk.
    """
    indexes = indexes or {table: TableIndex(table, options.max_ind_range) for table in source.layout.tables}
    done = _take_up(source.layout, indexes, bool(options.sub_sample_rate), folder, key)
    start = done.parts[-1].end if done.parts else None
    progress.resume(start, done.raw_rows, sum(part.skipped for part in done.parts))
    rng = np.random.RandomState(options.sub_sample_seed)
    if done.sampled:
        rng.uniform(size=done.raw_rows)
    with (
        open(folder / MANIFEST, "a", encoding="utf-8") as manifest,  # closed last: a part may still be written
        ThreadPoolExecutor(os.cpu_count()) as pool,  # polars, pyarrow and NumPy release the interpreter lock
        ThreadPoolExecutor(1) as writer,
        contextlib.closing(source.blocks(start)) as raw_blocks,  # readers hold threads: end them here, whatever happens
    ):
        written: Future | None = None
        for blocks in _by_part(raw_blocks, progress):
            frame = pl.concat([block.frame for block in blocks]) if len(blocks) > 1 else blocks[0].frame
            frame, extra = _sample(frame, done, rng, options)
            part, records, bags = _encode(blocks, frame, extra, done, pool)
            if written is not None:
                written.result()
            written = writer.submit(write_part, part, records, bags, extra, folder, manifest)
            done.parts.append(part)
        if written is not None:
            written.result()
    if not done.raw_rows:
        skipped = sum(part.skipped for part in done.parts)
        first = next((part.problem for part in done.parts if part.problem), "")
        why = f" but {skipped} that cannot be read, the first: {first}" if skipped else ""
        raise DataError(f"{', '.join(map(str, source.paths))}: no rows{why}")
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


def _take_up(layout: Layout, indexes: dict[str, TableIndex], sampled: bool, folder: Path, key: str) -> Collected:
    """What a former run of the same key has finished; anything else in the folder is cleared."""
    done = Collected(folder, layout, indexes, sampled)
    header = {"format": FORMAT_VERSION, "key": key}
    for part, records, bags, extra in finished_parts(folder, header):
        done.parts.append(part)
        done.widen({name: np.dtype(type_name) for name, type_name in part.types.items()})
        for table, index in indexes.items():
            index.take_up(part.kinds[table], extra[table][0])
            index.count(bags[table][1] if table in bags else records[table])
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


# -------------------------------------------------------------------------------------------------------- encode


def _sample(
    frame: pl.DataFrame, done: Collected, rng: np.random.RandomState, options: StoreOptions
) -> tuple[pl.DataFrame, dict[str, pl.Series]]:
    """The rows that are kept, and what is to be remembered of all."""
    extra = {}
    if done.layout.grouped:
        runs = _runs(frame[GROUP].to_numpy())
        done.groups.append(runs)
        extra |= {"__group_values": pl.Series(runs[0]), "__group_lengths": pl.Series(runs[1])}
    if done.sampled:
        # the draws of the reference on a fresh cache: one a raw row
        drawn = rng.uniform(size=frame.height) >= options.sub_sample_rate
        kept = (frame[done.layout.labels[0]].fill_null(0).to_numpy() != 0) | drawn
        done.kept.append(kept)
        extra["__kept"] = pl.Series(np.packbits(kept))
        frame = frame.filter(pl.Series(kept))
    return frame, extra


def _runs(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    starts = np.flatnonzero(np.concatenate([[len(values) > 0], values[1:] != values[:-1]]))
    return values[starts].astype(np.int64), np.diff(np.append(starts, len(values)))


def _encode(
    blocks: list[Block], frame: pl.DataFrame, extra: dict[str, pl.Series], done: Collected, pool: ThreadPoolExecutor
) -> tuple[Part, np.ndarray, Bags]:
    """A part of some rows: ids for values, records for columns. The indexes grow, `extra` takes the new values."""
    layout = done.layout
    columns = {label: frame[label].fill_null(-1).to_numpy() for label in layout.labels}
    dense = pool.map(lambda name: _dense_values(frame[name], layout.dense[name]), layout.dense)
    tables = pool.map(
        lambda table: encode_table(frame[table], done.indexes[table].grow, table in layout.multi_hot), layout.tables
    )
    types = dict.fromkeys(layout.labels, np.dtype(np.int8))
    for name, (values, dtype) in zip(layout.dense, dense, strict=True):
        columns[name], types[name] = values, dtype
    bags: Bags = {}
    for table, (ids, lengths, new) in zip(layout.tables, tables, strict=True):
        extra[table] = new
        if lengths is None:
            columns[table], types[table] = ids, id_type(len(done.indexes[table]))
        else:
            bags[table] = lengths, ids
    done.widen(types)
    record = record_type(done.types)
    records = np.zeros(frame.height, record)
    half = frame.height // 2
    halves = [slice(0, half), slice(half, None)]
    list(pool.map(lambda h: pack({name: c[h] for name, c in columns.items()}, record, records[h]), halves))
    part = Part(
        name=f"{len(done.parts):05d}",
        checksum=0,
        rows=frame.height,
        raw_rows=sum(block.frame.height for block in blocks),
        skipped=sum(block.skipped for block in blocks),
        problem=next((block.problem for block in blocks if block.problem), ""),
        end=blocks[-1].end,
        unlabelled={label: frame[label].null_count() for label in layout.labels},
        types={name: dtype.name for name, dtype in done.types.items()},
        bag_ids={table: len(ids) for table, (_, ids) in bags.items()},
        kinds={table: index.kind for table, index in done.indexes.items()},
    )
    return part, records, bags


def encode_table(
    column: pl.Series, encode: Callable[[pl.Series], tuple[np.ndarray, pl.Series | None]], multi_hot: bool
) -> tuple[np.ndarray, np.ndarray | None, pl.Series | None]:
    """Ids int32 of a column; multi-hot: those of all bags, and the bags' lengths int32 [rows]; and what is new."""
    if not multi_hot:
        ids, new = encode(column)
        return ids, None, new
    lengths = column.list.len().fill_null(0).cast(pl.Int32).to_numpy()
    ids, new = encode(column.filter(pl.Series(lengths > 0)).explode())
    return ids, lengths, new


def _dense_values(column: pl.Series, transform: str) -> tuple[np.ndarray, np.dtype]:
    """Values and the type they need; a missing one is 0, or NaN where it stands for the mean."""
    if transform == "standard":
        return column.cast(pl.Float32).fill_null(float("nan")).to_numpy(), np.dtype(np.float32)
    values = (column.fill_null(0) if column.null_count() else column).to_numpy()
    return values, narrowest(values)
