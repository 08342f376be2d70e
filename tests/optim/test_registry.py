"""The register of optimizers."""

import subprocess
import sys

import pytest
import torch

import optim

RULES = {"sgd": optim.SGD, "adagrad": optim.Adagrad, "rwsadagrad": optim.RowWiseAdagrad, "adam": optim.Adam}


@pytest.mark.parametrize(("name", "kind"), RULES.items())
def test_builds_over_parameters_and_over_groups(name, kind):
    assert name in optim.optimizer_names()
    p, q = torch.nn.Parameter(torch.ones(3, 2)), torch.nn.Parameter(torch.ones(2))
    assert type(optim.build_optimizer(name, [p, q], 0.5)) is kind
    groups = [{"params": [p]}, {"params": [q], "lr": 0.25}]
    built = optim.build_optimizer(name, groups, 0.5)
    assert [group["lr"] for group in built.param_groups] == [0.5, 0.25]


@pytest.mark.parametrize("name", RULES)
def test_every_rule_steps_on_a_sparse_gradient(name):
    p = torch.nn.Parameter(torch.ones(5, 2))
    optimizer = optim.build_optimizer(name, [p], 0.5)
    torch.nn.functional.embedding(torch.tensor([1, 3, 1]), p, sparse=True).sum().backward()
    optimizer.step()
    assert (p != 1).any(dim=1).tolist() == [False, True, False, True, False]


def test_options_reach_the_rule():
    p = torch.nn.Parameter(torch.ones(2))
    for name in RULES:
        built = optim.build_optimizer(name, [p], 0.5, rounding_seed=3)
        assert built.param_groups[0]["rounding_seed"] == 3
    assert optim.build_optimizer("adam", [p], 0.5, row_steps=True).param_groups[0]["row_steps"] is True


def test_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="optimizer 'adamax' is not known; choose from .*adagrad.*rwsadagrad.*sgd"):
        optim.build_optimizer("adamax", [torch.nn.Parameter(torch.ones(1))], 0.1)


def test_duplicate_name_is_refused():
    with pytest.raises(ValueError, match="optimizer 'sgd' is already registered, as SGD"):
        optim.register_optimizer("sgd", torch.optim.Adam)


def test_a_registered_rule_is_listed_and_built(monkeypatch):
    monkeypatch.setattr(optim, "_BUILDERS", dict(optim._BUILDERS))
    optim.register_optimizer("rprop", torch.optim.Rprop)
    assert "rprop" in optim.optimizer_names()
    built = optim.build_optimizer("rprop", [torch.nn.Parameter(torch.ones(1))], 0.1)
    assert isinstance(built, torch.optim.Rprop)


def test_optim_stands_alone():
    code = (
        "import sys, optim, optim.schedule\n"
        "print(sorted({m.split('.')[0] for m in sys.modules} & "
        "{'sources', 'mlet', 'hashing', 'data_utils', 'dlrm_mlet'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
