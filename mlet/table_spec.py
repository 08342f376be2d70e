"""What one embedding table is: sizes, and which of the table tricks it uses. No weights here.

Legend: n counted rows of a table, d width at inference, K inner dimension, D width that the model sees.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

QR_OPERATIONS = ("mult", "add", "concat")
MOST = 1 << 50  # any size above it is a slip, and would overflow in torch
PRIME = (1 << 31) - 1  # of universal hashing


@dataclass(frozen=True)
class Lookup:
    """How an id finds one of the rows that make its vector, see `mlet.row_numbers.RowNumbers`.

    Attributes:
        part: name of the stored part that it reads.
        rows: m, row numbers lie below it.
        multiplier, shift, divisor: a, b, q of the formula; a = 0 stands for no hash at all.
        stored: row numbers are read from a map instead.
    """

    part: str
    rows: int
    multiplier: int = 0
    shift: int = 0
    divisor: int = 1
    stored: bool = False
    folds: bool = True  # whether anything can reach m before the last modulo


@dataclass(frozen=True)
class RowMap:
    """Fewer rows than ids, as a hash method has it (see `hashing.id_map.IdMap`); the row numbers come apart.

    Attributes:
        part_rows: rows of each stored part; as many as lookups, or one that all share.
        formulas: for each lookup (a, b, q, m) of its formula, or None for a stored map.
        operation: how the rows of several lookups combine: mult, add, concat.
    """

    part_rows: tuple[int, ...]
    formulas: tuple[tuple[int, int, int, int] | None, ...]
    operation: str = "add"

    @classmethod
    def from_config(cls, config: Mapping) -> RowMap:
        """From what `dataclasses.asdict` and JSON made of one."""
        formulas = tuple(None if each is None else tuple(each) for each in config["formulas"])
        return cls(tuple(config["part_rows"]), formulas, config["operation"])


@dataclass(frozen=True)
class TableSpec:
    """One table.

    Attributes:
        name: shown in messages, checkpoints and the exported model.
        rows: number of ids n; unknown and padding rows come on top, see `EmbeddingTables`.
        dim: D, the width of the vector that the model sees.
        width: d, the width of a stored row at inference. D, but D/2 for quotient-remainder with concat, and less
            than D for a mixed-dimension table, which then has a projection [d, D] that stays in the model.
        inner_dim: K > 0 trains each stored part as W1[n, K] @ W2[K, d]; 0 is a single layer.
        collisions: c > 0 composes a row from a quotient (id // c) and a remainder part (id % c); 0 is off.
        operation: how the two parts combine: mult, add, concat.
        row_map: fewer rows than ids; None: each id has a row of its own.
    """

    name: str
    rows: int
    dim: int
    width: int
    inner_dim: int = 0
    collisions: int = 0
    operation: str = "mult"
    row_map: RowMap | None = None

    def __post_init__(self) -> None:
        if isinstance(self.row_map, Mapping):
            object.__setattr__(self, "row_map", RowMap.from_config(self.row_map))
        if self.rows < 1:
            raise ValueError(f"table {self.name}: {self.rows} rows, at least 1 is needed")
        if max(self.rows, self.dim, self.width, self.inner_dim) > MOST:
            sizes = f"{self.rows} rows, dim={self.dim}, width={self.width}, inner_dim={self.inner_dim}"
            raise ValueError(f"table {self.name}: {sizes}: above the limit of 2^50")
        if min(self.dim, self.width) < 1 or self.inner_dim < 0:
            raise ValueError(f"table {self.name}: dim={self.dim}, width={self.width}, inner_dim={self.inner_dim}")
        if self.operation not in QR_OPERATIONS:
            raise ValueError(f"table {self.name}: operation {self.operation!r}, choose from {', '.join(QR_OPERATIONS)}")

        if self.row_map is not None and (self.collisions or self.rows >= PRIME):
            raise ValueError(
                f"table {self.name}: a row map works without quotient-remainder, and on less than 2^31 ids"
            )

    @property
    def parts(self) -> dict[str, int]:
        """Stored parts and their counted rows."""
        if self.row_map is not None:
            sizes = self.row_map.part_rows
            return {"rows": sizes[0]} if len(sizes) == 1 else {f"part{p}": rows for p, rows in enumerate(sizes)}
        if not self.collisions:
            return {"rows": self.rows}
        return {"quotient": math.ceil(self.rows / self.collisions), "remainder": self.collisions}

    @property
    def lookups(self) -> tuple[Lookup, ...]:
        """How an id finds its rows; more than one are combined."""
        parts = self.parts
        if self.row_map is not None:
            names = list(parts) if len(parts) > 1 else ["rows"] * len(self.row_map.formulas)
            return tuple(
                Lookup(name, parts[name], stored=True) if formula is None else _computed(name, *formula)
                for name, formula in zip(names, self.row_map.formulas, strict=True)
            )
        if not self.collisions:
            return (Lookup("rows", self.rows, folds=False),)
        quotient = Lookup("quotient", parts["quotient"], divisor=self.collisions, folds=False)
        return quotient, Lookup("remainder", self.collisions)

    @property
    def is_plain(self) -> bool:
        """Whether each id has one row of its own."""
        return self.row_map is None and not self.collisions

    @property
    def combination(self) -> str:
        """How the rows of several lookups combine; "" with one."""
        if len(self.lookups) == 1:
            return ""
        return self.operation if self.row_map is None else self.row_map.operation

    @property
    def stored_rows(self) -> int:
        """Counted rows of all parts; n where each id has its own."""
        return self.rows if self.is_plain else sum(self.parts.values())


def _computed(part: str, multiplier: int, shift: int, divisor: int, rows: int) -> Lookup:
    """A formula's lookup; the identity needs no hash."""
    return Lookup(part, rows, 0 if (multiplier, shift) == (1, 0) else multiplier, shift, divisor)


def plan_tables(
    rows: Mapping[str, int],
    dim: int,
    *,
    inner_dim: int = 0,
    mlet_min_rows: int = 0,
    qr_collisions: int = 0,
    qr_operation: str = "mult",
    qr_threshold: int = 200,
    md_temperature: float | None = None,
    md_threshold: int = 200,
    md_round_dims: bool = False,
    row_maps: Mapping[str, RowMap] | None = None,
) -> list[TableSpec]:
    """Decide for each table of a model which tricks it uses.

    Args:
        rows: table name -> n.
        dim: d as in --arch-sparse-feature-size.
        inner_dim: K for every table of at least `mlet_min_rows` rows; 0 = single layer everywhere.
        qr_collisions: > 0 switches quotient-remainder on (arXiv 1909.02107) for tables of more than `qr_threshold`
            rows. With concat a part is d wide and the model sees 2 d; smaller tables are then plain and 2 d wide.
        md_temperature: alpha of mixed dimensions (arXiv 1909.11810) for tables of more than `md_threshold` rows.
        row_maps: name -> row map, for the tables that have one.

    Raises:
        ValueError: both tricks at once, or sizes that make no sense, naming the table.
    """
    if qr_collisions and md_temperature is not None:
        raise ValueError("quotient-remainder and mixed dimensions cannot share a table: choose --qr-flag or --md-flag")
    row_maps = row_maps or {}
    if qr_collisions and row_maps:
        raise ValueError("quotient-remainder is itself a row map: choose --qr-flag or --hash-method")
    if qr_collisions < 0 or inner_dim < 0:
        raise ValueError(f"qr_collisions={qr_collisions}, inner_dim={inner_dim}: negative")
    model_dim = 2 * dim if qr_collisions and qr_operation == "concat" else dim
    widths = dict.fromkeys(rows, model_dim)
    if md_temperature is not None:
        mixed = mixed_dimensions(list(rows.values()), md_temperature, dim, md_round_dims)
        widths |= {name: d for (name, n), d in zip(rows.items(), mixed, strict=True) if n > md_threshold}
    specs = []
    for name, n in rows.items():
        composed, row_map = qr_collisions > 0 and n > qr_threshold, row_maps.get(name)
        width = dim if composed else widths[name]
        if row_map is not None and row_map.operation == "concat" and (lookups := len(row_map.formulas)) > 1:
            if width % lookups:
                raise ValueError(f"table {name}: {lookups} rows side by side cannot make a vector of width {width}")
            width //= lookups
        specs.append(
            TableSpec(
                name=name,
                rows=n,
                dim=model_dim,
                width=width,
                inner_dim=inner_dim if n >= mlet_min_rows else 0,
                collisions=qr_collisions if composed else 0,
                operation=qr_operation,
                row_map=row_map,
            )
        )
    return specs


def mixed_dimensions(rows: Sequence[int], temperature: float, base_dim: int, round_to_power: bool) -> list[int]:
    """Widths by the power rule d_i = d_0 (n_min / n_i)^alpha, at least 1, at most d_0 (arXiv 1909.11810, alg. 1).

    Args:
        rows: n_i. temperature: alpha >= 0; 0 gives every table d_0. base_dim: d_0.
        round_to_power: round each width to the nearest power of two (in the exponent).
    """
    if temperature < 0:
        raise ValueError(f"--md-temperature={temperature} is negative")
    smallest = min(rows)
    widths = [max(1, round(base_dim * (smallest / n) ** temperature)) for n in rows]
    if round_to_power:
        widths = [2 ** round(math.log2(width)) for width in widths]
    return [min(width, base_dim) for width in widths]
