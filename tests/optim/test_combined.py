"""Several rules as one optimizer: the same numbers as apart, one schedule, one checkpoint."""

import pytest
import torch
from test_rules import RULES, gradient, table

from mlet import checkpoint
from optim.combined import Combined
from optim.row_decay import RowDecay
from optim.row_rate import RowRate
from optim.schedule import scale_rates, warmup_decay


def make(rules):
    parameters = {"dense": table(), "rows": table(), "more": table()}
    groups = [[{"params": [parameters["dense"]]}], [{"params": [parameters["rows"]]}, {"params": [parameters["more"]]}]]
    return parameters, [RULES[rule](each, lr=0.1) for rule, each in zip(rules, groups, strict=True)]


def train(parameters, optimizers, steps):
    for step in steps:
        parameters["dense"].grad = gradient(range(9), step).to_dense()
        parameters["rows"].grad = gradient([step % 9, 3, 3], step)
        parameters["more"].grad = gradient([step % 4], step + 50)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


PAIRS = [("adam", "rwsadagrad"), ("sgd", "adam-row-steps"), ("adagrad", "sgd")]


def with_row_options(optimizer, parameters):
    optimizer.set_row_rate(parameters["rows"], RowRate("sqrt", [0], 9, counts=torch.arange(9.0), online=False))
    optimizer.set_row_decay(parameters["more"], RowDecay(weight=0.1, idle=0.01))


@pytest.mark.parametrize("rules", PAIRS)
def test_is_the_parts_one_after_another(rules):
    apart, optimizers = make(rules)
    with_row_options(optimizers[1], apart)
    schedules = [warmup_decay(each, 3, 3, 5) for each in optimizers]
    together, parts = make(rules)
    combined = Combined(parts)
    with_row_options(combined, together)
    schedule = warmup_decay(combined, 3, 3, 5)
    for step in range(6):
        train(apart, optimizers, [step])
        train(together, [combined], [step])
        assert together["rows"].grad is None
        for each in (*schedules, schedule):
            each.step()
    for each, its in [*zip(optimizers, schedules, strict=True), (combined, schedule)]:
        scale_rates(each, its, 0.5)
    train(apart, optimizers, [7])
    train(together, [combined], [7])
    assert all(torch.equal(value, together[name]) for name, value in apart.items())
    for name, p in apart.items():
        own = optimizers[name != "dense"]
        assert own.state.get(p, {}).keys() == combined.state.get(together[name], {}).keys()


@pytest.mark.parametrize("rules", PAIRS)
def test_going_on_after_a_checkpoint_equals_going_straight_through(rules, tmp_path):
    straight, parts = make(rules)
    one = Combined(parts)
    with_row_options(one, straight)
    train(straight, [one], range(6))
    halfway, parts = make(rules)
    first = Combined(parts)
    with_row_options(first, halfway)
    train(halfway, [first], range(3))
    packed = checkpoint.pack_optimizer(first, {p: name for name, p in halfway.items()})
    checkpoint.save_checkpoint(tmp_path / "saved", {k: p.detach() for k, p in halfway.items()}, {"optimizer": packed})
    tensors, state = checkpoint.load_checkpoint(tmp_path / "saved")
    resumed, parts = make(rules)
    other = Combined(parts)
    with_row_options(other, resumed)
    schedule = warmup_decay(other)
    for name, p in resumed.items():
        p.data.copy_(tensors[name])
    checkpoint.unpack_optimizer(other, state["optimizer"], {p: name for name, p in resumed.items()})
    train(resumed, [other], range(3, 6))
    assert all(torch.equal(value, resumed[name]) for name, value in straight.items())
    scale_rates(other, schedule, 0.0)  # the parts' groups are still the ones that a schedule changes
    before = {name: p.detach().clone() for name, p in resumed.items()}
    other.parts[1].set_row_decay(resumed["more"], RowDecay())
    train(resumed, [other], [6])
    assert all(torch.equal(p, before[name]) for name, p in resumed.items())


def test_what_does_not_fit_is_refused():
    parameters, parts = make(("sgd", "adam"))
    with pytest.raises(ValueError, match="more than one"):
        Combined([parts[0], RULES["adam"]([parameters["dense"]])])
    combined = Combined(parts)
    with pytest.raises(ValueError, match="in none of the combined optimizers"):
        combined.set_row_decay(table(), RowDecay())
    state = combined.state_dict()
    with pytest.raises(ValueError, match="2 groups of parameters were saved, there are 3"):
        combined.load_state_dict(state | {"param_groups": state["param_groups"][:2]})


def test_a_closure_runs_once():
    parameters, parts = make(("sgd", "adam"))
    calls = []

    def closure():
        calls.append(1)
        return parameters["dense"].square().sum()

    assert Combined(parts).step(closure).requires_grad and calls == [1]
