"""Wide & Deep: Cheng et al. 2016, "Wide & Deep Learning for Recommender Systems", arXiv 1606.07792.

Legend: B batch, F fields, D width, S tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from mlet.models.base import CTRModel
from mlet.tables import EmbeddingTables


class WideDeep(CTRModel):
    """A linear model over ids and dense features beside an MLP over all vectors (the paper's equation 3).

    .. math:: p = \\sigma\\Big(b + \\langle w, dense \\rangle + \\sum_t w_t[id_t] + deep([v_1, ..., v_F])\\Big)

    The wide part takes single ids; cross-product transformations are features, to be made before.

    Args:
        tables, bottom, top, common: see `CTRModel`; `top` is the deep part.
    """

    def __init__(self, tables: EmbeddingTables, bottom: Sequence[int], top: Sequence[int], **common: Any) -> None:
        super().__init__(tables, bottom, top, first_order=True, **common)
        self.deep = self.tower(self.fields * tables.dim)

    def logit(self, vectors: Tensor) -> Tensor:
        """[B, F, D] -> [B, S]."""
        return self.deep(vectors.flatten(1))
