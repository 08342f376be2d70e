"""PNN: Qu et al. 2016, "Product-based Neural Networks for User Response Prediction", arXiv 1611.00144.

Legend: B batch, F fields, D width, S tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mlet.interaction import PairwiseDots
from mlet.models.base import CTRModel
from mlet.tables import EmbeddingTables


class InnerPNN(CTRModel):
    """IPNN: an MLP over all vectors and their pairwise inner products (equations 2 to 7).

    .. math:: z = [v_1, ..., v_F], \\quad p = \\{\\langle v_i, v_j \\rangle\\}_{i < j}, \\quad \\sigma(deep([z, p]))

    The paper's first layer adds a linear map of z and one of p, which is one linear map of both side by side.

    Args:
        tables, bottom, top, common: see `CTRModel`; `top` is the whole MLP.
    """

    def __init__(self, tables: EmbeddingTables, bottom: Sequence[int], top: Sequence[int], **common: Any) -> None:
        super().__init__(tables, bottom, top, **common)
        if self.fields == 1:
            raise ValueError("one vector has no products: give dense features or another table")
        self.dots = PairwiseDots(self.fields, lead=False)
        inputs = self.fields * tables.dim + self.dots.pairs
        self.deep = self.tower(inputs)

    def logit(self, vectors: Tensor) -> Tensor:
        """[B, F, D] -> [B, S]."""
        return self.deep(torch.cat([vectors.flatten(1), self.dots(vectors)], dim=1))


class OuterPNN(CTRModel):
    """OPNN: the same with the outer products of all pairs, superposed (equations 9 to 12).

    .. math:: p = \\sum_{i, j} v_i v_j^T = f f^T \\text{ with } f = \\sum_i v_i, \\quad \\sigma(deep([z, p]))

    Args:
        tables, bottom, top, common: see `CTRModel`; `top` is the whole MLP.
    """

    def __init__(self, tables: EmbeddingTables, bottom: Sequence[int], top: Sequence[int], **common: Any) -> None:
        super().__init__(tables, bottom, top, **common)
        inputs = self.fields * tables.dim + tables.dim**2
        self.deep = self.tower(inputs)

    def logit(self, vectors: Tensor) -> Tensor:
        """[B, F, D] -> [B, S]."""
        total = vectors.sum(dim=1)
        outer = (total.unsqueeze(2) * total.unsqueeze(1)).flatten(1)
        return self.deep(torch.cat([vectors.flatten(1), outer], dim=1))
