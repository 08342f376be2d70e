"""Lookups whose gradient is one summed row for each distinct row of the batch.

`nn.Embedding(sparse=True)` hands out one gradient row for each lookup, and every optimizer then has to add up or to
write the repeated ones. Here the sum is made at once, by the kernel that pools embedding bags, which uses all cores;
the gradient is a coalesced torch sparse tensor. (On CUDA that would make every step wait; see `RowGroup._plans`.)

Legend: L lookups, U distinct rows, R rows of the weight, P parts, B samples, K stored width, d projected width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from mlet.kept_memory import LARGE, KeptMemory, rows_at_a_time
from mlet.row_plan import BLOCK, plan_blocks, plan_rows


class RowLookup(torch.autograd.Function):
    """weight[rows], float32."""

    @staticmethod
    def forward(ctx: FunctionCtx, weight: Tensor, rows: Tensor, kept: KeptMemory | None = None) -> Tensor:
        """Vectors [*, K] of rows [*]. A large gradient is written to `kept`."""
        ctx.rows, ctx.shape, ctx.kept = rows, weight.shape, kept
        return F.embedding(rows, weight).float()

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None, None]:
        """Gradient of the weight [R, K]: coalesced on the CPU, a row a lookup on CUDA, where nothing shall wait."""
        rows, grad = ctx.rows.flatten(), grad.reshape(-1, ctx.shape[1])
        if grad.is_cuda:
            return torch.sparse_coo_tensor(rows.unsqueeze(0), grad, ctx.shape, check_invariants=False), None, None
        plan = plan_rows(rows, ctx.shape[0])
        return sparse_rows(plan.rows, sum_rows(grad, plan.order, plan.starts, ctx.kept), ctx.shape), None, None


class BagLookup(torch.autograd.Function):
    """Pooled rows of bags, float32; mode "sum" or "mean"."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, weight: Tensor, rows: Tensor, offsets: Tensor, mode: str, kept: KeptMemory | None = None
    ) -> Tensor:
        """Pooled vectors [bags, K] of rows [L] and offsets [bags + 1]. A large gradient is written to `kept`."""
        plan = plan_rows(rows, weight.shape[0])
        ctx.plan, ctx.offsets, ctx.mode, ctx.shape, ctx.kept = plan, offsets, mode, weight.shape, kept
        if weight.dtype != torch.float32:  # a bag is added up in float32, whatever its rows are stored in
            weight, rows = weight.index_select(0, plan.rows).float(), plan.slot_of_lookup()
        return F.embedding_bag(rows, weight, offsets, mode=mode, include_last_offset=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        """Gradient of the weight [R, K], coalesced."""
        lengths = ctx.offsets.diff()
        if ctx.mode == "mean":
            grad = grad / lengths.clamp(min=1).unsqueeze(1)
        bags = torch.arange(len(lengths), device=grad.device)
        bag_of_lookup = torch.repeat_interleave(bags, lengths, output_size=len(ctx.plan.order))
        values = sum_rows(grad.contiguous(), bag_of_lookup[ctx.plan.order], ctx.plan.starts, ctx.kept)
        return sparse_rows(ctx.plan.rows, values, ctx.shape), None, None, None, None


class ProjectedLookup(torch.autograd.Function):
    """weight[rows] times the matrix of the row's part: each distinct row is gathered and projected once.

    The product runs in the autocast precision where autocast is on.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, weight: Tensor, matrices: Tensor, rows: Tensor, first_row: Tensor) -> Tensor:
        """Vectors [*, d] of rows [*], matrices [P, K, d] and the first row of each part [P]."""
        plan = plan_rows(rows.flatten(), weight.shape[0])
        blocks = plan_blocks(plan, first_row)
        device = weight.device.type
        precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
        stored = weight.index_select(0, blocks.rows).view(-1, BLOCK, weight.shape[1]).to(precision)
        matrix = matrices.to(precision).index_select(0, blocks.part)
        projected = torch.bmm(stored, matrix).flatten(0, 1).float()
        ctx.save_for_backward(stored, matrix)
        ctx.plan, ctx.blocks, ctx.shape, ctx.parts = plan, blocks, weight.shape, len(first_row)
        return F.embedding(blocks.slot_of_lookup.view(rows.shape), projected)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """Gradients of the weight [R, K], coalesced, and of the matrices [P, K, d]."""
        plan, blocks = ctx.plan, ctx.blocks
        stored, matrix = ctx.saved_tensors
        summed = sum_rows(grad.reshape(-1, grad.shape[-1]), plan.order, blocks.starts)
        summed = summed.view(len(matrix), BLOCK, -1).to(stored.dtype)
        of_matrix = torch.bmm(stored.transpose(1, 2), summed).float()
        of_matrices = of_matrix.new_zeros(ctx.parts, *of_matrix.shape[1:]).index_add_(0, blocks.part, of_matrix)
        of_rows = torch.bmm(summed, matrix.transpose(1, 2)).flatten(0, 1).index_select(0, blocks.slots).float()
        return sparse_rows(plan.rows, of_rows, ctx.shape), of_matrices, None, None


def sum_rows(values: Tensor, order: Tensor, starts: Tensor, kept: KeptMemory | None = None) -> Tensor:
    """Sums [len(starts) - 1, K] of values[order] over the ranges that begin at `starts`; an empty range is zero.

    A large result lies in `kept`, if there is one.
    """
    count, width = len(starts) - 1, values.shape[1]
    if kept is None or values.is_cuda or 4 * count * width < LARGE:
        return F.embedding_bag(order, values, starts, mode="sum", include_last_offset=True)
    sums, step = kept.take(count, width), rows_at_a_time(width)
    for first in range(0, count, step):
        bounds = starts[first : first + step + 1]
        part = order[bounds[0] : bounds[-1]]
        sums[first : first + step] = sum_rows(values, part, bounds - bounds[0])
    return sums


def sparse_rows(rows: Tensor, values: Tensor, shape: torch.Size) -> Tensor:
    """A coalesced sparse [R, K] of ascending distinct rows [U] and their values [U, K]."""
    return torch.sparse_coo_tensor(rows.unsqueeze(0), values, shape, is_coalesced=True, check_invariants=False)
