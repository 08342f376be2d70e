"""Hash methods by name: each makes the id -> row map of a table (`IdMap`), and the register of them.

To add a method: one file with a function `fit(request, **options) -> IdMap`, and one `register_method` line at the
bottom of this file, with what it needs to know of the history and its own options with their defaults. `--hash-method`
and `--hash-option` list it from then on.

    request = Request("user", ids=len(counts), rows=10_000, counts=counts, vectors=embedding)
    rows = fit_map("learned", request).rows_of(ids)
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hashing.id_map import PRIME, Formula, IdMap, load_maps, save_maps, universal

__all__ = [
    "Formula",
    "IdMap",
    "Request",
    "fit_map",
    "least_rows",
    "load_maps",
    "method_lookups",
    "method_names",
    "method_needs",
    "method_options",
    "parse_options",
    "register_method",
    "save_maps",
    "universal",
]

NEEDS = ("counts", "vectors", "neighbours")
SHARES = ("private", "hot")  # options that are shares of the rows


@dataclass(frozen=True, eq=False)
class Request:
    """One table that wants a map, and what is known of its ids from history.

    Attributes:
        table: its name, for messages.
        ids: n. rows: m, the budget of all parts together.
        counts: int64 [n], how often each id occurs in the history; 0: never seen.
        vectors: float32 [n, d], an embedding learned on the history. Of ids never seen it means nothing.
        neighbours: scipy.sparse CSR [n, c], how often an id occurs together with each of c values of other columns.
        seed: of everything that is drawn.
    """

    table: str
    ids: int
    rows: int
    counts: np.ndarray | None = None
    vectors: np.ndarray | None = None
    neighbours: Any = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("counts", "vectors"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, np.asarray(getattr(self, name)))


@dataclass(frozen=True)
class _Entry:
    module: str
    function: str
    needs: tuple[str, ...]
    lookups: int
    parts: int
    options: Mapping[str, Any]


_METHODS: dict[str, _Entry] = {}


def register_method(
    name: str,
    module: str,
    function: str = "fit",
    needs: Sequence[str] = (),
    lookups: int = 1,
    parts: int = 1,
    **options: Any,
) -> None:
    """Register a method under the name that `--hash-method` takes.

    Args:
        name: as users give it.
        module, function: where it is; imported when it is used.
        needs: what of `Request` it reads: counts, vectors, neighbours.
        lookups, parts: rows that an id reads, and stored parts that its maps have, each of one row at least.
        options: its own keyword arguments with their defaults, numbers.

    Raises:
        ValueError: the name is taken, or a need is unknown.
    """
    if name in _METHODS:
        raise ValueError(f"hash method {name!r} is already registered by {_METHODS[name].module}")
    if unknown := set(needs) - set(NEEDS):
        raise ValueError(f"hash method {name!r} needs {unknown}: choose from {', '.join(NEEDS)}")
    _METHODS[name] = _Entry(module, function, tuple(needs), lookups, parts, options)


def method_names() -> tuple[str, ...]:
    """Names that `--hash-method` takes."""
    return tuple(sorted(_METHODS))


def method_needs(name: str) -> tuple[str, ...]:
    """What a method has to know of the history."""
    return _entry(name).needs


def method_lookups(name: str) -> int:
    """How many rows an id reads."""
    return _entry(name).lookups


def least_rows(name: str) -> int:
    """The smallest budget that a method can do with."""
    return _entry(name).parts


def method_options(name: str) -> Mapping[str, Any]:
    """A method's own options and their defaults."""
    return _entry(name).options


def parse_options(name: str, settings: Sequence[str]) -> dict[str, Any]:
    """`["private=0.3"]` -> {"private": 0.3}. Raises ValueError: no such option, or not a number of its kind."""
    known, parsed = method_options(name), {}
    for setting in settings:
        option, _, text = setting.partition("=")
        if option not in known:
            has = ", ".join(known) or "none"
            raise ValueError(f"--hash-option={setting}: {name} has no option {option!r} (it has: {has})")
        try:
            parsed[option] = type(known[option])(text)
            if not 0 <= parsed[option] < (1 if option in SHARES else math.inf):
                raise ValueError
        except ValueError:
            limits = " from 0 to below 1" if option in SHARES else ""
            raise ValueError(f"--hash-option={setting}: {text!r} is no number like {known[option]}{limits}") from None
    return parsed


def fit_map(name: str, request: Request, **options: Any) -> IdMap:
    """Make the map of one table.

    Raises:
        ValueError: an unknown method, an impossible number of rows, or a history that does not fit, naming the table.
    """
    entry = _entry(name)
    _check(name, entry, request)
    function = getattr(importlib.import_module(entry.module), entry.function)
    if unknown := options.keys() - entry.options.keys():
        raise ValueError(f"table {request.table}: {name} has no option {', '.join(sorted(unknown))}")
    settings = {**entry.options, **options}
    id_map = function(request, **settings)
    if id_map.rows > request.rows:
        raise AssertionError(f"{name} made {id_map.rows} rows of {request.rows}")
    about = {"options": settings, "seed": request.seed, **id_map.about}
    return IdMap(id_map.ids, id_map.lookups, id_map.part_rows, name, id_map.combine, about)


def _check(name: str, entry: _Entry, request: Request) -> None:
    table, n, m = request.table, request.ids, request.rows
    if not 1 <= n < PRIME:
        raise ValueError(f"table {table}: {n} ids; a map needs at least 1 and less than {PRIME}")
    if m < 1:
        raise ValueError(f"table {table}: {m} rows asked for {n} ids, at least 1 is needed")
    if m > n:
        raise ValueError(f"table {table}: {m} rows asked for {n} ids: more rows than ids")
    for need in entry.needs:
        given = getattr(request, need)
        if given is None:
            raise ValueError(f"table {table}: --hash-method={name} needs the history's {need}")
        if given.ndim == 0 or given.shape[0] != n:
            raise ValueError(f"table {table}: {need} of shape {tuple(given.shape)} for {n} ids")
    if "counts" in entry.needs:
        if request.counts.dtype.kind not in "iu" or request.counts.min() < 0:
            raise ValueError(f"table {table}: counts must be whole numbers from 0 on")
        if not request.counts.any():
            raise ValueError(f"table {table}: none of its {n} ids occurs in the history that the map is learned from")
    if "vectors" in entry.needs:
        if request.vectors.ndim != 2 or not request.vectors.shape[1] or request.vectors.dtype.kind != "f":
            raise ValueError(
                f"table {table}: an embedding of shape {request.vectors.shape}; floats [ids, width] are needed"
            )
        bad = ~np.isfinite(request.vectors).all(axis=1)
        if bad.any():
            raise ValueError(f"table {table}: the embedding of id {int(bad.argmax())} is not finite")


def _entry(name: str) -> _Entry:
    if name not in _METHODS:
        raise ValueError(f"hash method {name!r} is not known; choose from {', '.join(method_names())}")
    return _METHODS[name]


register_method("modulo", "hashing.trick", "modulo")
register_method("universal", "hashing.trick", "universal_hash")
register_method("double", "hashing.double", "double", lookups=2)
register_method("frequency", "hashing.frequency", needs=["counts"], private=0.5)
register_method("frequency-double", "hashing.double", "frequency_double", needs=["counts"], lookups=2, private=0.5)
register_method("quotient-remainder", "hashing.quotient_remainder", lookups=2, parts=2)
register_method("learned", "hashing.learned", "private_head", needs=["counts", "vectors"], private=0.5, min_count=1)
register_method("learned-weighted", "hashing.learned", "weighted", needs=["counts", "vectors"], min_count=1)
register_method(
    "learned-coordinate", "hashing.learned", "coordinate", needs=["counts", "vectors"], min_count=1, strength=1.0
)
register_method("learned-embedding", "hashing.learned", "embedding_alone", needs=["counts", "vectors"], min_count=1)
register_method("learned-frequency", "hashing.learned", "frequency_alone", needs=["counts"], min_count=1)
register_method("sketch", "hashing.sketch", needs=["counts"], hot=0.5)
register_method("cce", "hashing.cce", needs=["counts"], lookups=2, parts=2)
register_method("graph", "hashing.graph", needs=["counts", "neighbours"], resolution=0.0)
