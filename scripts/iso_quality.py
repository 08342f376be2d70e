"""How much narrower tables may be at equal quality: the width at which single layers reach a rival's AUC, over its own.

Single layers of several widths make a curve, AUC against log2 d, straight between its points. A rival of width d0 is
worth the smallest width d at which the curve reaches the rival's mean AUC, and its reduction is d / d0. The interval
holds the widths at which the paired difference (rival minus curve, seed by seed) does not differ from zero by
Student's test at 95 %, from the first of them to where the curve is first ahead for certain. Where a curve ends before
it reaches the rival, only a bound is known.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

STEP = 0.005  # of log2 d


@dataclass(frozen=True)
class Reduction:
    """A factor and the ends of its interval; with one seed there is no interval.

    Attributes:
        factor, low, high: d / d0; infinite beyond the curve's last width, zero before its first.
        first, last: the curve's first and last width over d0, the bounds of what can be said.
    """

    factor: float
    low: float | None
    high: float | None
    first: float
    last: float

    def __str__(self) -> str:
        text = self._one(self.factor)
        return text if self.low is None else f"{text} [{self._one(self.low)}, {self._one(self.high)}]"

    def _one(self, factor: float) -> str:
        if factor == np.inf:
            return f">{self.last:g}"
        return f"<={self.first:.2g}" if factor == 0 else f"{factor:.2g}"

    @property
    def is_reached(self) -> bool:
        """Whether the curve reaches the rival within its widths, and not at its first already."""
        return 0 < self.factor < np.inf

    @property
    def at_least(self) -> float:
        """The factor, or the bound that is known where it is not reached."""
        return min(max(self.factor, self.first), self.last)


def reduction(curve: Mapping[int, Sequence[float]], dim: int, aucs: Sequence[float]) -> Reduction:
    """The reduction of a rival of width `dim` against single layers.

    Args:
        curve: width -> AUC by seed; at least two widths.
        dim: the rival's width d0.
        aucs: the rival's AUC by seed, the same seeds in the same order.

    Raises ValueError for less than two widths, or other numbers of seeds.
    """
    widths = sorted(curve)
    if len(widths) < 2 or any(len(curve[width]) != len(aucs) for width in widths):
        raise ValueError(f"a curve needs two widths and the rival's {len(aucs)} seeds: {dict(curve)}")
    places = np.log2(widths)
    grid = np.append(np.arange(places[0], places[-1], STEP), places[-1])
    singles = [np.interp(grid, places, [curve[width][seed] for width in widths]) for seed in range(len(aucs))]
    differences = np.array(aucs)[:, None] - np.array(singles)  # [seeds, grid]
    mean = differences.mean(0)

    def crossing(lead: np.ndarray) -> float:
        """The factor where `lead` first falls to zero; infinite where it never does, zero where it starts below."""
        if lead.min() > 0:
            return np.inf
        at = int((lead <= 0).argmax())
        if at == 0:
            return 0.0
        part = lead[at - 1] / (lead[at - 1] - lead[at])
        return float(2 ** (grid[at - 1] + part * (grid[at] - grid[at - 1])) / dim)

    bounds = widths[0] / dim, widths[-1] / dim
    # the curve's own first width is a factor that is reached when the rival is no worse there
    factor = crossing(mean) if mean[0] != 0 else bounds[0]
    if len(aucs) == 1:
        return Reduction(factor, None, None, *bounds)
    half = stats.t.ppf(0.975, len(aucs) - 1) * differences.std(0, ddof=1) / len(aucs) ** 0.5
    return Reduction(factor, crossing(mean - half), crossing(mean + half), *bounds)


def average(reductions: Sequence[Reduction]) -> str:
    """Geometric mean; a lower bound where some are not reached."""
    values = [each.at_least for each in reductions]
    sign = ">= " if all(each.factor for each in reductions) else "~ "
    if all(each.is_reached for each in reductions):
        sign = ""
    return f"{sign}{statistics.geometric_mean(values):.2g}"
