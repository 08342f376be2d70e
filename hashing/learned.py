"""Learned maps: ids with similar embeddings share a row ('Learning to Collide', arXiv 2203.15837).

The paper learns the id -> row map from how often an id is accessed and from a low-dimension embedding; its algorithm
is not public. These are our reconstructions, which differ in how frequency enters:

    private_head      the most frequent ids have rows of their own, the others are clustered with counts as mass
    weighted          all ids are clustered with counts as mass: a row serves about as many accesses as another
    coordinate        log(1 + count) is one more coordinate of the embedding
    embedding_alone   frequency does not enter
    frequency_alone   the embedding does not enter: ids of similar counts share a row

Mass is the count up to a row's fair share (`fair_mass`): with whole counts, the Zipf head drew so many rows to itself
that a third of all rows held one rare id, and clusters were looser than unweighted ones even by weighted distance.

In all, an id seen fewer than max(1, min_count) times has no embedding worth clustering: a universal hash spreads such
ids over the rows that the clusters have (all but the private ones). Where the seen ids are fewer than these rows, each
has its own.

Legend: n ids, d dimensions of the embedding, m rows.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hashing import Request
from hashing.balanced_split import balanced_split, fair_mass
from hashing.cluster import cluster
from hashing.frequency import private_ids, rows_behind
from hashing.id_map import IdMap

Clustering = Callable[[np.ndarray, int], np.ndarray]  # (ids to cluster, buckets) -> bucket numbers


def private_head(request: Request, private: float, min_count: int) -> IdMap:
    """Rows of their own for the most frequent ids; the others are clustered by embedding, weighted with counts.

    Args:
        request: with counts and vectors.
        private: share of the m rows, at least 0 and below 1. A private id stays private whatever `min_count` says.
        min_count: ids seen less often are hashed.

    Raises:
        ValueError: `private` outside its range.
    """
    head = private_ids(request, private)
    return _learned(request, "learned", min_count, lambda ids, rows: _weighted(request, ids, rows), head)


def weighted(request: Request, min_count: int) -> IdMap:
    """All ids clustered by embedding, weighted with counts: frequent ids end up alone or nearly so."""
    return _learned(request, "learned-weighted", min_count, lambda ids, rows: _weighted(request, ids, rows))


def coordinate(request: Request, min_count: int, strength: float) -> IdMap:
    """All ids clustered by embedding and frequency, unweighted.

    The further coordinate is log(1 + count) with mean 0 and a standard deviation of `strength` times that of an
    embedding coordinate (root mean square over the d coordinates), over the clustered ids. Strength 0 leaves it out.
    """

    def by_both(ids: np.ndarray, rows: int) -> np.ndarray:
        vectors, frequency = request.vectors[ids], np.log1p(request.counts[ids])
        spread = np.sqrt(vectors.var(axis=0, dtype=np.float64).mean())
        frequency -= frequency.mean()
        deviation = frequency.std()
        if deviation > 0:  # else all counts are equal, and the coordinate is 0
            frequency *= strength * spread / deviation
        return cluster(np.column_stack([vectors, frequency.astype(np.float32)]), rows, seed=request.seed)

    return _learned(request, "learned-coordinate", min_count, by_both)


def embedding_alone(request: Request, min_count: int) -> IdMap:
    """All ids clustered by embedding; counts only say which ids are hashed."""

    def by_embedding(ids: np.ndarray, rows: int) -> np.ndarray:
        return cluster(request.vectors[ids], rows, seed=request.seed)

    return _learned(request, "learned-embedding", min_count, by_embedding)


def frequency_alone(request: Request, min_count: int) -> IdMap:
    """Ids in order of count, cut into rows of about equal access mass."""

    def by_count(ids: np.ndarray, rows: int) -> np.ndarray:
        counts = request.counts[ids]
        # Only the order matters. Counts themselves, not their logarithm: float32 holds them exactly up to 2^24.
        return balanced_split(counts.astype(np.float32)[:, None], rows, fair_mass(counts, rows))

    return _learned(request, "learned-frequency", min_count, by_count)


def _weighted(request: Request, ids: np.ndarray, rows: int) -> np.ndarray:
    return cluster(request.vectors[ids], rows, fair_mass(request.counts[ids], rows), request.seed)


def _learned(
    request: Request, method: str, min_count: int, clustering: Clustering, head: np.ndarray | None = None
) -> IdMap:
    """Rows 0 .. h - 1 for the h private ids; the other rows for clusters of the seen ids and the hash of the rest."""
    head = np.zeros(0, np.int64) if head is None else head
    shared = request.rows - len(head)
    rows = rows_behind(request, head)
    seen = request.counts >= max(1, min_count)
    seen[head] = False
    ids = np.flatnonzero(seen)
    if len(ids):
        rows[ids] = len(head) + clustering(ids, min(shared, len(ids)))
    about = {"clustered": len(ids), "hashed": request.ids - len(ids) - len(head), "private": len(head)}
    return IdMap(request.ids, (rows,), (request.rows,), method, about=about)
