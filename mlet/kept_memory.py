"""Memory that results of many MB are written to, step after step.

A new block of that size comes from the system, which zeroes its pages one by one as they are first touched, and goes
back to it when it is freed. Of a step whose gradient has 390 MB (1.5 million distinct rows of 256 bytes) that was a
third. A block that stays with the process costs nothing more.
"""

from __future__ import annotations

import torch
from torch import Tensor

LARGE = 1 << 25  # bytes: glibc's malloc keeps smaller blocks for itself
CHUNK = 1 << 22  # bytes: of what is computed at a time on the way to a large result, so that it stays in the cache


class KeptMemory:
    """One block of float32, given out again once nobody holds what it was given out for."""

    def __init__(self) -> None:
        self._block = torch.empty(0)

    def take(self, rows: int, width: int) -> Tensor:
        """Uninitialised [rows, width], of new memory if the block is too small or still held."""
        needed = rows * width
        if len(self._block) < needed or self._is_held():
            self.clear()  # first: not both at a time
            self._block = torch.empty(needed + needed // 8)  # steps differ a little; untouched pages take no memory
        return self._block[:needed].view(rows, width)

    def clear(self) -> None:
        """Give the memory back, or leave it to those who hold it."""
        self._block = torch.empty(0)

    def _is_held(self) -> bool:
        """Whether a tensor beside the block itself lies in it. Sparse tensors do not show as views, so count."""
        storage = self._block.untyped_storage()
        return torch._C._storage_Use_Count(storage._cdata) > 2  # the block's and `storage`

    def __reduce__(self) -> tuple[type[KeptMemory], tuple[()]]:
        return KeptMemory, ()  # a copy of a model starts with none


def rows_at_a_time(width: int) -> int:
    """Rows of a chunk of float32."""
    return max(1, CHUNK // (4 * width))
