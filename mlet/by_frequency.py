"""AUC and logloss by how often a row's ids occur in the training rows: are rare items predicted better?

Embeddings of rare ids are updated seldom, and MLET is meant to help just those (arXiv 2309.15881, abstract). Rows are
put into bins by a count: that of their rarest id over all tables, and that of each table's id alone. Where there are
many tables, nearly every row has some id that was never trained on; how many rare ids it has tells such rows apart.

An id counts as often as it occurs in the rows that were trained on. An id outside the vocabulary counts 0: the row of
the table that all such ids share may be well trained (--vocabulary-min-count), but each is too rare for one of its own.
A bag counts as its rarest id. An empty bag has no id, so that it is neither rare nor frequent: its count is `NO_ID`.

N rows, B rows of a batch, T tables, n ids of a table, L ids of a batch's bags, C rows that have a count, E bins.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mlet.metrics import binary_metrics

NO_ID = -1  # the count of an empty bag


def counts_of_rows(
    batches: Iterable[tuple[ArrayLike, ArrayLike | None]], counts: Sequence[np.ndarray], rows: int
) -> np.ndarray:
    """How often the rarest id of each cell occurs in training, batch after batch.

    Args:
        batches: ids [B, T] and None; or ids [L] and offsets [T * B + 1], bag (t, b) being
            ids[offsets[t*B+b] : offsets[t*B+b+1]], as the models take them (arrays, or tensors on the CPU).
        counts: [n + 1] a table, occurrences of each id in training; the last is the unknown id's and is taken as 0.
        rows: N, over all batches.

    Returns:
        [N, T], int32 where every count fits, column after column in memory; `NO_ID` for an empty bag.

    Raises:
        ValueError: other than N rows, or an id outside 0 to n, with its table's number.
    """
    largest = max((int(of_table.max()) for of_table in counts), default=0)
    dtype = np.int32 if largest <= np.iinfo(np.int32).max else np.int64
    known = [np.append(of_table[:-1], 0).astype(dtype) for of_table in counts]
    result = np.empty((rows, len(counts)), dtype, order="F")
    done = 0
    for ids, offsets in batches:
        ids = np.asarray(ids)
        bounds = None if offsets is None else np.asarray(offsets)
        size = len(ids) if bounds is None else (len(bounds) - 1) // len(known)
        if done + size > rows:
            raise ValueError(f"the batches have more than {rows} rows")
        for table, of_table in enumerate(known):
            column = result[done : done + size, table]
            if bounds is None:
                column[:] = _look_up(of_table, ids[:, table], table)
            else:
                column[:] = _rarest_of_bags(of_table, ids, bounds[table * size : (table + 1) * size + 1], table)
        done += size
    if done != rows:
        raise ValueError(f"the batches have {done} rows, expected {rows}")
    return result


def _look_up(counts: np.ndarray, ids: np.ndarray, table: int) -> np.ndarray:
    if ids.size and not 0 <= ids.min() <= ids.max() < len(counts):
        raise ValueError(
            f"table {table}: ids from {ids.min()} to {ids.max()}, the last one counted is {len(counts) - 1}"
        )
    return counts[ids]


def _rarest_of_bags(counts: np.ndarray, ids: np.ndarray, bounds: np.ndarray, table: int) -> np.ndarray:
    """Count [B] of the rarest id of each of one table's bags, given their bounds [B + 1] in ids [L]."""
    result = np.full(len(bounds) - 1, NO_ID, counts.dtype)
    filled = bounds[:-1] < bounds[1:]
    if filled.any():
        values = _look_up(counts, ids[bounds[0] : bounds[-1]], table)
        # bags lie one behind another: where the empty ones are left out, each ends where the next begins
        result[filled] = np.minimum.reduceat(values, bounds[:-1][filled] - bounds[0])
    return result


def bin_edges(counts: np.ndarray, bins: int = 10) -> np.ndarray:
    """Lowest count of each bin: the quantiles 0, 1 / bins, 2 / bins ... of the counts, each a count that occurs.

    Bin e holds the counts from edges[e] to below edges[e + 1]; the last one is open above. Equal counts share a bin, so
    that ties make fewer bins; a bin of less than half of C / bins rows is joined with the one above it.

    Args:
        counts: [C]
        bins: the most that there may be

    Returns:
        ascending [E], E <= bins; none without counts

    Raises:
        ValueError: bins below 1
    """
    if bins < 1:
        raise ValueError(f"{bins} bins: at least 1 is needed")
    ordered = np.sort(counts)
    if not len(ordered):
        return ordered
    quantiles = np.unique(ordered[np.arange(bins) * len(ordered) // bins])
    starts = np.searchsorted(ordered, quantiles)  # rows below each
    kept = [0]
    for place in range(1, len(quantiles)):
        if 2 * bins * (starts[place] - starts[kept[-1]]) >= len(ordered):
            kept.append(place)
    return quantiles[kept]


def frequency_report(
    labels: np.ndarray,
    scores: np.ndarray,
    counts: np.ndarray,
    tables: Iterable[str],
    bins: int = 10,
    rare_below: int = 10,
) -> dict[str, Any]:
    """Quality by frequency: by the rarest id of a row, by the number of its rare ids, and by the id of each table.

    The bins depend on the counts alone: models that were trained and are tested on the same rows have the same bins.

    Args:
        labels: [N] or [N, 1], 0 or 1; soft targets leave auc and logloss None
        scores: of as many elements, predicted probabilities
        counts: [N, T] of `counts_of_rows`, signed; a negative one stands for no id
        tables: the T tables' names
        bins: the most that there may be, 10 for deciles; see `bin_edges`
        rare_below: an id is rare that occurs fewer times than this

    Returns:
        JSON-ready. A quality is {"samples", "positives", "auc", "logloss"}, the auc None where one class is missing.
        all: quality of all rows
        rarest: {"bins": [{"low", "high", **quality}, ...], "empty": quality or None}; low and high are the lowest and
            the highest count in a bin, from the rarest up; "empty" has the rows without any id
        rare_ids: {"below": rare_below, ...}, the same by the number of tables, 0 to T, whose id is rare
        tables: name -> the same by the counts of one table

    Raises:
        ValueError: what `binary_metrics` and `bin_edges` refuse, or counts of another shape
    """
    labels, scores = np.asarray(labels).reshape(-1), np.asarray(scores).reshape(-1)
    of_all = _quality(labels, scores)
    names = list(tables)
    if counts.shape != (len(labels), len(names)):
        raise ValueError(f"counts of shape {counts.shape} for {len(labels)} rows and {len(names)} tables")
    return {
        "all": of_all,
        "rarest": quality_by_count(labels, scores, rarest_counts(counts), bins),
        "rare_ids": {"below": rare_below, **quality_by_count(labels, scores, rare_ids(counts, rare_below), bins)},
        "tables": {name: quality_by_count(labels, scores, counts[:, t], bins) for t, name in enumerate(names)},
    }


def rarest_counts(counts: np.ndarray) -> np.ndarray:
    """The lowest count of each row over the tables: [N, T] -> [N]; `NO_ID` where no table has an id."""
    highest = np.iinfo(counts.dtype).max
    result = np.full(len(counts), highest, counts.dtype)
    for column in counts.T:
        np.minimum(result, column, out=result, where=column >= 0)
    result[result == highest] = NO_ID
    return result


def rare_ids(counts: np.ndarray, below: int) -> np.ndarray:
    """In how many tables the id of a row occurs fewer than `below` times: [N, T] -> [N]. Empty bags are not rare."""
    result = np.zeros(len(counts), np.int32)
    for column in counts.T:
        result += (column >= 0) & (column < below)
    return result


def quality_by_count(labels: np.ndarray, scores: np.ndarray, counts: np.ndarray, bins: int = 10) -> dict[str, Any]:
    """The report for one count a row, counts [N], as `frequency_report` has it of "rarest"; a negative one is no id."""
    empty = counts < 0
    edges = bin_edges(counts[~empty], bins)
    bin_of_row = np.searchsorted(edges, counts, side="right") - 1  # -1 where there is no id
    parts = []
    for number in range(len(edges)):
        chosen = bin_of_row == number
        here = counts[chosen]
        parts.append({"low": int(here.min()), "high": int(here.max()), **_quality(labels[chosen], scores[chosen])})
    return {"bins": parts, "empty": _quality(labels[empty], scores[empty]) if empty.any() else None}


def _quality(labels: np.ndarray, scores: np.ndarray) -> dict[str, float | int | None]:
    metrics = binary_metrics(labels, scores)
    return {
        "samples": metrics["samples"],
        "positives": int(np.count_nonzero(labels == 1)),
        "auc": metrics["auc"],
        "logloss": metrics["logloss"],
    }
