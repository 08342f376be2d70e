"""Decay of the rows of tables that a step touches, apart from the gradient ("decoupled").

With theta_i row i, lr the step's rate, r_i the row's multiplier of it (1 without `optim.row_rate`) and I_i the number
of steps that have gone by without the row since it was last updated, row i loses a share of itself:

    weight decay    lr r_i X             AdamW (I. Loshchilov, F. Hutter, arXiv 1711.05101), on touched rows alone
    idle decay      min(1, alpha I_i)    AdamAR and AdagradAR (arXiv 2511.06374): rare rows are regularised more

A row that is updated in every step has I_i = 0. The paper starts its rows at zero, so that it does not matter there
what a row's first update takes from it; rows here start as drawn, and the first update takes nothing: I_i = 0. A row
whose state is forgotten (all its state set to 0) is new in that sense. As the paper decays rows when they are updated,
so does this: what a row has lost by idling shows after its next update, not in an evaluation before.

The paper's formula leaves open whether the gradient of that update is of the row before its decay or after it. `lost`
takes it for the former, which changes what an update leaves behind but not what the model sees of a row until then: at
a rare row's second visit that is all of its first sample. `at_lookup` decays before the row is read.

Legend: N rows of a parameter, R distinct touched rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

LAST_STEP = "last_step"  # of a parameter's state: [N] int32, the step of each row's last update; 0: never


@dataclass(frozen=True)
class RowDecay:
    """What touched rows lose in a step.

    Args:
        weight: X.
        idle: alpha.

    Raises:
        ValueError: one of them is negative or not finite.

    Example:
        >>> decay, state = RowDecay(weight=0.1, idle=0.25), {}
        >>> decay.lost(torch.tensor([0, 1]), 3, state, rate=0.5).tolist()  # neither row has had an update
        [0.05000000074505806, 0.05000000074505806]
        >>> _ = decay.lost(torch.tensor([0]), 3, state, rate=0.5)
        >>> decay.lost(torch.tensor([0, 1]), 3, state, rate=0.0).tolist()  # one step went by without row 1
        [0.0, 0.25]
    """

    weight: float = 0.0
    idle: float = 0.0

    def __post_init__(self) -> None:
        for name, value in (("weight", self.weight), ("idle", self.idle)):
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} decay of rows is {value}, must be finite and at least 0")

    def lost(self, rows: Tensor, count: int, state: dict[str, Any], rate: Tensor | float) -> Tensor:
        """Shares [R] of themselves, at most 1, that rows lose in the step that updates them; notes that update.

        Both decays together leave (1 - idle decay) (1 - weight decay) of a row.

        Args:
            rows: [R], distinct.
            count: N.
            state: the parameter's; `LAST_STEP` and `row_clock`, the number of its updates, are kept there.
            rate: lr r_i, [R] or one for all.
        """
        lost = (torch.ones(rows.shape, device=rows.device) * rate * self.weight).clamp(max=1.0)
        if not self.idle:
            return lost
        idle = (self.idle * idle_steps(rows, count, state)).clamp(max=1.0)
        return lost + idle * (1 - lost)  # not 1 - (1 - lost) (1 - idle), which rounds away what is small

    def at_lookup(self, p: Tensor, rows: Tensor, state: dict[str, Any]) -> None:
        """Take the idle decay of rows now, before they are read, so that their gradient is that of the decayed rows.

        The update that follows then finds I_i = 0. Until it comes, further calls take nothing.

        Args:
            p: [N, D]. rows: [L], may repeat. state: as in `lost`.
        """
        if not self.idle or LAST_STEP not in state:  # before the first update nothing has idled
            return
        last, done = state[LAST_STEP].index_select(0, rows), state["row_clock"]
        lost = (self.idle * torch.where(last > 0, done - last, 0)).clamp(max=1.0)
        p.index_copy_(0, rows, p.index_select(0, rows) * (1 - lost).unsqueeze(1).to(p.dtype))  # equal where repeated
        state[LAST_STEP].index_copy_(0, rows, torch.where(last > 0, done, 0).to(last.dtype))


def idle_steps(rows: Tensor, count: int, state: dict[str, Any]) -> Tensor:
    """I_i of the rows [R] that the next update touches, int32; notes that update in `state`, see `RowDecay.lost`."""
    now = state["row_clock"] = state.get("row_clock", 0) + 1
    if LAST_STEP not in state:
        state[LAST_STEP] = torch.zeros(count, dtype=torch.int32, device=rows.device)
    last = state[LAST_STEP].index_select(0, rows)
    state[LAST_STEP].index_fill_(0, rows, now)
    return torch.where(last > 0, now - 1 - last, 0)
