"""Identities of the theory, each against the plain matrices, and on a model that really takes a step.

Legend: n rows, K inner dimension, d width, R distinct rows of the batch.
"""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlet import analysis
from mlet.inference import collapse
from mlet.models import build_model
from mlet.table_spec import plan_tables
from mlet.tables import EmbeddingTables

sizes = st.tuples(st.integers(1, 12), st.integers(1, 8), st.integers(1, 6))  # n, K, d: any order of them
seeds = st.integers(0, 2**32 - 1)


def factors(seed, n, k, d, batch=None):
    """W1 [n, K], W2 [K, d], rows [R], grads [R, d], float64."""
    generator = torch.Generator().manual_seed(seed)
    w1, w2 = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((n, k), (k, d)))
    count = batch if batch is not None else int(torch.randint(1, n + 1, (), generator=generator))
    rows = torch.randperm(n, generator=generator)[:count]
    return w1, w2, rows, torch.randn(count, d, generator=generator, dtype=torch.float64)


def balanced_factors(seed, n, k, d):
    """W1 = U S^1/2, W2 = S^1/2 V^T, both turned by one rotation: W1^T W1 = W2 W2^T."""
    generator = torch.Generator().manual_seed(seed)
    u, _ = torch.linalg.qr(torch.randn(n, d, generator=generator, dtype=torch.float64))
    v, _ = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))
    turn, _ = torch.linalg.qr(torch.randn(k, d, generator=generator, dtype=torch.float64))
    root = torch.linspace(2, 0.5, d, dtype=torch.float64).sqrt()
    return u * root @ turn.T, turn * root @ v.T


def real_step(w1, w2, rows, grads, rate, w2_rate=None):
    """W' - W of torch's SGD on both factors."""
    first, second = torch.nn.Parameter(w1.clone()), torch.nn.Parameter(w2.clone())
    groups = [{"params": [first]}, {"params": [second], "lr": rate if w2_rate is None else w2_rate}]
    optimizer = torch.optim.SGD(groups, lr=rate)
    ((first @ second)[rows] * grads).sum().backward()
    optimizer.step()
    return (first @ second - w1 @ w2).detach()


# ------------------------------------------------------------------------------------------------------------ spectra


@settings(max_examples=50, deadline=None)
@given(sizes, seeds)
def test_singular_values_are_those_of_the_product(size, seed):
    w1, w2, *_ = factors(seed, *size)
    values = analysis.singular_values(w1, w2)
    exact = torch.zeros(size[2], dtype=torch.float64)
    direct = torch.linalg.svdvals(w1 @ w2)
    exact[: len(direct)] = direct
    assert values.dtype == torch.float64 and values.shape == (size[2],)
    assert (values - exact).abs().max() <= 1e-7 * exact[0]
    assert not values[min(size) :].any()
    assert torch.equal(values, values.sort(descending=True).values)
    assert torch.allclose(analysis.singular_values(w1 @ w2), values, atol=1e-7 * float(exact[0]), rtol=0)


def test_chunks_and_pooling_weights_change_nothing(monkeypatch):
    w1, w2, *_ = factors(3, 50, 8, 4)
    pooling = torch.linspace(-1, 2, 50, dtype=torch.float64)
    whole = analysis.singular_values(w1, w2, pooling)
    monkeypatch.setattr(analysis, "CHUNK_BYTES", 8 * 8 * 7)  # seven rows
    assert torch.allclose(analysis.singular_values(w1, w2, pooling), whole, rtol=1e-12)
    assert torch.allclose(whole, torch.linalg.svdvals(pooling[:, None] * (w1 @ w2)), rtol=1e-9)
    assert torch.allclose(analysis.gram(w1), w1.T @ w1, rtol=1e-12)


def test_ranks():
    zero, one, equal = torch.zeros(4), torch.tensor([3.0, 0, 0, 0]), torch.full((4,), 0.5)
    for rank in (analysis.effective_rank, analysis.stable_rank):
        assert [rank(values.double()) for values in (zero, one, equal)] == pytest.approx([0, 1, 4])
    values = torch.tensor([2.0, 1.0], dtype=torch.float64)
    assert analysis.stable_rank(values) == 1.25
    assert analysis.effective_rank(values) == pytest.approx(math.exp(-(2 / 3) * math.log(2 / 3) + math.log(3) / 3))


def test_a_table_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="not finite"):
        analysis.singular_values(torch.tensor([[math.nan, 1.0]]))


# -------------------------------------------------------------------------------------------------- split of a step


@settings(max_examples=50, deadline=None)
@given(sizes, seeds, st.floats(1e-3, 1), st.sampled_from([None, 0.0, 0.3]))
def test_the_split_is_the_step_that_sgd_takes(size, seed, rate, w2_rate):
    w1, w2, rows, grads = factors(seed, *size)
    moved = real_step(w1, w2, rows, grads, rate, w2_rate)
    parts = analysis.step_parts(w1, w2, rows, grads, rate, w2_rate)
    total = parts.cross.clone()
    total[rows] += parts.own + parts.second
    scale = float(moved.abs().max() + w1.abs().max() * w2.abs().max())
    assert (total - moved).abs().max() <= 1e-12 * scale

    split = analysis.step_split(w1, w2, rows, grads, rate, w2_rate)
    others = torch.ones(size[0], dtype=torch.bool)
    others[rows] = False
    itself = -(rate if w2_rate is None else w2_rate) * w1[rows].square().sum(dim=1, keepdim=True) * grads
    expected = {
        "single_layer": rate * grads,
        "own": parts.own,
        "cross": parts.cross[rows],
        "cross_self": itself,
        "cross_others": parts.cross[rows] - itself,
        "outside": moved[others],
        "second": parts.second,
        "total": moved,
    }
    tolerance = 1e-7 * float(parts.cross.norm() + parts.own.norm() + parts.second.norm())
    for name, matrix in expected.items():
        assert getattr(split, name) == pytest.approx(float(matrix.norm()), rel=1e-9, abs=tolerance), name
    assert (split.table_rows, split.batch_rows) == (size[0], len(rows))
    assert split.share_outside == pytest.approx(float((moved[others].norm() / moved.norm()) ** 2), abs=1e-6)
    if others.any():
        mean_square = float(moved[others].square().sum(dim=1).mean())
        assert split.outside_per_row == pytest.approx(math.sqrt(mean_square), abs=tolerance)
    else:
        assert split.outside == split.outside_per_row == 0


def test_the_gram_matrix_may_be_given():
    w1, w2, rows, grads = factors(5, 9, 6, 3, batch=4)
    given = analysis.step_split(w1, w2, rows, grads, 0.1, w1_gram=analysis.gram(w1))
    assert given == analysis.step_split(w1, w2, rows, grads, 0.1) and given.outside > 0


def test_a_single_layer_moves_nothing_but_the_batch():
    w1, _, rows, grads = factors(6, 9, 4, 4, batch=3)
    split = analysis.step_split(w1, None, rows, grads, 0.5)
    assert split.own == split.total == split.single_layer == pytest.approx(0.5 * float(grads.norm()))
    assert split.outside == split.share_outside == split.outside_per_row == split.cross == split.second == 0
    parts = analysis.step_parts(w1, None, rows, grads, 0.5)
    assert torch.equal(parts.own, -0.5 * grads) and not parts.cross.any() and parts.cross.shape == w1.shape
    nothing = analysis.step_split(w1, None, rows[:0], grads[:0], 0.5)
    assert nothing.total == nothing.share_outside == 0


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [([1, 1], 3, "distinct"), ([0, 9], 3, "rows 0 to 9 do not lie in a table of 9"), ([0, 1], 2, "do not fit")],
)
def test_rows_that_cannot_be_a_step_are_refused(rows, columns, message):
    w1, w2, *_ = factors(1, 9, 4, 3)
    for check in (lambda *a: analysis.step_split(*a, 0.1), lambda *a: analysis.step_parts(*a, 0.1), analysis.law_check):
        with pytest.raises(ValueError, match=message):
            check(w1, w2, torch.tensor(rows), torch.ones(2, columns))


# ------------------------------------------------------------------------------------------------------------ the law


@settings(max_examples=50, deadline=None)
@given(sizes, seeds)
def test_the_general_law_holds_for_any_factors(size, seed):
    w1, w2, rows, grads = factors(seed, *size)
    check = analysis.law_check(w1, w2, rows, grads)
    left = torch.linalg.svdvals(w1)
    assert check.general.measured.shape == (int((left > 1e-6 * left[0]).sum()), size[2])
    assert check.general.difference < 1e-8
    assert 0 <= check.imbalance <= 1


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.integers(0, 4), st.integers(0, 6), seeds)
def test_balanced_factors_obey_the_sum_of_singular_values(d, more_inner, more_rows, seed):
    k, n = d + more_inner, d + more_rows
    w1, w2 = balanced_factors(seed, n, k, d)
    _, _, rows, grads = factors(seed, n, k, d)
    check = analysis.law_check(w1, w2, rows, grads)
    assert check.imbalance < 1e-12
    assert check.general.difference < 1e-10 and check.balanced.difference < 1e-10
    values = torch.linspace(2, 0.5, d, dtype=torch.float64)
    assert torch.allclose(check.balanced.weights, values[:, None] + values, rtol=1e-9)
    assert torch.allclose(check.general.weights, check.balanced.weights, rtol=1e-9)
    if d > 1:
        assert check.balanced.correlation == pytest.approx(1, abs=1e-9)


def test_measured_is_the_plain_projection_of_the_update():
    w1, w2, rows, grads = factors(11, 30, 6, 3, batch=7)
    tiny = 1e-7
    moved = real_step(w1, w2, rows, grads, tiny) / tiny
    gradient = torch.zeros(30, 3, dtype=torch.float64).index_copy(0, rows, grads)
    check = analysis.law_check(w1, w2, rows, grads)
    for law, left_of, right_of in ((check.general, w1, w2), (check.balanced, w1 @ w2, w1 @ w2)):
        u = torch.linalg.svd(left_of, full_matrices=False).U
        v = torch.linalg.svd(right_of).Vh.T
        # singular vectors have no sign of their own
        assert torch.allclose((u.T @ moved @ v).abs(), law.measured.abs(), rtol=1e-4, atol=1e-5)
        assert torch.allclose((u.T @ gradient @ v).abs(), law.gradient.abs(), rtol=1e-8, atol=1e-10)
    assert check.balanced.difference > 0.01  # these factors are not balanced
    assert 0 < check.general.difference_of_equal_weights < 1


def test_a_gradient_of_zero_has_no_difference():
    w1, w2, rows, grads = factors(12, 5, 4, 2, batch=2)
    check = analysis.law_check(w1, w2, rows, grads * 0)
    assert check.general.difference == check.balanced.difference == check.general.difference_of_equal_weights == 0
    empty = analysis.law_check(w1 * 0, w2, rows, grads)
    assert empty.general.measured.shape == empty.balanced.measured.shape == (0, 2) and empty.general.difference == 0


# ---------------------------------------------------------------------------------------------------------- on a model

VARIANTS = {
    "plain": ({}, {}),
    "small tables single-layer": ({"mlet_min_rows": 20}, {}),
    "quotient-remainder": ({"qr_collisions": 4, "qr_threshold": 10}, {}),
    "mixed dimensions": ({"md_temperature": 0.5, "md_threshold": 10}, {}),
    "mean of bags": ({}, {"mode": "mean"}),
    "bf16": ({}, {"storage": torch.bfloat16}),
}


def small_model(options, table_options):
    specs = plan_tables({"a": 30, "b": 7, "c": 50}, 4, inner_dim=6, **options)
    tables = EmbeddingTables(specs, unknown=True, padding=True, **table_options)
    model = build_model("dlrm", tables, bottom=[3, 4], top=[8, 1])
    model.initialize(np.random.RandomState(0), 0, "normal")
    return model


def batch_of(model, bags):
    """Dense features, ids, offsets and labels of 12 samples, ids repeated."""
    generator = torch.Generator().manual_seed(7)
    dense, labels = torch.rand(12, 3, generator=generator), torch.randint(2, (12, 1), generator=generator).float()
    rows = torch.tensor([spec.rows for spec in model.tables.specs])
    if not bags:
        return dense, (torch.rand(12, 3, generator=generator) * rows / 2).long(), None, labels
    lengths = torch.randint(0, 4, (36,), generator=generator)
    table = torch.arange(3).repeat_interleave(lengths.view(3, 12).sum(dim=1))
    ids = (torch.rand(len(table), generator=generator) * rows[table] / 2).long()
    return dense, ids, torch.nn.functional.pad(lengths.cumsum(0), (1, 0)), labels


def loss_of(model, dense, ids, offsets, labels):
    return torch.nn.functional.binary_cross_entropy(model(dense, ids, offsets), labels)


@pytest.mark.parametrize("bags", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_split_is_what_a_models_own_step_does(variant, bags):
    model = small_model(*VARIANTS[variant])
    batch = batch_of(model, bags)
    single = collapse(model)
    grads = analysis.part_gradients(single.tables, loss_of(single, *batch))
    live = analysis.part_gradients(model.tables, loss_of(model, *batch))
    rate = 0.5
    for before, grad, own in zip(analysis.table_factors(model), grads, live, strict=True):
        assert torch.equal(grad.rows, own.rows) and len(grad.rows.unique()) == len(grad.rows) > 0
        w1 = before.w1.double()
        w2 = torch.eye(w1.shape[1]) if before.w2 is None else before.w2
        moved_w2 = w2.double() if own.w2 is None else w2.double() - rate * own.w2.double()
        moved = w1.index_add(0, own.rows, -rate * own.values.double()) @ moved_w2 - w1 @ w2.double()
        parts = analysis.step_parts(before.w1, before.w2, grad.rows, grad.values, rate)
        total = parts.cross.index_add(0, grad.rows, parts.own + parts.second)
        assert torch.allclose(total, moved, rtol=1e-3, atol=1e-5 * float(moved.abs().max())), before.name
        split = analysis.step_split(before.w1, before.w2, grad.rows, grad.values, rate)
        assert (split.share_outside > 0) == (before.w2 is not None and len(grad.rows) < len(w1))
        if before.w2 is not None:
            factor_grads = own.values, own.w2
            check = analysis.law_check(before.w1, before.w2, grad.rows, grad.values, factor_grads)
            assert check.general.difference < 1e-4, before.name


def test_no_gradient_is_left_behind_and_a_fixed_w2_has_none():
    model = small_model(*VARIANTS["plain"])
    model.tables.units[0].rows.inner_projection.requires_grad_(False)
    found = analysis.part_gradients(model.tables, loss_of(model, *batch_of(model, bags=False)))
    assert all(grad.w2 is None and grad.values.shape[1] == 6 for grad in found)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("variant", ["plain", "small tables single-layer", "quotient-remainder", "bf16"])
def test_spectra_do_not_change_when_the_model_is_collapsed(variant):
    model = small_model(*VARIANTS[variant])
    found = json.loads(json.dumps(analysis.spectra(model)))
    collapsed = analysis.spectra(collapse(model))
    assert list(found) == list(collapsed) and {name.split(".")[0] for name in found} == {"a", "b", "c"}
    for name, values in found.items():
        assert values == pytest.approx(collapsed[name], abs=1e-6 * values[0]) and values[0] > 0


def test_learned_pooling_weights_are_folded():
    model = small_model({}, {"weighted": True})
    plain = analysis.spectra(model)
    for group in model.tables.units[0].groups:
        group.pooling_weight.data.mul_(torch.linspace(0, 2, len(group.pooling_weight))[:, None])
    found, collapsed = analysis.spectra(model), analysis.spectra(collapse(model))
    for name, values in found.items():
        assert values == pytest.approx(collapsed[name], abs=1e-6 * values[0])
    assert found != plain


def test_the_unknown_row_counts_where_it_is_trained():
    model = small_model(*VARIANTS["plain"])
    parts = list(analysis.table_factors(model))
    assert [len(part.w1) for part in parts] == [30, 7, 50]
    counted = list(analysis.table_factors(model, unknown=["a", "c"]))
    assert [len(part.w1) for part in counted] == [31, 7, 51]
    assert counted[0].w1.data_ptr() == parts[0].w1.data_ptr()


def test_a_table_that_is_not_finite_is_named():
    model = small_model(*VARIANTS["plain"])
    next(analysis.table_factors(model)).w2.fill_(math.inf)
    with pytest.raises(ValueError, match="table a: .* not finite"):
        analysis.spectra(model)
