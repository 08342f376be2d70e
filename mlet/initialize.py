"""Initial weights, drawn in the DLRM reference's order from NumPy's legacy generator.

Options that need other draws than a plain single-layer table (MLET, quotient-remainder, mixed dimensions) take them
from generators of their own, and the main generator is advanced as the plain table would have advanced it. All other
weights and the data order are therefore the same with and without such an option, and paired comparisons are fair.

Legend: n counted rows, K inner dimension, d stored width, D width that the model sees.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import nn

from mlet.embedding import fill_normal, fill_uniform, initial_projection
from mlet.table_spec import TableSpec
from mlet.tables import EmbeddingTables, Part

DRAW_CHUNK = 1 << 22  # numbers drawn at a time: bounds the float64 temporaries
_SIDE_STREAM = 0x4D4C4554  # separates the side generators from any user seed


@torch.no_grad()
def initialize_tables(
    tables: EmbeddingTables, rng: np.random.RandomState, seed: int, mlet_init: str, emb_init: str = "uniform"
) -> None:
    """Fill all tables. Plain ones: U(-1/sqrt(n), 1/sqrt(n)), as in DLRM; special rows start at zero.

    Args:
        rng: the main generator; advanced by n * D draws a table, whatever the table's options.
        seed: the run's seed, for the side generators (one a table).
        mlet_init: initial W2, see `mlet.embedding.initial_projection`.
        emb_init: what stored rows start as: "uniform", "uniform-<scale>" (that many times as wide) or "normal-<std>",
            see `row_bound`.

    MLET: W1 ~ U(-1/sqrt(n), 1/sqrt(n)), [n, K]. Quotient-remainder: uniform parts such that the composed vector has
    the standard deviation 1/sqrt(3 n) of a plain row. Mixed dimensions: uniform rows, Xavier-uniform projection.
    Tables with a row map start like tables of as many rows as they store, composed ones like quotient-remainder.
    """
    parts: dict[int, list[Part]] = {}
    for part in tables.parts():
        parts.setdefault(part.table, []).append(part)
    for t, spec in enumerate(tables.specs):
        bound, gaussian = row_bound(emb_init, spec.rows if spec.row_map is None else spec.stored_rows)
        side = np.random.default_rng([seed, _SIDE_STREAM, t])
        plain = not spec.inner_dim and spec.is_plain and spec.width == spec.dim
        first = parts[t][0]
        target = first.group.part(first.index, spec.rows) if plain else None
        _draw(rng, bound, spec.rows, spec.dim, target, gaussian)
        for part in parts[t]:
            group = part.group
            all_rows = group.part(part.index, part.counted_rows + tables.special_rows)
            all_rows[part.counted_rows :] = 0
            if not plain:
                _fill_part(all_rows[: part.counted_rows], spec, bound, gaussian, side)
            if group.inner_projection is not None:
                w2 = initial_projection(spec.inner_dim, spec.width, mlet_init, side)
                group.inner_projection[part.index] = torch.from_numpy(w2)
            if group.projection is not None:
                fill_uniform(group.projection[part.index], math.sqrt(6 / (spec.width + spec.dim)), side)


def row_bound(emb_init: str, rows: int) -> tuple[float, bool]:
    """What an --emb-init name stands for in a table of n rows: a uniform bound or, where the second is True, a std.

    "uniform": U(-1/sqrt(n), 1/sqrt(n)), DLRM's; "uniform-<scale>": its bound times a number, as a single layer needs to
    start like MLET's product (scale sqrt(K) times W2's std); "normal-<std>": N(0, std^2) whatever n is.

    Raises:
        ValueError: another name, or a number that is not positive.
    """
    name, _, text = emb_init.partition("-")
    try:
        value = float(text) if text or name == "normal" else 1.0
    except ValueError:
        value = math.nan
    if name not in ("uniform", "normal") or not 0 < value < math.inf:
        raise ValueError(
            f"--emb-init={emb_init!r}: choose uniform, uniform-<scale> or normal-<std>, the number positive"
        )
    return (value, True) if name == "normal" else (value * math.sqrt(1 / rows), False)


def _fill_part(rows: torch.Tensor, spec: TableSpec, bound: float, gaussian: bool, side: np.random.Generator) -> None:
    """Fill one stored part from its side generator. Composed parts start such that the composed vector has a plain
    row's standard deviation: that of a product, of a sum, or of one part.
    """
    if spec.combination:
        std, count = bound if gaussian else bound / math.sqrt(3), len(spec.lookups)
        std = {"mult": std ** (1 / count), "add": std / math.sqrt(count), "concat": std}[spec.combination]
        fill_uniform(rows, std * math.sqrt(3), side)
    elif gaussian:
        fill_normal(rows, bound, side)
    else:
        fill_uniform(rows, bound, side)


def _draw(
    rng: np.random.RandomState, bound: float, rows: int, dim: int, target: torch.Tensor | None, gaussian: bool
) -> None:
    """Draw [rows, dim] float64 U(-bound, bound) or N(0, bound^2) in chunks; into `target`, or only to advance `rng`."""
    step = max(1, DRAW_CHUNK // dim)
    for start in range(0, rows, step):
        count = min(step, rows - start)
        size = (count, dim)
        draws = rng.normal(0.0, bound, size) if gaussian else rng.uniform(low=-bound, high=bound, size=size)
        if target is not None:
            target[start : start + count] = torch.from_numpy(draws.astype(np.float32))


@torch.no_grad()
def initialize_mlp(layers: nn.Module, rng: np.random.RandomState) -> None:
    """Linear layers in order, DLRM's values: W ~ N(0, 2 / (in + out)), b ~ N(0, 1 / out)."""
    for layer in _drawn_linear_layers([layers], rng):
        if layer.bias is None:
            continue
        out = len(layer.bias)
        bias = rng.normal(0.0, np.sqrt(1 / out), size=out)
        layer.bias.copy_(torch.from_numpy(bias.astype(np.float32)))


@torch.no_grad()
def initialize_layers(modules: Iterable[nn.Module], rng: np.random.RandomState) -> None:
    """Linear layers in order: W ~ N(0, 2 / (in + out)) (Glorot and Bengio 2010), b = 0."""
    for layer in _drawn_linear_layers(modules, rng):
        if layer.bias is not None:
            layer.bias.zero_()


def _drawn_linear_layers(modules: Iterable[nn.Module], rng: np.random.RandomState) -> Iterator[nn.Linear]:
    """Each linear layer in turn, its weight just drawn; the caller sets its bias before the next one is drawn."""
    for layer in (layer for module in modules for layer in module.modules()):
        if isinstance(layer, nn.Linear):
            out, inputs = layer.weight.shape
            weight = rng.normal(0.0, np.sqrt(2 / (out + inputs)), size=(out, inputs))
            layer.weight.data.copy_(torch.from_numpy(weight.astype(np.float32)))
            yield layer


@torch.no_grad()
def set_unknown_rows(
    tables: EmbeddingTables, trained: Sequence[np.ndarray], keep: Collection[str] = (), chunk: int = 1 << 18
) -> None:
    """Give the unknown id of each table the mean of the rows that were trained, weighted pooling included.

    Args:
        tables: built with unknown=True.
        trained: one bool array [n] a table: which ids occurred in training. Where none did, the row stays zero.
        keep: tables whose unknown row was itself trained and stays.

    Raises:
        ValueError: no unknown rows, or an array of the wrong length.
    """
    if not tables.unknown:
        raise ValueError("these tables have no unknown rows")
    for part in tables.parts():
        spec, group = tables.specs[part.table], part.group
        if spec.name in keep:
            continue
        mask = np.asarray(trained[part.table])
        if len(mask) != spec.rows:
            raise ValueError(f"table {spec.name}: {len(mask)} flags for {spec.rows} rows")
        ids = np.flatnonzero(mask)
        if not spec.is_plain:
            ids = tables.rows_of(part, torch.from_numpy(ids).to(group.weight.device)).cpu().numpy()
        rows = group.part(part.index, part.counted_rows + 1)
        total = torch.zeros(rows.shape[1], dtype=torch.float64)
        for start in range(0, len(ids), chunk):
            chosen = torch.from_numpy(ids[start : start + chunk]).to(rows.device)
            values = rows[chosen].float()
            if group.pooling_weight is not None:
                values = values * group.pooling_weight[int(group.first_row[part.index]) + chosen]
            total += values.double().sum(dim=0).cpu()
        rows[-1] = (total / max(1, len(ids))).to(rows)
