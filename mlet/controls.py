"""Controls for MLET's claims: what is left of its gain when one of its effects is taken away.

One SGD step of W = W1 W2 is, to first order, the sum of two terms (G = dL/dW, rows of the batch only):

    own row         -eta G W2^T W2     a batch row's own gradient, through a d x d matrix
    cross category  -eta W1 W1^T G     every row moves, with the rows of the batch that it resembles

The other controls are plain flags of the driver: a single layer with matched rate and start
(--emb-learning-rate-multiplier, --emb-init), MLET without the effective rate (--mlet-init=scaled), a fixed random W2
(--mlet-w2-rate-multiplier=0).

Legend: R rows of a batch, P tables, K inner dimension, d width.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from mlet.inference import collapse_tables
from mlet.initialize import initialize_tables
from mlet.row_lookup import sparse_rows
from mlet.tables import EmbeddingTables


class MaskedCrossTerm(nn.Module):
    """MLET whose cross-category term reaches no table: W1 and W2 are trained as ever, but W moves by own rows alone.

    .. math:: W_b \\leftarrow W_b + (W_1'[b] - W_1[b]) W_2 \\quad \\text{for the rows b of the batch}

    The served W is stored (plain tables), W1 and W2 are kept beside it and take the gradients that MLET's would,
    computed from dL/dW. With SGD, W_b moves by -eta g_b W2^T W2; other rules see W1's gradient as in MLET. What is lost
    is the change of W2 in W itself. The loop over tables makes it slow: it is a control.

    Args:
        tables: the served tables, plain and single-layer; written by `initialize` and at every step.
        inner_dim: K.

    Raises:
        ValueError: tables that are not plain, single-layer and float32.

    Example:
        >>> masked.before_step(); optimizer.step(); masked.after_step()  # the optimizer has masked's parameters, too
    """

    def __init__(self, tables: EmbeddingTables, inner_dim: int) -> None:
        super().__init__()
        unit = tables.units[0]
        plain = all(spec.is_plain for spec in tables.specs) and len(tables.units) == 1 and unit.rows.matrix() is None
        if not plain or tables.weighted or tables.storage != torch.float32:
            raise ValueError(
                "the cross term can be masked in plain float32 tables only: no QR, no mixed dimensions, no hashing"
            )
        specs = [replace(spec, inner_dim=inner_dim) for spec in tables.specs]
        self.factors = EmbeddingTables(specs, unknown=tables.unknown, padding=tables.padding, mode=tables.mode)
        self._served = (unit.rows,)  # in a tuple: it belongs to the model, not to this module
        self._moved: tuple[Tensor, Tensor, Tensor] | None = None

    @property
    def rows(self) -> nn.Module:
        """The group of W1 and W2."""
        return self.factors.units[0].rows

    @torch.no_grad()
    def initialize(self, seed: int, mlet_init: str, emb_init: str) -> None:
        """Start where the same run with MLET would: W1, W2 and their product in the served tables."""
        initialize_tables(self.factors, np.random.RandomState(0), seed, mlet_init, emb_init)  # side generators alone
        self._served[0].weight.copy_(collapse_tables(self.factors).units[0].rows.weight)

    @torch.no_grad()
    def before_step(self) -> None:
        """Turn the served tables' gradient into those of W1 and W2."""
        served, group = self._served[0], self.rows
        grad = served.weight.grad.coalesce()
        served.weight.grad = None
        rows, of_rows = grad.indices()[0], grad.values()  # [R], [R, d]
        w1, w2 = group.weight[rows], group.inner_projection.clone()
        of_w1, of_w2 = torch.empty_like(w1), torch.zeros_like(w2)
        for table, part in self._parts(rows):
            of_w1[part] = of_rows[part] @ w2[table].T
            of_w2[table] = w1[part].T @ of_rows[part]
        group.weight.grad = sparse_rows(rows, of_w1, group.weight.shape)
        group.inner_projection.grad = of_w2
        self._moved = rows, w1, w2

    @torch.no_grad()
    def after_step(self) -> None:
        """Move the served rows of the batch by what W1's own rows moved, through W2 as it was before the step."""
        rows, before, w2 = self._moved
        self._moved = None
        moved = self.rows.weight[rows] - before
        change = torch.empty(len(rows), w2.shape[2], device=moved.device)
        for table, part in self._parts(rows):
            change[part] = moved[part] @ w2[table]
        self._served[0].weight.index_add_(0, rows, change)

    def _parts(self, rows: Tensor) -> list[tuple[int, slice]]:
        """Where each table's rows lie among the sorted `rows`."""
        first = self.rows.first_row
        bounds = [*torch.searchsorted(rows, first).tolist(), len(rows)]
        return [(table, slice(*bounds[table : table + 2])) for table in range(len(first))]
