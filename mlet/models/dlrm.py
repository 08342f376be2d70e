"""DLRM: Naumov et al. 2019, "Deep Learning Recommendation Model for Personalization and Recommendation Systems",
arXiv 1906.00091.

Legend: B batch, M dense features, T tables, F = T + 1 vectors (T without dense features), D width, S tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from mlet.initialize import initialize_mlp
from mlet.interaction import PairwiseDots
from mlet.models.base import CTRModel
from mlet.tables import EmbeddingTables

INTERACTIONS = ("dot", "cat")


class DLRM(CTRModel):
    """Bottom MLP over dense features, interaction with the tables' vectors, top MLP with a sigmoid at its end.

    .. math:: x = bottom(dense), \\quad z = [x, \\{v_i \\cdot v_j\\}_{i > j}] \\text{ with } v = (x, e_1, ..., e_T),
              \\quad p = \\sigma(top(z))

    Args:
        tables, bottom, top, common: see `CTRModel`. Without dense features the tables' vectors interact among
            themselves.
        interaction: "dot" (pairwise products of all vectors, with x in front) or "cat" (all vectors side by side).
        itself: dot products of a vector with itself too.

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
        **common: Any,
    ) -> None:
        super().__init__(tables, bottom, top, options={"interaction": interaction, "itself": itself}, **common)
        if interaction not in INTERACTIONS:
            raise ValueError(f"interaction {interaction!r} is not known; choose from {', '.join(INTERACTIONS)}")
        self.interaction, self.itself = interaction, itself
        if self.fields == 1 and interaction == "dot" and not itself:
            raise ValueError("one vector has nothing to interact with: give dense features, another table, or cat")
        self.dots = PairwiseDots(self.fields, itself, lead=bool(bottom))
        inputs = tables.dim * bool(bottom) + self.dots.pairs if interaction == "dot" else self.fields * tables.dim
        self.top = self.tower(inputs)

    def initialize_layers(self, rng: np.random.RandomState) -> None:
        """In the reference's order and with its values: bottom MLP, top MLP."""
        initialize_mlp(self.bottom, rng)
        initialize_mlp(self.top, rng)

    def logit(self, vectors: Tensor) -> Tensor:
        """[B, F, D] -> [B, S]."""
        return self.top(self.interact(vectors))

    def interact(self, vectors: Tensor) -> Tensor:
        """All vectors [B, F, D] -> input of the top MLP."""
        return vectors.flatten(1) if self.interaction == "cat" else self.dots(vectors)
