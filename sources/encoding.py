"""Raw values -> what the model takes: ids of categoricals, transformed dense values."""

from __future__ import annotations

import numpy as np
import torch


class ValueIndex:
    """Raw value -> id of one column, ids in order of first appearance; grows block by block."""

    def __init__(self, values_by_id: np.ndarray | None = None) -> None:
        """`values_by_id` [n]: a finished vocabulary; None starts an empty one."""
        values = np.empty(0, np.uint32) if values_by_id is None else values_by_id
        order = np.argsort(values, kind="stable")
        self._sorted = values[order]
        self._ids = order.astype(np.int32)

    def __len__(self) -> int:
        return len(self._sorted)

    def values_by_id(self) -> np.ndarray:
        """Raw value of each id [n]."""
        values = np.empty_like(self._sorted)
        values[self._ids] = self._sorted
        return values

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Ids [n] int32 of raw values; a value outside the vocabulary becomes len(self), the unknown id."""
        place, known = self._look_up(values)
        return np.where(known, self._ids[place] if len(self) else 0, len(self)).astype(np.int32)

    def grow(self, values: np.ndarray) -> np.ndarray:
        """Ids [n] int32 of raw values, new ones numbered on in their order of appearance."""
        distinct, first, inverse = np.unique(values, return_index=True, return_inverse=True)
        place, known = self._look_up(distinct)
        ids = np.empty(len(distinct), np.int32)
        ids[known] = self._ids[place[known]]
        new = np.flatnonzero(~known)
        ids[new[np.argsort(first[new])]] = np.arange(len(self), len(self) + len(new), dtype=np.int32)
        if len(new):
            where = np.searchsorted(self._sorted, distinct[new])
            self._sorted = np.insert(self._sorted, where, distinct[new])
            self._ids = np.insert(self._ids, where, ids[new])
        return ids[inverse]

    def _look_up(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if not len(self):
            return np.zeros(len(values), np.int64), np.zeros(len(values), bool)
        place = np.searchsorted(self._sorted, values).clip(max=len(self) - 1)
        return place, self._sorted[place] == values


def cap_values(values: np.ndarray, max_ind_range: int) -> np.ndarray:
    """Raw values modulo a limit, where there is one (DLRM's --max-ind-range)."""
    return values % np.uint32(max_ind_range) if max_ind_range > 0 else values


def transform_dense(dense: torch.Tensor, transform: str) -> torch.Tensor:
    """Raw dense values [B, M] as the model sees them, float32: "log1p" is log(x + 1), "none" leaves them."""
    dense = dense.to(torch.float32)
    return torch.log(dense + 1) if transform == "log1p" else dense
