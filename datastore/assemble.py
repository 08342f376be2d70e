"""Encoded parts -> the store: final ids, the split, counts, one record a row in the narrowest types."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import polars as pl

from datastore.collect import Collected
from datastore.parts import Bags, Part, id_type, pack, record_type
from datastore.schema import FORMAT_VERSION, SCHEMA, StoreOptions
from sources import PARTS, Layout, Source, Split
from sources.prefetch import in_order_ahead

WORKERS = 2  # parts in work at a time
COPY_BYTES = 1 << 18  # stays in the cache


@dataclass
class _Plan:
    """What the last pass over the parts needs to know."""

    split: Split
    part_of_row: np.ndarray | None  # of the kept rows: their part of the split; None: as they come
    lookup: dict[str, np.ndarray]  # temporary id -> id, tables whose ids change only
    table_rows: dict[str, int]  # n
    record: np.dtype


def write_store(source: Source, options: StoreOptions, done: Collected, target: Path, checksum: str, key: str) -> None:
    """Write a complete store into the empty directory `target`."""
    layout, kept = source.layout, done.kept_rows()
    split, part_of_row = _split(source, done, kept)
    train_counts, moments = _survey(layout, done, split, part_of_row)
    fit_counts = train_counts if options.fit == "train" else {t: index.counts for t, index in done.indexes.items()}
    lookup, table_rows = _final_ids(layout, options, fit_counts)
    types = done.types | {table: id_type(table_rows[table]) for table in done.one_hot}
    plan = _Plan(split, part_of_row, lookup, table_rows, record_type(types))
    _write_rows(done, plan, target)
    counts = {table: _mapped(train_counts[table], lookup.get(table), table_rows[table]) for table in layout.tables}
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
        "options": asdict(options),
        "settings": source.settings,
        "dense": {name: {"transform": t} | moments.get(name, {}) for name, t in layout.dense.items()},
        "tables": table_rows,
        "multi_hot": list(layout.multi_hot),
        "kinds": {table: index.kind or "integer" for table, index in done.indexes.items()},
        "trained_unknown": [table for table, count in counts.items() if count[-1]],
        **facts_of_rows(source, done, split, checksum),
    }
    (target / SCHEMA).write_text(json.dumps(schema, indent=1) + "\n")


def facts_of_rows(source: Source, done: Collected, split: Split, checksum: str) -> dict[str, Any]:
    """What a store's schema says of where its rows come from, how many there are and which part is what."""
    return {
        "source": {
            "name": source.paths[0].name,
            "files": {path.name: path.stat().st_size for path in source.paths},
            "sha256": checksum,
            "raw_rows": done.raw_rows,
            "skipped_rows": sum(part.skipped for part in done.parts),
        },
        "rows": sum(part.rows for part in done.parts),
        "labels": {label: sum(part.unlabelled[label] for part in done.parts) for label in source.layout.labels},
        "split": {name: value for name, value in asdict(split).items() if name != "part_of_row"},
    }


def write_encoded(done: Collected, split: Split, table_rows: dict[str, int], target: Path) -> None:
    """Write rows whose ids are final already, as they came: rows.npy and the bags."""
    types = done.types | {table: id_type(table_rows[table]) for table in done.one_hot}
    _write_rows(done, _Plan(split, None, {}, table_rows, record_type(types)), target)


# --------------------------------------------------------------------------------------------------------- split


def _split(source: Source, done: Collected, kept: np.ndarray | None) -> tuple[Split, np.ndarray | None]:
    """The split of the kept rows, and the part of each where they have to be brought into order."""
    split = source.split(done.raw_rows, done.all_groups())
    part_of_row, split = split.part_of_row, replace(split, part_of_row=None)
    if kept is None:
        return split, part_of_row
    if part_of_row is None:
        return _kept_split(split, np.concatenate([[0], np.cumsum(kept)])), None
    in_order = kept[np.argsort(part_of_row, kind="stable")]
    return _kept_split(split, np.concatenate([[0], np.cumsum(in_order)])), part_of_row[kept]


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


# -------------------------------------------------------------------------------------------------------- survey


def _survey(
    layout: Layout, done: Collected, split: Split, part_of_row: np.ndarray | None
) -> tuple[dict[str, np.ndarray], dict[str, dict[str, float]]]:
    """How often each temporary id occurs in the training part, and the moments of the "standard" columns there.

    All rows are counted already, so that only parts with other rows are read again, unless there are moments to find.
    """
    counts = {table: index.counts.copy() for table, index in done.indexes.items()}
    sums = {name: np.zeros(3) for name, transform in layout.dense.items() if transform == "standard"}
    for part, is_train in _training_rows(done, split, part_of_row):
        if is_train.all() and not sums:
            continue
        records, bags = done.read(part)
        for name, moments in sums.items():
            values = records[name][is_train].astype(np.float64)
            values = values[~np.isnan(values)]
            moments += len(values), values.sum(), (values**2).sum()
        if is_train.all():
            continue
        for table, count in counts.items():
            lengths, ids = bags.get(table, (None, None))
            others = records[table][~is_train] if ids is None else ids[np.repeat(~is_train, lengths)]
            count -= np.bincount(others, minlength=len(count))
    return counts, {name: _moments(*values) for name, values in sums.items()}


def _training_rows(done: Collected, split: Split, part_of_row: np.ndarray | None) -> Iterator[tuple[Part, np.ndarray]]:
    """Every part, and which of its rows belong to the training part."""
    first, last, start = split.train_days[0][0], split.train_days[-1][1], 0
    for part in done.parts:
        stop = start + part.rows
        if part_of_row is None:
            rows = np.arange(start, stop)
            yield part, (rows >= first) & (rows < last)
        else:
            yield part, part_of_row[start:stop] == PARTS["train"]
        start = stop


def _moments(count: float, total: float, squares: float) -> dict[str, float]:
    mean = total / max(count, 1)
    variance = max(0.0, squares / max(count, 1) - mean**2)
    return {"mean": float(mean), "std": float(variance**0.5) or 1.0}


# ----------------------------------------------------------------------------------------------------- final ids


def _final_ids(
    layout: Layout, options: StoreOptions, counts: dict[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Temporary id -> id where they differ, and n of each table."""
    lookup, table_rows = {}, {}
    for table in layout.tables:
        count = counts[table]
        keep = np.flatnonzero(count >= options.min_count)
        if options.id_order == "frequency":
            keep = keep[np.argsort(-count[keep], kind="stable")]
        table_rows[table] = len(keep)
        if not len(keep):
            raise ValueError(
                f"table {table}: none of {len(count)} values occurs {options.min_count} times in the rows of the "
                "vocabulary: lower --vocabulary-min-count"
            )
        if len(keep) < len(count) or options.id_order == "frequency":
            lookup[table] = np.full(len(count), len(keep), np.int32)
            lookup[table][keep] = np.arange(len(keep), dtype=np.int32)
    return lookup, table_rows


def _mapped(counts: np.ndarray, lookup: np.ndarray | None, n: int) -> np.ndarray:
    """Counts of temporary ids as counts of ids [n + 1], the unknown id's last."""
    mapped = np.zeros(n + 1, np.int64)
    if lookup is None:
        mapped[:n] = counts
    else:
        np.add.at(mapped, lookup, counts)
    return mapped


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


def _write_rows(done: Collected, plan: _Plan, target: Path) -> None:
    """Last pass: rows.npy and the bags, part by part, or in order of the split's parts where they lie apart."""
    pieces = {table: [] for table in done.layout.multi_hot}
    cursor = {PARTS["train"]: 0, PARTS["val"]: plan.split.val[0], PARTS["test"]: plan.split.test[0]}
    rows, at = sum(part.rows for part in done.parts), 0
    with open(target / "rows.npy", "wb") as file, ThreadPoolExecutor(WORKERS) as pool:
        header = {"descr": np.lib.format.dtype_to_descr(plan.record), "fortran_order": False, "shape": (rows,)}
        np.lib.format.write_array_header_2_0(file, header)
        begin = file.tell()
        if plan.part_of_row is None and not pieces and not plan.lookup:
            _copy_rows(done, plan, file)
            return
        for records, bags in in_order_ahead(pool, lambda p: _final_part(done, p, plan), done.parts, WORKERS):
            for table, bag in bags.items():
                pieces[table].append(bag)
            records = records.view(np.uint8).reshape(-1, plan.record.itemsize)  # bytes: those of the padding stay zero
            if plan.part_of_row is None:
                file.write(records.data)
            else:
                belongs = plan.part_of_row[at : at + len(records)]
                for number in cursor:
                    chosen = records[belongs == number]
                    file.seek(begin + cursor[number] * plan.record.itemsize)
                    file.write(chosen.data)
                    cursor[number] += len(chosen)
            at += len(records)
    if pieces:
        (target / "bags").mkdir()
    for table, arrays in pieces.items():
        _write_bags(target / "bags", table, arrays, plan)


def _copy_rows(done: Collected, plan: _Plan, file: BinaryIO) -> None:
    """Rows that stay as they are: copied as bytes, but those of the first parts, whose types were still narrower."""
    for part in done.parts:
        if part.record != plan.record:
            file.write(_final_part(done, part, plan)[0].view(np.uint8).data)
        else:
            with open(done.folder / f"{part.name}.rows", "rb") as part_file:
                shutil.copyfileobj(part_file, file, COPY_BYTES)


def _final_part(done: Collected, part: Part, plan: _Plan) -> tuple[np.ndarray, Bags]:
    """A part's records and bags with final ids, in the store's types."""
    records, bags = done.read(part)
    bags = {t: (lengths, plan.lookup[t][ids] if t in plan.lookup else ids) for t, (lengths, ids) in bags.items()}
    renumbered = [table for table in done.one_hot if table in plan.lookup]
    if records.dtype == plan.record and not renumbered:
        return records, bags
    columns = {name: records[name] for name in plan.record.names}
    columns |= {table: plan.lookup[table][records[table]] for table in renumbered}
    final = np.zeros(len(records), plan.record)
    pack(columns, plan.record, final)
    return final, bags


def _write_bags(folder: Path, table: str, pieces: list[tuple[np.ndarray, np.ndarray]], plan: _Plan) -> None:
    """Offsets and ids of a multi-hot table, in the order of the store's rows."""
    lengths, ids = (np.concatenate(arrays) for arrays in zip(*pieces, strict=True))
    lengths, ids = lengths.astype(np.int64), ids.astype(id_type(plan.table_rows[table]))
    if plan.part_of_row is not None:
        order = np.argsort(plan.part_of_row, kind="stable")
        starts = (np.cumsum(lengths) - lengths)[order]
        lengths = lengths[order]
        ids = ids[np.arange(lengths.sum()) + np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)]
    np.save(folder / f"{table}.offsets.npy", np.concatenate([[0], np.cumsum(lengths)]))
    np.save(folder / f"{table}.ids.npy", ids)
