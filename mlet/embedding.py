"""One multi-layer embedding table, and its collapse. The tables of a whole model are in `mlet/tables.py`.

Legend: n rows, K inner dimension, D embedding dimension, B bags, L lookups.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

COLLAPSE_CHUNK_BYTES = 64 << 20


class MultiLayerEmbedding(nn.Module):
    """An embedding bag trained as a product of two matrices (arXiv 2006.05623, section 3).

    .. math:: v(I) = \\Big(\\sum_{i \\in I} W_1[i]\\Big) W_2, \\qquad W_1 \\in R^{n \\times K}, W_2 \\in R^{K \\times D}

    Both layers are linear and bias-free, so that W1 W2 is one [n, D] table with exactly the same outputs: `collapse`.
    `w1` has a row-sparse gradient, `w2` a dense one.

    Args:
        rows: number of ids n.
        dim: embedding dimension D, the width after collapse.
        inner_dim: inner dimension K; the paper's gains appear where K > D.
        mode: pooling of a bag, "sum" or "mean". Others do not commute with the projection and are refused.
        init: initial W2, see `initial_projection`. W1 starts from U(-1/sqrt(n), 1/sqrt(n)), as DLRM's tables do.
        generator: NumPy generator for the initial weights; None seeds one with 0.

    Shapes:
        ids [B, hot] without offsets, or [L] with offsets [B]; output [B, D].

    Raises:
        ValueError: a size below 1, an unknown mode or init.

    Example:
        >>> layer = MultiLayerEmbedding(rows=100, dim=4, inner_dim=16)
        >>> ids = torch.tensor([[1, 5], [99, 0]])
        >>> torch.allclose(layer(ids), layer.collapse()(ids), atol=1e-6)
        True
    """

    def __init__(
        self,
        rows: int,
        dim: int,
        inner_dim: int,
        mode: str = "sum",
        init: str = "normal",
        generator: np.random.Generator | None = None,
    ) -> None:
        super().__init__()
        if min(rows, dim, inner_dim) < 1:
            raise ValueError(f"rows={rows}, dim={dim}, inner_dim={inner_dim}: each must be at least 1")
        check_pooling(mode)
        generator = generator or np.random.default_rng(0)
        self.mode = mode
        bound = math.sqrt(1 / rows)
        self.w1 = nn.Parameter(torch.empty(rows, inner_dim))
        fill_uniform(self.w1.data, bound, generator)
        self.w2 = nn.Parameter(torch.from_numpy(initial_projection(inner_dim, dim, init, generator)))

    def forward(self, ids: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None) -> Tensor:
        """Pool the rows of each bag in W1, then project: [B, D]. Raises ValueError for ids [L] without offsets."""
        if ids.dim() == 1 and offsets is None:
            raise ValueError("ids of one dimension need offsets: this is a bag layer; single ids are [B, 1]")
        pooled = F.embedding_bag(
            ids, self.w1, offsets, mode=self.mode, sparse=True, per_sample_weights=per_sample_weights
        )
        return pooled @ self.w2

    @torch.no_grad()
    def collapse(self) -> nn.EmbeddingBag:
        """Return the equivalent single-layer table W1 W2 as a plain module; this one is left as it is."""
        rows, dim = self.w1.shape[0], self.w2.shape[1]
        table = nn.EmbeddingBag(rows, dim, mode=self.mode, _weight=self.w1.new_empty(rows, dim))
        collapse_rows(self.w1, self.w2, table.weight.data)
        return table

    def extra_repr(self) -> str:
        return f"{self.w1.shape[0]}, {self.w2.shape[1]}, inner_dim={self.w1.shape[1]}, mode={self.mode}"


@torch.no_grad()
def collapse_rows(w1: Tensor, w2: Tensor, out: Tensor, row_weight: Tensor | None = None) -> None:
    """Write W1 W2 into `out`, a chunk of rows at a time, so that nothing but `out` needs memory.

    Args:
        w1: [n, K]. w2: [K, D]. out: [n, D], overwritten.
        row_weight: [n], multiplies each row: folds learned pooling weights into the table.

    Raises:
        ValueError: shapes do not fit, or the result is not finite.
    """
    if w1.shape[1] != w2.shape[0] or out.shape != (w1.shape[0], w2.shape[1]):
        raise ValueError(f"cannot collapse {tuple(w1.shape)} @ {tuple(w2.shape)} into {tuple(out.shape)}")
    chunk = max(1, COLLAPSE_CHUNK_BYTES // (w1.element_size() * max(w1.shape[1], w2.shape[1])))
    for start in range(0, len(w1), chunk):
        part = out[start : start + chunk]
        torch.matmul(w1[start : start + chunk].to(w2.dtype), w2, out=part)
        if row_weight is not None:
            part.mul_(row_weight[start : start + chunk, None])
        if not torch.isfinite(part).all():
            row = start + int((~torch.isfinite(part).all(dim=1)).nonzero()[0])
            raise ValueError(f"collapse: row {row} of the table is not finite")


def check_pooling(mode: str) -> None:
    """Raise ValueError unless pooling commutes with a linear projection."""
    if mode not in ("sum", "mean"):
        raise ValueError(f"pooling {mode!r} does not commute with the projection W2: choose sum or mean")


def fill_uniform(rows: Tensor, bound: float, generator: np.random.Generator, chunk: int = 1 << 22) -> None:
    """Fill [n, K] float32 with U(-bound, bound) in place, in chunks of about `chunk` numbers."""
    _fill(rows, lambda size: (generator.random(size, dtype=np.float32) * 2 - 1) * np.float32(bound), chunk)


def fill_normal(rows: Tensor, std: float, generator: np.random.Generator, chunk: int = 1 << 22) -> None:
    """The same with N(0, std^2)."""
    _fill(rows, lambda size: generator.standard_normal(size, dtype=np.float32) * np.float32(std), chunk)


def _fill(rows: Tensor, draw: Callable[[tuple[int, ...]], np.ndarray], chunk: int) -> None:
    step = max(1, chunk // rows.shape[1])
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        part.copy_(torch.from_numpy(draw(tuple(part.shape))))


def initial_projection(inner_dim: int, dim: int, init: str, generator: np.random.Generator) -> np.ndarray:
    """Initial W2 [K, D], float32.

    Args:
        inner_dim: K. dim: D.
        init: "normal": N(0, 0.25^2), the authors' choice; "normal-<std>"; "scaled": std 1/sqrt(K), so that
            E[W2^T W2] = I and the table's effective rate does not grow with K; "xavier": std sqrt(2 / (K + D));
            "orthogonal": orthonormal columns (K >= D) or rows (K < D).
        generator: source of the draws.

    Raises:
        ValueError: unknown name, or a standard deviation that is not a positive number.
    """
    if init == "orthogonal":
        tall = generator.standard_normal((max(inner_dim, dim), min(inner_dim, dim)))
        q, r = np.linalg.qr(tall)
        q = q * np.sign(np.diag(r))  # makes the draw uniform over orthonormal frames (Mezzadri 2007)
        return np.ascontiguousarray(q if inner_dim >= dim else q.T, np.float32)
    std = projection_std(init, inner_dim, dim)
    return (generator.standard_normal((inner_dim, dim)) * std).astype(np.float32)


def projection_std(init: str, inner_dim: int, dim: int) -> float:
    """Standard deviation that a Gaussian `init` name stands for; ValueError where it is not one."""
    named = {"normal": 0.25, "scaled": 1 / math.sqrt(inner_dim), "xavier": math.sqrt(2 / (inner_dim + dim))}
    if init in named:
        return named[init]
    try:
        std = float(init.removeprefix("normal-"))
    except ValueError:
        std = math.nan
    if not init.startswith("normal-") or not 0 < std < math.inf:
        raise ValueError(
            f"initial W2 {init!r}: choose normal, normal-<std> with a positive number, scaled, xavier or orthogonal"
        )
    return std
