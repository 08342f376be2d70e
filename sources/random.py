"""Random batches, number for number those of the reference driver's `--data-generation=random`.

Nothing is learned from them: they are for timing, smoke tests and loss traces. Every epoch starts from a
freshly seeded legacy NumPy generator, so all epochs hold the same batches. A batch takes its numbers in this
order: the dense features, then table after table and sample after sample the bag's size (unless it is fixed)
and the bag's ids, then the labels.

A bag's ids are sorted and distinct. Its size before duplicates go is `lookups`, or round(u * min(rows,
lookups)) with u from U[0, 1), at least 1. Uniform ids are round(u * (rows - 1)), so the two ends are half as
likely as the rest. Gaussian ids are N(mu, sigma^2), clipped to [low, high] and cut to integers after
duplicates have gone: two equal ids in one bag are common there, and count twice in its sum.

Legend: B samples of a batch, M dense features, T tables, L ids of a batch, N rows of a table.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from sources import Batch

READ_AHEAD = 1 << 16  # doubles drawn at a time, so that small batches do not pay one call per table


class _Bags(NamedTuple):
    """What was drawn for one table: the bags' numbers one after another, and how many each bag drew."""

    values: np.ndarray  # float64 [sum(sizes)]
    sizes: np.ndarray  # int64 [B], all at least 1


class RandomData:
    """Batches of random dense features, ids and labels.

    Args:
        dense: number of dense features M, 0 or more.
        table_rows: rows N of each table.
        data_size: samples of an epoch; ignored where `num_batches` is given.
        num_batches: full batches of an epoch; 0 means as many as `data_size` needs, the last one short.
        batch_size: samples B of a batch.
        lookups: ids drawn for a bag, or the most that are drawn if not `lookups_fixed`.
        lookups_fixed: draw exactly `lookups` ids for every bag.
        round_targets: labels are 0 or 1 instead of uniform in [0, 1].
        distribution: of the ids, "uniform" or "gaussian"; the next four are for gaussian only.
        low, high: least and largest id, before it is cut to an integer.
        mu: mean; -1 means (low + high) / 2.
        sigma: standard deviation.
        seed: of the generator, 0 to 2**32 - 1.

    Raises:
        ValueError: an argument out of its range, named with its value.
    """

    def __init__(
        self,
        dense: int,
        table_rows: Sequence[int],
        *,
        data_size: int = 1,
        num_batches: int = 0,
        batch_size: int = 1,
        lookups: int = 10,
        lookups_fixed: bool = False,
        round_targets: bool = False,
        distribution: str = "uniform",
        low: float = 0.0,
        high: float = 1.0,
        mu: float = -1.0,
        sigma: float = 1.0,
        seed: int = 123,
    ) -> None:
        _at_least(0, dense=dense, num_batches=num_batches, seed=seed)
        _at_least(1, data_size=data_size, batch_size=batch_size, lookups=lookups)
        _at_least(1, tables=len(table_rows), **{f"rows of table {t}": n for t, n in enumerate(table_rows)})
        if seed >= 2**32:
            raise ValueError(f"seed is {seed}, must be below 2**32")
        if distribution not in ("uniform", "gaussian"):
            raise ValueError(f"distribution {distribution!r} is not known; choose uniform or gaussian")
        if distribution == "gaussian":
            _check_gaussian(low, high, mu, sigma)
        self.table_rows = tuple(int(n) for n in table_rows)
        self._dense = dense
        self._batch_size = batch_size
        self._rows = num_batches * batch_size if num_batches else data_size
        self._lookups = lookups
        self._lookups_fixed = lookups_fixed
        self._round_targets = round_targets
        self._uniform = distribution == "uniform"
        self._low, self._high, self._sigma = low, high, sigma
        self._mu = (high + low) / 2.0 if mu == -1 else mu
        self._seed = seed

    def __len__(self) -> int:
        """Number of batches in an epoch."""
        return -(-self._rows // self._batch_size)

    @property
    def rows(self) -> int:
        """Number of samples in an epoch."""
        return self._rows

    def batches(self, start: int = 0) -> Iterator[Batch]:
        """Yield one epoch, less its first `start` batches; the others are what they are without it.

        With uniform ids, `lookups` 1 and `lookups_fixed`, a batch is one-hot (ids [B, T], no offsets);
        otherwise it has bags, ids [L] and offsets [T * B + 1], as described at `sources.Batch`.

        Raises:
            ValueError: `start` is outside the epoch, or (while iterating) a gaussian id is outside its table.
        """
        if not 0 <= start <= len(self):
            raise ValueError(f"start is {start}, must be from 0 to the number of batches, {len(self)}")
        return self._epoch(start)

    def _epoch(self, start: int) -> Iterator[Batch]:
        generator = np.random.RandomState(self._seed)
        draws = _UniformDraws(generator) if self._uniform else _GaussianDraws(generator, self._mu, self._sigma)
        for index in range(len(self)):
            samples = min(self._batch_size, self._rows - index * self._batch_size)
            dense = draws.doubles(samples * self._dense)
            bags = [draws.bags(samples, self._most(n), self._lookups_fixed) for n in self.table_rows]
            labels = draws.doubles(samples)
            if index >= start:
                yield self._batch(dense.reshape(samples, self._dense), bags, labels)

    def _most(self, rows: int) -> int:
        return self._lookups if self._lookups_fixed else min(rows, self._lookups)

    def _batch(self, dense: np.ndarray, bags: list[_Bags], labels: np.ndarray) -> Batch:
        ids, offsets = self._ids(bags)
        labels = labels.astype(np.float32)[:, None]
        if self._round_targets:
            labels = np.round(labels)
        return Batch(torch.from_numpy(dense.astype(np.float32)), ids, offsets, torch.from_numpy(labels))

    def _ids(self, bags: list[_Bags]) -> tuple[torch.Tensor, torch.Tensor | None]:
        if self._uniform and self._lookups == 1 and self._lookups_fixed:
            one_hot = [_uniform_ids(bag.values, n) for bag, n in zip(bags, self.table_rows, strict=True)]
            return torch.from_numpy(np.stack(one_hot, axis=1)), None
        if self._uniform:
            tables = [_uniform_bags(bag, n) for bag, n in zip(bags, self.table_rows, strict=True)]
        else:
            tables = [_gaussian_bags(bag, self._low, self._high) for bag in bags]
            for table, ((ids, _), rows) in enumerate(zip(tables, self.table_rows, strict=True)):
                _check_range(table, ids, rows)
        ids, lengths = (np.concatenate(parts) for parts in zip(*tables, strict=True))
        offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
        np.cumsum(lengths, out=offsets[1:])
        return torch.from_numpy(ids), torch.from_numpy(offsets)


class _UniformDraws:
    """Draws where every number is one double of the generator: they can be drawn ahead and in bulk."""

    def __init__(self, generator: np.random.RandomState) -> None:
        self._generator = generator
        self._ahead = np.empty(0)

    def doubles(self, count: int) -> np.ndarray:
        """The next `count` numbers of U[0, 1): float64 [count]."""
        self._read_ahead(count)
        taken, self._ahead = self._ahead[:count], self._ahead[count:]
        return taken

    def bags(self, samples: int, most: int, fixed: bool) -> _Bags:
        """Draw one table's bags, each of `most` numbers if `fixed`, otherwise of a drawn size up to that."""
        if fixed:
            return _Bags(self.doubles(samples * most), np.full(samples, most))
        self._read_ahead(samples * (1 + most))
        doubles = memoryview(self._ahead)
        starts, position = [], 0
        for _ in range(samples):
            starts.append(position)
            position += 1 + _bag_size(doubles[position], most)
        sizes = np.diff(starts, append=position) - 1
        return _Bags(np.delete(self.doubles(position), starts), sizes)

    def _read_ahead(self, count: int) -> None:
        missing = count - len(self._ahead)
        if missing > 0:
            drawn = self._generator.random_sample(max(missing, READ_AHEAD))
            self._ahead = np.concatenate([self._ahead, drawn])


class _GaussianDraws:
    """Draws one bag at a time: a normal takes an unknown number of doubles and leaves a second one behind."""

    def __init__(self, generator: np.random.RandomState, mu: float, sigma: float) -> None:
        self._generator = generator
        self._mu = mu
        self._sigma = sigma

    def doubles(self, count: int) -> np.ndarray:
        """The next `count` numbers of U[0, 1): float64 [count]."""
        return self._generator.random_sample(count)

    def bags(self, samples: int, most: int, fixed: bool) -> _Bags:
        """As in `_UniformDraws`, with numbers of N(mu, sigma^2)."""
        bags = []
        for _ in range(samples):
            size = most if fixed else _bag_size(self._generator.random_sample(), most)
            bags.append(self._generator.normal(self._mu, self._sigma, size))
        return _Bags(np.concatenate(bags), np.array([len(bag) for bag in bags]))


def _bag_size(double: float, most: int) -> int:
    return round(max(1.0, double * most))


def _uniform_ids(values: np.ndarray, rows: int) -> np.ndarray:
    return np.rint(values * (rows - 1)).astype(np.int64)


def _uniform_bags(bags: _Bags, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Turn drawn numbers into sorted distinct ids [L] and the bags' lengths [B]."""
    # one sort for all bags: shifted by its bag, an id stays within the bag's places of the sorted whole
    shift = np.repeat(np.arange(len(bags.sizes)) * rows, bags.sizes)
    ids = _uniform_ids(bags.values, rows)
    ids += shift
    ids.sort()
    ids -= shift
    return _drop_repeats(ids, bags.sizes)


def _gaussian_bags(bags: _Bags, low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """Turn drawn numbers into sorted ids [L] and the bags' lengths [B]."""
    bag_of_value = np.repeat(np.arange(len(bags.sizes)), bags.sizes)
    values = np.clip(bags.values, low, high)
    values, lengths = _drop_repeats(values[np.lexsort((values, bag_of_value))], bags.sizes)
    return values.astype(np.int64), lengths


def _drop_repeats(values: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Keep each number once per (sorted) bag. Returns the numbers and the bags' lengths that remain."""
    starts = np.cumsum(sizes) - sizes
    keep = np.empty(len(values), dtype=bool)
    np.not_equal(values[1:], values[:-1], out=keep[1:])
    keep[starts] = True
    return values[keep], np.add.reduceat(keep, starts, dtype=np.int64)


def _check_range(table: int, ids: np.ndarray, rows: int) -> None:
    for bad in (ids.min(), ids.max()):
        if not 0 <= bad < rows:
            raise ValueError(f"table {table}: drew id {bad}, but its {rows} rows are 0 to {rows - 1}")


def _at_least(least: int, **values: int) -> None:
    for name, value in values.items():
        if value < least:
            raise ValueError(f"{name} is {value}, must be at least {least}")


def _check_gaussian(low: float, high: float, mu: float, sigma: float) -> None:
    for name, value in (("low", low), ("high", high), ("mu", mu), ("sigma", sigma)):
        if not math.isfinite(value):
            raise ValueError(f"{name} is {value}, must be finite")
    if sigma < 0:
        raise ValueError(f"sigma is {sigma}, must be at least 0")
    if low > high:
        raise ValueError(f"low is {low}, must not be above high, {high}")
