"""Adam on dense parameters, and lazily on rows of tables.

Legend: N rows, D dim, R touched rows.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from optim.row_optimizer import Parameters, RowOptimizer, state_zeros, widened
from optim.rows import read_rows, row_pieces, summed_rows, write_rows


class Adam(RowOptimizer):
    """Adam of D. Kingma, J. Ba, arXiv 1412.6980 (2014), without weight decay.

        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g^2
        dense gradient:   w -= lr * (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)
        sparse gradient:  w -= lr * sqrt(1 - beta2^t) / (1 - beta1^t) * m / (sqrt(v) + eps)

    The first is the paper's Algorithm 1 and `torch.optim.Adam`; the second, the form at the end of its section 2,
    is `torch.optim.SparseAdam`. They differ in the weight of eps alone: it counts for more in the second while t
    is small. With a sparse gradient, g[n] is the sum of row n's gradients in the step, and rows that the gradient
    does not touch keep w, m and v: their moments decay only when they are touched ("lazy Adam").

    t is the number of p's steps so far, as in torch. With `row_steps`, a row's t is the number of its own updates,
    so that the moments of a rare row, which start at zero whenever it comes first, are corrected in full.

    The state, made at p's first gradient: `step`, a Python int; `exp_avg` (m) and `exp_avg_sq` (v), of p's shape,
    float32 or p's dtype where that is wider; with `row_steps` and sparse gradients `row_steps`, [N] int32.

    Args:
        params: parameters or parameter groups. Sparse gradients are torch.sparse_coo of shape [N, D], with or
            without repeated rows.
        lr: learning rate.
        betas: decay of the first and of the second moment.
        eps: added to the root.
        row_steps: correct each row of a sparse gradient by its own number of updates.
        rounding_seed: seed of the noise that rounds bfloat16 tables, see `RowOptimizer`.

    Raises:
        ValueError: lr, eps or rounding_seed is negative, or a beta is outside [0, 1); at `step`, a sparse gradient
            is not [N, D], or a parameter has both sparse and dense ones in turn; at `load_state_dict`, a tensor
            is missing or does not fit its parameter.
    """

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        *,
        row_steps: bool = False,
        rounding_seed: int = 0,
    ) -> None:
        for name, beta in zip(("beta1", "beta2"), betas, strict=True):
            if not 0 <= beta < 1:
                raise ValueError(f"{name} is {beta}, must be at least 0 and below 1")
        options = {"lr": lr, "betas": betas, "eps": eps, "row_steps": row_steps, "rounding_seed": rounding_seed}
        super().__init__(params, options)

    def _update_rows(self, p: torch.Tensor, grad: torch.Tensor, group: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        state, exp_avg, exp_avg_sq = self._advance(p, sparse=True)
        rate = group["lr"]
        if not group["row_steps"]:
            rate *= math.sqrt(1 - beta2 ** state["step"]) / (1 - beta1 ** state["step"])
        # the rule is not linear: it needs a row's sum
        for rows, values in row_pieces(*summed_rows(grad, exp_avg.dtype)):
            m = exp_avg.index_select(0, rows).lerp_(values, 1 - beta1)
            exp_avg.index_copy_(0, rows, m)
            v = exp_avg_sq.index_select(0, rows).mul_(beta2).addcmul_(values, values, value=1 - beta2)
            exp_avg_sq.index_copy_(0, rows, v)
            root = v.sqrt_().add_(group["eps"])
            if group["row_steps"]:
                m.mul_(self._row_correction(p, state, rows, beta1, beta2).to(m.dtype))
            changed = read_rows(p, rows).addcdiv_(m, root, value=-rate)
            write_rows(p, rows, changed, self._noise(p, values.shape, group))

    def _update_dense(self, params: list[torch.Tensor], grads: list[torch.Tensor], group: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        states, ms, vs = zip(*[self._advance(p, sparse=False) for p in params], strict=True)
        grads = widened(grads, ms)
        torch._foreach_lerp_(ms, grads, 1 - beta1)
        torch._foreach_mul_(vs, beta2)
        torch._foreach_addcmul_(vs, grads, grads, value=1 - beta2)
        roots = torch._foreach_sqrt(vs)
        torch._foreach_div_(roots, [math.sqrt(1 - beta2 ** state["step"]) for state in states])
        torch._foreach_add_(roots, group["eps"])
        torch._foreach_addcdiv_(params, ms, roots, [-(group["lr"] / (1 - beta1 ** state["step"])) for state in states])

    def _layout(self, p: torch.Tensor, state: dict[str, Any]) -> dict[str, tuple[str, tuple[torch.Size, ...]]]:
        layout = {"exp_avg": ("first moment", (p.shape,)), "exp_avg_sq": ("second moment", (p.shape,))}
        return layout | ({"row_steps": ("row counter", (p.shape[:1],))} if "row_steps" in state else {})

    def _advance(self, p: torch.Tensor, sparse: bool) -> tuple[dict[str, Any], torch.Tensor, torch.Tensor]:
        """(p's state with one step more, m, v), made if need be. Raises ValueError as `_state_of` does."""
        state = self._state_of(p, sparse)
        state["step"] = state.get("step", 0) + 1
        return state, state_zeros(state, "exp_avg", p.shape, p), state_zeros(state, "exp_avg_sq", p.shape, p)

    def _row_correction(
        self, p: torch.Tensor, state: dict[str, Any], rows: torch.Tensor, beta1: float, beta2: float
    ) -> torch.Tensor:
        """Count an update of `rows`; returns sqrt(1 - beta2^t) / (1 - beta1^t), [R, 1] in float64."""
        if "row_steps" not in state:
            state["row_steps"] = torch.zeros(p.shape[:1], dtype=torch.int32, device=p.device)
        steps = state["row_steps"].index_select(0, rows).add_(1)
        state["row_steps"].index_copy_(0, rows, steps)
        t = steps.double().unsqueeze(1)  # in float32, 1 - 0.999^1 would have three digits
        return (1 - beta2**t).sqrt_().div_(1 - beta1**t)
