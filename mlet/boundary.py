"""Training loss on both sides of an epoch boundary: does it jump when the rows come round again?

Over-fitting of sparse ids shows where one epoch ends and the next begins (arXiv 2209.06053, 2505.05605). The mean
loss of an epoch's last batches is compared with that of the next one's first. Every epoch has the same row order, so
that the first batches are rows that the epoch before began with: a fall says that they are known by heart, a rise that
what was learned since does not serve them.

Losses stay on the device, each in a place of its own, so that a batch that a resumed run repeats overwrites itself.

W batches of a window; a buffer is [2, W]: loss and samples of each batch.
"""

import math
from typing import Any

import torch
from torch import Tensor

SHARE = 0.02  # of an epoch's batches


class EpochBoundary:
    """Keeps the losses of the first and last batches of an epoch, and compares them across a boundary.

    Args:
        batches: of an epoch
        device: where the losses are
        share: of the batches that make a window; at least one batch does

    Raises:
        ValueError: share outside 0 to 1
    """

    def __init__(self, batches: int, device: torch.device | str = "cpu", share: float = SHARE) -> None:
        if not 0 < share <= 1:
            raise ValueError(f"a window of {share} of an epoch's batches: give a share above 0, at most 1")
        self.batches, self.window = batches, max(1, round(share * batches))
        self._first, self._last = (torch.zeros(2, self.window, dtype=torch.float64, device=device) for _ in range(2))
        self._before = torch.full((), math.nan, dtype=torch.float64, device=device)  # end of the epoch before
        self._pending: Tensor | None = None  # [2], before and after: complete, but not read yet

    def add(self, number: int, loss: Tensor, samples: int) -> None:
        """Note a batch's mean loss, a scalar tensor; nothing waits for it.

        Args:
            number: of the batch in its epoch, from 0
            loss: mean over the batch's samples
            samples: the mean's weight
        """
        if number < self.window:
            _put(self._first, number, loss, samples)
            if number == self.window - 1:
                # kept now: in an epoch of one batch the same batch ends the epoch, too
                self._pending = torch.stack([self._before, _mean(self._first)])
        if number >= self.batches - self.window:
            _put(self._last, number - (self.batches - self.window), loss, samples)
            if number == self.batches - 1:
                self._before = _mean(self._last)

    def take(self) -> dict[str, Any] | None:
        """What a boundary passed since the last call has shown; None if there was none. Waits for the device.

        Returns:
            last, first: mean loss per sample before and after the boundary
            jump_percent: 100 * (first - last) / last; None where last is 0
            batches: how many make each mean
        """
        if self._pending is None:
            return None
        (before, after), self._pending = self._pending.tolist(), None
        if math.isnan(before):  # the first epoch, or one whose beginning was not seen
            return None
        jump = 100 * (after - before) / before if before else None
        return {"last": before, "first": after, "jump_percent": jump, "batches": self.window}

    def state_dict(self) -> dict[str, Tensor]:
        """For a checkpoint: call `take` before. The tensors are the live ones."""
        return {"first": self._first, "last": self._last, "before": self._before}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take up a saved state. Raises ValueError where its epochs had windows of another size."""
        if state["first"].shape != self._first.shape:
            saved = state["first"].shape[1]
            raise ValueError(
                f"the saved losses are of {saved} batches around an epoch boundary, here it is {self.window}"
            )
        self._first.copy_(state["first"])
        self._last.copy_(state["last"])
        self._before, self._pending = state["before"].to(self._before), None


def _put(buffer: Tensor, place: int, loss: Tensor, samples: int) -> None:
    buffer[0, place] = loss.detach()
    buffer[1, place] = samples


def _mean(buffer: Tensor) -> Tensor:
    return (buffer[0] * buffer[1]).sum() / buffer[1].sum()
