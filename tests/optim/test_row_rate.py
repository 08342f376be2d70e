"""Rates by frequency: the formulas, the counting, and every rule's step times the multiplier."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_rules import RULES, gradient, run, table

from optim.row_rate import KINDS, RowRate

N = 9
STEPS = st.lists(st.lists(st.integers(0, N - 1), max_size=12), min_size=1, max_size=6)


def multiplier(kind, frequency, highest, power=0.1):
    """The module's table of formulas, in plain Python."""
    highest = max(1.0, highest)
    return {
        "log": math.log(frequency + 1) / math.log(highest + 1),
        "linear": frequency / highest,
        "sqrt": math.sqrt(frequency / highest),
        "tail-decrease": min(1.0, max(0.1, ((frequency + 1) / highest) ** power)),
        "tail-increase": max(1.0, min(10.0, (highest / (frequency + 1)) ** power)),
        "counter": 1 / math.sqrt(max(1.0, frequency)),
    }[kind]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("halflife", [0.0, 2.5])
@settings(deadline=None, max_examples=25)
@given(steps=STEPS, power=st.sampled_from([0.1, 1.0]))
def test_multipliers_equal_a_loop(kind, halflife, steps, power):
    """Two tables, rows 0-3 and 4-8: each has a highest frequency of its own."""
    rate = RowRate(kind, [0, 4], N, halflife=halflife, power=power)
    for rows in steps:
        rate.count(torch.tensor(rows, dtype=torch.long))
    ages = [len(steps) - 1 - at for at in range(len(steps))]
    weights = [2 ** (-age / halflife) if halflife else 1.0 for age in ages]
    frequency = [sum(w * rows.count(i) for w, rows in zip(weights, steps, strict=True)) for i in range(N)]
    expected = [
        multiplier(kind, frequency[i], max(frequency[:4]) if i < 4 else max(frequency[4:]), power) for i in range(N)
    ]
    assert np.allclose(rate(torch.arange(N)).numpy(), expected, rtol=1e-5, atol=1e-6)


def test_forgetting_goes_on_for_any_number_of_steps():
    rate = RowRate("linear", [0], 3, halflife=1.0)
    for _ in range(500):
        rate.count(torch.tensor([0, 0, 1]))
    assert torch.isfinite(rate.counts).all()
    assert rate(torch.arange(3)).tolist() == pytest.approx([1.0, 0.5, 0.0])
    assert float(rate.counts[0]) * 2.0**-rate.exponent == pytest.approx(4.0)  # 2 (1 + 1/2 + 1/4 ...)


@pytest.mark.parametrize("name", RULES)
@settings(deadline=None, max_examples=15)
@given(steps=st.lists(st.lists(st.integers(0, N - 1), min_size=1, max_size=12), min_size=1, max_size=3))
def test_every_rule_takes_its_share_of_the_step(name, steps):
    """One step at a time: what the plain rule adds, times the multiplier."""
    gradients = [gradient(rows, seed) for seed, rows in enumerate(steps)]
    counts = torch.arange(N, dtype=torch.float32)
    scaled, plain = table(), table()
    ours, theirs = RULES[name]([scaled], lr=0.1), RULES[name]([plain], lr=0.1)
    ours.set_row_rate(scaled, RowRate("sqrt", [0], N, counts=counts, online=False))
    share = (counts / (N - 1)).sqrt().unsqueeze(1)
    for each in gradients:
        before = scaled.detach().clone()
        plain.data.copy_(before)
        run(scaled, ours, [each])
        run(plain, theirs, [each])
        torch.testing.assert_close(scaled.detach(), before + share * (plain.detach() - before), rtol=1e-5, atol=1e-6)


def test_a_multiplier_of_one_changes_nothing_to_speak_of():
    gradients = [gradient([1, 1, 3], seed) for seed in range(4)]
    one, other = table(), table()
    ours = RULES["adam"]([one], lr=0.1)
    ours.set_row_rate(one, RowRate("log", [0], N, counts=torch.full((N,), 5.0), online=False))
    torch.testing.assert_close(run(one, ours, gradients), run(other, RULES["adam"]([other], lr=0.1), gradients))


@pytest.mark.parametrize("online", [True, False])
def test_given_frequencies_stay_unless_counted_on(online):
    rate = RowRate("linear", [0], 3, counts=torch.tensor([4.0, 2.0, 0.0]), online=online)
    rate.count(torch.tensor([2, 2]))
    assert rate(torch.arange(3)).tolist() == pytest.approx([1.0, 0.5, 0.5 if online else 0.0])


def test_a_saved_state_goes_on_as_if_nothing_had_been():
    steps = [torch.tensor(rows) for rows in ([0, 1, 1], [2], [2, 2, 0], [1])]
    whole, first, second = (RowRate("log", [0, 2], 4, halflife=1.5) for _ in range(3))
    for rows in steps:
        whole.count(rows)
    for rows in steps[:2]:
        first.count(rows)
    second.load_state_dict({k: v.clone() if torch.is_tensor(v) else v for k, v in first.state_dict().items()})
    for rows in steps[2:]:
        second.count(rows)
    assert torch.equal(whole(torch.arange(4)), second(torch.arange(4)))
    with pytest.raises(ValueError, match="counts of shape"):
        RowRate("log", [0], 9).load_state_dict(first.state_dict())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "cube"}, "'cube' is not known"),
        ({"kind": "log", "halflife": -1}, "halflife=-1"),
        ({"kind": "log", "power": float("nan")}, "power=nan"),
        ({"kind": "log", "online": False}, "need them"),
        ({"kind": "log", "counts": torch.ones(3)}, "for 4 rows"),
        ({"kind": "log", "counts": torch.tensor([1.0, -1, 0, 0])}, "at least 0"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        RowRate(first_rows=[0], rows=4, **arguments)


def test_bfloat16_is_refused():
    p = table(torch.bfloat16)
    with pytest.raises(ValueError, match="float32"):
        RULES["sgd"]([p], lr=0.1).set_row_rate(p, RowRate("log", [0], N))
