"""DLRM: Naumov et al. 2019, "Deep Learning Recommendation Model for Personalization and Recommendation Systems",
arXiv 1906.00091.

Legend: B batch, M dense features, T tables, F = T + 1 vectors (T without dense features), D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from mlet.initialize import initialize_mlp, initialize_tables
from mlet.interaction import PairwiseDots
from mlet.tables import EmbeddingTables

INTERACTIONS = ("dot", "cat")


class DLRM(nn.Module):
    """Bottom MLP over dense features, interaction with the tables' vectors, top MLP with a sigmoid at its end.

    .. math:: x = bottom(dense), \\quad z = [x, \\{v_i \\cdot v_j\\}_{i > j}] \\text{ with } v = (x, e_1, ..., e_T),
              \\quad p = \\sigma(top(z))

    Args:
        tables: the embedding tables, vectors of width D.
        bottom: widths of the bottom MLP from M to D, at least two; empty without dense features: the tables' vectors
            then interact among themselves.
        top: widths of the top MLP without its input, which is computed; the last must be 1.
        interaction: "dot" (pairwise products of all vectors, with x in front) or "cat" (all vectors side by side).
        itself: dot products of a vector with itself too.
        loss_threshold: 0 < t < 1 clamps the probability to [t, 1 - t].

    Shapes:
        dense float32 [B, M], ids [B, T] or bags -> probability float32 [B, 1].

    Raises:
        ValueError: widths that do not fit each other, naming both.
    """

    def __init__(
        self,
        tables: EmbeddingTables,
        bottom: Sequence[int],
        top: Sequence[int],
        interaction: str = "dot",
        itself: bool = False,
        loss_threshold: float = 0.0,
    ) -> None:
        super().__init__()
        if interaction not in INTERACTIONS:
            raise ValueError(f"interaction {interaction!r} is not known; choose from {', '.join(INTERACTIONS)}")
        if len(bottom) == 1 or not top or min([*bottom, *top]) < 1:
            raise ValueError(f"MLP widths must be positive, bottom at least two: bottom={bottom}, top={top}")
        if bottom and bottom[-1] != tables.dim:
            raise ValueError(f"the bottom MLP ends in width {bottom[-1]}, the tables' vectors are {tables.dim} wide")
        if top[-1] != 1:
            raise ValueError(f"the top MLP ends in width {top[-1]}, a probability needs 1")
        self.tables = tables
        self.interaction, self.itself, self.loss_threshold = interaction, itself, loss_threshold
        vectors = len(tables.specs) + bool(bottom)
        if vectors == 1 and interaction == "dot" and not itself:
            raise ValueError("one vector has nothing to interact with: give dense features, another table, or cat")
        self.dots = PairwiseDots(vectors, itself, lead=bool(bottom))
        inputs = tables.dim * bool(bottom) + self.dots.pairs if interaction == "dot" else vectors * tables.dim
        self.bottom_widths, self.top_widths = tuple(bottom), tuple(top)
        self.bottom = mlp(bottom)
        self.top = ProbabilityTower(*mlp((inputs, *top), last=nn.Sigmoid))

    def initialize(self, rng: np.random.RandomState, seed: int, mlet_init: str) -> None:
        """Draw all weights in the reference's order: tables, bottom MLP, top MLP."""
        initialize_tables(self.tables, rng, seed, mlet_init)
        initialize_mlp(self.bottom, rng)
        initialize_mlp(self.top, rng)

    def forward(self, dense: Tensor, ids: Tensor, offsets: Tensor | None = None) -> Tensor:
        """Click probability [B, 1]."""
        return self.vectors_to_probability(dense, self.tables(ids, offsets))

    def vectors_to_probability(self, dense: Tensor, vectors: Tensor) -> Tensor:
        """Everything behind the tables: dense [B, M] and pooled vectors [B, T, D] -> [B, 1]."""
        every = vectors
        if self.bottom_widths:
            every = torch.cat([self.bottom(dense).unsqueeze(1), vectors], dim=1)
        probability = self.top(self.interact(every))
        if 0.0 < self.loss_threshold < 1.0:
            probability = probability.clamp(self.loss_threshold, 1.0 - self.loss_threshold)
        return probability

    def interact(self, every: Tensor) -> Tensor:
        """All vectors [B, F, D], the bottom MLP's first if there is one -> input of the top MLP."""
        return every.flatten(1) if self.interaction == "cat" else self.dots(every)

    def config(self) -> dict:
        """The plain arguments that rebuild this model, JSON-ready."""
        return {
            "bottom": list(self.bottom_widths),
            "top": list(self.top_widths),
            "interaction": self.interaction,
            "itself": self.itself,
            "loss_threshold": self.loss_threshold,
        }


def mlp(widths: Sequence[int], last: type[nn.Module] | None = None) -> nn.Sequential:
    """Linear layers with a ReLU behind each; `last` replaces the last ReLU."""
    layers: list[nn.Module] = []
    for inputs, outputs in zip(widths[:-1], widths[1:], strict=True):
        layers += [nn.Linear(inputs, outputs), nn.ReLU(inplace=True)]  # in place: one pass over memory less
    if last is not None and layers:
        layers[-1] = last()
    return nn.Sequential(*layers)


class ProbabilityTower(nn.Sequential):
    """An MLP that ends in a linear layer and a sigmoid, which run in float32 under autocast too: bfloat16 has three
    digits, too few for a probability.
    """

    def forward(self, vectors: Tensor) -> Tensor:
        """Probability [B, 1] of [B, inputs]."""
        *hidden, last, sigmoid = self
        for layer in hidden:
            vectors = layer(vectors)
        device = vectors.device.type
        if not torch.is_autocast_enabled(device):
            return sigmoid(last(vectors))
        with torch.autocast(device, enabled=False):
            return sigmoid(last(vectors.float()))
