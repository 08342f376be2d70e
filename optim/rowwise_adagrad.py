"""Adagrad with one accumulator per embedding row.

Legend: N rows, D dim, R touched rows.
"""

from __future__ import annotations

from typing import Any

import torch

from optim.adagrad import Adagrad
from optim.row_optimizer import state_zeros


class RowWiseAdagrad(Adagrad):
    """Adagrad that keeps a single number per row of a parameter with sparse gradients.

    Adagrad is J. Duchi, E. Hazan, Y. Singer, "Adaptive Subgradient Methods for Online Learning and Stochastic
    Optimization", JMLR 12 (2011). The row-wise form is what the DLRM driver calls `rwsadagrad` and FBGEMM
    `EXACT_ROWWISE_ADAGRAD` (D. Mudigere et al., arXiv 2104.05158). With g[n] the sum of row n's gradients in
    a step, for each row n that the sparse gradient touches:

        a[n] += mean_d g[n, d]^2
        w[n] -= lr * g[n] / (sqrt(a[n]) + eps)

    Rows that it does not touch stay as they are. A dense gradient has an accumulator per element: a += g^2
    and w -= lr * g / (sqrt(a) + eps).

    The accumulator is `state[p]["sum"]`, made at p's first gradient: [N] if that is sparse, of p's shape if
    dense; float32, or p's dtype where that is wider.

    Arguments and errors are those of `Adagrad`.
    """

    def _layout(self, p: torch.Tensor, state: dict[str, Any]) -> dict[str, tuple[str, tuple[torch.Size, ...]]]:
        return {"sum": ("accumulator", (p.shape[:1], p.shape))}

    def _accumulator(self, p: torch.Tensor, sparse: bool) -> torch.Tensor:
        shape = p.shape[:1] if sparse else p.shape
        accumulator = state_zeros(self.state[p], "sum", shape, p)
        if accumulator.shape != shape:  # the shape tells the kind of gradients that p had
            raise ValueError(
                f"a parameter of shape {list(p.shape)} had an accumulator of shape "
                f"{list(accumulator.shape)} and now needs {list(shape)}: "
                "its gradients must stay sparse or stay dense"
            )
        return accumulator

    def _accumulate(self, accumulator: torch.Tensor, rows: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Add the mean squares of values [R, D] to the accumulators of rows [R]; returns a copy of these, [R, 1]."""
        total = accumulator.index_select(0, rows).add_(values.square().mean(dim=1))
        accumulator.index_copy_(0, rows, total)
        return total.unsqueeze(1)
