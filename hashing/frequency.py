"""Frequent ids keep rows of their own, the others share what is left by chance.

With f of the m rows private: the f m most frequent ids have one each, id i of the others reads row
f m + h(i), h a universal hash into (1 - f) m rows. f = 0.5 as in GraphHash's baseline (Wu et al., WWW 2025).
"""

from __future__ import annotations

import numpy as np

from hashing import Request
from hashing.id_map import IdMap, universal


def fit(request: Request, private: float) -> IdMap:
    """Private rows for the most frequent ids of the history."""
    return IdMap(request.ids, (rows_behind(request, private_ids(request, private)),), (request.rows,), "frequency")


def rows_behind(request: Request, hot: np.ndarray, number: int = 0) -> np.ndarray:
    """Rows int64 [n]: the hot ids have 0, 1, 2 ... in their order, a universal hash spreads the others over the rest.

    Args:
        hot: distinct ids, fewer than the rows. number: of the hash; another number is another hash.
    """
    rows = len(hot) + universal(request.rows - len(hot), (request.seed, number))(np.arange(request.ids))
    rows[hot] = np.arange(len(hot))
    return rows


def private_ids(request: Request, private: float) -> np.ndarray:
    """Ids with a row of their own, the most frequent first; none that was never seen, and a row is left to share.

    Raises:
        ValueError: a share outside [0, 1).
    """
    order = np.argsort(-request.counts, kind="stable")[: most_private(request, "private", private)]
    return order[request.counts[order] > 0]


def most_private(request: Request, option: str, share: float) -> int:
    """How many rows may be private, so that one at least is left to share. ValueError: a share outside [0, 1)."""
    if not 0 <= share < 1:
        raise ValueError(f"table {request.table}: {option}={share} of the rows lies outside 0 to 1")
    return min(int(share * request.rows), request.rows - 1)
