"""What all CTR models share: tables, dense features as one more vector, a logit a task and its probability.

Legend: B batch, M dense features, T tables, F = T + 1 fields (T without dense features), D width, S tasks (1 unless
several labels are trained).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mlet.initialize import initialize_layers, initialize_tables
from mlet.models.heads import TASK_HEADS, hidden_layers, tower
from mlet.models.layers import FirstOrder, Tower, first_order_tables, mlp
from mlet.tables import EmbeddingTables

BOTTOM_ENDS = ("relu", "linear")


class CTRModel(nn.Module, ABC):
    """Base of the models: a subclass adds its layers and `logit`.

    Args:
        tables: the embedding tables, vectors of width D.
        bottom: widths of the bottom MLP, which makes one more vector of the dense features, from M to D, at least two;
            empty without dense features.
        top: widths of the model's deep tower (of each task's) without its input, which is computed; the last must be 1.
        first_order: keep a linear term over ids and dense features too (`self.wide`, `self.first_order`).
        loss_threshold: 0 < t < 1 clamps the probability to [t, 1 - t].
        batch_norm: before each hidden ReLU. dropout: share dropped behind each.
        tasks: S, labels that are predicted from the same tables and bottom MLP. Several have a head each instead of the
            deep tower; the model's other last layers and its first-order weights get one output a task.
        task_heads: of several tasks, "towers" or "mmoe", see `mlet.models.heads`. mmoe_experts: of "mmoe".
        bottom_end: "relu", as in the reference, or "linear": of D ReLU outputs each may stay zero for good, and where D
            is small the dense features are lost with them.
        options: the subclass's own arguments, for `config`.

    Shapes:
        dense float32 [B, M], ids [B, T] or bags -> probability float32 [B, S].

    Raises:
        ValueError: widths that do not fit each other, naming both; "mmoe" with one task or without hidden layers.
    """

    model_name: str

    def __init__(
        self,
        tables: EmbeddingTables,
        bottom: Sequence[int],
        top: Sequence[int],
        *,
        first_order: bool = False,
        loss_threshold: float = 0.0,
        batch_norm: bool = False,
        dropout: float = 0.0,
        tasks: int = 1,
        task_heads: str = "towers",
        mmoe_experts: int = 4,
        bottom_end: str = "relu",
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if len(bottom) == 1 or not top or min([*bottom, *top]) < 1:
            raise ValueError(f"MLP widths must be positive, bottom at least two: bottom={bottom}, top={top}")
        if bottom and bottom[-1] != tables.dim:
            raise ValueError(f"the bottom MLP ends in width {bottom[-1]}, the tables' vectors are {tables.dim} wide")
        if top[-1] != 1:
            raise ValueError(f"the top MLP ends in width {top[-1]}, a probability needs 1")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout} lies outside [0, 1)")
        if bottom_end not in BOTTOM_ENDS:
            raise ValueError(f"bottom end {bottom_end!r} is not known; choose from {', '.join(BOTTOM_ENDS)}")
        _check_heads(tasks, task_heads, top)
        self.tables = tables
        self.fields = len(tables.specs) + bool(bottom)
        self.bottom_widths, self.top_widths = tuple(bottom), tuple(top)
        self.loss_threshold, self.batch_norm, self.dropout = loss_threshold, batch_norm, dropout
        self.tasks, self.task_heads, self.mmoe_experts = tasks, task_heads, mmoe_experts
        self.bottom_end = bottom_end
        self.options = options or {}
        self.wide = first_order_tables(tables, tasks) if first_order else None
        self.first_order = FirstOrder(bottom[0] if bottom else 0, tasks) if first_order else None
        if bottom and bottom_end == "linear":
            self.bottom = Tower(bottom[0], bottom[1:], batch_norm, dropout)
        else:
            self.bottom = mlp(bottom, batch_norm, dropout)

    def tower(self, inputs: int) -> nn.Module:
        """The deep tower over a shared input, [B, inputs] -> [B, S], as `top` and the tasks have it."""
        heads = self.tasks, self.task_heads, self.mmoe_experts
        return tower(inputs, self.top_widths, self.batch_norm, self.dropout, *heads)

    def hidden_by_task(self, inputs: int) -> nn.Module:
        """Its hidden layers alone, where there are several tasks: [B, inputs] -> [B, S, H]."""
        heads = self.tasks, self.task_heads, self.mmoe_experts
        return hidden_layers(inputs, self.top_widths[:-1], *heads, self.batch_norm, self.dropout)

    @abstractmethod
    def logit(self, vectors: Tensor) -> Tensor:
        """All fields' vectors [B, F, D], the dense features' first if there are any -> [B, S], first order apart."""

    @property
    def table_sets(self) -> tuple[EmbeddingTables, ...]:
        """The tables, and the first-order weights if the model has them: in the order of what `look_up` returns."""
        return (self.tables,) if self.wide is None else (self.tables, self.wide)

    def look_up(self, ids: Tensor, offsets: Tensor | None = None) -> tuple[Tensor, ...]:
        """Vectors [B, T, D] and, with first-order weights, those [B, T, S]."""
        return tuple(tables(ids, offsets) for tables in self.table_sets)

    def look_up_padded(self, ids: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The same for rectangular bags, see `EmbeddingTables.forward_padded`."""
        return tuple(tables.forward_padded(ids) for tables in self.table_sets)

    def forward(self, dense: Tensor, ids: Tensor, offsets: Tensor | None = None) -> Tensor:
        """Probabilities of the tasks' labels [B, S]."""
        return self.vectors_to_probability(dense, *self.look_up(ids, offsets))

    def vectors_to_probability(self, dense: Tensor, vectors: Tensor, wide: Tensor | None = None) -> Tensor:
        """Everything behind the tables: dense [B, M] and what `look_up` returns -> [B, S]."""
        every = vectors
        if self.bottom_widths:
            every = torch.cat([self.bottom(dense).unsqueeze(1), vectors], dim=1)
        logit = self.logit(every)
        if wide is not None:
            logit = logit + self.first_order(dense, wide)
        probability = logit.sigmoid()
        if 0.0 < self.loss_threshold < 1.0:
            probability = probability.clamp(self.loss_threshold, 1.0 - self.loss_threshold)
        return probability

    def initialize(self, rng: np.random.RandomState, seed: int, mlet_init: str, emb_init: str = "uniform") -> None:
        """Draw all weights: tables first, then the layers."""
        self.initialize_tables(rng, seed, mlet_init, emb_init)
        self.initialize_layers(rng)

    def initialize_tables(self, rng: np.random.RandomState, seed: int, mlet_init: str, emb_init: str) -> None:
        """Draw the tables; first-order weights start at zero."""
        initialize_tables(self.tables, rng, seed, mlet_init, emb_init)
        if self.wide is not None:
            for parameter in self.wide.parameters():
                parameter.data.zero_()

    def initialize_layers(self, rng: np.random.RandomState) -> None:
        """Draw everything but the tables. Xavier-normal weights, zero biases."""
        initialize_layers((child for child in self.children() if child not in self.table_sets), rng)

    def config(self) -> dict:
        """The plain arguments that rebuild this model, JSON-ready."""
        return {
            "bottom": list(self.bottom_widths),
            "top": list(self.top_widths),
            "loss_threshold": self.loss_threshold,
            "batch_norm": self.batch_norm,
            "dropout": self.dropout,
            "tasks": self.tasks,
            "task_heads": self.task_heads,
            "mmoe_experts": self.mmoe_experts,
            "bottom_end": self.bottom_end,
            **self.options,
        }


def _check_heads(tasks: int, heads: str, top: Sequence[int]) -> None:
    if tasks < 1:
        raise ValueError(f"tasks={tasks}: at least 1 is needed")
    if heads not in TASK_HEADS:
        raise ValueError(f"task heads {heads!r} are not known; choose from {', '.join(TASK_HEADS)}")
    if heads == "mmoe" and tasks == 1:
        raise ValueError("mmoe heads need several tasks: gates mix experts for each, and there is 1")
    if heads == "mmoe" and len(top) == 1:
        raise ValueError("mmoe heads need hidden layers: experts are the top MLP without its last width")
