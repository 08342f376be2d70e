"""L2 penalty on the rows of tables that a batch reads."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from optim.rows import summed_gradient


@torch.no_grad()
def add_row_penalty(parameters: Iterable[torch.Tensor], weight: float) -> None:
    """Add the gradient of `weight / 2 * |row|^2` for every row that has one, once a step however often it occurs.

    Call it between `backward` and the optimizer's `step`. Benchmarks of CTR models (BARS, arXiv 2205.09626) penalise
    the whole table at every step, which reads and writes all of it; here rows that the batch does not read are left
    alone.

    Args:
        parameters: [N, D] with sparse gradients; others, and those without a gradient, are left as they are.
        weight: of the penalty; 0 changes nothing.
    """
    if not weight:
        return
    for parameter in parameters:
        grad = parameter.grad
        if grad is None or not grad.is_sparse:
            continue
        parameter.grad, holds = summed_gradient(grad)
        values = parameter.grad._values()
        of_rows = parameter.index_select(0, parameter.grad._indices()[0]).to(values.dtype)
        values.add_(of_rows if holds is None else of_rows * holds, alpha=weight)
