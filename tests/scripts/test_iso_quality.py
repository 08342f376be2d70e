"""Reductions at equal AUC: exact on straight curves, bounds beyond them, intervals from paired differences."""

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from iso_quality import average, reduction  # noqa: E402

WIDTHS = (4, 8, 16, 32, 64)


def straight(seeds=1, noise=0.0):
    """AUC 0.70 at d = 4, and 0.01 more with each doubling; the seeds shift the whole curve."""
    return {width: [0.70 + 0.01 * step + noise * seed for seed in range(seeds)] for step, width in enumerate(WIDTHS)}


@given(st.floats(2.05, 5.95))
def test_a_rival_on_the_curve_is_worth_the_width_it_lies_at(place):
    found = reduction(straight(), 4, [0.70 + 0.01 * (place - 2)])
    assert np.log2(found.factor) == pytest.approx(place - 2, abs=0.021) and found.low is None and found.is_reached


def test_beyond_the_curve_there_are_bounds():
    above, below = reduction(straight(), 8, [0.75]), reduction(straight(), 8, [0.69])
    assert (str(above), str(below)) == (">8", "<=0.5")
    assert not above.is_reached and above.at_least == 8 and below.at_least == 0.5
    assert str(reduction(straight(3, 0.001), 4, [0.8, 0.8, 0.8])) == ">16 [>16, >16]"


def test_noise_that_curve_and_rival_share_does_not_widen_the_interval():
    shared = reduction(straight(3, 0.02), 4, [0.715, 0.735, 0.755])
    assert shared.factor == pytest.approx(2**1.5, rel=0.02) and shared.high / shared.low < 1.05
    own = reduction(straight(3), 4, [0.705, 0.715, 0.725])
    assert own.low == 0 and own.high > 2 * own.factor and "<=1" in str(own)


def test_a_curve_that_falls_again_counts_where_it_first_reaches():
    curve = {4: [0.70], 8: [0.72], 16: [0.71], 32: [0.74]}
    assert reduction(curve, 4, [0.715]).factor == pytest.approx(2**0.75, rel=0.02)


@pytest.mark.parametrize("curve", [{4: [0.7]}, {4: [0.7, 0.7], 8: [0.7]}])
def test_what_cannot_be_interpolated_is_refused(curve):
    with pytest.raises(ValueError, match="two widths"):
        reduction(curve, 4, [0.7])


def test_the_average_is_geometric_and_says_where_it_is_a_bound():
    reached = [reduction(straight(), 4, [auc]) for auc in (0.71, 0.73)]  # 2 and 8
    assert average(reached) == "4"
    assert average([*reached, reduction(straight(), 4, [0.8])]) == ">= 6.3"
    assert average([*reached, reduction(straight(), 4, [0.6])]) == "~ 2.5"
