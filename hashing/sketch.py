"""A small sketch of the accesses finds the hot ids, which keep rows of their own (CAFE: Zhang et al., SIGMOD 2024).

The sketch is a table of buckets with a few slots each; a universal hash says which bucket an id belongs to, and each
bucket is a SpaceSaving summary (Metwally, Agrawal and El Abbadi, ICDT 2005) of what falls into it:

    id has a slot      score += w
    a slot is free     the id takes it, score = w, error = 0
    else               the id takes the slot with the smallest score, error = that score, score = error + w

With t(i) the importance of id i so far and W what a bucket of s slots took in, the scores of a bucket sum to W, so

    score(i) - error(i) <= t(i) <= score(i), error(i) <= smallest score of the bucket <= W / s:

an id with t(i) > W / s has a slot. The hot ids are those of the greatest sure importance, score - error: by score
alone, ids that came last in a long tail would pass for hot (an id seen once has the score of the slot that it took).
All other ids share rows by a universal hash, as in hashing/frequency.py.

A stream is fed as it comes, in chunks of any size, without a history on disk:

    sketch = HotSketch(buckets=50_000)
    for ids in stream:                      # of one table; gradients' norms as importance, or 1 each
        sketch.insert(ids)
    hot = sketch.hot(100_000)               # the ids that are to have rows of their own

Legend: n ids of a table, m rows, B buckets, s slots of a bucket, w importance of an access (1, or the gradient's norm).
"""

from __future__ import annotations

import numpy as np

from hashing import Request
from hashing.frequency import most_private, rows_behind
from hashing.id_map import IdMap, universal

FREE = -1
SLOTS = 4
SPARE = 2  # slots of the sketch for each hot row: neighbours in a bucket push each other out
CHUNK = 1 << 16  # ids at once


class HotSketch:
    """The ids of greatest importance in a stream, in memory that does not grow with it: 24 B s bytes.

    Args:
        buckets: B. slots: s. seed: of the hash that spreads ids over buckets.

    Attributes:
        ids: int64 [B, s], FREE where nobody is.
        scores, errors: float64 [B, s], 0 where nobody is.

    Raises:
        ValueError: no bucket or no slot.
    """

    def __init__(self, buckets: int, slots: int = SLOTS, seed: int = 0) -> None:
        if buckets < 1 or slots < 1:
            raise ValueError(f"a sketch of {buckets} buckets with {slots} slots: at least 1 each")
        self.ids = np.full((buckets, slots), FREE, np.int64)
        self.scores = np.zeros((buckets, slots))
        self.errors = np.zeros((buckets, slots))
        self._hash = universal(buckets, (seed, 1))

    def bucket_of(self, ids: np.ndarray) -> np.ndarray:
        """Buckets int64 of ids."""
        return self._hash(np.asarray(ids))

    def insert(self, ids: np.ndarray, importance: np.ndarray | None = None) -> None:
        """Take in a batch of accesses, as if they came one by one: first the ids that have a slot, then the newcomers.

        Newcomers come in ascending importance, so that the greatest of a batch keep their slots.

        Args:
            ids: int64 [L], 0 or more, with repeats.
            importance: float64 [L], 0 or more; 1 each by default. An access of importance 0 leaves no trace.

        Raises:
            ValueError: shapes that differ, a negative id, an importance that is negative or not finite.
        """
        ids = np.asarray(ids, np.int64)
        weights = np.ones(len(ids)) if importance is None else np.asarray(importance, np.float64)
        if ids.ndim != 1 or weights.shape != ids.shape:
            raise ValueError(f"importance of shape {weights.shape} for ids of shape {ids.shape}: one each is needed")
        if not len(ids):
            return
        if ids.min() < 0 or not np.isfinite(weights).all() or weights.min() < 0:
            raise ValueError("ids and their importance must be finite and 0 or more")
        distinct, place = np.unique(ids, return_inverse=True)
        sums = np.bincount(place, weights)
        distinct, sums = distinct[sums > 0], sums[sums > 0]
        newcomer = ~self._add(distinct, sums)
        self._replace(distinct[newcomer], sums[newcomer])

    def _add(self, ids: np.ndarray, sums: np.ndarray) -> np.ndarray:
        """Add to the scores of distinct ids that have a slot. Returns bool [L]: which had."""
        buckets = self.bucket_of(ids)
        same = self.ids[buckets] == ids[:, None]
        which, slot = np.nonzero(same)
        self.scores[buckets[which], slot] += sums[which]
        return same.any(axis=1)

    def _replace(self, ids: np.ndarray, sums: np.ndarray) -> None:
        """Give slots to distinct ids that have none: rounds of at most one newcomer a bucket."""
        buckets = self.bucket_of(ids)
        order = np.lexsort((ids, sums, buckets))  # by bucket, in it by importance, equal ones by id
        buckets = buckets[order]
        turn = np.arange(len(ids)) - np.searchsorted(buckets, buckets)  # rank within the bucket
        by_turn = np.argsort(turn, kind="stable")
        ends = np.cumsum(np.bincount(turn)) if len(turn) else []
        for chosen in np.split(by_turn, ends[:-1]):
            at, who = buckets[chosen], order[chosen]
            slot = self.scores[at].argmin(axis=1)  # a free one if there is one: its score is 0, all others have more
            self.ids[at, slot] = ids[who]
            self.errors[at, slot] = self.scores[at, slot]
            self.scores[at, slot] += sums[who]

    def hot(self, count: int) -> np.ndarray:
        """The `count` ids of greatest sure importance, greatest first, equal ones by id; fewer if fewer have a slot."""
        taken = self.ids != FREE
        ids, sure = self.ids[taken], self.scores[taken] - self.errors[taken]
        return ids[np.lexsort((ids, -sure))[:count]]


def fit(request: Request, hot: float) -> IdMap:
    """Private rows for the ids that a sketch of the history finds hot.

    The history is at hand as counts, not as a stream: they go through the sketch in id order, and the map is that of
    `frequency` up to the sketch's errors. Where ids are in order of first appearance that order is a hard one, the rare
    ids come last. What serves streams is `HotSketch` itself.

    Args:
        request: with counts int64 [n].
        hot: share of the m rows that are private. One row at least is left to share; ids never seen get none.

    Raises:
        ValueError: a share outside [0, 1), naming the table.
    """
    wanted = most_private(request, "hot", hot)
    sketch = HotSketch(max(1, -(-SPARE * wanted // SLOTS)), SLOTS, request.seed)
    for start in range(0, request.ids if wanted else 0, CHUNK):
        counts = request.counts[start : start + CHUNK]
        sketch.insert(np.arange(start, start + len(counts)), counts)
    ids = sketch.hot(wanted)
    about = {"private_rows": len(ids), "sketch": list(sketch.ids.shape)}
    return IdMap(request.ids, (rows_behind(request, ids),), (request.rows,), "sketch", about=about)
