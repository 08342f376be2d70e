"""Grids of table rates that grow where the best lies at their end: a rival's grid has to reach its optimum."""

from __future__ import annotations

from collections.abc import Sequence

RATE = "--emb-learning-rate-multiplier"


def parts_of(setting: str) -> tuple[float | None, str]:
    """The table rate that a setting begins with, and its other flags."""
    first, blank, others = setting.partition(" ")
    flag, _, value = first.partition("=")
    return (float(value), blank + others) if flag == RATE else (None, setting)


def beyond_the_end(settings: Sequence[str], best: str) -> str | None:
    """The rate as far beyond the best as the next one lies before it, among settings that are otherwise alike.

    Nothing where the best is not at their end, or the settings are no rates.
    """
    rate, others = parts_of(best)
    alike = (other_rate for other_rate, rest in map(parts_of, settings) if rest == others and other_rate is not None)
    rates = sorted(alike)
    if len(rates) < 2 or rate not in (rates[0], rates[-1]):
        return None
    neighbour = rates[1] if rate == rates[0] else rates[-2]
    return f"{RATE}={rate * rate / neighbour:.3g}{others}"


def candidates(grid: Sequence[str], times: int) -> list[str]:
    """All settings that a grid may come to have when it is widened so often."""
    found = []
    for others in dict.fromkeys(rest for _, rest in map(parts_of, grid)):
        for end in (min, max):
            alike = [setting for setting in grid if parts_of(setting)[1] == others]
            for _ in range(times):
                best = end(alike, key=lambda setting: parts_of(setting)[0] or 0)
                if (further := beyond_the_end(alike, best)) is None:
                    break
                alike.append(further)
                found.append(further)
    return found
