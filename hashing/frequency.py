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
    hot = private_ids(request, private)
    rows = len(hot) + universal(request.rows - len(hot), (request.seed, 0))(np.arange(request.ids))
    rows[hot] = np.arange(len(hot))
    return IdMap(request.ids, (rows,), (request.rows,), "frequency")


def private_ids(request: Request, private: float) -> np.ndarray:
    """Ids with a row of their own, the most frequent first; none that was never seen, and a row is left to share.

    Raises:
        ValueError: a share outside [0, 1).
    """
    if not 0 <= private < 1:
        raise ValueError(f"table {request.table}: private={private} of the rows lies outside 0 to 1")
    order = np.argsort(-request.counts, kind="stable")[: min(int(private * request.rows), request.rows - 1)]
    return order[request.counts[order] > 0]
