"""DeepFM: Guo et al. 2017, "DeepFM: A Factorization-Machine based Neural Network for CTR Prediction",
arXiv 1703.04247.

Legend: B batch, F fields, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from mlet.interaction import pooled_products
from mlet.models.base import CTRModel
from mlet.models.layers import Tower
from mlet.tables import EmbeddingTables


class DeepFM(CTRModel):
    """A factorisation machine and an MLP over the same vectors (equations 1, 2 and 4).

    .. math:: p = \\sigma\\Big(b + \\langle w, dense \\rangle + \\sum_t w_t[id_t] + \\sum_{i < j} \\langle v_i, v_j
              \\rangle + deep([v_1, ..., v_F])\\Big)

    The dense features' vector, made by the bottom MLP, is one of the v_i.

    Args:
        tables, bottom, top, common: see `CTRModel`; `top` is the deep part.
    """

    def __init__(self, tables: EmbeddingTables, bottom: Sequence[int], top: Sequence[int], **common: Any) -> None:
        super().__init__(tables, bottom, top, first_order=True, **common)
        self.deep = Tower(self.fields * tables.dim, self.top_widths, self.batch_norm, self.dropout)

    def logit(self, vectors: Tensor) -> Tensor:
        """[B, F, D] -> [B, 1]."""
        second_order = pooled_products(vectors.float()).sum(dim=1, keepdim=True)
        return second_order + self.deep(vectors.flatten(1))
