"""Gradients of rows clipped by how often and how large the rows are: CowClip.

Legend: N rows of a parameter, D width, R distinct rows of the batch, L lookups of the batch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from optim.rows import summed_gradient


@torch.no_grad()
def clip_row_gradients(parameter: Tensor, lookups: Tensor, ratio: float, floor: float = 1e-5) -> None:
    """Clip the gradient of each row of a batch: CowClip of Z. Zheng et al., arXiv 2204.06240 (AAAI 2023), algorithm 1.

        g_i <- g_i min(1, c_i / ||g_i||),    c_i = count_i max(||w_i||, r sqrt(D) zeta) r

    with count_i the lookups of row i in the batch, r `ratio` and zeta `floor`. The form is that of the authors' code
    (bytedance/LargeBatchCTR, clip.py and train.py), whose gradients are of the mean loss and hold the L2 penalty's; it
    does not clip first-order weights. FBGEMM's COWCLIP has count_i max(r ||w_i||, lower bound) instead.

    Call it between `backward` (and `optim.penalty.add_row_penalty`) and the optimizer's `step`; any torch optimizer
    will do. The gradient is replaced by one with a row's sum in one place.

    Args:
        parameter: [N, D]; one without a sparse gradient is left as it is.
        lookups: [L] rows that the batch has looked up, a repeated one repeatedly: those that the gradient has.
        ratio: r; 0 changes nothing.
        floor: zeta; rows start small, and a row of zeros could never move without it.

    Raises:
        ValueError: ratio or floor is negative or not finite.
    """
    for name, value in (("ratio", ratio), ("floor", floor)):
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} of clipping rows is {value}, must be finite and at least 0")
    if not ratio or parameter.grad is None or not parameter.grad.is_sparse:
        return
    parameter.grad, _ = summed_gradient(parameter.grad)
    rows, values = parameter.grad._indices()[0], parameter.grad._values()
    counts = torch.zeros(len(rows), device=rows.device, dtype=values.dtype)
    place = torch.searchsorted(rows, lookups)  # the rows of a summed gradient ascend
    counts.index_add_(0, place, torch.ones(lookups.shape, device=rows.device, dtype=values.dtype))
    size = parameter.index_select(0, rows).to(values.dtype).norm(dim=1)
    limit = counts * size.clamp(min=ratio * math.sqrt(parameter.shape[1]) * floor) * ratio
    norm = values.norm(dim=1)
    # the same as min(1, limit / norm), but a gradient of zeros stays zero
    values.mul_((limit / torch.maximum(norm, limit).clamp(min=torch.finfo(values.dtype).tiny)).unsqueeze(1))
