"""The hashing trick: ids share rows by chance (Weinberger et al. 2009, arXiv 0902.2206).

row(i) = i mod m                         `modulo`: what DLRM's --max-ind-range does
row(i) = ((a i + b) mod p) mod m         `universal`: Carter and Wegman 1979, any two ids collide with chance 1/m
"""

from __future__ import annotations

from hashing import Request
from hashing.id_map import Formula, IdMap, universal


def modulo(request: Request) -> IdMap:
    """The id modulo the number of rows. Ids in order of first appearance: frequent ones mostly keep apart."""
    return IdMap(request.ids, (Formula(request.rows),), (request.rows,), "modulo")


def universal_hash(request: Request) -> IdMap:
    """A random hash of the id."""
    return IdMap(request.ids, (universal(request.rows, (request.seed, 0)),), (request.rows,), "universal")
