"""Encoded parts -> the store: final ids, the split, counts, one record a row in the narrowest types."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl

from datastore.collect import Collected
from datastore.schema import FORMAT_VERSION, SCHEMA, StoreOptions
from sources import PARTS, Layout, Source, Split
from sources.prefetch import in_order_ahead

WORKERS = 2  # parts in work at a time
INTEGER_TYPES = (np.uint8, np.uint16, np.int32)


@dataclass
class _Plan:
    """What the second pass over the parts needs to know."""

    split: Split
    part_of_row: np.ndarray | None  # of the kept rows: their part of the split; None: as they come
    lookup: dict[str, np.ndarray]  # temporary id -> id, tables whose ids change only
    table_rows: dict[str, int]  # n
    dtypes: dict[str, np.dtype]  # of every column, multi-hot ids included


def write_store(source: Source, options: StoreOptions, done: Collected, target: Path, checksum: str, key: str) -> None:
    """Write a complete store into the empty directory `target`."""
    layout = source.layout
    kept = done.kept_rows()
    split, part_of_row = _split(source, done, kept)
    description, split = split.description, replace(split, part_of_row=None)
    ends = _region_ends(split)
    fit_counts, dense = _survey(layout, options, done, part_of_row, ends)
    lookup, table_rows = _final_ids(layout, options, done, fit_counts)
    dtypes = {label: np.dtype(np.int8) for label in layout.labels} | dense.dtypes
    dtypes |= {table: _id_type(n) for table, n in table_rows.items()}
    plan = _Plan(split, part_of_row, lookup, table_rows, dtypes)
    counts = _write_rows(layout, done, plan, ends, target)
    np.save(target / "counts.npy", np.concatenate(list(counts.values())))
    _write_vocabulary(done, lookup, table_rows, target)
    scores = source.best_auc_scores() if hasattr(source, "best_auc_scores") else None
    if scores is not None:
        scores = scores if kept is None else scores[kept]
        order = slice(None) if part_of_row is None else np.argsort(part_of_row, kind="stable")
        np.save(target / "best_scores.npy", scores[order])
    schema = {
        "format": FORMAT_VERSION,
        "key": key,
        "data_set": options.data_set,
        "source": {
            "name": source.paths[0].name,
            "files": {path.name: path.stat().st_size for path in source.paths},
            "sha256": checksum,
            "raw_rows": done.raw_rows,
            "skipped_rows": sum(part.skipped for part in done.parts),
        },
        "options": asdict(options),
        "settings": source.settings,
        "rows": sum(part.rows for part in done.parts),
        "labels": {label: sum(part.unlabelled[label] for part in done.parts) for label in layout.labels},
        "dense": {name: {"transform": t} | dense.moments.get(name, {}) for name, t in layout.dense.items()},
        "tables": table_rows,
        "multi_hot": list(layout.multi_hot),
        "kinds": {table: index.kind or "integer" for table, index in done.indexes.items()},
        "trained_unknown": [table for table, count in counts.items() if count[-1]],
        "split": asdict(split) | {"description": description},
    }
    schema["split"].pop("part_of_row")
    (target / SCHEMA).write_text(json.dumps(schema, indent=1) + "\n")


# --------------------------------------------------------------------------------------------------------- split


def _split(source: Source, done: Collected, kept: np.ndarray | None) -> tuple[Split, np.ndarray | None]:
    """The split of the kept rows, and the part of each where they have to be brought into order."""
    groups = done.all_groups()
    split = source.split(done.raw_rows, groups)
    part_of_row = split.part_of_row
    if kept is None:
        return split, part_of_row
    if part_of_row is not None:
        before = np.concatenate([[0], np.cumsum(kept[np.argsort(part_of_row, kind="stable")])])
        part_of_row = part_of_row[kept]
    else:
        before = np.concatenate([[0], np.cumsum(kept)])
    return _kept_split(split, before), part_of_row


def _kept_split(split: Split, before: np.ndarray) -> Split:
    """Borders count raw rows; without the dropped ones they move, and a last day in two halves is halved anew."""

    def moved(bounds: tuple[int, int]) -> tuple[int, int]:
        return int(before[bounds[0]]), int(before[bounds[1]])

    days = tuple(moved(day) for day in split.train_days)
    if split.test[1] == split.val[0]:  # test first: the reference's halves of the last day
        start, stop = int(before[split.test[0]]), int(before[split.val[1]])
        middle = start + (stop - start + 1) // 2
        return replace(split, train_days=days, test=(start, middle), val=(middle, stop))
    return replace(split, train_days=days, val=moved(split.val), test=moved(split.test))


def _region_ends(split: Split) -> tuple[int, int]:
    """Store rows that belong to the training part."""
    return split.train_days[0][0], split.train_days[-1][1]


# -------------------------------------------------------------------------------------------------------- survey


@dataclass
class _Dense:
    dtypes: dict[str, np.dtype]
    moments: dict[str, dict[str, float]]  # mean and std of the "standard" columns over the training part


def _survey(
    layout: Layout,
    options: StoreOptions,
    done: Collected,
    part_of_row: np.ndarray | None,
    train: tuple[int, int],
) -> tuple[dict[str, np.ndarray], _Dense]:
    """First pass, where one is needed: counts of the temporary ids in the rows of the fit, moments of dense columns."""
    counts = {table: np.zeros(len(index), np.int64) for table, index in done.indexes.items()}
    counted = (
        layout.tables if options.fit == "train" or options.min_count > 1 or options.id_order == "frequency" else ()
    )
    sums = {name: np.zeros(3) for name, transform in layout.dense.items() if transform == "standard"}
    for frame, is_train in _parts(done, part_of_row, train) if counted or sums else ():
        for name, moments in sums.items():
            values = frame[name].to_numpy()[is_train].astype(np.float64)
            values = values[~np.isnan(values)]
            moments += len(values), values.sum(), (values**2).sum()
        for table in counted:
            ids = _flat_ids(frame, table, is_train if options.fit == "train" else slice(None), layout)
            counts[table] += np.bincount(ids, minlength=len(counts[table]))
    dtypes = {name: _common_type({part.dense_types[name] for part in done.parts}) for name in layout.dense}
    return counts, _Dense(dtypes, {name: _moments(*values) for name, values in sums.items()})


def _moments(count: float, total: float, squares: float) -> dict[str, float]:
    mean = total / max(count, 1)
    variance = max(0.0, squares / max(count, 1) - mean**2)
    return {"mean": float(mean), "std": float(variance**0.5) or 1.0}


def _common_type(found: set[str]) -> np.dtype:
    common = np.result_type(*map(np.dtype, found))
    return np.dtype(np.float32) if common.kind == "f" else common


def _id_type(n: int) -> np.dtype:
    """The narrowest type for the ids 0 to n, the unknown id."""
    return np.dtype(next(dtype for dtype in INTEGER_TYPES if n <= np.iinfo(dtype).max))


def _parts(
    done: Collected, part_of_row: np.ndarray | None, train: tuple[int, int]
) -> Iterator[tuple[pl.DataFrame, np.ndarray]]:
    """The rows of every part, and which of them belong to the training part."""
    start = 0
    for part in done.parts:
        stop = start + part.rows
        if part_of_row is None:
            rows = np.arange(start, stop)
            is_train = (rows >= train[0]) & (rows < train[1])
        else:
            is_train = part_of_row[start:stop] == PARTS["train"]
        yield done.rows_of(part), is_train
        start = stop


def _flat_ids(frame: pl.DataFrame, table: str, rows: np.ndarray | slice, layout: Layout) -> np.ndarray:
    """All temporary ids of a table in the chosen rows, bags emptied into one array."""
    if table not in layout.multi_hot:
        return frame[table].to_numpy()[rows]
    column = frame[table] if isinstance(rows, slice) else frame[table].filter(pl.Series(rows))
    return column.explode().drop_nulls().to_numpy()


# ----------------------------------------------------------------------------------------------------- final ids


def _final_ids(
    layout: Layout, options: StoreOptions, done: Collected, counts: dict[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Temporary id -> id where they differ, and n of each table."""
    lookup, table_rows = {}, {}
    least = options.min_count if options.min_count > 1 or options.fit == "train" else 0  # 0: nothing was counted
    for table in layout.tables:
        count = counts[table]
        keep = np.flatnonzero(count >= least)
        if options.id_order == "frequency":
            keep = keep[np.argsort(-count[keep], kind="stable")]
        table_rows[table] = len(keep)
        if not len(keep):
            raise ValueError(
                f"table {table}: none of {len(count)} values occurs {least} times in the rows of the vocabulary: "
                "lower --vocabulary-min-count"
            )
        if len(keep) < len(count) or options.id_order == "frequency":
            lookup[table] = np.full(len(count), len(keep), np.int32)
            lookup[table][keep] = np.arange(len(keep), dtype=np.int32)
    return lookup, table_rows


def _write_vocabulary(done: Collected, lookup: dict[str, np.ndarray], table_rows: dict[str, int], target: Path) -> None:
    (target / "vocabulary").mkdir()
    for table, index in done.indexes.items():
        values = index.values_by_id()
        if table in lookup:
            kept = np.flatnonzero(lookup[table] < table_rows[table])
            order = np.empty(len(kept), np.int64)
            order[lookup[table][kept]] = kept
            values = values[order]
        pl.DataFrame({"value": values}).write_parquet(target / "vocabulary" / f"{table}.parquet")


# ----------------------------------------------------------------------------------------------------------- rows


def record_type(columns: Sequence[tuple[str, np.dtype]]) -> np.dtype:
    """One record of these columns, wide ones first so that all lie at multiples of their size."""
    ordered = sorted(columns, key=lambda column: -column[1].itemsize)
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


@dataclass
class _Finished:
    """A part, ready to be written."""

    records: np.ndarray
    counts: dict[str, np.ndarray]  # in the training part
    bags: dict[str, tuple[np.ndarray, np.ndarray]]  # lengths and ids of the multi-hot tables


def _write_rows(
    layout: Layout, done: Collected, plan: _Plan, train: tuple[int, int], target: Path
) -> dict[str, np.ndarray]:
    """Second pass: rows.npy and the bags; returns the counts in the training part, the unknown id's last."""
    one_hot = [table for table in layout.tables if table not in layout.multi_hot]
    record = record_type([(name, plan.dtypes[name]) for name in (*layout.labels, *layout.dense, *one_hot)])
    counts = {table: np.zeros(n + 1, np.int64) for table, n in plan.table_rows.items()}
    bags = {table: [] for table in layout.multi_hot}
    cursor = {PARTS["train"]: 0, PARTS["val"]: plan.split.val[0], PARTS["test"]: plan.split.test[0]}
    rows, at = sum(part.rows for part in done.parts), 0
    with _RowFile(target / "rows.npy", record, rows) as file, ThreadPoolExecutor(WORKERS) as pool:
        parts = _parts(done, plan.part_of_row, train)
        for finished in in_order_ahead(pool, lambda part: _finish(*part, layout, plan, record), parts, WORKERS):
            for table, count in finished.counts.items():
                counts[table] += count
            for table, bag in finished.bags.items():
                bags[table].append(bag)
            records = finished.records.view(np.uint8).reshape(-1, record.itemsize)  # padding bytes stay zero
            if plan.part_of_row is None:
                file.write(at, records)
            else:
                belongs = plan.part_of_row[at : at + len(records)]
                for number in cursor:
                    chosen = records[belongs == number]
                    file.write(cursor[number], chosen)
                    cursor[number] += len(chosen)
            at += len(records)
    if bags:
        (target / "bags").mkdir()
    for table, pieces in bags.items():
        _write_bags(target / "bags", table, pieces, plan.part_of_row)
    return counts


def _finish(frame: pl.DataFrame, is_train: np.ndarray, layout: Layout, plan: _Plan, record: np.dtype) -> _Finished:
    """The records of a part's rows, ids final."""
    finished = _Finished(np.zeros(frame.height, record), {}, {})
    for name in (*layout.labels, *layout.dense):
        finished.records[name] = frame[name].to_numpy()
    for table in layout.tables:
        ids = _flat_ids(frame, table, slice(None), layout)
        ids = plan.lookup[table][ids] if table in plan.lookup else ids
        if table in layout.multi_hot:
            lengths = frame[table].list.len().to_numpy().astype(np.int64)
            finished.bags[table] = lengths, ids.astype(plan.dtypes[table])
            counted = ids[np.repeat(is_train, lengths)]
        else:
            finished.records[table], counted = ids, ids[is_train]
        finished.counts[table] = np.bincount(counted, minlength=plan.table_rows[table] + 1)
    return finished


class _RowFile:
    """A .npy file of known size, written at any row."""

    def __init__(self, path: Path, record: np.dtype, rows: int) -> None:
        self._path, self._record, self._rows = path, record, rows

    def __enter__(self) -> _RowFile:
        self._file = open(self._path, "wb")
        header = {"descr": np.lib.format.dtype_to_descr(self._record), "fortran_order": False, "shape": (self._rows,)}
        np.lib.format.write_array_header_2_0(self._file, header)
        self._begin = self._file.tell()
        return self

    def write(self, row: int, records: np.ndarray) -> None:
        """Put the bytes of records, uint8 [n, itemsize], at row number `row`."""
        self._file.seek(self._begin + row * self._record.itemsize)
        self._file.write(records.data)

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _write_bags(
    folder: Path, table: str, pieces: list[tuple[np.ndarray, np.ndarray]], part_of_row: np.ndarray | None
) -> None:
    """Offsets and ids of a multi-hot table, in the order of the store's rows."""
    lengths, ids = (np.concatenate(arrays) for arrays in zip(*pieces, strict=True))
    if part_of_row is not None:
        order = np.argsort(part_of_row, kind="stable")
        starts = (np.cumsum(lengths) - lengths)[order]
        lengths = lengths[order]
        ids = ids[np.arange(lengths.sum()) + np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    np.save(folder / f"{table}.offsets.npy", offsets)
    np.save(folder / f"{table}.ids.npy", ids)
