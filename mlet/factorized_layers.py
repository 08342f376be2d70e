"""Drop-in layers for `nn.Embedding` and `nn.EmbeddingBag` whose table is a product W1 W2, see `mlet.factorize`.

Legend: n rows, K inner dimension, D embedding dimension, B bags, L lookups.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlet.embedding import check_pooling, collapse_rows


class FactorizedTable(nn.Module):
    """What the two layers share: the matrices, the padding row, and the table that they stand for.

    `num_embeddings`, `embedding_dim`, `padding_idx`, `max_norm`, `norm_type`, `scale_grad_by_freq` and `sparse` can be
    read as from torch's modules.
    """

    max_norm = None
    norm_type = 2.0
    scale_grad_by_freq = False

    def __init__(
        self,
        w1: Tensor,
        w2: Tensor,
        padding_idx: int | None = None,
        sparse: bool = False,
        padding_row: Tensor | None = None,
    ) -> None:
        super().__init__()
        if w1.dim() != 2 or w2.dim() != 2 or w1.shape[1] != w2.shape[0]:
            raise ValueError(f"w1 {tuple(w1.shape)} and w2 {tuple(w2.shape)} have no product")
        self.num_embeddings, self.inner_dim, self.embedding_dim = *w1.shape, w2.shape[1]
        if padding_idx is not None and not -self.num_embeddings <= padding_idx < self.num_embeddings:
            raise ValueError(f"padding_idx={padding_idx} of a table with {self.num_embeddings} rows")
        self.padding_idx = None if padding_idx is None else padding_idx % self.num_embeddings
        self.sparse = sparse
        # a Parameter stays the object it is: tied layers share theirs
        self.w1 = w1 if isinstance(w1, nn.Parameter) else nn.Parameter(w1)
        self.w2 = w2 if isinstance(w2, nn.Parameter) else nn.Parameter(w2)
        # torch keeps the padding row from changing. That its row of W1 gets no gradient is not enough here, because W2
        # changes: the constant vector is put in its place.
        if self.padding_idx is None:
            padding_row = None
        else:
            padding_row = w2.new_zeros(self.embedding_dim) if padding_row is None else padding_row.detach().clone()
        self.register_buffer("padding_row", padding_row)

    def __setattr__(self, name: str, value: object) -> None:
        if name == "weight":
            raise AttributeError("weight is the product of w1 and w2: it can be read, not set")
        super().__setattr__(name, value)

    @property
    def weight(self) -> Tensor:
        """The table W1 W2 [n, D], computed anew at each reading; gradients flow through it into both matrices.

        For code that reads `module.weight` (tied softmax, graph propagation, penalties); where it only asks for a
        device or dtype, that costs the product too. What is written into it is lost, and the padding row in it is a
        constant.
        """
        table = self.project(self.w1)
        if self.padding_idx is not None:
            table[self.padding_idx] = self.padding_row
        return table

    def project(self, inner: Tensor) -> Tensor:
        """[..., K] -> [..., D], in the dtype of the table also under autocast, as lookups are in torch's modules."""
        return (inner @ self.w2).to(self.w1.dtype)

    @torch.no_grad()
    def collapsed_weight(self) -> Tensor:
        """The table in memory of its own, without gradient. Raises ValueError if a row is not finite."""
        table = self.w1.new_empty(self.num_embeddings, self.embedding_dim)
        collapse_rows(self.w1, self.w2, table)
        if self.padding_idx is not None:
            table[self.padding_idx] = self.padding_row
        return table

    def _finish(self, plain: nn.Module) -> nn.Module:
        """Give the plain module this one's state: training or not, frozen or not."""
        plain.weight.requires_grad_(self.w1.requires_grad)
        return plain.train(self.training)

    def extra_repr(self) -> str:
        text = f"{self.num_embeddings}, {self.embedding_dim}, inner_dim={self.inner_dim}"
        for name in ("mode", "padding_idx", "sparse", "include_last_offset"):
            value = getattr(self, name, None)
            text += "" if value is None or value is False else f", {name}={value}"
        return text


class FactorizedEmbedding(FactorizedTable):
    """`nn.Embedding` trained as W1 W2 (arXiv 2006.05623, section 3).

    .. math:: v(i) = W_1[i] W_2, \\qquad W_1 \\in R^{n \\times K}, W_2 \\in R^{K \\times D}

    Args:
        w1: [n, K]. w2: [K, D]. Parameters are taken as they are, so that layers can share them.
        padding_idx, sparse: as in `nn.Embedding`. `sparse` is about the gradient of W1; that of W2 is always dense.
        padding_row: [D], the constant vector at `padding_idx`; None is zeros.

    Shapes:
        ids of any shape [*]; output [*, D].

    Raises:
        ValueError: the matrices have no product, or `padding_idx` is not a row.

    Example:
        >>> layer = FactorizedEmbedding(torch.randn(100, 16), torch.randn(16, 4), padding_idx=0)
        >>> ids = torch.tensor([[0, 5], [99, 0]])
        >>> torch.allclose(layer(ids), layer.collapse()(ids), atol=1e-5)
        True
    """

    def forward(self, input: Tensor) -> Tensor:
        """Look up in W1, then project: [*, D]."""
        out = self.project(F.embedding(input, self.w1, self.padding_idx, sparse=self.sparse))
        if self.padding_idx is None:
            return out
        return torch.where((input == self.padding_idx).unsqueeze(-1), self.padding_row, out)

    def collapse(self) -> nn.Embedding:
        """Return the equivalent `nn.Embedding`; this one is left as it is. ValueError if a row is not finite."""
        size = (self.num_embeddings, self.embedding_dim)
        return self._finish(nn.Embedding(*size, self.padding_idx, sparse=self.sparse, _weight=self.collapsed_weight()))


class FactorizedEmbeddingBag(FactorizedTable):
    """`nn.EmbeddingBag` trained as W1 W2: pooling commutes with the projection, so rows of W1 are pooled.

    .. math:: v(I) = \\Big(\\sum_{i \\in I} a_i W_1[i]\\Big) W_2

    Args:
        w1, w2, padding_idx, sparse, padding_row: as in `FactorizedEmbedding`. Bags leave out `padding_idx`, so that
            `padding_row` is only kept for `weight` and `collapse`.
        mode: "sum" or "mean". include_last_offset: as in `nn.EmbeddingBag`.

    Shapes:
        ids [B, hot] without offsets, or [L] with offsets [B] ([B + 1] with `include_last_offset`); per-sample weights
        as ids, with "sum" only; output [B, D], zeros for an empty bag.

    Raises:
        ValueError: as `FactorizedEmbedding`; a mode that does not commute with the projection.

    Example:
        >>> layer = FactorizedEmbeddingBag(torch.randn(100, 16), torch.randn(16, 4), mode="mean")
        >>> ids, offsets = torch.tensor([1, 5, 99]), torch.tensor([0, 2])
        >>> torch.allclose(layer(ids, offsets), layer.collapse()(ids, offsets), atol=1e-5)
        True
    """

    def __init__(
        self,
        w1: Tensor,
        w2: Tensor,
        mode: str = "mean",
        sparse: bool = False,
        include_last_offset: bool = False,
        padding_idx: int | None = None,
        padding_row: Tensor | None = None,
    ) -> None:
        check_pooling(mode)
        super().__init__(w1, w2, padding_idx, sparse, padding_row)
        self.mode = mode
        self.include_last_offset = include_last_offset

    def forward(self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None) -> Tensor:
        """Pool the rows of each bag in W1, then project: [B, D]."""
        pooled = F.embedding_bag(
            input,
            self.w1,
            offsets,
            mode=self.mode,
            sparse=self.sparse,
            per_sample_weights=per_sample_weights,
            include_last_offset=self.include_last_offset,
            padding_idx=self.padding_idx,
        )
        return self.project(pooled)

    def collapse(self) -> nn.EmbeddingBag:
        """Return the equivalent `nn.EmbeddingBag`; this one is left as it is. ValueError if a row is not finite."""
        return self._finish(
            nn.EmbeddingBag(
                self.num_embeddings,
                self.embedding_dim,
                mode=self.mode,
                sparse=self.sparse,
                include_last_offset=self.include_last_offset,
                padding_idx=self.padding_idx,
                _weight=self.collapsed_weight(),
            )
        )
