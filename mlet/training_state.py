"""The state of optimizers and random generators as trees that a checkpoint can hold, exact when restored."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer


def pack_optimizer(optimizer: Optimizer, names: dict[Parameter, str]) -> dict[str, Any]:
    """`optimizer.state_dict()` keyed by the names of the parameters instead of their positions.

    Nothing is copied: the tensors are the live ones.

    Arguments:
        optimizer: any torch optimizer
        names: at least its parameters, each with a name of its own

    Returns:
        {"class": its class, "shapes": {name: shape}, "groups": [{"params": [name, ...], options ...}],
        "state": {name: {key: value}} (only where there is state yet), "extra": what else its state_dict has}

    Raises:
        ValueError: a parameter has no name, two have the same, or a state belongs to no parameter
    """
    parameters = _named_parameters(optimizer, names)
    order = list(parameters)
    packed = optimizer.state_dict()
    groups, state = packed.pop("param_groups"), packed.pop("state")
    for key in state:
        if not isinstance(key, int):
            raise ValueError(f"the optimizer's state {key!r} belongs to no parameter")
    return {
        "class": type(optimizer).__name__,
        "shapes": {name: list(parameter.shape) for name, parameter in parameters.items()},
        "groups": [{**group, "params": [order[i] for i in group["params"]]} for group in groups],
        "state": {order[i]: dict(values) for i, values in state.items()},
        "extra": packed,
    }


def unpack_optimizer(optimizer: Optimizer, packed: dict[str, Any], names: dict[Parameter, str]) -> None:
    """Puts what `pack_optimizer` returned into an optimizer of the same class and parameters.

    Values keep their type and, unlike with `load_state_dict` alone, their dtype; tensors are copied to where
    the optimizer keeps them. The order of the parameters within a group may differ.

    Raises:
        ValueError: the class, the groups, or the name or shape of a parameter differ (names the first); the
            optimizer is unchanged
    """
    parameters = _named_parameters(optimizer, names)
    _check_same(optimizer, parameters, packed)
    position = {name: i for i, name in enumerate(parameters)}
    groups = []
    for group, saved in zip(optimizer.state_dict()["param_groups"], packed["groups"], strict=True):
        own = {key: group[key] for key in ("params", "param_names") if key in group}
        groups.append({**group, **{key: _like(group.get(key), value) for key, value in saved.items()}, **own})
    state = {position[name]: dict(values) for name, values in packed["state"].items()}
    optimizer.load_state_dict({**packed["extra"], "state": state, "param_groups": groups})
    for name, values in packed["state"].items():
        parameter = parameters[name]
        optimizer.state[parameter] = _exact(values, optimizer.state[parameter])


def _named_parameters(optimizer: Optimizer, names: dict[Parameter, str]) -> dict[str, Parameter]:
    """name -> parameter in the order of the optimizer; raises ValueError as `pack_optimizer` says."""
    result: dict[str, Parameter] = {}
    for number, group in enumerate(optimizer.param_groups):
        for position, parameter in enumerate(group["params"]):
            if parameter not in names:
                raise ValueError(f"parameter {position} in group {number} of the optimizer has no name")
            if names[parameter] in result:
                raise ValueError(f"two parameters of the optimizer have the name {names[parameter]!r}")
            result[names[parameter]] = parameter
    return result


def _check_same(optimizer: Optimizer, parameters: dict[str, Parameter], packed: dict[str, Any]) -> None:
    """Raises ValueError as `unpack_optimizer` says."""
    if packed["class"] != type(optimizer).__name__:
        raise ValueError(f"the optimizer is {type(optimizer).__name__}, the saved one {packed['class']}")
    for name, parameter in parameters.items():
        if name not in packed["shapes"]:
            raise ValueError(f"the saved optimizer lacks the parameter {name!r}")
        shape, saved = list(parameter.shape), packed["shapes"][name]
        if shape != saved:
            raise ValueError(f"parameter {name!r} has shape {shape}, in the saved optimizer {saved}")
    for name in packed["shapes"]:
        if name not in parameters:
            raise ValueError(f"the saved optimizer has an unexpected parameter {name!r}")
    if len(optimizer.param_groups) != len(packed["groups"]):
        counts = f"{len(optimizer.param_groups)} groups, the saved one {len(packed['groups'])}"
        raise ValueError(f"the optimizer has {counts}")
    for name, number, saved in _groups_of(optimizer, parameters, packed):
        if number != saved:
            raise ValueError(f"parameter {name!r} is in group {number}, in the saved optimizer in {saved}")


def _groups_of(
    optimizer: Optimizer, parameters: dict[str, Parameter], packed: dict[str, Any]
) -> Iterator[tuple[str, int, int]]:
    """(name, number of its group in `optimizer`, number of its group in `packed`) of every parameter."""
    saved = {name: i for i, group in enumerate(packed["groups"]) for name in group["params"]}
    order = iter(parameters)
    for number, group in enumerate(optimizer.param_groups):
        for _ in group["params"]:
            name = next(order)
            yield name, number, saved[name]


def _like(current: Any, saved: Any) -> Any:
    """A saved option; one that is a tuple here (betas) was turned into a list by JSON."""
    return tuple(saved) if isinstance(current, tuple) and isinstance(saved, list) else saved


def _exact(saved: Any, loaded: Any) -> Any:
    """The saved value where `load_state_dict` has put it, but not cast to the dtype of the parameter."""
    if isinstance(saved, Tensor):
        return saved.to(loaded.device, copy=True) if isinstance(loaded, Tensor) else saved.clone()
    if isinstance(loaded, Tensor):  # the optimizer has made a tensor of a number
        return loaded
    if isinstance(saved, dict):
        return {key: _exact(value, loaded[key]) for key, value in saved.items()}
    if isinstance(saved, list):
        return [_exact(value, other) for value, other in zip(saved, loaded, strict=True)]
    return saved


def rng_state(random_state: np.random.RandomState) -> dict[str, Any]:
    """The state of a NumPy generator and of torch's own (CPU, and the current CUDA device if in use)."""
    return {
        "numpy": random_state.get_state(legacy=False),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
    }


def restore_rng(random_state: np.random.RandomState, state: dict[str, Any]) -> None:
    """Puts back what `rng_state` returned; a CUDA state is left out where there is no CUDA device."""
    random_state.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
