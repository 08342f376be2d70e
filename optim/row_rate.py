"""Learning rates that depend on how often a row is looked up: the frequency-adaptive rate and its rivals.

A rule's step of row i is multiplied with r_i, a function of the row's frequency F_i and the highest one in its table:

    log             log(F_i + 1) / log(max F + 1)            Pinterest's FAL (arXiv 2505.05605): rare rows move less
    linear, sqrt    F_i / max F, and its root
    tail-decrease   max(0.1, ((F_i + 1) / max F)^p)          FBGEMM's TAIL_ID_LR_DECREASE, p = 0.1
    tail-increase   min(10, (max F / (F_i + 1))^p)           FBGEMM's TAIL_ID_LR_INCREASE: rare rows move more
    counter         1 / sqrt(F_i)                            CF-SGD (arXiv 2110.04844): the same direction

Frequencies are counted while training, or given; a halflife forgets old lookups. No code of the first is published: its
formula is as a reading note has it, counts are lookups here, and max F is at least 1. Counts are float32: without a
halflife they stop at 2^24, which only the most frequent rows of a long run reach.

Legend: N rows of a parameter, L lookups of a step, R distinct rows, T tables that lie one behind another in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

KINDS = ("log", "linear", "sqrt", "tail-decrease", "tail-increase", "counter")
LARGEST_EXPONENT = 60.0  # of the growing weight of a lookup; beyond it all counts are scaled back


class RowRate:
    """Frequencies of a parameter's rows and the multipliers that follow from them.

    With a halflife of h steps a lookup counts 2^(-age / h). Instead of aging all N counts at every step, the newest
    lookup weighs 2^(step / h) and frequencies are read relative to that: the highest of a table then only ever grows.

    Args:
        kind: one of `KINDS`.
        first_rows: [T] first row of each table, ascending, the first 0.
        rows: N.
        halflife: in steps; 0: nothing is forgotten.
        counts: frequencies [N] to begin with; None: all 0.
        online: count lookups; False: `counts` stay as they are.
        power: p.

    Raises:
        ValueError: an unknown kind, a negative halflife or power, counts that do not fit or are missing.

    Example:
        >>> rate = RowRate("log", [0], rows=4)
        >>> rate.count(torch.tensor([0, 0, 0, 1]))
        >>> [round(x, 3) for x in rate(torch.tensor([0, 1, 2])).tolist()]
        [1.0, 0.5, 0.0]
    """

    def __init__(
        self,
        kind: str,
        first_rows: Sequence[int],
        rows: int,
        *,
        halflife: float = 0.0,
        counts: Tensor | None = None,
        online: bool = True,
        power: float = 0.1,
        device: torch.device | str = "cpu",
    ) -> None:
        if kind not in KINDS:
            raise ValueError(f"frequency-adaptive rate {kind!r} is not known; choose from {', '.join(KINDS)}")
        if not (halflife >= 0 and power >= 0):
            raise ValueError(f"halflife={halflife}, power={power}: must be at least 0")
        if counts is None and not online:
            raise ValueError("rates by given frequencies need them, one a row")
        if counts is not None and (counts.shape != (rows,) or not bool((counts >= 0).all())):
            raise ValueError(f"frequencies of shape {list(counts.shape)} for {rows} rows, all at least 0, are needed")
        self.kind, self.halflife, self.online, self.power = kind, float(halflife), online, power
        self.first_rows = torch.tensor(list(first_rows), device=device)
        self.counts = (
            torch.zeros(rows, device=device) if counts is None else counts.to(device, torch.float32, copy=True)
        )
        self.exponent = 0.0  # a lookup now weighs 2^exponent
        self.highest = torch.zeros(len(self.first_rows), device=device)
        self._raise_highest(torch.arange(rows, device=device))

    def count(self, rows: Tensor) -> None:
        """Count one step's lookups, [L] rows, repeated ones repeatedly. Given frequencies stay as they are."""
        if not self.online:
            return
        if self.halflife:
            self.exponent += 1 / self.halflife
            if self.exponent > LARGEST_EXPONENT:
                self._scale_back()
        weight = torch.full(rows.shape, 2.0**self.exponent, device=rows.device)
        self.counts.index_add_(0, rows, weight)
        self._raise_highest(rows)

    def __call__(self, rows: Tensor) -> Tensor:
        """Multipliers [R] of the steps of some rows."""
        scale = 2.0**-self.exponent
        frequency = self.counts.index_select(0, rows) * scale
        highest = (self.highest * scale).clamp(min=1.0)[self._table_of(rows)]
        if self.kind == "log":
            return torch.log1p(frequency) / torch.log1p(highest)
        if self.kind == "linear":
            return frequency / highest
        if self.kind == "sqrt":
            return (frequency / highest).sqrt()
        if self.kind == "tail-decrease":
            return ((frequency + 1) / highest).pow(self.power).clamp(0.1, 1.0)
        if self.kind == "tail-increase":
            return (highest / (frequency + 1)).pow(self.power).clamp(1.0, 10.0)
        return frequency.clamp(min=1.0).rsqrt()

    def state_dict(self) -> dict[str, Tensor | float]:
        """What a checkpoint keeps."""
        return {"counts": self.counts, "highest": self.highest, "exponent": self.exponent}

    def load_state_dict(self, state: dict[str, Tensor | float]) -> None:
        """Take up a state. Raises ValueError where it is of another parameter."""
        for name in ("counts", "highest"):
            own = getattr(self, name)
            if state[name].shape != own.shape:
                raise ValueError(f"frequencies: {name} of shape {list(state[name].shape)} for {list(own.shape)}")
            own.copy_(state[name])
        self.exponent = float(state["exponent"])

    def _table_of(self, rows: Tensor) -> Tensor:
        return torch.bucketize(rows, self.first_rows, right=True) - 1

    def _raise_highest(self, rows: Tensor) -> None:
        self.highest.scatter_reduce_(0, self._table_of(rows), self.counts.index_select(0, rows), "amax")

    def _scale_back(self) -> None:
        factor = 2.0 ** -math.floor(self.exponent)
        self.counts *= factor
        self.highest *= factor
        self.exponent -= math.floor(self.exponent)
