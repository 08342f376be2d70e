"""What every hash method returns: a map from the ids of one table to one row, or to several and how they combine.

A map is stored (one row number an id) or computed (a formula of the id, which takes no bytes). Maps are plain NumPy and
can be used with anybody's model:

    rows = id_map.rows_of(ids)            # one array a lookup
    vector = table[rows[0]]               # or table[rows[0]] + table[rows[1]] with combine="add", ...

Legend: n ids of a table, m rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_safetensors

PRIME = (1 << 31) - 1  # of universal hashing; products of two numbers below it fit into 63 bits
COMBINATIONS = ("add", "mult", "concat")
FORMAT = "dlrm_mlet id maps 1"
METADATA_KEY = "hashing"


@dataclass(frozen=True)
class Formula:
    """A computed lookup: row(i) = floor(((a i + b) mod p) / q) mod m, with p = 2^31 - 1.

    a = 1, b = 0, q = 1 is the id modulo m; random a and b make it a universal hash (Carter and Wegman 1979); q > 1
    with m = ceil(n / q) is the quotient of quotient-remainder tables.
    """

    rows: int  # m
    multiplier: int = 1  # a
    shift: int = 0  # b
    divisor: int = 1  # q

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        """Rows int64 of ids below 2^31 - 1."""
        return (self.multiplier * ids.astype(np.int64) + self.shift) % PRIME // self.divisor % self.rows


def universal(rows: int, seed: Sequence[int]) -> Formula:
    """A universal hash into `rows` rows, drawn by a seed of its own."""
    generator = np.random.default_rng(list(seed))
    return Formula(rows, int(generator.integers(1, PRIME)), int(generator.integers(0, PRIME)))


@dataclass(frozen=True, eq=False)
class IdMap:
    """The map of one table.

    Attributes:
        ids: n. Ids are 0 .. n - 1; what a table keeps beside them (unknown, padding) is not the map's business.
        lookups: for each row that an id reads, a `Formula` or an integer array [n] of row numbers.
        part_rows: rows of each stored part. As many as lookups, or one that all lookups share.
        method: name of the method that made it.
        combine: how the rows of several lookups become one vector: add, mult, concat.
        about: settings and origin, JSON-ready.

    Raises:
        ValueError: sizes or row numbers that do not fit together.
    """

    ids: int
    lookups: tuple[Formula | np.ndarray, ...]
    part_rows: tuple[int, ...]
    method: str
    combine: str = "add"
    about: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.ids < 1 or self.ids >= PRIME or not self.lookups or min(self.part_rows, default=0) < 1:
            raise ValueError(f"a map of {self.ids} ids into {self.part_rows} rows")
        if len(self.part_rows) not in (1, len(self.lookups)):
            raise ValueError(f"{len(self.lookups)} lookups into {len(self.part_rows)} parts: give one part, or as many")
        if self.combine not in COMBINATIONS:
            raise ValueError(f"combine={self.combine!r}: choose from {', '.join(COMBINATIONS)}")
        stored = []
        for lookup, rows in zip(self.lookups, self.rows_by_lookup, strict=True):
            if isinstance(lookup, Formula):
                if lookup.rows > rows:
                    raise ValueError(f"a formula for {lookup.rows} rows in a part of {rows}")
            elif (
                lookup.shape != (self.ids,)
                or lookup.dtype.kind not in "iu"
                or not 0 <= lookup.min() <= lookup.max() < rows
            ):
                raise ValueError(f"row numbers of {self.ids} ids must be whole numbers in 0 .. {rows - 1}, one an id")
            else:
                lookup = np.ascontiguousarray(lookup, np.int32 if rows <= np.iinfo(np.int32).max else np.int64)
            stored.append(lookup)
        object.__setattr__(self, "lookups", tuple(stored))

    @property
    def rows(self) -> int:
        """Rows of all parts."""
        return sum(self.part_rows)

    @property
    def rows_by_lookup(self) -> tuple[int, ...]:
        """Rows of the part that each lookup reads."""
        return self.part_rows if len(self.part_rows) == len(self.lookups) else self.part_rows * len(self.lookups)

    @property
    def nbytes(self) -> int:
        """Bytes of the stored row numbers; formulas take none."""
        return sum(lookup.nbytes for lookup in self.lookups if isinstance(lookup, np.ndarray))

    def rows_of(self, ids: np.ndarray) -> list[np.ndarray]:
        """Row numbers of ids, one array a lookup."""
        return [each(ids) if isinstance(each, Formula) else each[ids] for each in self.lookups]

    def checksum(self) -> str:
        """SHA-256 of everything that decides which row an id reads."""
        digest = hashlib.sha256(json.dumps([self.ids, self.part_rows, self.combine]).encode())
        for lookup in self.lookups:
            digest.update(repr(lookup).encode() if isinstance(lookup, Formula) else lookup.tobytes())
        return digest.hexdigest()


def save_maps(file: IO[bytes], maps: Mapping[str, IdMap], about: Mapping[str, Any]) -> None:
    """Write the maps of a model's tables as safetensors, everything but the row numbers as JSON in its metadata.

    Args:
        file: open for writing; the caller gives it its final name.
        maps: table name -> map.
        about: what they were learned from, JSON-ready. The driver wants: store (key of the prepared data), history
            (share FROM, TO of its training rows, or None), labels (whether theirs are in the maps), asked (its flags);
            learned, if there (flags that say from what and how; files by SHA-256), is held against the flags too.
    """
    arrays, tables = {}, {}
    for name, id_map in maps.items():
        lookups: list[dict | None] = []
        for number, lookup in enumerate(id_map.lookups):
            if isinstance(lookup, np.ndarray):
                arrays[f"{name}.{number}"] = lookup
                lookups.append(None)
            else:
                lookups.append(vars(lookup))
        tables[name] = {
            "ids": id_map.ids,
            "part_rows": id_map.part_rows,
            "method": id_map.method,
            "combine": id_map.combine,
            "about": id_map.about,
            "lookups": lookups,
            "sha256": id_map.checksum(),
        }
    description = {"format": FORMAT, "tables": tables, "about": dict(about)}
    file.write(to_safetensors(arrays, metadata={METADATA_KEY: json.dumps(description)}))


def load_maps(path: str | Path) -> tuple[dict[str, IdMap], dict[str, Any]]:
    """What `save_maps` wrote: (table name -> map, about). Raises ValueError if the file is not one, or is damaged."""
    try:
        with safe_open(str(path), framework="numpy") as file:
            description = json.loads((file.metadata() or {}).get(METADATA_KEY, "{}"))
            if description.get("format") != FORMAT:
                raise ValueError(f"{path} is not a file of id maps")
            maps = {}
            for name, table in description["tables"].items():
                lookups = tuple(
                    file.get_tensor(f"{name}.{number}") if formula is None else Formula(**formula)
                    for number, formula in enumerate(table["lookups"])
                )
                sizes = tuple(table["part_rows"])
                try:
                    id_map = IdMap(table["ids"], lookups, sizes, table["method"], table["combine"], table["about"])
                except ValueError:
                    id_map = None
                if id_map is None or id_map.checksum() != table["sha256"]:
                    raise ValueError(f"{path} is damaged: the checksum of table {name} differs")
                maps[name] = id_map
            return maps, description["about"]
    except (SafetensorError, KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} cannot be read as id maps: {error}") from None
