"""From the ids of a table to the rows that it stores: one row an id, or fewer rows that ids share.

Each of a table's lookups is the identity, a formula, or a stored map, and any of them may stand beside one another in
one unit of tables: a batch's ids become row numbers in a few operations, whatever the number of tables.

Legend: B batch, P tables of a unit, L lookups of a batch, n ids of a table.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mlet.table_spec import PRIME, TableSpec


class IdMaps(nn.Module):
    """The stored maps of all tables of a model: for each lookup number one flat buffer, table behind table.

    They are neither trained nor part of a step's gradients, but saved, served and counted with the tables.

    Args:
        specs: the model's tables.
    """

    def __init__(self, specs: Sequence[TableSpec]) -> None:
        super().__init__()
        self.first_id: list[dict[str, int]] = []  # for each lookup number: table -> where its map begins
        for number in range(max(len(spec.lookups) for spec in specs)):
            first, total, most = {}, 0, 0
            for spec in specs:
                if number < len(spec.lookups) and spec.lookups[number].stored:
                    first[spec.name], total = total, total + spec.rows
                    most = max(most, spec.lookups[number].rows)
            if first:
                dtype = torch.int32 if most <= torch.iinfo(torch.int32).max else torch.int64
                self.register_buffer(f"rows{number}", torch.zeros(total, dtype=dtype))
            self.first_id.append(first)

    def view(self, spec: TableSpec, number: int) -> Tensor:
        """Row numbers [n] of a table's stored lookup, to read or to fill."""
        first = self.first_id[number][spec.name]
        return getattr(self, f"rows{number}")[first : first + spec.rows]

    def flat(self, number: int) -> Tensor:
        """All tables' stored row numbers of one lookup number."""
        return getattr(self, f"rows{number}")

    @property
    def nbytes(self) -> int:
        """Bytes of all stored maps."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self.buffers())


class RowNumbers(nn.Module):
    """One lookup of all tables of a unit: ids -> flat rows of the group that it reads.

    .. math:: row(i) = \\Big\\lfloor \\frac{(a i + b) \\bmod p}{q} \\Big\\rfloor \\bmod m, \\qquad p = 2^{31} - 1

    or a stored row number. Ids from n on are special (unknown, padding) and have rows of their own behind these m.

    Args:
        specs: the unit's tables.
        number: which of their lookups.
        first_row: of each table's part in the group [P].
        maps: of the whole model.
    """

    def __init__(self, specs: Sequence[TableSpec], number: int, first_row: Tensor, maps: IdMaps) -> None:
        super().__init__()
        lookups = [spec.lookups[number] for spec in specs]
        self.number = number
        self.is_plain = all(spec.is_plain for spec in specs)
        computed = [each for each in lookups if not each.stored]
        self.hashes = any(each.multiplier for each in computed)
        self.divides = any(each.divisor != 1 for each in computed)
        self.folds = any(each.folds for each in computed)
        self.reads = any(each.stored for each in lookups)
        self.register_buffer("first_row", first_row.clone(), persistent=False)
        if self.is_plain:
            return
        self._keep("counted", [spec.rows for spec in specs])
        self._keep("rows", [each.rows for each in lookups])
        self._keep("part_rows", [spec.parts[each.part] for spec, each in zip(specs, lookups, strict=True)])
        self._keep("multiplier", [each.multiplier for each in lookups])
        self._keep("shift", [each.shift for each in lookups])
        self._keep("divisor", [each.divisor for each in lookups])
        self._keep("first_id", [maps.first_id[number].get(spec.name, -1) for spec in specs])  # -1: not stored

    def _keep(self, name: str, numbers: list[int]) -> None:
        self.register_buffer(name, torch.tensor(numbers), persistent=False)

    def forward(self, ids: Tensor, table: Tensor | int | slice, maps: IdMaps) -> Tensor:
        """Flat row numbers, the shape of `ids`.

        `table` says which of the unit's tables each id belongs to; slice(None): the last axis counts the tables.
        """
        if self.is_plain:
            return ids + self.first_row[table]
        special = ids - self.counted[table]
        rows = self._computed(ids, table)
        if self.reads:
            first = self.first_id[table]
            is_stored = first >= 0
            place = torch.where(is_stored, first + torch.minimum(ids, self.counted[table] - 1), 0)
            rows = torch.where(is_stored, maps.flat(self.number)[place].to(ids.dtype), rows)
        return torch.where(special >= 0, self.part_rows[table] + special, rows) + self.first_row[table]

    def _computed(self, ids: Tensor, table: Tensor | int | slice) -> Tensor:
        rows = ids
        if self.hashes:
            hashed = (self.multiplier[table] * ids + self.shift[table]) % PRIME
            rows = torch.where(self.multiplier[table] > 0, hashed, ids)
        if self.divides:
            rows = rows // self.divisor[table]
        return rows % self.rows[table] if self.folds else rows
