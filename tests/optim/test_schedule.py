"""Learning-rate schedule: the reference's values, and what must hold for any setting."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from optim.schedule import learning_rate_scale, scale_rates, warmup_decay


def optimizer_of(*rates):
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates]
    return torch.optim.SGD(groups, lr=9.0)


def rates_over(optimizer, scheduler, steps):
    rates = []
    for _ in range(steps):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return rates


# Rates that LRPolicyScheduler of facebookresearch/dlrm at 090956e (dlrm_s_pytorch.py) set under torch 2.13
# for optimizer steps 1, 2, ... of SGD with one group at `base`, read from param_groups before each step.
# (base, (warm-up steps, decay start, decay steps), rates)
REFERENCE = [
    (0.1, (4, 6, 4), [0.025, 0.05, 0.075, 0.075, 0.075, 0.1, 0.05625, 0.025, 0.00625, 0.00625, 0.00625]),
    (1.0, (4, 6, 4), [0.25, 0.5, 0.75, 0.75, 0.75, 1.0, 0.5625, 0.25, 0.0625, 0.0625, 0.0625]),
    (0.1, (4, 4, 2), [0.025, 0.05, 0.075, 0.1, 0.025, 0.025, 0.025]),
    (0.1, (0, 0, 5), [0.064, 0.036, 0.016, 0.004, 0.004, 0.004]),
    (0.1, (0, 1, 3), [0.1, 0.044444444444444446, 0.011111111111111112, 0.011111111111111112]),
    (0.1, (4, 4, 0), [0.025, 0.05, 0.075, 0.1, 0.1, 0.1]),
    (0.1, (0, 0, 0), [0.1, 0.1, 0.1]),
    (0.1, (1, 1, 1), [0.1, 0.1, 0.1]),
    (0.1, (3, 5, 1), [0.03333333333333334, 0.06666666666666668] + 2 * [0.06666666666666668] + 3 * [0.1]),
    (1e-6, (0, 1, 10), [1e-6, 8.1e-7, 6.4e-7, 4.9e-7, 3.6e-7, 2.5e-7, 1.6e-7, 1e-7, 1e-7, 1e-7, 1e-7, 1e-7]),
]


@pytest.mark.parametrize(("base", "setting", "expected"), REFERENCE)
def test_reference_rates(base, setting, expected):
    rates = [base * learning_rate_scale(step, base, *setting) for step in range(1, len(expected) + 1)]
    assert rates == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("setting", [(0, 3, 4), (1, 3, 4)])
def test_base_rate_until_the_decay_where_the_reference_crashes(setting):
    # LRPolicyScheduler raises AttributeError here: it has no last warm-up rate to hold
    assert [learning_rate_scale(step, 0.1, *setting) for step in range(1, 5)] == [1.0, 1.0, 1.0, 0.5625]
    assert learning_rate_scale(1, 0.1, 0, 0, 1) == 1.0


def test_warm_up_without_decay_needs_no_decay_start():
    # the reference exits here: it compares the unused decay start, 0, with the warm-up's end
    assert [learning_rate_scale(step, 0.1, 4, 0, 0) for step in range(1, 7)] == [
        0.25,
        0.5,
        0.75,
        1.0,
        1.0,
        1.0,
    ]


SETTINGS = st.tuples(st.integers(0, 30), st.integers(0, 30), st.integers(0, 30)).map(
    lambda s: (s[0], s[0] + s[1], s[2])
)
BASES = st.floats(1e-9, 10.0)


@given(base=BASES, setting=SETTINGS)
def test_above_zero_never_above_base_and_floored_in_the_decay(base, setting):
    start = setting[1]
    for step in range(1, 100):
        scale = learning_rate_scale(step, base, *setting)
        assert 0.0 < scale <= 1.0
        if step >= start and setting[2] > 0:
            assert base * scale >= min(base, 1e-7) * (1 - 1e-12)


@given(base=BASES, setting=SETTINGS)
def test_rises_in_the_warm_up_holds_falls_in_the_decay_and_holds(base, setting):
    warmup, start, decay = setting
    scales = [learning_rate_scale(step, base, *setting) for step in range(1, 100)]
    rising, held = scales[: max(warmup - 1, 0)], scales[max(warmup - 1, 0) : max(start - 1, 0)]
    assert all(a < b for a, b in itertools.pairwise(rising))
    falling = scales[max(start - 1, 0) :]
    assert all(a >= b for a, b in itertools.pairwise(falling))
    assert len(set(falling[decay:])) == 1
    assert len(set(held)) <= 1
    if decay > 0 and rising and held:
        assert held[0] == rising[-1]


@pytest.mark.parametrize("base", [0.0, 1e-8, 1e-7])
def test_decay_does_not_raise_a_rate_below_its_floor(base):
    assert [learning_rate_scale(step, base, 0, 1, 4) for step in range(1, 7)] == [1.0] * 6


def test_scheduler_scales_each_group_from_its_own_base():
    optimizer = optimizer_of(0.1, 1.0)
    rates = rates_over(optimizer, warmup_decay(optimizer, 4, 6, 4), 11)
    for group in range(2):
        assert [rate[group] for rate in rates] == pytest.approx(REFERENCE[group][2], rel=1e-14)


def test_scheduler_goes_on_where_a_saved_one_stood():
    optimizer = optimizer_of(1e-6, 1.0)
    straight = rates_over(optimizer, warmup_decay(optimizer, 4, 6, 8), 20)
    first = optimizer_of(1e-6, 1.0)
    scheduler = warmup_decay(first, 4, 6, 8)
    rates = rates_over(first, scheduler, 7)
    second = optimizer_of(1e-6, 1.0)
    resumed = warmup_decay(second, 4, 6, 8)
    second.load_state_dict(first.state_dict())
    resumed.load_state_dict(scheduler.state_dict())
    assert rates + rates_over(second, resumed, 13) == straight


def test_scheduler_starts_from_base_rates_of_a_loaded_optimizer():
    first = optimizer_of(1e-6)
    rates_over(first, warmup_decay(first, 0, 1, 10), 6)
    second = optimizer_of(0.5)
    second.load_state_dict(first.state_dict())
    rates = rates_over(second, warmup_decay(second, 0, 1, 10), 12)
    assert [rate for (rate,) in rates] == pytest.approx(REFERENCE[-1][2], rel=1e-14)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0.1, 0, 0, 0), "step is 0, must be at least 1"),
        ((1, -0.1, 0, 0, 0), "base_lr is -0.1, must be at least 0"),
        ((1, 0.1, -1, 0, 0), "warmup_steps is -1, must be at least 0"),
        ((1, 0.1, 0, -2, 0), "decay_start_step is -2, must be at least 0"),
        ((1, 0.1, 0, 0, -3), "decay_steps is -3, must be at least 0"),
        ((1, 0.1, 5, 4, 1), "decay_start_step is 4, must not be below warmup_steps, 5"),
    ],
)
def test_bad_settings_are_refused_by_value(arguments, message):
    with pytest.raises(ValueError, match=message):
        learning_rate_scale(*arguments)


def test_scheduler_refuses_bad_settings_when_it_is_made():
    with pytest.raises(ValueError, match="decay_start_step is 4, must not be below"):
        warmup_decay(optimizer_of(0.1), 5, 4, 1)


def test_scaled_rates_hold_for_the_rest_of_the_schedule():
    one, two = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    optimizer = torch.optim.SGD([{"params": [one], "lr": 0.1}, {"params": [two], "lr": 1.0}], lr=0.1)
    schedule = warmup_decay(optimizer, warmup_steps=4)
    optimizer.step()
    schedule.step()
    before = [group["lr"] for group in optimizer.param_groups]
    scale_rates(optimizer, schedule, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.5 * rate for rate in before])
    for _ in range(5):
        optimizer.step()
        schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.05, 0.5])
