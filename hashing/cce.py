"""Clustered compositional embeddings: the map is learned while the model trains (Tsang and Ahle, NeurIPS 2023).

    v(i) = T0[h0(i)] + T1[h1(i)]         T0 of m0 rows, T1 of m1 rows, m0 + m1 = m

Both lookups begin as random hashes (`fit`). At the end of an epoch (`recluster`) the vectors v(i) are clustered by
k-means into m0 clusters: h0(i) becomes the cluster of id i and T0 its mean; h1 is drawn anew, and T1 takes up, in the
least squares sense, what the means leave over. Training goes on from there; rows have changed their meaning, so what an
optimizer keeps of them is to be reset.

The paper splits a vector into columns, each with lookups of its own; here the vector is one column.

Legend: n ids of a table, m rows of both parts, K numbers a row, c(i) the count of id i in the epoch or history.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from hashing import Request
from hashing.id_map import IdMap, universal

CHUNK = 1 << 16  # ids whose vectors exist at the same time, beside the sample that is clustered
REPAIRS = 10  # passes at most that give empty clusters something to do


def fit(request: Request) -> IdMap:
    """The start: two universal hashes, stored row by row since h0 is to be learned.

    Raises:
        ValueError: a budget of 1 row, naming the table.
    """
    if request.rows == 1:
        raise ValueError(f"table {request.table}: cce has two parts, and needs 2 rows; 1 is asked for")
    sizes = (request.rows - request.rows // 2, request.rows // 2)
    ids = np.arange(request.ids)
    lookups = tuple(universal(size, (request.seed, number))(ids) for number, size in enumerate(sizes))
    return IdMap(request.ids, lookups, sizes, "cce", "add")


def recluster(
    id_map: IdMap, parts: Sequence[np.ndarray], counts: np.ndarray, seed: int, sample: int = 200, how: str = "auto"
) -> tuple[IdMap, list[np.ndarray]]:
    """An epoch's end: cluster the vectors of the ids seen, and start both parts again from the clusters.

    Ids never seen keep their h0; their vectors mean nothing before and after.

    Args:
        id_map: two lookups into two parts, added.
        parts: T0 float32 [m0, K] and T1 float32 [m1, K]; not changed.
        counts: int64 [n], how often each id was seen; the weights of means.
        seed: of the sample, of k-means and of h1. h1 is another one each time, even if the seed is the same.
        sample: at most sample * m0 ids are clustered; the others go to the nearest mean.
        how: of `hashing.cluster.cluster`; auto is k-means where that takes seconds.

    Returns:
        The new map, whose `about` counts the times in "reclustered", and the new T0, T1, float32 of the same shapes.

    Raises:
        ValueError: a map of another form, parts or counts that do not fit it or are not finite, no id seen, or a
            sample below 1.
    """
    _check(id_map, parts, counts, sample)
    (m0, m1), n = id_map.part_rows, id_map.ids
    seen = np.flatnonzero(counts > 0)
    times = int(id_map.about.get("reclustered", 0)) + 1
    centroids = _centroids(id_map, parts, counts, seen, seed, sample, how)

    h0 = np.array(id_map.rows_of(np.arange(n))[0], np.int64)
    mean = _Means(m0, centroids.shape[1])
    for ids, vectors in _vectors(id_map, parts, seen):
        h0[ids] = _nearest(vectors, centroids)
        mean.add(h0[ids], counts[ids], vectors)
    t0 = mean.values(otherwise=centroids)

    h1 = universal(m1, (seed, 2, times))(np.arange(n))  # once, for all ids
    mean = _Means(m1, centroids.shape[1])
    for ids, vectors in _vectors(id_map, parts, seen):
        mean.add(h1[ids], counts[ids], vectors - t0[h0[ids]])
    t1 = mean.values(otherwise=np.zeros((m1, centroids.shape[1]), np.float32))
    about = {**id_map.about, "reclustered": times}
    return IdMap(n, (h0, h1), (m0, m1), id_map.method, id_map.combine, about), [t0, t1]


class _Means:
    """Weighted mean vectors of groups, summed up in float64 over chunks."""

    def __init__(self, groups: int, width: int) -> None:
        self.sums = np.zeros((groups, width))
        self.weights = np.zeros(groups)

    def add(self, group: np.ndarray, weights: np.ndarray, vectors: np.ndarray) -> None:
        """group int64 [l], weights [l] above 0, vectors [l, K]."""
        import scipy.sparse

        shape = len(self.weights), len(group)
        places = weights.astype(np.float64), (group, np.arange(len(group)))
        self.sums += scipy.sparse.csr_array(places, shape=shape) @ vectors.astype(np.float64)
        self.weights += np.bincount(group, weights, minlength=len(self.weights))

    def values(self, otherwise: np.ndarray) -> np.ndarray:
        """Means float32 [groups, K]; rows of `otherwise` for groups that nothing was added to."""
        filled = self.weights > 0
        means = np.array(otherwise, np.float32)
        means[filled] = self.sums[filled] / self.weights[filled, None]
        return means


def _vectors(id_map: IdMap, parts: Sequence[np.ndarray], ids: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Ids chunk by chunk, and their vectors float32 [l, K]."""
    for start in range(0, len(ids), CHUNK):
        chunk = ids[start : start + CHUNK]
        first, second = id_map.rows_of(chunk)
        yield chunk, parts[0][first] + parts[1][second]


def _centroids(
    id_map: IdMap, parts: Sequence[np.ndarray], counts: np.ndarray, seen: np.ndarray, seed: int, sample: int, how: str
) -> np.ndarray:
    """Means float32 [m0, K] of clusters of a sample of the ids seen; none is left empty-handed."""
    from hashing.cluster import cluster  # late: the start needs no clustering

    m0 = id_map.part_rows[0]
    generator = np.random.default_rng([seed, 3])
    drawn = seen if len(seen) <= sample * m0 else generator.choice(seen, sample * m0, replace=False)
    vectors = np.concatenate([chunk for _, chunk in _vectors(id_map, parts, drawn)])
    if len(drawn) <= m0:  # each vector is its own mean
        return np.resize(vectors, (m0, vectors.shape[1]))
    return _means_of_clusters(vectors, counts[drawn], cluster(vectors, m0, counts[drawn], seed, how), m0)


def _means_of_clusters(vectors: np.ndarray, mass: np.ndarray, group: np.ndarray, groups: int) -> np.ndarray:
    """Means float32 [groups, K] of vectors [l, K] by their groups, l > groups; no row is left without a vector.

    A group that is empty starts again at the vector farthest from its mean in one of the other groups, the worst of
    those first, as often as it takes within `REPAIRS`.
    """
    for _ in range(REPAIRS):
        mean = _Means(groups, vectors.shape[1])
        mean.add(group, mass, vectors)
        centroids = mean.values(otherwise=np.zeros((groups, vectors.shape[1]), np.float32))
        empty = np.flatnonzero(mean.weights == 0)
        if not len(empty):
            break
        far = np.square(vectors - centroids[group]).sum(axis=1)
        order = np.lexsort((-far, group))
        farthest = order[np.unique(group[order], return_index=True)[1]]  # one of each group: they differ
        farthest = farthest[np.argsort(-far[farthest], kind="stable")]
        centroids[empty] = vectors[np.resize(farthest, len(empty))]
        group = _nearest(vectors, centroids)
    return centroids


def _nearest(vectors: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Number int64 [l] of the centroid nearest to each vector."""
    from sklearn.metrics import pairwise_distances_argmin  # late: only training needs it

    return pairwise_distances_argmin(vectors, centroids)


def _check(id_map: IdMap, parts: Sequence[np.ndarray], counts: np.ndarray, sample: int) -> None:
    if len(id_map.lookups) != 2 or len(id_map.part_rows) != 2 or id_map.combine != "add":
        raise ValueError(f"a map of {id_map.method}: recluster needs two lookups into two parts that are added")
    shapes = [part.shape for part in parts]
    if [shape[0] for shape in shapes] != list(id_map.part_rows) or len(set(shape[1:] for shape in shapes)) != 1:
        raise ValueError(f"parts of shapes {shapes} for a map into {id_map.part_rows} rows")
    if not all(np.isfinite(part).all() for part in parts):
        raise ValueError("parts that are not finite cannot be clustered")
    if counts.shape != (id_map.ids,) or counts.min() < 0 or not counts.any():
        raise ValueError(f"counts of {id_map.ids} ids are needed, 0 or more, and not all 0")
    if sample < 1:
        raise ValueError(f"sample={sample}: at least 1 id a cluster")
