"""Several update rules in one model as one optimizer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch

from optim.row_decay import RowDecay
from optim.row_optimizer import RowOptimizer
from optim.row_rate import RowRate


class Combined(torch.optim.Optimizer):
    """Optimizers that step one after another, each on parameters of its own.

    To schedules and checkpoints it is one optimizer: `param_groups` are the parts' groups in turn, and `state` is one
    dictionary that all of them share.

    Args:
        parts: each of parameters that no other has.

    Raises:
        ValueError: a parameter has two optimizers.

    Example:
        >>> dense, rows = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(3, 2))
        >>> optimizer = Combined([optim.Adam([dense]), optim.RowWiseAdagrad([rows])])  # doctest: +SKIP
    """

    def __init__(self, parts: Sequence[RowOptimizer]) -> None:
        self.parts = tuple(parts)
        super().__init__([group for part in self.parts for group in part.param_groups], {})  # refuses repeated ones
        self._share()

    def _share(self) -> None:
        """Let the parts' groups and state be this optimizer's."""
        self.param_groups = [group for part in self.parts for group in part.param_groups]
        self.state = defaultdict(dict, {p: state for part in self.parts for p, state in part.state.items()})
        for part in self.parts:
            part.state = self.state

    @torch.no_grad()
    def step(self, closure: Callable[[], torch.Tensor] | None = None) -> torch.Tensor | None:
        """Step every part. Returns the closure's loss, if there is a closure. Raises what the parts raise."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state bit for bit, part by part.

        Raises:
            ValueError: another number of groups, or a state that does not fit a part; those before it are loaded then.
        """
        groups = list(state_dict["param_groups"])
        if len(groups) != len(self.param_groups):
            raise ValueError(f"{len(groups)} groups of parameters were saved, there are {len(self.param_groups)}")
        for part in self.parts:
            own, groups = groups[: len(part.param_groups)], groups[len(part.param_groups) :]
            indices = {index for group in own for index in group["params"]}
            state = {index: values for index, values in state_dict["state"].items() if index in indices}
            part.load_state_dict({"state": state, "param_groups": own})
        self._share()

    def set_row_rate(self, p: torch.Tensor, rate: RowRate) -> None:
        """As `RowOptimizer.set_row_rate`, of the part that has `p`."""
        self._part_of(p).set_row_rate(p, rate)

    def set_row_decay(self, p: torch.Tensor, decay: RowDecay) -> None:
        """As `RowOptimizer.set_row_decay`, of the part that has `p`."""
        self._part_of(p).set_row_decay(p, decay)

    def decay_idle_rows(self, p: torch.Tensor, rows: torch.Tensor) -> None:
        """As `RowOptimizer.decay_idle_rows`, of the part that has `p`."""
        self._part_of(p).decay_idle_rows(p, rows)

    def _part_of(self, p: torch.Tensor) -> RowOptimizer:
        for part in self.parts:
            if any(p is own for group in part.param_groups for own in group["params"]):
                return part
        raise ValueError(f"a parameter of shape {list(p.shape)} is in none of the combined optimizers")
