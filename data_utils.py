"""The one door to data: prepare raw text once into a store on disk, open the store, read batches.

A store is a directory:
    schema.json      columns, rows per table, split, source checksum, format version
    dense.npy        int32 [N, M]   raw integers (the transform is applied to each batch)
    ids.npy          int32 [N, T]   encoded categoricals
    labels.npy       int8  [N, 1]
    counts.npy       int64 [sum of rows]  how often each id occurs in the training part, table after table
    best_scores.npy  float32 [N]    planted data only: the teacher's click probability
    vocabulary/      C1.parquet ...: the raw value of id 0, 1, 2 ... in column "value"
It is written aside and renamed when it is complete, so that an interrupted one is never taken for a good one.

Legend: N rows, M dense features, T tables, B batch.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch

from mlet.files import atomic_directory, atomic_file, recover_directory
from sources import Batch, DataError, RawBlock, Source, Split
from sources.encoding import ValueIndex, cap_values, transform_dense
from sources.kaggle import criteo_blocks

FORMAT_VERSION = 1
SCHEMA = "schema.json"
CHECKSUM_CACHE = "checksums.json"
HASH_CHUNK = 8 << 20


@dataclass(frozen=True)
class StoreOptions:
    """Every flag that changes what a store holds: together with the source's checksum it is the store's key."""

    data_set: str
    max_ind_range: int = -1  # > 0: raw values are taken modulo this before they get ids
    sub_sample_rate: float = 0.0  # share of negatives that is dropped
    sub_sample_seed: int = 0  # matters only where rows are dropped

    def __post_init__(self) -> None:
        if not 0.0 <= self.sub_sample_rate < 1.0:
            raise ValueError(f"--data-sub-sample-rate={self.sub_sample_rate} lies outside [0, 1)")
        if self.max_ind_range == 0 or not -1 <= self.max_ind_range < 2**32:
            raise ValueError(f"--max-ind-range={self.max_ind_range}: give a limit from 1 to 4294967295, or -1 for none")


# ---------------------------------------------------------------------------------------------------- vocabulary


class Vocabulary:
    """Everything that turns raw rows into model input: kept beside every exported model.

    Args:
        directory: a store, or the vocabulary directory beside an exported file.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self.schema = _read_schema(self.directory)
        self._indexes = [
            ValueIndex(pl.read_parquet(self.directory / "vocabulary" / f"{name}.parquet")["value"].to_numpy())
            for name in self.schema["tables"]
        ]

    def encode(self, block: RawBlock) -> tuple[torch.Tensor, torch.Tensor]:
        """Dense float32 [n, M] and ids int64 [n, T] of parsed raw rows."""
        values = cap_values(block.values, self.schema["options"]["max_ind_range"])
        ids = np.stack([index.encode(values[:, t]) for t, index in enumerate(self._indexes)], axis=1)
        dense = transform_dense(torch.from_numpy(block.dense), self.schema["dense_transform"])
        return dense, torch.from_numpy(ids.astype(np.int64))

    def encode_file(self, path: str | Path) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Encode a raw file, with or without labels, block by block."""
        for block in criteo_blocks(Path(path), labelled=None):
            yield self.encode(block)


def save_vocabulary(store: str | Path, target: str | Path) -> None:
    """Copy what `Vocabulary` needs from a store to the directory `target`, for use without the store."""
    with atomic_directory(target, marker=SCHEMA) as folder:
        shutil.copytree(Path(store) / "vocabulary", folder / "vocabulary")
        shutil.copyfile(Path(store) / SCHEMA, folder / SCHEMA)


# ------------------------------------------------------------------------------------------------------- prepare


def prepare(source: Source, options: StoreOptions, directory: str = "", folder: str = ".dlrm_store") -> Path:
    """Return the store of a raw file, written now or found complete.

    Args:
        source: the raw format, opened.
        options: everything that changes the store.
        directory: where it shall lie; "" chooses `folder`/<key>. If a store of other data or flags lies there, the
            new one is written beside it, as `directory`-<key>.
        folder: parent of default stores and of the cache of source checksums.

    Raises:
        DataError: a raw row cannot be read. ValueError: `directory` is a file. OSError: unreadable, out of disk.
    """
    if directory and Path(directory).is_file():
        raise ValueError(
            f"--processed-data-file={directory} is a file: name a directory (an npz of the reference driver cannot "
            "be read here, prepare from the raw file again)"
        )
    if directory and not source.path.exists() and _is_store(Path(directory)):
        # as in the reference, raw text may be gone once it is prepared
        schema = _read_schema(Path(directory))
        if schema["key"] == store_key(schema["source"]["sha256"], options):
            return Path(directory)
        raise ValueError(f"{directory} was prepared with other flags, and {source.path} is not there to do it again")
    checksum = source_checksum(source.path, Path(folder))
    key = store_key(checksum, options)
    target = Path(directory) if directory else Path(folder) / key
    recover_directory(target)
    if _is_store(target) and _read_schema(target)["key"] != key:
        target = target.with_name(f"{target.name}-{key}")
    if not _is_store(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_directory(target, marker=SCHEMA) as partial:
            _write_store(source, options, partial, checksum, key)
    return target


def store_key(checksum: str, options: StoreOptions) -> str:
    """Sixteen hexadecimal digits that name a store's content."""
    fields = asdict(options) | {"source": checksum, "format": FORMAT_VERSION}
    if not options.sub_sample_rate:
        fields.pop("sub_sample_seed")
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]


def source_checksum(path: Path, folder: Path) -> str:
    """SHA-256 of a file; remembered in `folder` by path, size and time of change, since raw files are large."""
    stat = path.stat()
    entry = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
    cache_file = folder / CHECKSUM_CACHE
    try:
        cache = json.loads(cache_file.read_text())
    except (OSError, ValueError):
        cache = {}
    if entry not in cache:
        digest = hashlib.sha256()
        with open(path, "rb") as file:
            while chunk := file.read(HASH_CHUNK):
                digest.update(chunk)
        cache[entry] = digest.hexdigest()
        with contextlib.suppress(OSError):  # a read-only folder costs a second reading, not the run
            folder.mkdir(parents=True, exist_ok=True)
            with atomic_file(cache_file, "w") as file:
                json.dump(cache, file, indent=1)
    return cache[entry]


def _is_store(directory: Path) -> bool:
    return (directory / SCHEMA).is_file()


def _read_schema(directory: Path) -> dict:
    try:
        schema = json.loads((directory / SCHEMA).read_text())
    except FileNotFoundError:
        raise ValueError(f"{directory} is not a prepared store: it has no {SCHEMA}") from None
    except ValueError as error:
        raise ValueError(f"{directory / SCHEMA} is damaged: {error}") from None
    if not isinstance(schema, dict):
        raise ValueError(f"{directory / SCHEMA} is damaged: it holds no JSON object")
    if schema.get("format") != FORMAT_VERSION:
        raise ValueError(f"{directory} has store format {schema.get('format')}, this version reads {FORMAT_VERSION}")
    return schema


def _write_store(source: Source, options: StoreOptions, target: Path, checksum: str, key: str) -> None:
    indexes = [ValueIndex() for _ in source.table_names]
    with (
        _GrowingNpy(target / "dense.npy", np.int32, len(source.dense_names)) as dense,
        _GrowingNpy(target / "ids.npy", np.int32, len(source.table_names)) as ids,
        _GrowingNpy(target / "labels.npy", np.int8, len(source.label_names)) as labels,
        ThreadPoolExecutor(os.cpu_count()) as pool,  # sorting a column releases the interpreter lock
    ):
        kept = []
        for block, keep in _sub_sample(source.blocks(), options):
            kept.append(keep)
            values = cap_values(block.values, options.max_ind_range)
            columns = pool.map(lambda t, v=values: indexes[t].grow(v[:, t]), range(len(indexes)))
            ids.append(np.stack(list(columns), axis=1))
            dense.append(block.dense)
            labels.append(block.labels)
    kept = np.concatenate(kept)
    split = _split_of_kept_rows(source.split(len(kept)), kept)
    (target / "vocabulary").mkdir()
    for name, index in zip(source.table_names, indexes, strict=True):
        pl.DataFrame({"value": index.values_by_id()}).write_parquet(target / "vocabulary" / f"{name}.parquet")
    table_rows = [len(index) for index in indexes]
    np.save(target / "counts.npy", _training_counts(target / "ids.npy", split, table_rows))
    scores = source.best_auc_scores()
    if scores is not None:
        np.save(target / "best_scores.npy", scores[kept])
    schema = {
        "format": FORMAT_VERSION,
        "key": key,
        "source": {"name": source.path.name, "sha256": checksum, "raw_rows": len(kept)},
        "options": asdict(options),
        "rows": int(kept.sum()),
        "labels": list(source.label_names),
        "dense": list(source.dense_names),
        "dense_transform": source.dense_transform,
        "tables": dict(zip(source.table_names, table_rows, strict=True)),
        "split": asdict(split),
    }
    (target / SCHEMA).write_text(json.dumps(schema, indent=1) + "\n")


def _sub_sample(blocks: Iterable[RawBlock], options: StoreOptions) -> Iterator[tuple[RawBlock, np.ndarray]]:
    """Drop a share of the negatives; the draws are those of the reference on a fresh cache: one a raw row."""
    rng = np.random.RandomState(options.sub_sample_seed)
    for block in blocks:
        if not options.sub_sample_rate:
            yield block, np.ones(len(block.labels), bool)
            continue
        keep = (block.labels[:, 0] != 0) | (rng.uniform(size=len(block.labels)) >= options.sub_sample_rate)
        yield RawBlock(block.labels[keep], block.dense[keep], block.values[keep]), keep


def _split_of_kept_rows(split: Split, kept: np.ndarray) -> Split:
    """Days are counted in raw rows; without the dropped ones their borders move, and the last day is halved anew."""
    if kept.all():
        return split
    before = np.concatenate([[0], np.cumsum(kept)])
    days = tuple((int(before[a]), int(before[b])) for a, b in split.train_days)
    start, stop = int(before[split.test[0]]), int(before[split.val[1]])
    middle = start + (stop - start + 1) // 2
    return Split(days, val=(middle, stop), test=(start, middle), description=split.description)


def _training_counts(ids_file: Path, split: Split, table_rows: Sequence[int], chunk: int = 1 << 20) -> np.ndarray:
    ids = np.load(ids_file, mmap_mode="r")
    counts = [np.zeros(rows, np.int64) for rows in table_rows]
    for start, stop in split.train_days:
        for at in range(start, stop, chunk):
            part = ids[at : min(at + chunk, stop)]
            for t, table in enumerate(counts):
                table += np.bincount(part[:, t], minlength=len(table))
    return np.concatenate(counts)


class _GrowingNpy:
    """A .npy file whose number of rows is known only at the end (NumPy's header leaves room for that)."""

    def __init__(self, path: Path, dtype: type, columns: int) -> None:
        self._path, self._dtype, self._columns, self._rows = path, np.dtype(dtype), columns, 0

    def __enter__(self) -> _GrowingNpy:
        self._file = open(self._path, "wb")
        self._write_header()
        return self

    def append(self, rows: np.ndarray) -> None:
        self._file.write(np.ascontiguousarray(rows, self._dtype).data)
        self._rows += len(rows)

    def __exit__(self, kind: type | None, *_: object) -> None:
        with self._file:
            if kind is None:
                self._file.seek(0)
                self._write_header()

    def _write_header(self) -> None:
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": (self._rows, self._columns)}
        np.lib.format.write_array_header_1_0(self._file, header)


# ---------------------------------------------------------------------------------------------------------- read


class Store:
    """A prepared store, memory-mapped.

    Attributes:
        tables: name -> number of counted rows n. Id n is the unknown id.
        split: row ranges, see `sources.Split`.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self.schema = _read_schema(self.directory)
        self.tables: dict[str, int] = self.schema["tables"]
        self.split = Split(**self.schema["split"])
        self._dense, self._ids, self._labels = (
            np.load(self.directory / f"{name}.npy", mmap_mode="r") for name in ("dense", "ids", "labels")
        )

    def __len__(self) -> int:
        return len(self._labels)

    def rows_of(self, split: str) -> range:
        """Row numbers of "train", "val" or "test"."""
        if split == "train":
            return range(self.split.train_days[0][0], self.split.train_days[-1][1])
        return range(*getattr(self.split, split))

    def labels_of(self, split: str) -> np.ndarray:
        """Labels float32 [rows] of a part."""
        return np.asarray(self._labels[_as_slice(self.rows_of(split)), 0], np.float32)

    def best_scores_of(self, split: str) -> np.ndarray | None:
        """The planted teacher's probabilities [rows] of a part; None for real data."""
        path = self.directory / "best_scores.npy"
        return np.load(path, mmap_mode="r")[_as_slice(self.rows_of(split))] if path.exists() else None

    def training_order(self, randomize: str, rng: np.random.RandomState) -> np.ndarray | range:
        """Row numbers in training order, the same in every epoch, drawn as the reference driver draws them.

        Args:
            randomize: "none": file order; "day": shuffled within each day; "total": over all training rows.
            rng: the main generator. It is advanced twice over, because the reference also draws (and drops) a
                training order when it builds its test set, and the initial weights come after both.
        """
        if self.schema["options"]["sub_sample_rate"]:
            rng.uniform(size=self.schema["source"]["raw_rows"])
        if randomize == "none":
            return self.rows_of("train")
        if randomize not in ("day", "total"):
            raise ValueError(f"--data-randomize={randomize!r}: choose none, day or total")
        groups = self.split.train_days
        if randomize == "total":
            groups = ((groups[0][0], groups[-1][1]),)
        order = np.concatenate([start + rng.permutation(stop - start) for start, stop in groups])
        for start, stop in groups:
            rng.permutation(stop - start)
        return order

    def batches(self, rows: np.ndarray | range, batch_size: int, start: int = 0) -> Iterator[Batch]:
        """Yield the given rows in order, `batch_size` at a time, beginning with batch number `start`."""
        for at in range(start * batch_size, len(rows), batch_size):
            chosen = rows[at : at + batch_size]
            chosen = _as_slice(chosen) if isinstance(chosen, range) else chosen
            yield Batch(
                dense=transform_dense(torch.from_numpy(np.array(self._dense[chosen])), self.schema["dense_transform"]),
                ids=torch.from_numpy(self._ids[chosen].astype(np.int64)),
                offsets=None,
                labels=torch.from_numpy(self._labels[chosen].astype(np.float32)),
            )

    def ids_in(self, rows: np.ndarray | range, chunk: int = 1 << 20) -> list[np.ndarray]:
        """Which ids of each table occur in these rows: one bool array [n] a table."""
        seen = [np.zeros(n + 1, bool) for n in self.tables.values()]
        for at in range(0, len(rows), chunk):
            chosen = rows[at : at + chunk]
            part = self._ids[_as_slice(chosen) if isinstance(chosen, range) else np.sort(chosen)]
            for t, table in enumerate(seen):
                table[part[:, t]] = True
        return [table[:-1] for table in seen]


def _as_slice(rows: range) -> slice:
    return slice(rows.start, rows.stop)


__all__ = ["DataError", "Store", "StoreOptions", "Vocabulary", "prepare", "save_vocabulary"]
