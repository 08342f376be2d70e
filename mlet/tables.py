"""All embedding tables of a model as one engine: ids -> rows -> pooling -> projection.

Tables of equal shape share one flat parameter, so that a step makes one gather, one sparse gradient and one row
update instead of one each per table; their projections are one batched product [P, B, K] x [P, K, d].

Legend: B batch, T tables, P tables of one group, L lookups, n counted rows, R rows of a flat parameter,
K inner dimension, d stored width, D width that the model sees. Bags are table-major, see `sources.Batch`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlet.embedding import check_pooling
from mlet.kept_memory import KeptMemory
from mlet.row_lookup import BagLookup, ProjectedLookup, RowLookup
from mlet.row_numbers import IdMaps, RowNumbers
from mlet.table_spec import TableSpec

PLANNED_LOOKUPS = 8192  # below, the plan's many small operations cost more than the work that they save

Pool = Callable[["RowGroup", Tensor], Tensor]


class RowGroup(nn.Module):
    """Parts of equal shape stored one below the other: one flat weight [R, K or d] and, batched, their projections.

    Args:
        part_rows: rows of each part, special rows included.
        inner_dim: K, 0 for a single layer.
        width: d.
        dim: D > d adds a mixed-dimension projection [P, d, D].
        mode: pooling, "sum" or "mean".
        weighted: learn one pooling weight a row.
        storage: dtype of the rows. Vectors, gradients and everything else are float32.
    """

    def __init__(
        self,
        part_rows: Sequence[int],
        inner_dim: int,
        width: int,
        dim: int,
        mode: str,
        weighted: bool,
        storage: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        parts, total = len(part_rows), sum(part_rows)
        self.mode = mode
        self.weight = nn.Parameter(torch.empty(total, inner_dim or width, dtype=storage))
        if storage != torch.float32:
            self.weight.grad_dtype = torch.float32  # else autograd would round the gradient, too
        self.inner_projection = nn.Parameter(torch.empty(parts, inner_dim, width)) if inner_dim else None
        self.projection = nn.Parameter(torch.empty(parts, width, dim)) if dim != width else None
        self.pooling_weight = nn.Parameter(torch.ones(total, 1)) if weighted else None
        ends = torch.tensor(part_rows).cumsum(0)
        self.register_buffer("first_row", ends - torch.tensor(part_rows), persistent=False)
        self._gradient_memory = KeptMemory()

    def train(self, mode: bool = True) -> RowGroup:
        """As of any module; the memory of large gradients is given back where training pauses."""
        if not mode:
            self._gradient_memory.clear()
        return super().train(mode)

    def gather(self, rows: Tensor) -> Tensor:
        """Stored rows [..., K or d] of flat row numbers [...]."""
        if self.pooling_weight is not None:
            return F.embedding(rows, self.weight, sparse=True) * F.embedding(rows, self.pooling_weight, sparse=True)
        if self._plans(rows):
            return RowLookup.apply(self.weight, rows, self._gradient_memory)
        return F.embedding(rows, self.weight, sparse=True).float()

    def look_up(self, rows: Tensor) -> Tensor:
        """Projected rows [B, P, D] of flat row numbers [B, P]."""
        planned = self.pooling_weight is None and rows.device.type == "cpu" and self._plans(rows)
        if planned and (matrix := self.matrix()) is not None:
            return ProjectedLookup.apply(self.weight, matrix, rows, self.first_row)
        return self.project(self.gather(rows))

    def bag(self, rows: Tensor, offsets: Tensor) -> Tensor:
        """Pooled rows [B, P, K or d] of flat row numbers [L] and offsets [P * B + 1]."""
        if self.pooling_weight is None and self._plans(rows):
            pooled = BagLookup.apply(self.weight, rows, offsets, self.mode, self._gradient_memory)
        else:
            per_row = None
            if self.pooling_weight is not None:
                per_row = F.embedding(rows, self.pooling_weight, sparse=True).squeeze(-1)
            stored = self.weight
            if stored.dtype != torch.float32:  # a sum of 16-bit rows would be rounded to 16 bits
                stored, rows = stored.index_select(0, rows).float(), torch.arange(len(rows), device=rows.device)
            pooled = F.embedding_bag(
                rows,
                stored,
                offsets,
                mode=self.mode,
                sparse=True,
                per_sample_weights=per_row,
                include_last_offset=True,
            )
        return pooled.view(len(self.first_row), -1, self.weight.shape[1]).transpose(0, 1)

    def _plans(self, rows: Tensor) -> bool:
        """Whether to find the distinct rows of a batch: where a gradient will be asked for and it pays. Otherwise plain
        operators, which can be traced and exported.

        Rows stored in bf16 need an operator of ours for a gradient in float32. On CUDA every step would have to wait
        for the number of distinct rows: single ids are left as they are there, and the optimizer adds up.
        """
        if not (torch.is_grad_enabled() and self.weight.requires_grad) or torch.compiler.is_exporting():
            return False
        pays = rows.device.type == "cpu" and rows.numel() >= PLANNED_LOOKUPS
        return pays or self.weight.dtype != torch.float32

    def matrix(self) -> Tensor | None:
        """All projections in one [P, K or d, D]; None where a stored row is what the model sees."""
        if self.inner_projection is None or self.projection is None:
            return self.projection if self.inner_projection is None else self.inner_projection
        return torch.bmm(self.inner_projection, self.projection)

    def project(self, pooled: Tensor) -> Tensor:
        """[B, P, K or d] -> [B, P, D]."""
        for matrix in (self.inner_projection, self.projection):
            if matrix is not None:
                pooled = torch.bmm(pooled.transpose(0, 1), matrix).transpose(0, 1)
        return pooled

    def part(self, index: int, rows: int) -> Tensor:
        """View [rows, K or d] of one part."""
        first = int(self.first_row[index])
        return self.weight.data[first : first + rows]


def row_groups(model: nn.Module) -> list[RowGroup]:
    """Every flat table parameter of a model, with its projections."""
    return [module for module in model.modules() if isinstance(module, RowGroup)]


class Unit(nn.Module):
    """Tables whose parts have equal shapes, looked up together: one row an id, or several that are combined.

    Several are those of quotient-remainder tables (rows id // c and id % c, arXiv 1909.02107) and of hash methods with
    more than one hash. Each part is projected first and then combined, so that a collapsed part stays exact.

    Args:
        parts: name -> group. specs: the unit's tables. maps: the model's stored row maps.
    """

    def __init__(self, parts: Mapping[str, RowGroup], specs: Sequence[TableSpec], maps: IdMaps) -> None:
        super().__init__()
        for name, group in parts.items():
            self.add_module(name, group)
        names = [lookup.part for lookup in specs[0].lookups]
        self.groups = tuple(parts[name] for name in names)
        self.numbers = nn.ModuleList(
            RowNumbers(specs, number, parts[name].first_row, maps) for number, name in enumerate(names)
        )
        self.combination = specs[0].combination

    def flat_rows(self, ids: Tensor, table: Tensor | int | slice, maps: IdMaps) -> tuple[Tensor, ...]:
        """Row numbers in the flat weight of each of `groups`, the shape of `ids`; see `RowNumbers`."""
        return tuple(numbers(ids, table, maps) for numbers in self.numbers)

    def combine(self, vectors: Sequence[Tensor]) -> Tensor:
        """One [B, P, D] of the groups' vectors."""
        if len(vectors) == 1:
            return vectors[0]
        if self.combination == "concat":
            return torch.cat(list(vectors), dim=-1)
        combine = torch.add if self.combination == "add" else torch.mul
        return functools.reduce(combine, vectors)


def _apply(unit: nn.Module, per_group: Sequence[Tensor], pool: Pool) -> Tensor:
    """Pool and project each group of a unit, then combine: [B, P, D]."""
    return unit.combine([pool(group, rows) for group, rows in zip(unit.groups, per_group, strict=True)])


@dataclass(frozen=True)
class Part:
    """Where one stored part of a table lies."""

    table: int
    name: str
    group: RowGroup
    index: int
    counted_rows: int


class EmbeddingTables(nn.Module):
    """All tables of a model.

    Args:
        specs: the tables, in the order of the id columns.
        unknown: append one row for the unknown id n. It is trained only if the data holds it; otherwise it is set
            to the mean of the trained rows when training ends (`mlet.initialize.set_unknown_rows`).
        padding: append one zero row, the table's last, that pads multi-hot bags in the exported model.
        mode: pooling, "sum" or "mean".
        weighted: learn one pooling weight a row (DLRM's --weighted-pooling=learned); plain tables only.
        storage: float32, or bfloat16 for half the memory; the optimizer then has to round stochastically.

    Shapes:
        ids [B, T], or ids [L] with offsets [T * B + 1] -> vectors [B, T, D].

    Raises:
        ValueError: no table, tables of different D, or a combination that cannot be collapsed exactly.
    """

    def __init__(
        self,
        specs: Sequence[TableSpec],
        *,
        unknown: bool = False,
        padding: bool = False,
        mode: str = "sum",
        weighted: bool = False,
        storage: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        check_pooling(mode)
        if not specs or len({spec.dim for spec in specs}) != 1:
            raise ValueError(f"tables must exist and be of one width: {sorted({spec.dim for spec in specs})}")
        if weighted and any(not spec.is_plain or spec.width != spec.dim for spec in specs):
            raise ValueError(
                "weighted pooling works on plain tables only: leave out --qr-flag, --md-flag, --hash-method"
            )
        if weighted and storage != torch.float32:
            raise ValueError("weighted pooling works on tables in float32 only: leave out --emb-precision")
        self.storage = storage
        self.specs, self.mode, self.weighted = tuple(specs), mode, weighted
        self.unknown, self.padding = unknown, padding
        self.special_rows = int(unknown) + int(padding)
        columns: dict[tuple, list[int]] = {}
        for t, spec in enumerate(specs):
            key = (spec.inner_dim, spec.width, spec.combination, *(lookup.part for lookup in spec.lookups))
            columns.setdefault(key, []).append(t)
        self._columns = list(columns.values())
        self.maps = IdMaps(specs)
        self.units = nn.ModuleList(self._build_unit([specs[t] for t in group]) for group in self._columns)
        order = torch.tensor([t for group in self._columns for t in group])
        position = torch.full((len(columns), len(specs)), -1)
        for unit, group in enumerate(self._columns):
            position[unit, group] = torch.arange(len(group))
        self.register_buffer("_table_order", order, persistent=False)
        self.register_buffer("_output_order", order.argsort(), persistent=False)
        self.register_buffer("_position", position, persistent=False)  # [units, T] place in the unit, -1 elsewhere

    def _build_unit(self, specs: Sequence[TableSpec]) -> nn.Module:
        first = specs[0]
        dim = first.width if first.combination == "concat" else first.dim
        parts = {}
        for name in first.parts:
            rows = [spec.parts[name] + self.special_rows for spec in specs]
            parts[name] = RowGroup(rows, first.inner_dim, first.width, dim, self.mode, self.weighted, self.storage)
        return Unit(parts, specs, self.maps)

    @property
    def dim(self) -> int:
        """D."""
        return self.specs[0].dim

    @property
    def is_collapsed(self) -> bool:
        """Whether the tables are served as they are stored: single-layer, float32, no pooling weights."""
        return not self.weighted and self.storage == torch.float32 and not any(spec.inner_dim for spec in self.specs)

    def forward(self, ids: Tensor, offsets: Tensor | None = None) -> Tensor:
        """Vectors [B, T, D] of one-hot ids [B, T] or of bags."""
        if offsets is not None:
            return self._assemble([self._pool_bags(u, unit, ids, offsets) for u, unit in enumerate(self.units)])
        outputs = []
        for u, unit in enumerate(self.units):
            rows = unit.flat_rows(self._take(ids, u), slice(None), self.maps)
            outputs.append(_apply(unit, rows, RowGroup.look_up))
        return self._assemble(outputs)

    def _take(self, ids: Tensor, unit: int) -> Tensor:
        if len(self.units) == 1:
            return ids
        start = sum(len(group) for group in self._columns[:unit])
        return ids[:, self._table_order[start : start + len(self._columns[unit])]]

    @torch.no_grad()
    def rows_read(self, ids: Tensor, offsets: Tensor | None = None) -> Iterator[tuple[RowGroup, Tensor]]:
        """The flat rows [L] that a batch reads in each group, as often as it reads them."""
        for u, unit in enumerate(self.units):
            if offsets is None:
                read = unit.flat_rows(self._take(ids, u), slice(None), self.maps)
            else:
                read = unit.flat_rows(*self._ids_of_unit(u, ids, offsets)[:2], self.maps)
            for group, rows in zip(unit.groups, read, strict=True):
                yield group, rows.flatten()

    @torch.no_grad()
    def row_counts(self, counts: Sequence[Tensor]) -> dict[RowGroup, Tensor]:
        """How often each flat row [R] is read when id i of table t occurs counts[t][i] times: float32, by group."""
        totals = {}
        for unit, columns in zip(self.units, self._columns, strict=True):
            for numbers, group in zip(unit.numbers, unit.groups, strict=True):
                device = group.weight.device
                total = totals.setdefault(group, torch.zeros(len(group.weight), device=device))
                for position, t in enumerate(columns):
                    ids = torch.arange(len(counts[t]), device=device)
                    total.index_add_(0, numbers(ids, position, self.maps), counts[t].to(device, torch.float32))
        return totals

    def _ids_of_unit(self, u: int, ids: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of a batch of bags what belongs to one unit: ids [L], each one's table within it [L], offsets."""
        tables = len(self.specs)
        lengths = offsets.diff().view(tables, -1)
        every_table = torch.arange(tables, device=ids.device)
        table = torch.repeat_interleave(every_table, lengths.sum(dim=1), output_size=len(ids))
        if len(self.units) > 1:
            table = self._position[u][table]
            mine = table >= 0
            ids, table = ids[mine], table[mine]
            offsets = F.pad(lengths[self._columns[u]].flatten().cumsum(0), (1, 0))
        return ids, table, offsets

    def _pool_bags(self, u: int, unit: nn.Module, ids: Tensor, offsets: Tensor) -> Tensor:
        ids, table, offsets = self._ids_of_unit(u, ids, offsets)
        rows = unit.flat_rows(ids, table, self.maps)
        return _apply(unit, rows, lambda group, rows: group.project(group.bag(rows, offsets)))

    def forward_padded(self, ids: Sequence[Tensor]) -> Tensor:
        """Vectors [B, T, D] of rectangular bags, ids[t] [B, hot of t], short bags padded with the table's last row.

        The form of the exported multi-hot model: a Gather and a ReduceSum a table.
        """
        outputs = []
        for columns, unit in zip(self._columns, self.units, strict=True):
            pooled = [
                [self._pool_padded(group, rows, ids[t], t) for group, rows in zip(unit.groups, flat, strict=True)]
                for t, flat in ((t, unit.flat_rows(ids[t], p, self.maps)) for p, t in enumerate(columns))
            ]
            stacked = [torch.stack(tables, dim=1) for tables in zip(*pooled, strict=True)]
            outputs.append(_apply(unit, stacked, RowGroup.project))
        return self._assemble(outputs)

    def _pool_padded(self, group: RowGroup, rows: Tensor, ids: Tensor, t: int) -> Tensor:
        pooled = group.gather(rows).sum(dim=1)
        if self.mode == "mean":
            used = (ids != self.specs[t].rows + self.special_rows - 1).sum(dim=1, keepdim=True)
            pooled = pooled / used.clamp(min=1)
        return pooled

    def _assemble(self, outputs: list[Tensor]) -> Tensor:
        if len(outputs) == 1:
            return outputs[0]
        return torch.cat(outputs, dim=1).index_select(1, self._output_order)

    def set_map(self, table: str, number: int, rows: np.ndarray) -> None:
        """Fill the stored map of one of a table's lookups with row numbers [n]."""
        spec = next(spec for spec in self.specs if spec.name == table)
        self.maps.view(spec, number).copy_(torch.from_numpy(rows))

    def rows_of(self, part: Part, ids: Tensor) -> Tensor:
        """Distinct rows of one part that some ids of its table read, ascending."""
        unit, _ = self._unit_of(part.table)
        read = [
            numbers(ids, part.index, self.maps) - numbers.first_row[part.index]
            for numbers, group in zip(unit.numbers, unit.groups, strict=True)
            if group is part.group
        ]
        return torch.cat(read).unique()

    def _unit_of(self, table: int) -> tuple[Unit, int]:
        """The unit that a table belongs to, and its place in it."""
        unit = next(u for u, columns in enumerate(self._columns) if table in columns)
        return self.units[unit], self._columns[unit].index(table)

    def parts(self) -> Iterator[Part]:
        """Every stored part of every table, tables in order."""
        for t, spec in enumerate(self.specs):
            unit, index = self._unit_of(t)
            for name, counted in spec.parts.items():
                yield Part(t, name, getattr(unit, name), index, counted)

    def extra_repr(self) -> str:
        rows = sum(spec.rows for spec in self.specs)
        return f"{len(self.specs)} tables, {rows} rows, D={self.dim}, unknown={self.unknown}, padding={self.padding}"
