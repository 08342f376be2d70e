"""Reading a store: rows of a split, training orders, batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import scipy.sparse
import torch

from datastore.schema import read_schema
from datastore.transform import DenseTransform
from sources import Batch, Split


class Store:
    """A prepared store, memory-mapped.

    Args:
        directory: where it lies.
        labels: the label columns that batches carry; none: the first. Rows that lack all of them are left out
            everywhere; of several, those that a row lacks are NaN.

    Attributes:
        tables: name -> number of counted rows n. Id n is the unknown id.
        multi_hot: for each table, whether its cells hold bags of ids.
        split: row ranges, see `sources.Split`.
        labels: names of the S label columns.

    Raises:
        ValueError: no store, a damaged or older one, no such label, or one named twice.
    """

    def __init__(self, directory: str | Path, labels: Sequence[str] = ()) -> None:
        self.directory = Path(directory)
        self.schema = read_schema(self.directory)
        self.tables: dict[str, int] = self.schema["tables"]
        self.multi_hot = [table in self.schema["multi_hot"] for table in self.tables]
        self.split = Split(**self.schema["split"])
        self.labels = tuple(labels) or (next(iter(self.schema["labels"])),)
        for label in self.labels:
            if label not in self.schema["labels"]:
                names = ", ".join(self.schema["labels"])
                raise ValueError(f"label {label!r} is not in {self.directory}: it has {names}")
            if self.labels.count(label) > 1:
                raise ValueError(f"label {label!r} is named twice: {', '.join(self.labels)}")
        self._transform = DenseTransform(self.schema["dense"])
        self._records = self._map("rows.npy")
        self._record = self._records.dtype
        self._bytes = self._records.view(np.uint8).reshape(len(self._records), self._record.itemsize)
        self._bags = {
            table: (self._map(f"bags/{table}.offsets.npy"), self._map(f"bags/{table}.ids.npy"))
            for table in self.schema["multi_hot"]
        }

    def _map(self, name: str) -> np.ndarray:
        try:
            return np.asarray(np.load(self.directory / name, mmap_mode="r"))
        except (ValueError, EOFError, FileNotFoundError) as error:
            raise ValueError(
                f"{self.directory / name} is damaged ({error}): remove {self.directory} and prepare again"
            ) from None

    def __len__(self) -> int:
        return len(self._records)

    @property
    def lookups(self) -> float:
        """Mean ids of a row over all tables."""
        bags = sum(len(ids) for _, ids in self._bags.values())
        return len(self.tables) - len(self._bags) + bags / max(1, len(self))

    def summary(self) -> str:
        """What it holds and how it is split, in a line."""
        kind = "label" if len(self.labels) == 1 else "labels"
        of_label = f", {kind} {', '.join(self.labels)}" if len(self.schema["labels"]) > 1 else ""
        return f"{len(self)} rows of {self.schema['data_set']}{of_label}; {self.split.description}"

    def describe(self) -> dict:
        """The same for programs."""
        parts = {split: len(self.rows_of(split)) for split in ("train", "val", "test")}
        return {
            "data_set": self.schema["data_set"],
            **({"label": self.labels[0]} if len(self.labels) == 1 else {"labels": list(self.labels)}),
            "settings": self.schema["settings"],
            "split": self.split.description,
            "rows": parts,
        }

    def rows_of(self, split: str) -> range | np.ndarray:
        """Row numbers of "train", "val" or "test"; an array where some lack every label."""
        if split == "train":
            rows = range(self.split.train_days[0][0], self.split.train_days[-1][1])
        else:
            rows = range(*getattr(self.split, split))
        return self._labelled(rows)

    def _labelled(self, rows: range | np.ndarray) -> range | np.ndarray:
        """Those of the rows that have one of the labels at least."""
        if not all(self.schema["labels"][label] for label in self.labels):
            return rows  # one of them is known everywhere
        chosen = _index(rows)
        return np.asarray(rows)[np.any([self._records[label][chosen] >= 0 for label in self.labels], axis=0)]

    def labels_of(self, split: str) -> np.ndarray:
        """Labels of a part: float32 [rows], of several [rows, S], NaN where missing."""
        labels = self._labels(self._records[_index(self.rows_of(split))])
        return labels[:, 0] if len(self.labels) == 1 else labels

    def _labels(self, records: np.ndarray) -> np.ndarray:
        """Labels float32 [rows, S] of some records."""
        labels = np.stack([records[label] for label in self.labels], axis=1).astype(np.float32)
        if len(self.labels) > 1 and any(self.schema["labels"][label] for label in self.labels):
            labels[labels < 0] = np.nan
        return labels

    def best_scores_of(self, split: str) -> np.ndarray | None:
        """The planted teacher's probabilities of a part, [rows] or [rows, S] as `labels_of`; None for real data."""
        path = self.directory / "best_scores.npy"
        if not path.exists():
            return None
        scores = np.load(path, mmap_mode="r")[_index(self.rows_of(split))]
        if scores.ndim == 1:  # of the first label
            return scores if self.labels == (next(iter(self.schema["labels"])),) else None
        scores = scores[:, [list(self.schema["labels"]).index(label) for label in self.labels]]
        return scores[:, 0] if len(self.labels) == 1 else scores

    def counts_of(self, table: str) -> np.ndarray:
        """How often each id, the unknown one last, occurs in the training part: int64 [n + 1]."""
        names = list(self.tables)
        before = sum(self.tables[name] + 1 for name in names[: names.index(table)])
        return np.load(self.directory / "counts.npy", mmap_mode="r")[before : before + self.tables[table] + 1]

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
        return self._labelled(order)

    def batches(self, rows: np.ndarray | range, batch_size: int, start: int = 0) -> Iterator[Batch]:
        """Yield the given rows in order, `batch_size` at a time, beginning with batch number `start`."""
        for at in range(start * batch_size, len(rows), batch_size):
            yield self.batch(rows[at : at + batch_size])

    def batch(self, rows: np.ndarray | range) -> Batch:
        """The given rows as one batch."""
        chosen = _index(rows)
        # one copy a row, whatever the number of columns; a range of rows is a view
        taken = self._bytes[chosen] if isinstance(chosen, slice) else np.take(self._bytes, chosen, axis=0)
        records = taken.view(self._record)[:, 0]
        labels = torch.from_numpy(self._labels(records))
        dense = self._transform(records, len(records))
        if self._bags:
            return Batch(dense, *self._all_bags(records, rows), labels)
        ids = np.empty((len(records), len(self.tables)), np.int64)
        for t, table in enumerate(self.tables):
            ids[:, t] = records[table]
        return Batch(dense, torch.from_numpy(ids), None, labels)

    def _all_bags(self, records: np.ndarray, rows: np.ndarray | range) -> tuple[torch.Tensor, torch.Tensor]:
        """Bags of every table, those of one-hot tables of one id each: ids [L] and offsets [T * B + 1]."""
        parts, lengths = [], []
        for table in self.tables:
            if table in self._bags:
                ids, sizes = _take_bags(*self._bags[table], np.asarray(rows))
            else:
                ids, sizes = records[table], np.ones(len(records), np.int64)
            parts.append(ids.astype(np.int64))
            lengths.append(sizes)
        offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
        return torch.from_numpy(np.concatenate(parts)), torch.from_numpy(offsets)

    def records(self, rows: np.ndarray | range) -> np.ndarray:
        """The given rows as they are stored: structured, labels, raw dense values and one-hot ids by column name."""
        return self._records[_index(rows)]

    def ids_in(self, rows: np.ndarray | range, chunk: int = 1 << 18) -> list[np.ndarray]:
        """Which ids of each table occur in these rows: one bool array [n] a table."""
        seen = [np.zeros(n + 1, bool) for n in self.tables.values()]
        for t, ids in self._ids_by_table(rows, chunk):
            seen[t][ids] = True
        return [flags[:-1] for flags in seen]

    def counts_in(self, rows: np.ndarray | range, chunk: int = 1 << 18) -> list[np.ndarray]:
        """How often each id, the unknown one last, occurs in these rows: one int64 array [n + 1] a table.

        As `counts_of` has it for the whole training part, all bags' ids included.
        """
        counts = [np.zeros(n + 1, np.int64) for n in self.tables.values()]
        for t, ids in self._ids_by_table(rows, chunk):
            np.add.at(counts[t], ids, 1)  # np.bincount would allocate n numbers for each part
        return counts

    def neighbours_of(self, table: str, rows: np.ndarray | range, most: int = 1 << 24) -> scipy.sparse.csr_matrix:
        """How often each id of a table occurs together with each id of the other one-hot tables, in these rows.

        Args:
            table: a one-hot table.
            rows: where to count; thinned out evenly where they would make more than `most` pairs.

        Returns:
            CSR [n, ids of the other tables], float64. Unknown ids are left out.

        Raises:
            ValueError: the table holds bags, or is the only one-hot table.
        """
        others = [name for name in self.tables if name != table and name not in self._bags]
        if table in self._bags:
            raise ValueError(f"table {table}: co-occurrence is counted between one-hot tables, and this one holds bags")
        if not others:
            raise ValueError(f"table {table}: there is no other one-hot table that its ids could occur with")
        step = 1 + len(rows) * len(others) // most
        chosen = rows[::step]
        records = self._records[_index(chosen if isinstance(chosen, range) else np.sort(chosen))]
        own, before, parts = records[table].astype(np.int64), 0, []
        for name in others:
            values = records[name].astype(np.int64)
            known = (own < self.tables[table]) & (values < self.tables[name])
            parts.append((own[known], before + values[known]))
            before += self.tables[name]
        ids, values = (np.concatenate(each) for each in zip(*parts, strict=True))
        shape = (self.tables[table], before)
        return scipy.sparse.coo_matrix((np.ones(len(ids)), (ids, values)), shape).tocsr()

    def _ids_by_table(self, rows: np.ndarray | range, chunk: int) -> Iterator[tuple[int, np.ndarray]]:
        """Number of a table and its ids in some of the rows, `chunk` rows at a time, until all were had."""
        for at in range(0, len(rows), chunk):
            part = rows[at : at + chunk]
            part = part if isinstance(part, range) else np.sort(part)
            records = self._records[_index(part)]
            for t, table in enumerate(self.tables):
                bags = self._bags.get(table)
                yield t, records[table] if bags is None else _take_bags(*bags, np.asarray(part))[0]


def _take_bags(offsets: np.ndarray, ids: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ids [L] of some rows' bags, one bag behind the other, and the bags' lengths."""
    starts = offsets[rows]
    lengths = offsets[rows + 1] - starts
    shift = np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)
    return ids[np.arange(len(shift)) + shift], lengths


def _index(rows: np.ndarray | range) -> np.ndarray | slice:
    return slice(rows.start, rows.stop) if isinstance(rows, range) else rows
