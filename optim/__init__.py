"""Optimizers that the driver offers by name, and the register of them.

Each takes dense gradients and ordinary torch sparse gradients (COO, [N, D]), so that one optimizer can step a
whole model with embedding tables. To add a rule: one file, and one `register_optimizer` line at the bottom of
this file. `--optimizer` and its help list it from then on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from optim.adagrad import Adagrad
from optim.adam import Adam
from optim.row_optimizer import Parameters
from optim.rowwise_adagrad import RowWiseAdagrad
from optim.sgd import SGD

_BUILDERS: dict[str, Callable[..., torch.optim.Optimizer]] = {}


def register_optimizer(name: str, builder: Callable[..., torch.optim.Optimizer]) -> None:
    """Register a rule under `name`; `builder(params_or_groups, lr=..., **options)` makes the optimizer.

    Raises:
        ValueError: the name is taken.
    """
    if name in _BUILDERS:
        raise ValueError(f"optimizer {name!r} is already registered, as {_BUILDERS[name].__name__}")
    _BUILDERS[name] = builder


def optimizer_names() -> tuple[str, ...]:
    """Names that `build_optimizer` takes, sorted."""
    return tuple(sorted(_BUILDERS))


def build_optimizer(name: str, params_or_groups: Parameters, lr: float, **options: Any) -> torch.optim.Optimizer:
    """Build the optimizer `name` over parameters, or over groups that may carry a rate of their own.

    Options are keywords of the rule: `rounding_seed` for all of the rules here, and see each of them.

    Raises:
        ValueError: the name is not registered.
    """
    if name not in _BUILDERS:
        raise ValueError(f"optimizer {name!r} is not known; choose from {', '.join(optimizer_names())}")
    return _BUILDERS[name](params_or_groups, lr=lr, **options)


register_optimizer("sgd", SGD)
register_optimizer("adagrad", Adagrad)
register_optimizer("rwsadagrad", RowWiseAdagrad)
register_optimizer("adam", Adam)
