"""Ids that occur with the same values of other columns share a row (the idea of GraphHash: Wu et al., WWW 2025).

The graph has two sides, the ids of one column and the values of the others; an edge weighs how often the two occur
together. Louvain's method (Blondel et al. 2008) looks for clusters c of high modularity (Barber 2007; resolution g)

    Q = sum over c of  e_c / w  -  g a_c b_c / w^2

with w the weight of all edges, e_c of those inside c, a_c and b_c the weighted degrees of its ids and of its values.
Labels play no part, so such a map cannot leak them.

Louvain decides how many clusters there are, the budget how many rows: too many clusters are folded, too few are cut.
Both part or join what Louvain would not, so the resolution is searched at which there are about m clusters.

Legend: n ids of a table, m rows, k clusters, mass of an id: its count in the history.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from hashing import Request
from hashing.id_map import IdMap, universal

RUNS = 8  # of Louvain at most, while the resolution is searched: minutes each on the largest graphs
NEAR = math.log(1.25)  # so far from m, either way, k is near enough
STRIDE = math.log(64.0)  # the resolution is changed by this factor at most from one run to the next
FLAT = 0.1  # the next run keeps this share of the bracket away from its ends


def fit(request: Request, resolution: float) -> IdMap:
    """Rows by clusters of the co-occurrence graph. Ids never seen are spread over all rows by a universal hash.

    Args:
        request: with counts int64 [n] and neighbours, scipy.sparse [n, c] of co-occurrence counts.
        resolution: g above; greater: more, smaller clusters. 0: searched, see `search`.

    Raises:
        ValueError: scikit-network is not installed, no id has neighbours, a weight is below 0 or not finite, or the
            resolution is below 0 or not finite; naming the table.
    """
    if not 0 <= resolution < math.inf:
        raise ValueError(f"table {request.table}: resolution={resolution} must be above 0, or 0 to have it searched")
    seen = np.flatnonzero(request.counts > 0)
    best: tuple[float, np.ndarray, dict[str, Any]] | None = None  # how far from m, clusters, what is said of them

    def clusters_at(g: float) -> int:
        nonlocal best
        clusters, modularity = _clusters(request, seen, g)
        found = int(clusters.max()) + 1
        far = abs(math.log(found / request.rows))
        if best is None or far < best[0]:
            best = far, clusters, {"clusters": found, "modularity": modularity, "resolution": g}
        return found

    if not resolution and 1 < request.rows < len(seen):
        runs = search(clusters_at, request.rows)
    else:  # with a row for each id seen, or one for all, clusters do not matter
        runs = [(resolution or 1.0, clusters_at(resolution or 1.0))]
    _, clusters, about = best
    to_rows = fold if about["clusters"] > request.rows else cut
    rows = universal(request.rows, (request.seed, 0))(np.arange(request.ids))
    rows[seen] = to_rows(clusters, request.counts[seen].astype(np.float64), request.rows)
    return IdMap(request.ids, (rows,), (request.rows,), "graph", about={**about, "louvain_runs": len(runs)})


def search(clusters_at: Callable[[float], int], wanted: int) -> list[tuple[float, int]]:
    """Look for the resolution at which there are about `wanted` clusters.

    The number of clusters k grows with the resolution g, in places by leaps. From g = 1 on, the next g is where a line
    through log k over log g reaches `wanted`: a line of slope 1, and a bit farther, until values on both sides are
    known; then the one between the two nearest, kept off their ends since k may be flat there.

    Args:
        clusters_at: g -> k. wanted: m, above 1.

    Returns:
        (g, k) of each run. The last is near enough to m, or there are `RUNS` of them.
    """
    target, g = math.log(wanted), 0.0  # g and k are logarithms here
    runs, low, high = [], None, None  # the nearest (g, k) with fewer clusters, and with more
    while len(runs) < RUNS:
        runs.append((math.exp(g), clusters_at(math.exp(g))))
        k = math.log(runs[-1][1])
        if abs(k - target) <= NEAR:
            break
        low, high = ((g, k), high) if k < target else (low, (g, k))
        if low is None or high is None:
            g += max(-STRIDE, min(STRIDE, target - k + math.copysign(math.log(2.0), target - k)))
        else:
            share = (target - low[1]) / (high[1] - low[1])
            g = low[0] + (high[0] - low[0]) * max(FLAT, min(1 - FLAT, share))
    return runs


def _clusters(request: Request, seen: np.ndarray, resolution: float) -> tuple[np.ndarray, float]:
    """Cluster numbers int64 of the ids seen, 0 .. k - 1, and Q. An id without neighbours is a cluster of its own."""
    import scipy.sparse  # comes with scikit-learn; not needed to load a map

    edges = scipy.sparse.csr_matrix(request.neighbours, dtype=np.float64)[seen]
    if edges.nnz and not (np.isfinite(edges.data).all() and edges.data.min() >= 0):
        raise ValueError(f"table {request.table}: its neighbours' counts must be finite and 0 or more")
    edges.eliminate_zeros()
    linked = np.flatnonzero(np.diff(edges.indptr))
    if not len(linked):
        raise ValueError(f"table {request.table}: none of its ids occurs together with a value of another column")
    labels, modularity = _louvain(request, edges[linked], resolution)
    clusters = np.empty(len(seen), np.int64)
    clusters[linked] = labels
    alone = np.setdiff1d(np.arange(len(seen)), linked, assume_unique=True)
    clusters[alone] = labels.max() + 1 + np.arange(len(alone))
    return clusters, modularity


def _louvain(request: Request, edges: Any, resolution: float) -> tuple[np.ndarray, float]:
    """Clusters of the rows of a CSR matrix [l, c] with no empty row: int64 [l], 0 .. k - 1, and Q."""
    try:
        from sknetwork.clustering import Louvain, get_modularity
        from sknetwork.utils.format import bipartite2directed
    except ModuleNotFoundError as error:
        message = f"table {request.table}: --hash-method=graph needs scikit-network: pip install scikit-network"
        raise ValueError(message) from error
    # shuffled, so that the seed decides between clusterings of equal worth, not the order of the ids
    louvain = Louvain(
        resolution,
        shuffle_nodes=True,
        return_probs=False,
        return_aggregate=False,
        random_state=request.seed % (1 << 32),
    ).fit(edges, force_bipartite=True)
    both = np.concatenate([louvain.labels_row_, louvain.labels_col_])
    # a square matrix of two sides would be taken for a graph of one side: give the whole adjacency
    modularity = float(get_modularity(bipartite2directed(edges), both, resolution=resolution))
    labels = np.unique(louvain.labels_row_, return_inverse=True)[1]  # leaves out clusters of values alone
    return labels.astype(np.int64), modularity


def fold(clusters: np.ndarray, mass: np.ndarray, rows: int) -> np.ndarray:
    """Rows for more clusters than rows: heavy clusters keep one each, the light ones are dealt out over the rest.

    Clusters in descending mass: one keeps its row while it weighs at least as much as the mean of the rows still free
    would. Dealt in that order, the shared rows come out about equally heavy, and none is empty.

    Args:
        clusters: int64 [n], 0 .. k - 1. mass: float64 [n]. rows: m < k.

    Returns:
        int64 [n], rows 0 .. m - 1.
    """
    total = np.bincount(clusters, mass)
    order = np.argsort(-total, kind="stable")
    left = np.cumsum(total[order][::-1])[::-1][: rows - 1]  # mass of this cluster and of all lighter ones
    keeps = total[order][: rows - 1] * (rows - np.arange(rows - 1)) >= left
    own = int(keeps.cumprod().sum())
    row_of = np.empty(len(total), np.int64)
    row_of[order[:own]] = np.arange(own)
    row_of[order[own:]] = own + np.arange(len(total) - own) % (rows - own)
    return row_of[clusters]


def cut(clusters: np.ndarray, mass: np.ndarray, rows: int) -> np.ndarray:
    """Rows for at most as many clusters as rows: the heaviest is halved until all rows are used or all ids are alone.

    A cut goes between ids in descending mass, where the two parts come nearest to equal: heavy ids soon stand alone.

    Args:
        clusters: int64 [n], 0 .. k - 1, none empty. mass: float64 [n], above 0. rows: m >= k.

    Returns:
        int64 [n], rows 0 .. min(m, n) - 1.
    """
    order = np.lexsort((-mass, clusters))  # stable: equal ones by id
    before = np.concatenate([[0.0], np.cumsum(mass[order])])  # mass of all that come before a place in the order
    bounds = np.concatenate([[0], np.cumsum(np.bincount(clusters))]).tolist()
    starts = bounds[:-1]
    parts = [(before[a] - before[b], a, b) for a, b in zip(bounds, bounds[1:], strict=False) if b - a > 1]
    heapq.heapify(parts)
    while parts and len(starts) < rows:
        _, first, end = heapq.heappop(parts)
        half = (before[first] + before[end]) / 2
        middle = int(np.searchsorted(before[first : end + 1], half)) + first
        if middle > first and half - before[middle - 1] < before[middle] - half:
            middle -= 1
        middle = min(max(middle, first + 1), end - 1)
        starts.append(middle)
        for a, b in ((first, middle), (middle, end)):
            if b - a > 1:
                heapq.heappush(parts, (before[a] - before[b], a, b))
    row_of_place = np.zeros(len(order), np.int64)
    row_of_place[starts] = 1
    result = np.empty(len(order), np.int64)
    result[order] = np.cumsum(row_of_place) - 1
    return result
