"""Clusters of ids by their vectors: k-means where it takes seconds, `balanced_split` elsewhere.

k-means gives the tighter clusters, in O(n m d) a pass; a table of 10 million ids and a million rows needs the other.

Legend: n ids, d dimensions, m buckets.
"""

from __future__ import annotations

import numpy as np

from hashing.balanced_split import balanced_split

WAYS = ("auto", "kmeans", "faiss", "split")
KMEANS_LIMIT = 10_000_000  # n m of `auto`; at most a few seconds on one core, 10 times as much took up to 18
FAISS_PASSES = 20


def cluster(
    vectors: np.ndarray, buckets: int, mass: np.ndarray | None = None, seed: int = 0, how: str = "auto"
) -> np.ndarray:
    """Group ids with similar vectors.

    Args:
        vectors: float32 [n, d], finite.
        buckets: m, at most n.
        mass: [n], how much each id weighs, at least 0; None: all the same.
        seed: of k-means' first centres; `split` draws nothing.
        how: kmeans (scikit-learn's MiniBatchKMeans), faiss (k-means of faiss-cpu), split (`balanced_split`), or auto:
            kmeans up to n m = `KMEANS_LIMIT`, else split.

    Returns:
        int64 [n], bucket numbers. k-means may leave buckets empty; split leaves none.

    Raises:
        ValueError: an unknown way, faiss where it is not installed, or sizes that do not fit.
    """
    n = len(vectors)
    if how not in WAYS:
        raise ValueError(f"how={how!r}: choose from {', '.join(WAYS)}")
    if not 1 <= buckets <= n:
        raise ValueError(f"{buckets} buckets for {n} ids: at least 1 and at most one an id")
    if buckets == 1:
        return np.zeros(n, np.int64)
    if buckets == n:
        return np.arange(n)
    if how == "auto":
        how = "kmeans" if n * buckets <= KMEANS_LIMIT else "split"
    if how == "split":
        return balanced_split(vectors, buckets, mass)
    return (_kmeans if how == "kmeans" else _faiss)(vectors, buckets, mass, seed)


def _kmeans(vectors: np.ndarray, buckets: int, mass: np.ndarray | None, seed: int) -> np.ndarray:
    from sklearn.cluster import MiniBatchKMeans  # slow to import

    model = MiniBatchKMeans(buckets, random_state=seed, n_init=1)
    return model.fit(vectors, sample_weight=mass).labels_.astype(np.int64)


def _faiss(vectors: np.ndarray, buckets: int, mass: np.ndarray | None, seed: int) -> np.ndarray:
    try:
        import faiss
    except ImportError:
        raise ValueError("clustering with faiss needs it installed: pip install faiss-cpu") from None
    vectors = np.ascontiguousarray(vectors, np.float32)
    # Bounds of its own: by default it trains on 256 ids a bucket and warns of fewer than 39.
    bounds = {"min_points_per_centroid": 1, "max_points_per_centroid": len(vectors)}
    model = faiss.Kmeans(vectors.shape[1], buckets, niter=FAISS_PASSES, seed=seed, **bounds)
    model.train(vectors, weights=None if mass is None else np.ascontiguousarray(mass, np.float32))
    return model.index.search(vectors, 1)[1][:, 0].astype(np.int64)
