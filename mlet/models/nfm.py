"""NFM: He and Chua 2017, "Neural Factorization Machines for Sparse Predictive Analytics", arXiv 1708.05027.

Legend: B batch, F fields, D width, S tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from mlet.interaction import pooled_products
from mlet.models.base import CTRModel
from mlet.models.layers import BatchNorm, Dropout
from mlet.tables import EmbeddingTables


class NFM(CTRModel):
    """An MLP over the sum of all elementwise products of two vectors (equations 2 to 5).

    .. math:: p = \\sigma\\Big(b + \\langle w, dense \\rangle + \\sum_t w_t[id_t] + deep\\Big(\\sum_{i < j} v_i \\circ
              v_j\\Big)\\Big)

    As in the paper, batch normalisation and dropout also follow the pooling.

    Args:
        tables, bottom, top, common: see `CTRModel`; `top` is the deep part.
    """

    def __init__(self, tables: EmbeddingTables, bottom: Sequence[int], top: Sequence[int], **common: Any) -> None:
        super().__init__(tables, bottom, top, first_order=True, **common)
        behind = [BatchNorm(tables.dim)] * self.batch_norm + [Dropout(self.dropout)] * bool(self.dropout)
        self.behind_pooling = nn.Sequential(*behind)
        self.deep = self.tower(tables.dim)

    def logit(self, vectors: Tensor) -> Tensor:
        """[B, F, D] -> [B, S]."""
        return self.deep(self.behind_pooling(pooled_products(vectors)))
