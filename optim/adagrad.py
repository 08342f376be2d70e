"""Adagrad on dense parameters and on rows of tables.

Legend: N rows, D dim, R touched rows.
"""

from __future__ import annotations

from typing import Any

import torch

from optim.row_optimizer import Parameters, RowOptimizer, state_zeros, widened
from optim.rows import read_rows, row_pieces, summed_rows, write_rows


class Adagrad(RowOptimizer):
    """Adagrad of J. Duchi, E. Hazan, Y. Singer, JMLR 12 (2011), with an accumulator per element.

        a += g^2
        w -= lr * g / (sqrt(a) + eps)

    With a sparse gradient, g[n] is the sum of row n's gradients in the step, and rows that the gradient does not
    touch stay as they are. The numbers are those of `torch.optim.Adagrad` without its decays.

    The accumulator is `state[p]["sum"]`, of p's shape, made at p's first gradient: float32, or p's dtype where
    that is wider.

    Args:
        params: parameters or parameter groups. Sparse gradients are torch.sparse_coo of shape [N, D], with or
            without repeated rows.
        lr: learning rate.
        eps: added to the root.
        rounding_seed: seed of the noise that rounds bfloat16 tables, see `RowOptimizer`.

    Raises:
        ValueError: lr, eps or rounding_seed is negative; at `step`, a sparse gradient is not [N, D], or a
            parameter has both sparse and dense ones in turn; at `load_state_dict`, an accumulator is missing or
            does not fit its parameter.
    """

    def __init__(self, params: Parameters, lr: float = 1e-2, eps: float = 1e-10, *, rounding_seed: int = 0) -> None:
        super().__init__(params, {"lr": lr, "eps": eps, "rounding_seed": rounding_seed})

    def _update_rows(self, p: torch.Tensor, grad: torch.Tensor, group: dict[str, Any]) -> None:
        accumulator = self._accumulator(p, sparse=True)
        # the rule is not linear: it needs a row's sum
        for rows, values in row_pieces(*summed_rows(grad, accumulator.dtype)):
            root = self._accumulate(accumulator, rows, values).sqrt_().add_(group["eps"])
            # not addcdiv_: it would scale before it divides, and round differently from the reference
            changed = read_rows(p, rows).add_(values / root, alpha=-group["lr"])
            write_rows(p, rows, changed, self._noise(p, values.shape, group))

    def _update_dense(self, params: list[torch.Tensor], grads: list[torch.Tensor], group: dict[str, Any]) -> None:
        accumulators = [self._accumulator(p, sparse=False) for p in params]
        grads = widened(grads, accumulators)
        torch._foreach_addcmul_(accumulators, grads, grads)
        roots = torch._foreach_sqrt(accumulators)
        torch._foreach_add_(roots, group["eps"])
        torch._foreach_addcdiv_(params, grads, roots, value=-group["lr"])

    def _layout(self, p: torch.Tensor, state: dict[str, Any]) -> dict[str, tuple[str, tuple[torch.Size, ...]]]:
        return {"sum": ("accumulator", (p.shape,))}

    def _accumulator(self, p: torch.Tensor, sparse: bool) -> torch.Tensor:
        """p's accumulator, made if need be. Raises ValueError if p had gradients of the other kind."""
        return state_zeros(self._state_of(p, sparse), "sum", p.shape, p)

    def _accumulate(self, accumulator: torch.Tensor, rows: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Add the squares of values [R, D] to the accumulators of rows [R]; returns a copy of these, [R, D]."""
        total = accumulator.index_select(0, rows).addcmul_(values, values)
        accumulator.index_copy_(0, rows, total)
        return total
