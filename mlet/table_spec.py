"""What one embedding table is: sizes, and which of the table tricks it uses. No weights here.

Legend: n counted rows of a table, d width at inference, K inner dimension, D width that the model sees.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

QR_OPERATIONS = ("mult", "add", "concat")
MOST = 1 << 50  # any size above it is a slip, and would overflow in torch


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
    """

    name: str
    rows: int
    dim: int
    width: int
    inner_dim: int = 0
    collisions: int = 0
    operation: str = "mult"

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ValueError(f"table {self.name}: {self.rows} rows, at least 1 is needed")
        if max(self.rows, self.dim, self.width, self.inner_dim) > MOST:
            sizes = f"{self.rows} rows, dim={self.dim}, width={self.width}, inner_dim={self.inner_dim}"
            raise ValueError(f"table {self.name}: {sizes}: above the limit of 2^50")
        if min(self.dim, self.width) < 1 or self.inner_dim < 0:
            raise ValueError(f"table {self.name}: dim={self.dim}, width={self.width}, inner_dim={self.inner_dim}")
        if self.operation not in QR_OPERATIONS:
            raise ValueError(f"table {self.name}: operation {self.operation!r}, choose from {', '.join(QR_OPERATIONS)}")

    @property
    def parts(self) -> dict[str, int]:
        """Stored parts and their counted rows."""
        if not self.collisions:
            return {"rows": self.rows}
        return {"quotient": math.ceil(self.rows / self.collisions), "remainder": self.collisions}


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
) -> list[TableSpec]:
    """Decide for each table of a model which tricks it uses.

    Args:
        rows: table name -> n.
        dim: d as in --arch-sparse-feature-size.
        inner_dim: K for every table of at least `mlet_min_rows` rows; 0 = single layer everywhere.
        qr_collisions: > 0 switches quotient-remainder on (arXiv 1909.02107) for tables of more than `qr_threshold`
            rows. With concat a part is d wide and the model sees 2 d; smaller tables are then plain and 2 d wide.
        md_temperature: alpha of mixed dimensions (arXiv 1909.11810) for tables of more than `md_threshold` rows.

    Raises:
        ValueError: both tricks at once, or sizes that make no sense, naming the table.
    """
    if qr_collisions and md_temperature is not None:
        raise ValueError("quotient-remainder and mixed dimensions cannot share a table: choose --qr-flag or --md-flag")
    if qr_collisions < 0 or inner_dim < 0:
        raise ValueError(f"qr_collisions={qr_collisions}, inner_dim={inner_dim}: negative")
    model_dim = 2 * dim if qr_collisions and qr_operation == "concat" else dim
    widths = dict.fromkeys(rows, model_dim)
    if md_temperature is not None:
        mixed = mixed_dimensions(list(rows.values()), md_temperature, dim, md_round_dims)
        widths |= {name: d for (name, n), d in zip(rows.items(), mixed, strict=True) if n > md_threshold}
    specs = []
    for name, n in rows.items():
        composed = qr_collisions > 0 and n > qr_threshold
        specs.append(
            TableSpec(
                name=name,
                rows=n,
                dim=model_dim,
                width=dim if composed else widths[name],
                inner_dim=inner_dim if n >= mlet_min_rows else 0,
                collisions=qr_collisions if composed else 0,
                operation=qr_operation,
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
