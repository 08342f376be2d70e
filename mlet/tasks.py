"""Several labels (tasks) of one model: their loss, in which a label may be missing, and their metrics.

A missing label is NaN. It adds nothing to the loss and its prediction gets no gradient; metrics of a task are over the
rows where its label is known. One task, whose rows all have the label, is a plain mean loss and plain metrics.

Legend: N rows, B rows of a batch, S tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlet.metrics import binary_metrics

QUALITIES = ("auc", "logloss", "ne", "accuracy")


def masked_loss(losses_of: Callable[[Tensor, Tensor], Tensor], weights: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of several tasks, as a function of probabilities [B, S] and labels [B, S].

    .. math:: \\sum_s w_s \\frac{1}{B} \\sum_{b: y_{bs} known} loss(p_{bs}, y_{bs})

    It divides by B and not by the known labels, so that a label weighs the same in whichever batch it stands, and that
    the loss of a large batch is the mean of the losses of its parts, weighted by their sizes.

    Args:
        losses_of: probabilities and labels [B, S] -> loss of each [B, S].
        weights: w [S].
    """

    def loss(probability: Tensor, label: Tensor) -> Tensor:
        known = ~label.isnan()
        losses = losses_of(probability, torch.where(known, label, 0.0))
        of_tasks = torch.where(known, losses, 0.0).sum(dim=0) / len(label)
        return (of_tasks * weights).sum()

    return loss


@dataclass(frozen=True)
class Tasks:
    """The labels that a model is trained on.

    Args:
        names: of the S labels. weights: of their losses, and of their metrics in a mean.

    Raises:
        ValueError: no name, one twice, as many weights as names are not given, or they are negative or all zero.
    """

    names: tuple[str, ...]
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.names or len(set(self.names)) != len(self.names):
            raise ValueError(f"tasks need names, each once: {', '.join(self.names) or 'none'}")
        if not self.weights:
            object.__setattr__(self, "weights", (1.0,) * len(self.names))
        if len(self.weights) != len(self.names):
            raise ValueError(f"{len(self.weights)} weights for {len(self.names)} tasks ({', '.join(self.names)})")
        if min(self.weights) < 0 or not any(self.weights):
            raise ValueError(f"task weights {self.weights}: each must be at least 0, and one above")

    def __len__(self) -> int:
        return len(self.names)

    def known(self, labels: np.ndarray, scores: np.ndarray) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
        """Of each task its name, which rows [N] have its label, and those rows' labels and scores.

        Args:
            labels, scores: [N, S], labels NaN where missing; of one task [N].
        """
        columns = labels.reshape(-1, len(self)).T, scores.reshape(-1, len(self)).T
        for name, label, score in zip(self.names, *columns, strict=True):
            rows = ~np.isnan(label)
            yield name, rows, label[rows], score[rows]

    def metrics(self, labels: np.ndarray, scores: np.ndarray) -> dict[str, Any]:
        """Quality over all rows, and of each task.

        Args:
            labels, scores: as in `known`.

        Returns:
            of one task what `binary_metrics` returns. Of several: "auc", "logloss", "ne" and "accuracy", each the mean
            by weight over the tasks for which it is defined (None if there is none); "samples" N; and under "tasks" the
            same of each task, by name, over the rows that have its label (all None, samples 0, where none has).
        """
        if len(self) == 1:
            return binary_metrics(labels, scores)
        none = {**dict.fromkeys(QUALITIES), "samples": 0}
        each = {name: binary_metrics(*pair) if rows.any() else none for name, rows, *pair in self.known(labels, scores)}
        mean = {quality: self._mean([values[quality] for values in each.values()]) for quality in QUALITIES}
        return {**mean, "samples": len(labels), "tasks": each}

    def _mean(self, values: list[float | None]) -> float | None:
        defined = [(weight, value) for weight, value in zip(self.weights, values, strict=True) if value is not None]
        total = sum(weight for weight, _ in defined)
        return sum(weight * value for weight, value in defined) / total if total else None
