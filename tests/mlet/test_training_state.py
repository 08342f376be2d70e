"""Optimizers and generators go on after a reload exactly as without one."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mlet import checkpoint
from mlet.training_state import pack_optimizer, restore_rng, rng_state, unpack_optimizer

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.8, 0.99), amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.1, centered=True),
}


class Counting(torch.optim.Optimizer):
    """State as optimizers of one's own keep it: int steps, int64 and float64 beside float32, nested lists."""

    def __init__(self, params):
        super().__init__(params, {"lr": 0.5, "scale": torch.tensor(0.1, dtype=torch.float64)})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    counts = torch.zeros(len(p), dtype=torch.int64) + 2**24
                    state |= {
                        "step": 0,
                        "rule": "plain",
                        "counts": counts,
                        "nested": [{"sum": counts.double()}, None],
                    }
                state["step"] += 1
                state["counts"] += 1
                state["nested"][0]["sum"] += 0.1
                factor = group["lr"] * group["scale"] * (state["counts"] % 7)
                p -= p.grad * factor.view(-1, *[1] * (p.dim() - 1))


def make_model() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    model.add_module("unused", nn.Linear(2, 2))  # no gradient, so no state where it is created lazily
    return model


def names_of(model: nn.Module) -> dict[nn.Parameter, str]:
    return {parameter: name for name, parameter in model.named_parameters()}


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for i in range(steps):
        optimizer.zero_grad()
        x = torch.linspace(-1, i + 1, 15).reshape(5, 3)
        model[:3](x).square().mean().backward()
        optimizer.step()


def assert_same_state(value, expected):
    assert type(value) is type(expected)
    if isinstance(expected, dict):
        assert list(value) == list(expected)
        for key in expected:
            assert_same_state(value[key], expected[key])
    elif isinstance(expected, (list, tuple)):
        assert len(value) == len(expected)
        for item, other in zip(value, expected, strict=True):
            assert_same_state(item, other)
    elif isinstance(expected, torch.Tensor):
        assert value.dtype == expected.dtype
        assert torch.equal(value, expected)
    else:
        assert value == expected


@pytest.mark.parametrize("make", [*OPTIMIZERS.values(), Counting], ids=[*OPTIMIZERS, "own"])
def test_training_goes_on_as_if_never_stopped(make, tmp_path):
    model = make_model()
    optimizer = make(model.parameters())
    train(model, optimizer, 3)
    tree = {"optimizer": pack_optimizer(optimizer, names_of(model))}
    checkpoint.save_checkpoint(tmp_path / "ckpt", model.state_dict(), tree)

    resumed = make_model()
    other = make(resumed.parameters())
    train(resumed, other, 1)  # state that has to go
    tensors, tree = checkpoint.load_checkpoint(tmp_path / "ckpt")
    resumed.load_state_dict(tensors)
    unpack_optimizer(other, tree["optimizer"], names_of(resumed))
    assert_same_state(other.state_dict(), optimizer.state_dict())

    train(model, optimizer, 3)
    train(resumed, other, 3)
    assert_same_state(other.state_dict(), optimizer.state_dict())
    assert_same_state(resumed.state_dict(), model.state_dict())


def test_state_is_keyed_by_name_and_only_where_there_is_some():
    model = make_model()
    optimizer = OPTIMIZERS["adam"](model.parameters())
    names = names_of(model)
    assert pack_optimizer(optimizer, names)["state"] == {}
    train(model, optimizer, 1)
    packed = pack_optimizer(optimizer, names)
    assert list(packed["state"]) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert packed["groups"][0]["params"] == list(names.values())
    assert packed["shapes"]["unused.weight"] == [2, 2]
    assert packed["state"]["2.bias"]["exp_avg"] is optimizer.state[model[2].bias]["exp_avg"]


def test_loading_copies():
    model, twin = make_model(), make_model()
    optimizer, other = (OPTIMIZERS["adam"](m.parameters()) for m in (model, twin))
    train(model, optimizer, 2)
    before = copy.deepcopy(optimizer.state_dict())
    unpack_optimizer(other, pack_optimizer(optimizer, names_of(model)), names_of(twin))
    train(twin, other, 1)
    assert_same_state(optimizer.state_dict(), before)


def test_order_within_a_group_does_not_matter():
    model, twin = make_model(), make_model()
    optimizer = torch.optim.Adagrad(list(model.named_parameters()))
    other = torch.optim.Adagrad(list(twin.named_parameters())[::-1])
    train(model, optimizer, 2)
    unpack_optimizer(other, pack_optimizer(optimizer, names_of(model)), names_of(twin))
    for parameter, twin_parameter in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(optimizer.state[parameter]["sum"], other.state[twin_parameter]["sum"])
    assert other.param_groups[0]["param_names"] == [name for name, _ in twin.named_parameters()][::-1]


def test_group_options_come_back():
    model, twin = make_model(), make_model()
    groups = ([{"params": m[0].parameters()}, {"params": m[2].parameters()}] for m in (model, twin))
    optimizer, other = (torch.optim.Adam(parameters) for parameters in groups)
    optimizer.param_groups[1] |= {"lr": 0.25, "betas": (0.5, 0.75), "initial_lr": 1.0}
    unpack_optimizer(other, pack_optimizer(optimizer, names_of(model)), names_of(twin))
    for group, expected in zip(other.param_groups, optimizer.param_groups, strict=True):
        assert {**group, "params": None} == {**expected, "params": None}


def edited(change) -> tuple[dict, torch.optim.Optimizer, dict]:
    model = make_model()
    optimizer = torch.optim.Adagrad([{"params": model[0].parameters()}, {"params": model[2].parameters()}])
    packed = copy.deepcopy(pack_optimizer(optimizer, names_of(model)))
    change(packed)
    return packed, optimizer, names_of(model)


def swap_groups(packed: dict) -> None:
    packed["groups"].reverse()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.update({"class": "Adam"}), "the optimizer is Adagrad, the saved one Adam"),
        (lambda p: p["shapes"].pop("0.bias"), "the saved optimizer lacks the parameter '0.bias'"),
        (lambda p: p["shapes"].update(x=[1]), "the saved optimizer has an unexpected parameter 'x'"),
        (lambda p: p["shapes"].update({"2.weight": [1, 9]}), r"'2.weight' has shape \[1, 4\], .* \[1, 9\]"),
        (lambda p: p["groups"].pop(), "the optimizer has 2 groups, the saved one 1"),
        (swap_groups, "parameter '0.weight' is in group 0, in the saved optimizer in 1"),
    ],
)
def test_another_optimizer_is_refused_and_unchanged(change, message):
    packed, optimizer, names = edited(change)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=message):
        unpack_optimizer(optimizer, packed, names)
    assert_same_state(optimizer.state_dict(), before)


def test_names_must_be_complete_and_unique():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters())
    names = names_of(model)
    with pytest.raises(ValueError, match="parameter 1 in group 0 of the optimizer has no name"):
        pack_optimizer(optimizer, {p: name for p, name in names.items() if name != "0.bias"})
    with pytest.raises(ValueError, match="two parameters of the optimizer have the name 'x'"):
        pack_optimizer(optimizer, dict.fromkeys(names, "x"))
    optimizer.state["global"] = 1
    with pytest.raises(ValueError, match="state 'global' belongs to no parameter"):
        pack_optimizer(optimizer, names)


def test_generators_go_on_exactly(tmp_path: Path):
    generator = np.random.RandomState(3)
    generator.randn(7)  # an odd count: the second value of the last pair is still to come
    torch.manual_seed(3)
    torch.rand(5)
    checkpoint.save_checkpoint(tmp_path / "ckpt", {}, rng_state(generator))
    expected = generator.randn(1000), torch.randn(1000)

    torch.manual_seed(99)
    other = np.random.RandomState(99)
    restore_rng(other, checkpoint.load_checkpoint(tmp_path / "ckpt")[1])
    assert np.array_equal(other.randn(1000), expected[0])
    assert torch.equal(torch.randn(1000), expected[1])
