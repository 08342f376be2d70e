"""Id dropout: in training, some looked-up ids are replaced with their table's unknown id.

The unknown row is trained that way, on contexts of all kinds, and a model cannot rely on a single rare id: the
"corruption" that studies of the one-epoch phenomenon try (Z.-Y. Zhang et al., arXiv 2209.06053, whose public code has
it as a share of ids), and word dropout in language models (S. Bowman et al., arXiv 1511.06349).

Legend: B batch, T tables, L lookups.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_STREAM = 0x44524F50  # separates these draws from other users of the same seed


def drop_ids(ids: Tensor, offsets: Tensor | None, unknown: Sequence[int], share: float, where: Sequence[int]) -> Tensor:
    """Ids of which each is replaced with its table's unknown id with probability `share`, bag or not.

    The draw follows from `where` alone: no generator is touched, and a resumed run draws what it would have drawn.

    Args:
        ids: [B, T] without offsets, or the bags' [L]; on the CPU. Left as they are.
        offsets: None, or [T * B + 1], table by table, see `sources.Batch`.
        unknown: [T] each table's unknown id.
        share: 0 to 1; 0 returns `ids` itself.
        where: integers of at least 0, such as (seed, epoch, iteration).

    Raises:
        ValueError: a share outside 0 to 1, or ids that do not lie on the CPU.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"the share of dropped ids is {share}, must lie between 0 and 1")
    if not share:
        return ids
    if ids.device.type != "cpu":
        raise ValueError(f"ids are dropped on the CPU, before they move to a device: these are on {ids.device}")
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([_STREAM, *where])))
    dropped = torch.from_numpy(generator.random(ids.numel(), dtype=np.float32) < share).view(ids.shape)
    replacement = torch.tensor(list(unknown), dtype=ids.dtype)
    if offsets is not None:
        lengths = offsets.diff().view(len(unknown), -1).sum(dim=1)
        replacement = torch.repeat_interleave(replacement, lengths, output_size=len(ids))
    return torch.where(dropped, replacement, ids)
