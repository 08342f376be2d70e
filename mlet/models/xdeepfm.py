"""xDeepFM: Lian et al. 2018, "xDeepFM: Combining Explicit and Implicit Feature Interactions for Recommender Systems",
arXiv 1803.05170.

Legend: B batch, F fields, D width, H maps of a layer, S tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from mlet.models.base import CTRModel
from mlet.models.layers import in_float32
from mlet.tables import EmbeddingTables


class CompressedInteraction(nn.Module):
    """Compressed interaction network (equations 6 to 8), without activation, every map handed to the next layer.

    .. math:: X^k_h = \\sum_{i, j} W^{k, h}_{ij} (X^{k-1}_i \\circ X^0_j), \\qquad p^k_h = \\sum_d X^k_{h, d}

    Args:
        fields: F. widths: H of each layer.

    Shapes:
        [B, F, D] -> sums of all layers' maps [B, sum of widths].
    """

    def __init__(self, fields: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(h * fields, nxt, bias=False) for h, nxt in pairwise((fields, *widths)))

    def forward(self, vectors: Tensor) -> Tensor:
        """As in the class."""
        first = vectors.transpose(1, 2)  # [B, D, F]
        maps, sums = first, []
        for layer in self.layers:
            products = (maps.unsqueeze(3) * first.unsqueeze(2)).flatten(2)  # [B, D, H * F]
            maps = layer(products)
            sums.append(maps.sum(dim=1))
        return torch.cat(sums, dim=1)


class XDeepFM(CTRModel):
    """Linear term, compressed interaction network and MLP (equation 9).

    .. math:: p = \\sigma\\Big(b + \\langle w, dense \\rangle + \\sum_t w_t[id_t] + \\langle w_{cin}, p^+ \\rangle
              + deep([v_1, ..., v_F])\\Big)

    Args:
        tables, bottom, top, common: see `CTRModel`; `top` is the deep part. Of several tasks each has its deep part and
            its w and w_cin.
        cin_widths: maps of each layer of the compressed interaction network.

    Raises:
        ValueError: no layer, or one below 1.
    """

    def __init__(
        self,
        tables: EmbeddingTables,
        bottom: Sequence[int],
        top: Sequence[int],
        cin_widths: Sequence[int] = (16, 16),
        **common: Any,
    ) -> None:
        options = {"cin_widths": list(cin_widths)}
        super().__init__(tables, bottom, top, first_order=True, options=options, **common)
        if not cin_widths or min(cin_widths) < 1:
            raise ValueError(f"cin_widths={list(cin_widths)}: at least one layer, each at least 1 wide")
        self.cin = CompressedInteraction(self.fields, cin_widths)
        self.cin_head = nn.Linear(sum(cin_widths), self.tasks, bias=False)
        self.deep = self.tower(self.fields * tables.dim)

    def logit(self, vectors: Tensor) -> Tensor:
        """[B, F, D] -> [B, S]."""
        return in_float32(self.cin_head, self.cin(vectors)) + self.deep(vectors.flatten(1))
