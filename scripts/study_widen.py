"""Grids of table rates that grow where the best lies at their end: a rival's grid has to reach its optimum."""

from __future__ import annotations

from collections.abc import Sequence

RATE = "--emb-learning-rate-multiplier"


def rate_of(setting: str) -> float | None:
    """The table rate, of a setting that is nothing else."""
    flag, equals, value = setting.partition("=")
    return float(value) if flag == RATE and equals and " " not in value else None


def beyond_the_end(settings: Sequence[str], best: str) -> str | None:
    """The rate as far beyond the best as the next one lies before it; nothing where the best is not at the end."""
    rates = [rate_of(setting) for setting in settings]
    if len(rates) < 2 or None in rates:
        return None
    lowest, second, *_ = sorted(rates)
    before, highest = sorted(rates)[-2:]
    if rate_of(best) not in (lowest, highest):
        return None
    further = lowest * lowest / second if rate_of(best) == lowest else highest * highest / before
    return f"{RATE}={further:.3g}"


def candidates(grid: Sequence[str], times: int) -> list[str]:
    """All settings that a grid may come to have when it is widened so often."""
    found = []
    for end in (min, max):
        settings = list(grid)
        for _ in range(times):
            if (further := beyond_the_end(settings, end(settings, key=lambda setting: rate_of(setting) or 0))) is None:
                break
            settings.append(further)
            found.append(further)
    return found
