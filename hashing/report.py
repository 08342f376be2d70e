"""What a map costs and what it saves: accesses that collide, the largest bucket, bytes; how alike are ids that collide.

Two ids collide where they read the same row in every lookup: the model cannot tell them apart. Shares are of accesses
(occurrences in the rows that were counted), not of ids: most ids are rare.

Legend: n ids, m rows, d width.
"""

from __future__ import annotations

import numpy as np

from hashing.id_map import IdMap


def buckets_of(id_map: IdMap) -> np.ndarray:
    """Bucket numbers int64 [n]; ids of one bucket read the same rows."""
    rows = id_map.rows_of(np.arange(id_map.ids))
    key = rows[0].astype(np.int64)
    for more, size in zip(rows[1:], id_map.rows_by_lookup[1:], strict=True):
        key = np.unique(key * size + more, return_inverse=True)[1]
    return np.unique(key, return_inverse=True)[1]


def collision_report(id_map: IdMap, counts: np.ndarray, width: int, special_rows: int = 1) -> dict[str, float]:
    """Numbers of one table.

    Args:
        id_map: n ids into m rows.
        counts: accesses of each id [n].
        width: d at inference; bytes are those of float32 rows.
        special_rows: rows beside the counted ones, before and after.

    Returns:
        ids, rows, used_buckets; colliding_share: of accesses, those to an id that some other id seen collides with;
        largest_share: of accesses, those to the bucket with most; bytes_before, bytes_after, and map_bytes, which
        bytes_after contains.
    """
    buckets = buckets_of(id_map)
    size = int(buckets.max()) + 1
    mass = np.bincount(buckets, counts, size)
    seen = np.bincount(buckets, counts > 0, size)
    total = max(1, int(counts.sum()))
    return {
        "ids": id_map.ids,
        "rows": id_map.rows,
        "used_buckets": int((seen > 0).sum()),
        "colliding_share": float(mass[seen > 1].sum() / total),
        "largest_share": float(mass.max() / total),
        "bytes_before": 4 * width * (id_map.ids + special_rows),
        "bytes_after": 4 * width * (id_map.rows + special_rows * len(id_map.part_rows)) + id_map.nbytes,
        "map_bytes": id_map.nbytes,
    }


def similarity(id_map: IdMap, vectors: np.ndarray, counts: np.ndarray) -> float:
    """Mean cosine between an id's vector and that of the others of its bucket together, over accesses that collide.

    The others are weighted by their accesses, as the shared row sees them. 1 means that only ids with parallel vectors
    share rows; NaN where nothing collides.

    Args:
        vectors: reference vectors [n, d] of the ids: planted ones, or those of an uncompressed model.
        counts: accesses of each id [n]; ids never accessed are left out.
    """
    chosen = np.flatnonzero(counts > 0)
    buckets = buckets_of(id_map)[chosen]
    weight = counts[chosen].astype(np.float64)
    size = int(buckets.max()) + 1
    total = np.stack([np.bincount(buckets, weight * column, size) for column in vectors[chosen].T], axis=1)
    collides = np.bincount(buckets, minlength=size)[buckets] > 1
    if not collides.any():
        return float("nan")
    own = vectors[chosen][collides]
    others = total[buckets[collides]] - own * weight[collides, None]
    norms = np.linalg.norm(own, axis=1) * np.linalg.norm(others, axis=1)
    cosine = np.einsum("nd,nd->n", own, others) / np.maximum(norms, 1e-30)
    return float(np.average(cosine, weights=weight[collides]))
