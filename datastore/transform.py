"""Raw dense values -> what the model sees."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


class DenseTransform:
    """The transforms of all dense columns, see `sources.Layout`.

    Args:
        columns: name -> {"transform": ..., "mean": ..., "std": ...} as in a store's schema.
    """

    def __init__(self, columns: Mapping[str, Mapping[str, Any]]) -> None:
        self._names = list(columns)
        kinds = [column["transform"] for column in columns.values()]
        self._log = torch.tensor([kind == "log1p" for kind in kinds], dtype=torch.bool)
        self._standard = [m for m, kind in enumerate(kinds) if kind == "standard"]
        self._moments = {m: (columns[self._names[m]]["mean"], columns[self._names[m]]["std"]) for m in self._standard}

    def __call__(self, values: Mapping[str, np.ndarray] | np.ndarray, rows: int) -> torch.Tensor:
        """Dense float32 [rows, M] of raw values by column name; NaN stands for a missing "standard" value."""
        raw = np.empty((rows, len(self._names)), np.float32)
        for m, name in enumerate(self._names):
            raw[:, m] = values[name]
        dense = torch.from_numpy(raw)
        if len(self._log) and bool(self._log.all()):
            return torch.log(dense + 1)  # the reference's form: log1p rounds differently
        for m in self._log.nonzero().flatten().tolist():
            dense[:, m] = torch.log(dense[:, m] + 1)
        for m in self._standard:
            mean, std = self._moments[m]
            dense[:, m] = ((dense[:, m] - mean) / std).nan_to_num(nan=0.0)
        return dense
