"""Clusters of equal mass by halving, for tables whose k-means would take hours.

A segment of k ids with b buckets is cut across its axis of largest variance (weighted by mass) into a part with
floor(b / 2) buckets and one with ceil(b / 2), where the mass divides in that proportion; until every segment has one
bucket. This is a k-d tree's median split with weights (Bentley 1975), and part of our reconstruction of 'Learning to
Collide' (arXiv 2203.15837), whose clustering is not public. All segments of a level are cut together, with one stable
sort of all ids: O(n log n) a level at worst, ceil(log2 m) levels.

With equal masses every bucket has floor(n / m) or ceil(n / m) ids: if q b <= k <= (q + 1) b holds for a segment, the
nearest cut to k floor(b / 2) / b keeps it for both parts.

Legend: n ids, d dimensions, m buckets, s segments; of one segment k ids, b buckets.
"""

from __future__ import annotations

import numpy as np


def balanced_split(vectors: np.ndarray, buckets: int, mass: np.ndarray | None = None) -> np.ndarray:
    """Divide ids into m buckets of about equal mass, none empty, with ids of similar vectors together.

    Args:
        vectors: [n, d], finite; read as float32.
        buckets: m, at most n.
        mass: [n], finite, at least 0; None: every id weighs 1.

    Returns:
        int64 [n], bucket numbers. The same for the same input; equal coordinates are ordered by position.

    Raises:
        ValueError: more buckets than ids, none, shapes that do not fit, or a negative mass.
    """
    n = _check(vectors, buckets, mass)
    columns = np.array(vectors.T, np.float32, order="C")  # [d, n], a copy: it is sorted along with the ids
    columns += np.float32(0)  # -0.0 becomes 0.0: the sort below compares bits
    weights = None if mass is None else np.array(mass, np.float64)
    order = np.arange(n, dtype=np.int32 if n <= np.iinfo(np.int32).max else np.int64)
    starts, shares = np.zeros(1, np.int64), np.array([buckets])  # [s]: first position and b of each segment
    while shares.max() > 1:
        sizes = np.diff(starts, append=n)
        step = _order_in_segments(columns, _widest_axes(columns, weights, starts, sizes), sizes)
        order = order[step]
        for column in columns:
            column[:] = column[step]
        if weights is not None:
            weights = weights[step]
        del step  # 8 n bytes
        starts, shares = _cut(weights, starts, sizes, shares)
    numbers = np.empty(n, np.int64)
    numbers[order] = np.repeat(np.arange(buckets), np.diff(starts, append=n))
    return numbers


def fair_mass(mass: np.ndarray, buckets: int) -> np.ndarray:
    """Mass with what no bucket can share taken off the heaviest ids.

    An id heavier than a bucket's fair share t fills a bucket alone. Left at its full mass, a split would give the part
    it lies in more buckets than there is mass to share, and its light neighbours would sit alone in them. t is the
    mean mass of the buckets that are left to the lighter ids: t = sum of min(mass, t) / m.

    Args:
        mass: [n], above 0.
        buckets: m, at most n.

    Returns:
        float64 [n], min(mass, t).
    """
    falling = np.sort(mass.astype(np.float64))[::-1]
    below = np.cumsum(falling[::-1])[::-1][:buckets]  # [m]: mass that is left when the j heaviest are alone
    shares = below / np.arange(buckets, 0, -1)
    return np.minimum(mass, shares[np.argmax(falling[:buckets] <= shares)])  # holds for j = m - 1 at the latest


def _check(vectors: np.ndarray, buckets: int, mass: np.ndarray | None) -> int:
    if vectors.ndim != 2 or vectors.shape[1] < 1:
        raise ValueError(f"vectors of shape {vectors.shape}: [ids, dimensions] are needed")
    n = len(vectors)
    if not 1 <= buckets <= n:
        raise ValueError(f"{buckets} buckets for {n} ids: at least 1 and at most one an id")
    if mass is not None and mass.shape != (n,):
        raise ValueError(f"mass of shape {mass.shape} for {n} ids")
    if mass is not None and mass.min() < 0:
        raise ValueError(f"mass of {mass.min()} at position {int(mass.argmin())} is negative")
    return n


def _widest_axes(
    columns: np.ndarray, weights: np.ndarray | None, starts: np.ndarray, sizes: np.ndarray
) -> np.ndarray:  # [s]
    """The axis of largest weighted variance of each segment, the first of equal ones.

    W sum(w c^2) - (sum(w c))^2 is W^2 times the variance. c is the distance from the segment's first id: far from
    the origin the two terms would cancel. Integers stay exact.
    """
    total = sizes if weights is None else np.add.reduceat(weights, starts)
    axes, largest = np.zeros(len(starts), np.uint32), np.full(len(starts), -np.inf)
    for axis, column in enumerate(columns if len(columns) > 1 else ()):  # of one axis there is no choice
        distance = column.astype(np.float64)
        distance -= np.repeat(column[starts], sizes)
        weighted = distance.copy() if weights is None else distance * weights
        square = np.add.reduceat(weighted, starts) ** 2
        weighted *= distance
        variance = total * np.add.reduceat(weighted, starts) - square
        wider = variance > largest
        axes[wider], largest[wider] = axis, variance[wider]
    return axes


def _order_in_segments(columns: np.ndarray, axes: np.ndarray, sizes: np.ndarray) -> np.ndarray:  # int64 [n]
    """What sorts the ids of each segment along its axis, stably.

    One sort does it for all: the key is the segment's number above the coordinate's 32 bits, turned so that they
    compare as unsigned integers like the floats do.
    """
    axis_of = np.repeat(axes, sizes)
    bits = columns[0].copy()
    for axis in range(1, len(columns)):
        np.copyto(bits, columns[axis], where=axis_of == axis)
    bits = bits.view(np.uint32)
    bits ^= (bits.view(np.int32) >> 31).view(np.uint32) | np.uint32(1 << 31)  # negative: all bits, else the sign
    keys = np.repeat(np.arange(len(sizes), dtype=np.uint64) << np.uint64(32), sizes)
    keys |= bits
    return np.argsort(keys, kind="stable")


def _cut(
    weights: np.ndarray | None, starts: np.ndarray, sizes: np.ndarray, shares: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Starts and buckets of the next level's segments: an id goes left if the middle of its mass lies left of the cut.

    Either side keeps as many ids as buckets, whatever the mass says. A segment of one bucket stays.
    """
    first = shares // 2
    if weights is None:
        left = (2 * sizes * first + shares) // (2 * shares)
    else:
        middles = np.cumsum(weights)
        ends = middles[starts + sizes - 1]
        before = np.concatenate(([0.0], ends[:-1]))
        middles -= weights / 2
        left = np.searchsorted(middles, before + (ends - before) * first / shares, side="right") - starts
    left = np.where(shares > 1, np.clip(left, first, sizes - (shares - first)), 0)
    both = np.stack([starts, starts + left], axis=1), np.stack([first, shares - first], axis=1)
    kept = both[1] > 0
    return both[0][kept], both[1][kept]
