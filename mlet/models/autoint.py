"""AutoInt: Song et al. 2019, "AutoInt: Automatic Feature Interaction Learning via Self-Attentive Neural Networks",
arXiv 1810.11921.

Legend: B batch, F fields, D width, H heads, A width of a head, S tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from mlet.models.base import CTRModel
from mlet.models.layers import in_float32
from mlet.tables import EmbeddingTables


class SelfAttention(nn.Module):
    """One interacting layer (equations 5 to 8): heads side by side, a residual map, ReLU. No bias, no scaling.

    .. math:: \\alpha^h_{m,k} = softmax_k \\langle W^h_Q v_m, W^h_K v_k \\rangle, \\quad
              out_m = ReLU([\\sum_k \\alpha^h_{m,k} W^h_V v_k]_h + W_{res} v_m)

    Args:
        width: of the vectors it takes. heads: H. head_width: A.

    Shapes:
        [B, F, width] -> [B, F, H * A].
    """

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.residual = (
            nn.Linear(width, heads * head_width, bias=False) for _ in range(4)
        )

    def forward(self, vectors: Tensor) -> Tensor:
        """As in the class."""
        query, key, value = (self._by_head(layer(vectors)) for layer in (self.query, self.key, self.value))
        attention = (query @ key.transpose(2, 3)).softmax(dim=3)  # [B, H, F, F]
        mixed = (attention.to(value.dtype) @ value).transpose(1, 2).flatten(2)  # [B, F, H * A]
        return (mixed + self.residual(vectors)).relu()

    def _by_head(self, vectors: Tensor) -> Tensor:
        """[B, F, H * A] -> [B, H, F, A]."""
        return vectors.unflatten(2, (self.heads, -1)).transpose(1, 2)


class AutoInt(CTRModel):
    """Self-attention among the fields, read by one linear layer, beside an MLP (AutoInt+, section 5.4 of the paper).

    .. math:: p = \\sigma(\\langle w, attention([v_1, ..., v_F]) \\rangle + b + deep([v_1, ..., v_F]))

    Args:
        tables, bottom, top, common: see `CTRModel`; `top` is the MLP beside it; (1,), no hidden layer, leaves it out
            (the plain AutoInt). Of several tasks each has its MLP and its weights of the attention's output.
        attention_layers, attention_heads, head_width: layers, H and A.

    Raises:
        ValueError: one of them below 1.
    """

    def __init__(
        self,
        tables: EmbeddingTables,
        bottom: Sequence[int],
        top: Sequence[int],
        attention_layers: int = 2,
        attention_heads: int = 2,
        head_width: int = 16,
        **common: Any,
    ) -> None:
        options = {"attention_layers": attention_layers, "attention_heads": attention_heads, "head_width": head_width}
        super().__init__(tables, bottom, top, options=options, **common)
        for name, value in options.items():
            if value < 1:
                raise ValueError(f"{name}={value}: at least 1 is needed")
        width = attention_heads * head_width
        widths = (tables.dim, *[width] * (attention_layers - 1))
        self.attention = nn.Sequential(*[SelfAttention(given, attention_heads, head_width) for given in widths])
        self.head = nn.Linear(self.fields * width, self.tasks)
        self.deep = None
        if len(self.top_widths) > 1:
            self.deep = self.tower(self.fields * tables.dim)

    def logit(self, vectors: Tensor) -> Tensor:
        """[B, F, D] -> [B, S]."""
        logit = in_float32(self.head, self.attention(vectors).flatten(1))
        return logit if self.deep is None else logit + self.deep(vectors.flatten(1))
