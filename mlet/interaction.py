"""Pairwise products of a sample's vectors: dot products as DLRM has them (arXiv 1906.00091), elementwise ones pooled.

Legend: B samples, F vectors of a sample, D width, Q products kept of the F * F.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable


def pooled_products(vectors: Tensor) -> Tensor:
    """Sum of the elementwise products of all pairs i < j: [B, F, D] -> [B, D].

    .. math:: \\sum_{i < j} v_i \\circ v_j = \\tfrac12 \\Big[\\big(\\sum_i v_i\\big)^2 - \\sum_i v_i^2\\Big]

    Rendle 2010, "Factorization Machines", lemma 3.1: F vectors are read twice instead of F * F pairs.
    """
    return (vectors.sum(dim=1).square() - vectors.square().sum(dim=1)) / 2


def take_columns(values: Tensor, columns: Tensor) -> Tensor:
    """values[:, columns]: [B, N] and [Q] -> [B, Q]."""
    if values.element_size() == 2 and values.device.type == "cpu":  # index_select takes four times as long there
        return values.gather(1, columns.expand(len(values), -1))
    return values.index_select(1, columns)


class PairwiseDots(nn.Module):
    """Products v_i . v_j of all pairs i > j, row by row; with `lead` the first vector itself stands before them.

    Args:
        vectors: F.
        itself: products of a vector with itself too (i >= j).
        lead: put the first vector in front of the products.

    Shapes:
        [B, F, D] -> [B, Q], or [B, D + Q] with lead.
    """

    def __init__(self, vectors: int, itself: bool = False, lead: bool = True) -> None:
        super().__init__()
        self.vectors, self.itself, self.lead = vectors, itself, lead
        rows, columns = torch.tril_indices(vectors, vectors, offset=0 if itself else -1)
        self.pairs = len(rows)
        # where each kept product lies in the F * F, row by row, flat so that one index_select takes them
        self.register_buffer("_kept", rows * vectors + columns, persistent=False)
        place = torch.zeros(vectors, vectors, dtype=torch.int64)
        place[rows, columns] = place[columns, rows] = torch.arange(self.pairs)
        self.register_buffer("_place", place.flatten(), persistent=False)  # the other way round, both triangles

    def forward(self, every: Tensor) -> Tensor:
        """As in the class."""
        if torch.is_grad_enabled() and every.requires_grad and not torch.compiler.is_compiling():
            return _PairwiseDots.apply(every, self._kept, self._place, self.itself, self.lead)
        products = torch.bmm(every, every.transpose(1, 2)).flatten(1).index_select(1, self._kept)
        return torch.cat([every[:, 0], products], dim=1) if self.lead else products


class _PairwiseDots(torch.autograd.Function):
    """The same with one product backward: autograd's own takes two, adds them up and scatters into zeros first."""

    @staticmethod
    def forward(ctx: FunctionCtx, every: Tensor, kept: Tensor, place: Tensor, itself: bool, lead: bool) -> Tensor:
        precision = torch.get_autocast_dtype(every.device.type)
        if torch.is_autocast_enabled(every.device.type):
            every = every.to(precision)
        ctx.save_for_backward(every, place)
        ctx.itself, ctx.lead = itself, lead
        # a copy of the transpose: batched products of two plain matrices take half the time on the CPU
        products = take_columns(torch.bmm(every, every.transpose(1, 2).contiguous()).flatten(1), kept)
        return torch.cat([every[:, 0], products], dim=1) if lead else products

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        every, place = ctx.saved_tensors
        width = every.shape[2] if ctx.lead else 0
        of_products = take_columns(grad[:, width:], place).view(len(grad), every.shape[1], -1)
        diagonal = of_products.diagonal(dim1=1, dim2=2)
        diagonal.mul_(2) if ctx.itself else diagonal.zero_()
        of_every = torch.bmm(of_products, every)
        if ctx.lead:
            of_every[:, 0] += grad[:, :width]
        return of_every, None, None, None, None
