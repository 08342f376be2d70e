"""Two hashes an id, whose rows are added (Zhang et al., RecSys 2020, arXiv 2007.14523).

v(i) = T[h1(i)] + T[h2(i)], both universal hashes into the same m rows: two ids share their whole vector with a chance
of about 2 / m^2 only. `frequency_double` gives the most frequent ids rows of their own, as the paper does.
"""

from __future__ import annotations

from hashing import Request
from hashing.frequency import private_ids, rows_behind
from hashing.id_map import IdMap, universal


def double(request: Request) -> IdMap:
    """Two universal hashes into the same rows."""
    hashes = tuple(universal(request.rows, (request.seed, number)) for number in range(2))
    return IdMap(request.ids, hashes, (request.rows,), "double")


def frequency_double(request: Request, private: float) -> IdMap:
    """The same for all but the most frequent ids, which read their own row twice.

    Twice the same row is twice its value: a scale that training takes up.
    """
    hot = private_ids(request, private)
    lookups = tuple(rows_behind(request, hot, number) for number in range(2))
    return IdMap(request.ids, lookups, (request.rows,), "frequency-double")
