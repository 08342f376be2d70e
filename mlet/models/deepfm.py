"""DeepFM: Guo et al. 2017, "DeepFM: A Factorization-Machine based Neural Network for CTR Prediction",
arXiv 1703.04247.

Legend: B batch, F fields, D width, S tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mlet.interaction import pooled_products
from mlet.models.base import CTRModel
from mlet.tables import EmbeddingTables


class DeepFM(CTRModel):
    """A factorisation machine and an MLP over the same vectors (equations 1, 2 and 4).

    .. math:: p = \\sigma\\Big(b + \\langle w, dense \\rangle + \\sum_t w_t[id_t] + \\sum_{i < j} \\langle v_i, v_j
              \\rangle + deep([v_1, ..., v_F])\\Big)

    The dense features' vector, made by the bottom MLP, is one of the v_i.

    Several tasks share the second-order term, since they share the v_i; each has its first order and its deep part, and
    multiplies the second order by a learned number of its own, which starts at 1.

    Args:
        tables, bottom, top, common: see `CTRModel`; `top` is the deep part.
    """

    def __init__(self, tables: EmbeddingTables, bottom: Sequence[int], top: Sequence[int], **common: Any) -> None:
        super().__init__(tables, bottom, top, first_order=True, **common)
        self.deep = self.tower(self.fields * tables.dim)
        self.second_order_weight = nn.Parameter(torch.ones(self.tasks)) if self.tasks > 1 else None

    def logit(self, vectors: Tensor) -> Tensor:
        """[B, F, D] -> [B, S]."""
        second_order = pooled_products(vectors.float()).sum(dim=1, keepdim=True)
        if self.second_order_weight is not None:
            second_order = second_order * self.second_order_weight  # [B, 1] -> [B, S]
        return second_order + self.deep(vectors.flatten(1))
