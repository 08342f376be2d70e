"""Reading and writing the rows that a sparse gradient touches.

Rows are distinct once a row's gradients are summed, so that read (`index_select`), change and write (`index_copy_`)
is exact, on the CPU several times faster than sparse arithmetic on whole tables, and on CUDA free of
synchronisation. Tables may be stored in bfloat16: arithmetic is in float32 and the result is rounded
stochastically, because a nearest rounding would lose every update smaller than half a unit in the last place
(S. Gupta et al., "Deep Learning with Limited Numerical Precision", ICML 2015).

Legend: N rows, D dim, R distinct touched rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

_LOW_BITS = 16  # of a float32 that a bfloat16 lacks
_LARGE, _PIECE = 1 << 25, 1 << 22  # bytes of values: from which on they are cut, and into what


def check_row_gradient(grad: torch.Tensor) -> None:
    """Refuse a sparse gradient that is not [N, D] with one sparse and one dense dimension.

    Raises:
        ValueError: it is not.
    """
    if grad.sparse_dim() != 1 or grad.dense_dim() != 1:
        raise ValueError(
            f"a sparse gradient must be [N, D] with sparse rows; this one, of shape {list(grad.shape)}, "
            f"has {grad.sparse_dim()} sparse and {grad.dense_dim()} dense dimensions"
        )


def mark_if_summed(grad: torch.Tensor) -> None:
    """Mark a sparse gradient on the CPU as coalesced if its rows are distinct and ascend.

    Ours are, see mlet/row_lookup.py, but autograd forgets it on the way to `Tensor.grad`; and what is not marked is
    sorted and added up once more (a third of a step of row-wise Adagrad with 1.5 million distinct rows) or, by SGD,
    added to the table on one core.
    """
    if grad.is_cuda or grad.is_coalesced():
        return
    rows = grad._indices()[0]
    if bool((rows[1:] > rows[:-1]).all()):
        grad._coalesced_(True)


def wide_dtype(p: torch.Tensor) -> torch.dtype:
    """The dtype of arithmetic on `p` and of its optimizer state: float32, or p's where that is wider."""
    return torch.promote_types(p.dtype, torch.float32)


def summed_rows(grad: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """(distinct rows [R], the sum of each row's gradients [R, D] in `dtype`) of a sparse gradient.

    The values may be the gradient's own: they are not to be changed in place. A gradient that is marked as
    coalesced is taken as it is. Any other is coalesced on the CPU; on CUDA, where the number of distinct rows is not
    known to the processor, R is the number of all its rows: those that are left over repeat the last row and its sum,
    so that whatever is computed and written for them is what is written for it.
    """
    grad = grad.to(dtype)  # first: sums in bfloat16 would round at every addition
    if waits_if_coalesced(grad):
        rows, sums, place = sums_in_place(grad._indices()[0], grad._values())
        return rows, sums if place is None else sums.index_select(0, place)
    grad = grad.coalesce()
    return grad.indices()[0], grad.values()


def row_pieces(rows: torch.Tensor, values: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Distinct rows [R] and their values [R, D], on the CPU in pieces whose copies of rows and state stay in the cache.

    A rule works row by row, so that it does not matter in how many pieces. As one, a large gradient would be copied
    several times over: memory, and pages that the system has to make anew in each step.
    """
    if values.is_cuda or values.numel() * values.element_size() < _LARGE:
        return iter([(rows, values)])
    step = max(1, _PIECE // (values.shape[1] * values.element_size()))
    return zip(rows.split(step), values.split(step), strict=True)


def summed_gradient(grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(the same gradient with a row's sum in one place, which of its places hold one: bool [R, 1], None for all).

    Coalesced on the CPU. On CUDA as many places as there were: those that are left over hold zeros of the last row.
    """
    mark_if_summed(grad)
    if not waits_if_coalesced(grad):
        return grad.coalesce(), None
    rows, sums, place = sums_in_place(grad._indices()[0], grad._values())
    summed = torch.sparse_coo_tensor(rows.unsqueeze(0), sums, grad.shape, check_invariants=False)
    return summed, None if place is None else (torch.arange(len(rows), device=rows.device) == place).unsqueeze(1)


def waits_if_coalesced(grad: torch.Tensor) -> bool:
    """Whether the processor would have to wait for the number of distinct rows."""
    return grad.is_cuda and not grad.is_coalesced()


def sums_in_place(rows: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Distinct rows, ascending, and the sums of their values, in as many places as were given.

    Args:
        rows: [L], repeated in any order. values: [L, D].

    Returns:
        rows [L]: behind the distinct ones the last is repeated. sums [L, D]: zeros there. place [L]: of each row's
        sum, itself but for the places behind; None where L is 0.
    """
    if not len(rows):
        return rows, values, None
    ascending, order = torch.sort(rows)
    is_new = torch.ones_like(ascending, dtype=torch.bool)
    torch.ne(ascending[1:], ascending[:-1], out=is_new[1:])
    place = is_new.cumsum(0) - 1
    sums = torch.zeros_like(values).index_add_(0, place, values.index_select(0, order))
    distinct = ascending[-1:].expand(len(rows)).scatter(0, place, ascending)
    return distinct, sums, torch.arange(len(rows), device=rows.device).minimum(place[-1])


def read_rows(p: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """A copy [R, D] of rows of `p` [N, D], in float32 or p's dtype where that is wider."""
    return p.index_select(0, rows).to(wide_dtype(p))


def write_rows(p: torch.Tensor, rows: torch.Tensor, values: torch.Tensor, noise: torch.Tensor | None = None) -> None:
    """Put `values` [R, D] into the distinct rows of `p` [N, D].

    Args:
        p: the table.
        rows: [R] int64.
        values: [R, D] in `wide_dtype(p)`.
        noise: for a bfloat16 table, `rounding_noise` of the shape of `values`; None rounds to nearest.
    """
    values = values if noise is None else round_stochastically(values, noise)
    p.index_copy_(0, rows, values.to(p.dtype))


def round_stochastically(values: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """float32 `values` as bfloat16, rounded up or down so that the mean over the noise is the value.

    Uniform noise in the 16 bits that bfloat16 lacks carries into those it has with a probability equal to the
    dropped fraction. A value that bfloat16 can hold stays as it is, and so do infinities and NaN.

    Args:
        values: float32, any shape.
        noise: int32 of the same shape, uniform on 0 ... 65535.
    """
    rounded = values.view(torch.int32).add(noise).bitwise_and_(-1 << _LOW_BITS).view(torch.float32)
    # the carry would turn a NaN into -0; an infinity has no low bits and takes no carry
    return torch.where(values.isnan(), values, rounded).to(torch.bfloat16)


def rounding_noise(shape: Sequence[int], device: torch.device, seed: Sequence[int]) -> torch.Tensor:
    """int32 noise for `round_stochastically`: the same for the same seed, shape and type of device.

    Args:
        shape: of the noise.
        device: where the noise is made; neither it nor the CPU waits for the other.
        seed: integers of at least 0; a different sequence gives independent noise.
    """
    if device.type != "cpu":
        number = int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0])
        generator = torch.Generator(device).manual_seed(number)
        return torch.randint(1 << _LOW_BITS, shape, generator=generator, device=device, dtype=torch.int32)
    count = int(np.prod(shape))
    # raw 64-bit draws give four each: over 10x faster than torch.randint on the CPU
    draws = np.random.PCG64(np.random.SeedSequence(seed)).random_raw(-(-count // 4))
    return torch.from_numpy(draws.view(np.uint16)[:count].astype(np.int32)).view(tuple(shape))
