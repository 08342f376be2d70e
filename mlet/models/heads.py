"""One head a task over what tasks share: towers side by side, or MMoE (Ma et al., KDD 2018, "Modeling Task
Relationships in Multi-task Learning with Multi-gate Mixture-of-Experts", doi 10.1145/3219819.3220007).

A head is split where every model can use it: hidden layers [B, N] -> [B, S, H], then a linear layer a task
[B, S, H] -> [B, S]. With one task a model has a plain `Tower` instead, with its parameter names.

Legend: B batch, S tasks, N width of what the tasks share, E experts, H width of the last hidden layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mlet.models.layers import Tower, in_float32, mlp

TASK_HEADS = ("towers", "mmoe")


class HiddenByTask(nn.Module):
    """The hidden layers of one tower a task ("shared bottom" in the MMoE paper, figure 1a).

    Args:
        inputs: N. hidden: widths of the hidden layers; with none each task reads the input itself.
        tasks: S.
        batch_norm, dropout: of the hidden layers, see `mlp`.

    Shapes:
        [B, N] -> [B, S, H], H = N without hidden layers.
    """

    def __init__(self, inputs: int, hidden: Sequence[int], tasks: int, batch_norm: bool, dropout: float) -> None:
        super().__init__()
        self.towers = nn.ModuleList(mlp((inputs, *hidden), batch_norm, dropout) for _ in range(tasks))

    def forward(self, x: Tensor) -> Tensor:
        """As in the class."""
        return torch.stack([tower(x) for tower in self.towers], dim=1)


class HiddenByExperts(nn.Module):
    """Experts that all tasks share, and a gate a task that mixes them (equations 6 and 7 of the MMoE paper).

    .. math:: f^k(x) = \\sum_i g^k(x)_i f_i(x), \\qquad g^k(x) = softmax(W_{gk} x)

    The gates have no bias, as in the paper; their softmax is in float32, under autocast too.

    Args:
        inputs: N. hidden: widths of an expert's layers, at least one.
        tasks: S. experts: E.
        batch_norm, dropout: of the experts, see `mlp`.

    Shapes:
        [B, N] -> [B, S, H].

    Raises:
        ValueError: experts without a layer, or fewer than one of them.
    """

    def __init__(
        self, inputs: int, hidden: Sequence[int], tasks: int, experts: int, batch_norm: bool, dropout: float
    ) -> None:
        super().__init__()
        if not hidden:
            raise ValueError("mmoe heads need hidden layers: experts are the top MLP without its last width")
        if experts < 1:
            raise ValueError(f"mmoe_experts={experts}: at least 1 is needed")
        self.experts = nn.ModuleList(mlp((inputs, *hidden), batch_norm, dropout) for _ in range(experts))
        self.gates = nn.ModuleList(nn.Linear(inputs, experts, bias=False) for _ in range(tasks))

    def forward(self, x: Tensor) -> Tensor:
        """As in the class."""
        experts = torch.stack([expert(x) for expert in self.experts], dim=1)  # [B, E, H]
        gates = torch.stack([in_float32(gate, x) for gate in self.gates], dim=1).softmax(dim=2)  # [B, S, E]
        return gates.to(experts.dtype) @ experts


class LinearByTask(nn.Module):
    """One linear layer a task, its logit: [B, S, H] -> [B, S]."""

    def __init__(self, inputs: int, tasks: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(inputs, 1) for _ in range(tasks))

    def forward(self, x: Tensor) -> Tensor:
        """As in the class."""
        return torch.cat([in_float32(head, each) for head, each in zip(self.heads, x.unbind(1), strict=True)], dim=1)


def hidden_layers(
    inputs: int, hidden: Sequence[int], tasks: int, heads: str, experts: int, batch_norm: bool, dropout: float
) -> nn.Module:
    """Hidden layers for several tasks: [B, inputs] -> [B, tasks, H], see `HiddenByTask` and `HiddenByExperts`."""
    if heads == "mmoe":
        return HiddenByExperts(inputs, hidden, tasks, experts, batch_norm, dropout)
    return HiddenByTask(inputs, hidden, tasks, batch_norm, dropout)


def tower(
    inputs: int,
    widths: Sequence[int],
    batch_norm: bool = False,
    dropout: float = 0.0,
    tasks: int = 1,
    heads: str = "towers",
    experts: int = 4,
) -> nn.Module:
    """What ends in a logit a task: [B, inputs] -> [B, tasks].

    Args:
        inputs: width of what it takes.
        widths: of the layers of one task's tower; the last is 1.
        batch_norm, dropout: of the hidden layers.
        tasks: 1 gives a plain `Tower`.
        heads: "towers", one a task; "mmoe": experts with a gate a task, and a linear layer a task behind them.
        experts: of mmoe.
    """
    if tasks == 1:
        return Tower(inputs, widths, batch_norm, dropout)
    *hidden, _ = widths
    return nn.Sequential(
        hidden_layers(inputs, hidden, tasks, heads, experts, batch_norm, dropout),
        LinearByTask((inputs, *widths)[-2], tasks),
    )
