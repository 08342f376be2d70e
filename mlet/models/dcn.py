"""DCN: Wang et al. 2017, "Deep & Cross Network for Ad Click Predictions", arXiv 1708.05123. DCN-V2: Wang et al. 2020,
"DCN V2: Improved Deep & Cross Network and Practical Lessons for Web-scale Learning to Rank Systems", arXiv 2008.13535.

Legend: B batch, F fields, D width, N = F * D, S tasks, H width of the last hidden layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mlet.models.base import CTRModel
from mlet.models.heads import LinearByTask
from mlet.models.layers import in_float32, mlp
from mlet.tables import EmbeddingTables


class CrossVector(nn.Module):
    """Cross layer of DCN (equation 3): x0 (x . w) + b + x, of [B, N]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Linear(width, 1, bias=False)
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, first: Tensor, x: Tensor) -> Tensor:
        """x0 and x, both [B, N] -> [B, N]."""
        return first * self.weight(x) + self.bias + x


class CrossMatrix(nn.Module):
    """Cross layer of DCN-V2 (equation 1): x0 * (W x + b) + x, of [B, N]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Linear(width, width)

    def forward(self, first: Tensor, x: Tensor) -> Tensor:
        """x0 and x, both [B, N] -> [B, N]."""
        return first * self.weight(x) + x


class DCN(CTRModel):
    """Cross layers beside an MLP, both over all vectors side by side; one linear layer reads the two (equation 5).

    .. math:: x_0 = [v_1, ..., v_F], \\quad x_{l+1} = cross_l(x_0, x_l), \\quad
              p = \\sigma(\\langle w, [x_L, hidden(x_0)] \\rangle + b)

    Args:
        tables, bottom, top, common: see `CTRModel`; `top` without its last 1 is the deep part. Several tasks share
            the cross layers; each has its deep part and its last linear layer.
        cross_layers: L.

    Raises:
        ValueError: no cross layer.
    """

    cross = CrossVector

    def __init__(
        self,
        tables: EmbeddingTables,
        bottom: Sequence[int],
        top: Sequence[int],
        cross_layers: int = 3,
        **common: Any,
    ) -> None:
        super().__init__(tables, bottom, top, options={"cross_layers": cross_layers}, **common)
        if cross_layers < 1:
            raise ValueError(f"cross_layers={cross_layers}: at least 1 is needed")
        width = self.fields * tables.dim
        self.crosses = nn.ModuleList(self.cross(width) for _ in range(cross_layers))
        hidden = self.top_widths[:-1]
        inputs = width + (hidden[-1] if hidden else 0)
        if self.tasks == 1:
            self.deep = mlp((width, *hidden), self.batch_norm, self.dropout)
            self.head = nn.Linear(inputs, 1)
        else:
            self.deep = self.hidden_by_task(width) if hidden else nn.Sequential()
            self.head = LinearByTask(inputs, self.tasks)

    def logit(self, vectors: Tensor) -> Tensor:
        """[B, F, D] -> [B, S]."""
        first = x = vectors.flatten(1)
        for layer in self.crosses:
            x = layer(first, x)
        if self.tasks > 1:
            x = x.unsqueeze(1).expand(-1, self.tasks, -1)  # [B, S, N] beside [B, S, H]
        both = torch.cat([x, self.deep(first)], dim=-1) if len(self.top_widths) > 1 else x
        return in_float32(self.head, both)


class DCNv2(DCN):
    """DCN with a full matrix in each cross layer, the parallel structure of the second paper's figure 1b."""

    cross = CrossMatrix
