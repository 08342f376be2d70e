"""Stochastic gradient descent on dense parameters and on rows of tables."""

from __future__ import annotations

from typing import Any

import torch

from optim.row_optimizer import Parameters, RowOptimizer
from optim.rows import read_rows, row_pieces, summed_rows, wide_dtype, write_rows


class SGD(RowOptimizer):
    """Plain SGD: w -= lr * g, without momentum or weight decay (H. Robbins, S. Monro, 1951).

    The rule is linear, so that repeated rows of a sparse gradient need not be summed first. There is no state,
    but for the numbers that make the rounding of a bfloat16 table repeatable (see `RowOptimizer`).

    Args:
        params: parameters or parameter groups. Sparse gradients are torch.sparse_coo of shape [N, D], with or
            without repeated rows.
        lr: learning rate.
        rounding_seed: seed of the noise that rounds bfloat16 tables.

    Raises:
        ValueError: lr or rounding_seed is negative; at `step`, a sparse gradient is not [N, D].
    """

    def __init__(self, params: Parameters, lr: float = 1e-3, *, rounding_seed: int = 0) -> None:
        super().__init__(params, {"lr": lr, "rounding_seed": rounding_seed})

    def _update_rows(self, p: torch.Tensor, grad: torch.Tensor, group: dict[str, Any]) -> None:
        if p.dtype != torch.bfloat16:
            p.add_(grad, alpha=-group["lr"])  # as fast as reading and writing rows, and takes repeated ones
            return
        # summed, else a repeated row would be rounded repeatedly
        for rows, values in row_pieces(*summed_rows(grad, wide_dtype(p))):
            changed = read_rows(p, rows).add_(values, alpha=-group["lr"])
            write_rows(p, rows, changed, self._noise(p, values.shape, group))

    def _update_dense(self, params: list[torch.Tensor], grads: list[torch.Tensor], group: dict[str, Any]) -> None:
        torch._foreach_add_(params, grads, alpha=-group["lr"])

    def _layout(self, p: torch.Tensor, state: dict[str, Any]) -> dict[str, tuple[str, tuple[torch.Size, ...]]]:
        return {}
