"""Quotient and remainder: no two ids share both rows (Shi et al., KDD 2020, arXiv 1909.02107).

v(i) = Q[i div c] * R[i mod c]. The smallest c whose ceil(n / c) + c rows are within the budget; a budget below
2 sqrt(n) rows has none, and the quotient is then taken modulo what is left beside c = m / 2 remainders.
"""

from __future__ import annotations

import math

from hashing import Request
from hashing.id_map import Formula, IdMap


def fit(request: Request) -> IdMap:
    """Both parts by formula; they need no bytes."""
    n, m = request.ids, request.rows
    if m == 1:
        raise ValueError(f"table {request.table}: quotient-remainder has two parts, and needs 2 rows; 1 is asked for")
    remainders = m // 2
    if (root := m * m - 4 * n) >= 0:  # of c^2 - m c + n = 0
        smallest = max(1, math.ceil((m - math.sqrt(root)) / 2))
        candidates = (c for c in range(max(1, smallest - 1), smallest + 2) if math.ceil(n / c) + c <= m)
        remainders = next(candidates, remainders)
    quotients = min(math.ceil(n / remainders), m - remainders)
    lookups = Formula(quotients, divisor=remainders), Formula(remainders)
    return IdMap(n, lookups, (quotients, remainders), "quotient-remainder", "mult")
