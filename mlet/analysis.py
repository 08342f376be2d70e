"""Theory of multi-layer embeddings, measured: spectra of collapsed tables, and what one step does to them.

Training W = W1 W2 by SGD moves the table by more than -eta G. With the gradient G = dL/dW, non-zero in the rows of the
batch only, the chain rule gives dL/dW1 = G W2^T and dL/dW2 = W1^T G, hence exactly

.. math:: W' - W = -\\eta\\, G (W_2^T W_2) \\;-\\; \\eta\\, W_1 W_1^T G \\;+\\; \\eta^2\\, G W_2^T W_1^T G

The first term moves each row of the batch by its own gradient. The second moves **every** row of the table: row i by
-eta sum_b <w1_i, w1_b> g_b, the cross-category part (arXiv 2309.15881; the formulas are derived here, and tested).
Matrices of n x n never occur: W1_b^T G is [K, d]. All is computed in float64, on the device of the tensors.

Legend: n rows, K inner dimension, d stored width, R distinct rows of a batch, G gradient dL/dW [n, d], of which the
rows of the batch are held as g [R, d]; eta learning rate; s_1 >= s_2 >= ... singular values.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mlet.tables import EmbeddingTables, Part

CHUNK_BYTES = 64 << 20  # of float64 rows
NEGLIGIBLE = 1e-6  # singular directions below this share of the largest are rounding: nothing is checked in them


@dataclass(frozen=True)
class Factors:
    """One stored table part as views: W = W1 W2, or W = W1 where it is a single layer."""

    name: str  # the table's, and ".quotient" or ".remainder" where it has these two parts
    part: Part
    w1: Tensor  # [n, K], or [n, d] of a single layer
    w2: Tensor | None  # [K, d]; None for a single layer
    pooling: Tensor | None  # [n] learned pooling weights: the collapsed table is then diag(pooling) W1 W2


def table_factors(model: nn.Module, unknown: Collection[str] = ()) -> Iterator[Factors]:
    """Every stored part of the tables of a model, collapsed or not, in their order.

    `unknown` names the tables whose row for the unknown id counts, because training data hold that id (a store's
    "trained_unknown"). Other special rows never count.
    """
    tables = model.tables
    for part in tables.parts():
        group, spec = part.group, tables.specs[part.table]
        rows = part.counted_rows + (tables.unknown and spec.name in unknown)
        first = int(group.first_row[part.index])
        pooling = None if group.pooling_weight is None else group.pooling_weight.data[first : first + rows, 0]
        w2 = None if group.inner_projection is None else group.inner_projection.data[part.index]
        name = spec.name if part.name == "rows" else f"{spec.name}.{part.name}"
        yield Factors(name, part, group.part(part.index, rows), w2, pooling)


# ------------------------------------------------------------------------------------------------------------ spectra


@torch.no_grad()
def gram(w1: Tensor, w2: Tensor | None = None, pooling: Tensor | None = None) -> Tensor:
    """W^T W in float64 of W = diag(pooling) W1 W2, a chunk of rows at a time; W is never formed whole.

    Shapes:
        w1 [n, K], w2 [K, d] or None, pooling [n] or None -> [d, d], or [K, K] without w2.
    """
    width = w1.shape[1] if w2 is None else w2.shape[1]
    total = w1.new_zeros(width, width, dtype=torch.float64)
    chunk = max(1, CHUNK_BYTES // (8 * max(w1.shape[1], width)))
    for start in range(0, len(w1), chunk):
        rows = w1[start : start + chunk].double()
        if pooling is not None:
            rows = rows * pooling[start : start + chunk, None].double()
        if w2 is not None:
            rows = rows @ w2.double()
        total.addmm_(rows.T, rows)
    return total


def singular_values(w1: Tensor, w2: Tensor | None = None, pooling: Tensor | None = None) -> Tensor:
    """Singular values of the collapsed table W1 W2, descending, float64 [d].

    They are the square roots of the eigenvalues of W^T W, which needs d^2 numbers whatever n is. The price: rounding
    errors are relative to s_1, about 1e-8 of it. A value below that is zero or not, one cannot tell; beyond the rank
    that the shapes allow, min(n, K, d), they are exactly zero here. Shapes: see `gram`.

    Raises:
        ValueError: a weight is not finite.
    """
    product = gram(w1, w2, pooling)
    if not torch.isfinite(product).all():
        raise ValueError("the table is not finite: it has no singular values")
    values = torch.linalg.eigvalsh(product).clamp(min=0).sqrt().flip(0)
    values[min(*w1.shape, len(values)) :] = 0
    return values


def effective_rank(values: Tensor) -> float:
    """exp of the entropy of s / sum(s) (Roy and Vetterli 2007): 1 for one direction, d for d equal ones.

    `values` are the singular values [d]; a table of zeros has rank 0.
    """
    total = values.sum()
    return math.exp(float(torch.special.entr(values / total).sum())) if total > 0 else 0.0


def stable_rank(values: Tensor) -> float:
    """||W||_F^2 / s_1^2, at most the rank and hardly moved by small singular values; a table of zeros has 0."""
    largest = float(values.max())
    return float((values / largest).square().sum()) if largest > 0 else 0.0


def spectra(model: nn.Module, unknown: Collection[str] = ()) -> dict[str, list[float]]:
    """Singular values of every collapsed table part, JSON-ready. Arguments: see `table_factors`.

    Learned pooling weights are folded into the rows, as the collapse does. ValueError names a table that is not finite.
    """
    result = {}
    for factors in table_factors(model, unknown):
        try:
            result[factors.name] = singular_values(factors.w1, factors.w2, factors.pooling).tolist()
        except ValueError as error:
            raise ValueError(f"table {factors.name}: {error}") from None
    return result


def imbalance(w1_gram: Tensor, w2: Tensor) -> float:
    """||W1^T W1 - W2 W2^T|| / (||W1^T W1|| + ||W2 W2^T||) of W1^T W1 [K, K], see `gram`, and W2 [K, d]: 0 to 1.

    0 is balanced, which gradient flow keeps once it is so (Arora, Cohen and Hazan 2018, arXiv 1802.06509).
    """
    other = w2.double() @ w2.double().T
    total = float(w1_gram.norm() + other.norm())
    return float((w1_gram - other).norm()) / total if total > 0 else 0.0


# ---------------------------------------------------------------------------------------------------------- gradients


@dataclass(frozen=True)
class PartGradient:
    """Gradient of one stored table part."""

    rows: Tensor  # [R], the distinct rows that the batch looked up, ascending
    values: Tensor  # [R, K or d], the gradient in these rows as they are stored: of W1, or of a single layer's W
    w2: Tensor | None  # [K, d], the gradient of W2; None for a single layer and where W2 is not trained


def part_gradients(tables: EmbeddingTables, loss: Tensor) -> list[PartGradient]:
    """Gradients of a loss with respect to the tables, an entry a part. Of a collapsed model, whatever the kind of its
    tables and lookups, they are g.
    """
    groups = [group for unit in tables.units for group in unit.groups]
    weights = [group.weight for group in groups]
    inner = [w2 for group in groups if (w2 := group.inner_projection) is not None and w2.requires_grad]
    found = torch.autograd.grad(loss, [*weights, *inner])
    of_inner = dict(zip(inner, found[len(weights) :], strict=True))
    of_weight = {weight: grad.coalesce() for weight, grad in zip(weights, found, strict=False)}
    result = []
    for part in tables.parts():
        grad, w2 = of_weight[part.group.weight], part.group.inner_projection
        rows = grad.indices()[0]
        first = int(part.group.first_row[part.index])
        end = first + part.counted_rows + tables.special_rows
        start, stop = torch.searchsorted(rows, rows.new_tensor([first, end])).tolist()
        of_w2 = of_inner[w2][part.index] if w2 in of_inner else None
        result.append(PartGradient(rows[start:stop] - first, grad.values()[start:stop], of_w2))
    return result


# ---------------------------------------------------------------------------------------------------- split of a step


@dataclass(frozen=True)
class StepParts:
    """W' - W of one SGD step, exactly: `own` + `second` in the rows of the batch, and `cross` in all rows. float64."""

    own: Tensor  # -eta g (W2^T W2) [R, d]
    cross: Tensor  # -eta W1 (W1_b^T g) [n, d]
    second: Tensor  # eta^2 g W2^T (W1_b^T g) [R, d]


@dataclass(frozen=True)
class StepSplit:
    """Frobenius norms of the parts of one step of R rows in a table of n, see `step_split`."""

    table_rows: int
    batch_rows: int
    single_layer: float  # eta g: what a single layer would do
    own: float  # eta g (W2^T W2): own-row, through W1
    cross: float  # eta W1 W1_b^T g in the rows of the batch: the next two added as vectors
    cross_self: float  # eta |w1_b|^2 g_b: what each row of the batch does to itself through W2
    cross_others: float  # what the other rows of the batch do to it
    outside: float  # eta W1 W1_b^T g in the rows that are not in the batch: all that reaches them
    second: float  # eta^2 g W2^T W1_b^T g
    total: float  # W' - W

    @property
    def share_outside(self) -> float:
        """Share of ||W' - W||^2 in rows that were not in the batch; 0 of a single layer by construction."""
        return (self.outside / self.total) ** 2 if self.total > 0 else 0.0

    @property
    def outside_per_row(self) -> float:
        """Root mean square norm of the update of a row that was not in the batch."""
        others = self.table_rows - self.batch_rows
        return self.outside / math.sqrt(others) if others else 0.0


@torch.no_grad()
def step_parts(
    w1: Tensor, w2: Tensor | None, rows: Tensor, grads: Tensor, rate: float, w2_rate: float | None = None
) -> StepParts:
    """The exact parts of one SGD step as matrices; `step_split` has their norms without an [n, d] of its own.

    Args:
        w1: [n, K]. w2: [K, d], or None for a single layer W = W1.
        rows: [R] distinct rows of the batch. grads: [R, d], dL/dW in these rows.
        rate: eta. w2_rate: that of W2 where it differs; eta is then W1's, and `cross` scales with W2's.

    Raises:
        ValueError: shapes that do not fit, rows that occur twice or lie outside the table.
    """
    _check(w1, w2, rows, grads)
    g = grads.double()
    if w2 is None:
        return StepParts(-rate * g, g.new_zeros(w1.shape), torch.zeros_like(g))
    own, _, second, spread = _batch_parts(w1, w2, rows, g)
    w2_rate = rate if w2_rate is None else w2_rate
    return StepParts(-rate * own, -w2_rate * (w1.double() @ spread), rate * w2_rate * second)


@torch.no_grad()
def step_split(
    w1: Tensor,
    w2: Tensor | None,
    rows: Tensor,
    grads: Tensor,
    rate: float,
    w2_rate: float | None = None,
    w1_gram: Tensor | None = None,
) -> StepSplit:
    """How far one SGD step moves the table, and by which part.

    What reaches rows out of the batch is ||W1 A||^2 - ||W1_b A||^2 with A = W1_b^T g, and ||W1 A||^2 is
    tr(A^T (W1^T W1) A): no pass over the table. The difference leaves an error of about 1e-8 of ||W1 A||.

    Arguments and errors: as `step_parts`; `w1_gram` [K, K], see `gram`, saves the one pass over the table.
    """
    _check(w1, w2, rows, grads)
    g = grads.double()
    alone = rate * float(g.norm())
    if w2 is None:
        return StepSplit(len(w1), len(rows), alone, alone, 0.0, 0.0, 0.0, 0.0, 0.0, alone)
    own, cross, second, spread = _batch_parts(w1, w2, rows, g)
    of_itself = w1[rows].double().square().sum(dim=1, keepdim=True) * g
    outside = 0.0
    if len(rows) < len(w1):
        w1_gram = gram(w1) if w1_gram is None else w1_gram
        outside = math.sqrt(max(0.0, float((spread * (w1_gram @ spread)).sum() - cross.square().sum())))
    w2_rate = rate if w2_rate is None else w2_rate
    in_batch = rate * own + w2_rate * cross - rate * w2_rate * second
    return StepSplit(
        len(w1),
        len(rows),
        single_layer=alone,
        own=rate * float(own.norm()),
        cross=w2_rate * float(cross.norm()),
        cross_self=w2_rate * float(of_itself.norm()),
        cross_others=w2_rate * float((cross - of_itself).norm()),
        outside=w2_rate * outside,
        second=rate * w2_rate * float(second.norm()),
        total=math.hypot(float(in_batch.norm()), w2_rate * outside),
    )


def _batch_parts(w1: Tensor, w2: Tensor, rows: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """g W2^T W2, W1_b A and g W2^T A, each [R, d], and A = W1_b^T g [K, d]; float64."""
    batch, w2 = w1[rows].double(), w2.double()
    spread = batch.T @ g
    return g @ (w2.T @ w2), batch @ spread, g @ (w2.T @ spread), spread


def _check(w1: Tensor, w2: Tensor | None, rows: Tensor, grads: Tensor) -> None:
    width = w1.shape[1] if w2 is None else w2.shape[1]
    if (w2 is not None and len(w2) != w1.shape[1]) or rows.ndim != 1 or grads.shape != (len(rows), width):
        shapes = [tuple(t.shape) for t in (w1, w2, rows, grads) if t is not None]
        raise ValueError(f"w1, w2, rows and grads do not fit: {shapes}")
    if len(rows) and (int(rows.min()) < 0 or int(rows.max()) >= len(w1)):
        raise ValueError(f"rows {int(rows.min())} to {int(rows.max())} do not lie in a table of {len(w1)} rows")
    if len(rows.unique()) != len(rows):
        raise ValueError("rows of a step must be distinct: add up the gradients of equal ones first")


# -------------------------------------------------------------------------------- the law of the singular directions


@dataclass(frozen=True)
class Law:
    """A law u_i^T dW v_j = -eta weight_ij g_ij over all directions i and j that can be seen. All [I, d], float64."""

    gradient: Tensor  # g_ij = u_i^T G v_j
    weights: Tensor  # weight_ij
    measured: Tensor  # u_i^T dW v_j / eta

    @property
    def predicted(self) -> Tensor:
        """-weight_ij g_ij."""
        return -self.weights * self.gradient

    @property
    def difference(self) -> float:
        """||measured - predicted|| / ||measured||."""
        size = float(self.measured.norm())
        return float((self.measured - self.predicted).norm()) / size if size > 0 else 0.0

    @property
    def difference_of_equal_weights(self) -> float:
        """The same if all weights were one number, the best one: what a law has to beat."""
        size = float(self.measured.norm() * self.gradient.norm())
        cosine = float((self.measured * self.gradient).sum()) / size if size > 0 else 1.0
        return math.sqrt(max(0.0, 1 - cosine**2))

    @property
    def correlation(self) -> float:
        """Pearson's, of measured and predicted; NaN where one does not vary."""
        both = torch.stack([self.measured.flatten(), self.predicted.flatten()])
        return float(torch.corrcoef(both)[0, 1]) if both.shape[1] > 1 else math.nan


@dataclass(frozen=True)
class LawCheck:
    """See `law_check`: `general` holds for any factors, `balanced` where `imbalance` is 0."""

    general: Law
    balanced: Law
    imbalance: float


@torch.no_grad()
def law_check(
    w1: Tensor,
    w2: Tensor,
    rows: Tensor,
    grads: Tensor,
    factor_grads: tuple[Tensor, Tensor] | None = None,
    w1_gram: Tensor | None = None,
) -> LawCheck:
    """How one step at one rate, to first order in it, moves a table along its singular directions.

    .. math:: general:\\; u_i^T dW v_j = -\\eta (s_i(W_1)^2 + s_j(W_2)^2)\\, u_i^T G v_j
              \\qquad balanced:\\; u_i^T dW v_j = -\\eta (s_i + s_j)\\, u_i^T G v_j

    In the general law u_i are left singular vectors of W1 and v_j right ones of W2. If the factors are balanced,
    W1^T W1 = W2 W2^T, then s(W1)^2 = s(W2)^2 = s(W) and both are the singular vectors of W: the balanced law (from
    Arora, Cohen and Hazan 2018 for two layers). Directions i with s_i below 1e-6 s_1 are left out: in them the weight
    would be that of j alone, but they cannot be told from rounding.

    Args:
        w1: [n, K]. w2: [K, d]. rows: [R] distinct. grads: [R, d], dL/dW in these rows.
        factor_grads: dL/dW1 [R, K] in these rows and dL/dW2 [K, d] as backward gave them: dW is then what training
            really does. None takes them from `grads` by the chain rule.
        w1_gram: W1^T W1 [K, K], where the caller has it.

    Raises:
        ValueError: as `step_parts`.
    """
    _check(w1, w2, rows, grads)
    w1_gram = gram(w1) if w1_gram is None else w1_gram
    batch, w2, g = w1[rows].double(), w2.double(), grads.double()
    spread = batch.T @ g
    of_w1, of_w2 = (g @ w2.T, spread) if factor_grads is None else (grad.double() for grad in factor_grads)
    moved = -(batch.T @ of_w1 @ w2 + w1_gram @ of_w2)  # W1^T dW / eta [K, d], all that the projections need
    left, left_vectors = _directions(w1_gram)
    right, right_vectors = _directions(w2.T @ w2, keep_all=True)
    left = left[:, None]
    general = Law(
        left_vectors.T @ spread @ right_vectors / left,
        left.square() + right.square(),
        left_vectors.T @ moved @ right_vectors / left,
    )
    every, vectors = _directions(w2.T @ w1_gram @ w2, keep_all=True)
    seen = every > NEGLIGIBLE * every[0]
    of_table, table_vectors = every[seen, None], vectors[:, seen]
    balanced = Law(
        table_vectors.T @ w2.T @ spread @ vectors / of_table,
        of_table + every,
        table_vectors.T @ w2.T @ moved @ vectors / of_table,
    )
    return LawCheck(general, balanced, imbalance(w1_gram, w2))


def _directions(product: Tensor, keep_all: bool = False) -> tuple[Tensor, Tensor]:
    """Singular values [I], descending, and right singular vectors [., I] of a matrix M of which M^T M is given."""
    values, vectors = torch.linalg.eigh(product)
    values, vectors = values.clamp(min=0).sqrt().flip(0), vectors.flip(1)
    kept = len(values) if keep_all else int((values > NEGLIGIBLE * values[0]).sum())
    return values[:kept], vectors[:, :kept]
