import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlet.embedding import MultiLayerEmbedding, collapse_rows, fill_uniform, initial_projection


def dense_twin(layer, bags, weights=None):
    """The same numbers by a full n x D product and a Python loop over bags."""
    table = layer.w1.detach() @ layer.w2.detach()
    out = []
    for number, bag in enumerate(bags):
        rows = table[torch.tensor(bag, dtype=torch.long)]
        if weights is not None:
            rows = rows * weights[number][:, None]
        total = rows.sum(dim=0)
        out.append(total / max(1, len(bag)) if layer.mode == "mean" else total)
    return torch.stack(out)


def bags_of(bags):
    lengths = [len(bag) for bag in bags]
    offsets = torch.tensor([0, *np.cumsum(lengths)[:-1]])
    return torch.tensor(sum(bags, []), dtype=torch.long), offsets


@settings(deadline=None, max_examples=30)
@given(
    rows=st.integers(1, 30),
    dim=st.integers(1, 9),
    inner=st.integers(1, 20),
    mode=st.sampled_from(["sum", "mean"]),
    data=st.data(),
)
def test_forward_equals_the_dense_product_for_k_below_equal_and_above_d(rows, dim, inner, mode, data):
    layer = MultiLayerEmbedding(rows, dim, inner, mode=mode, generator=np.random.default_rng(1))
    bags = data.draw(st.lists(st.lists(st.integers(0, rows - 1), max_size=4), min_size=1, max_size=5))
    out = layer(*bags_of(bags))
    torch.testing.assert_close(out, dense_twin(layer, bags), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("inner", [3, 8, 20])
def test_gradients_equal_those_of_two_dense_matrices(inner):
    layer = MultiLayerEmbedding(12, 8, inner)
    w1, w2 = (w.detach().clone().requires_grad_() for w in (layer.w1, layer.w2))
    bags = [[3, 3, 7], [], [11], [0, 3]]
    target = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    ((layer(*bags_of(bags)) - target) ** 2).sum().backward()
    count = torch.zeros(4, 12)
    for number, bag in enumerate(bags):
        for row in bag:
            count[number, row] += 1
    ((count @ w1 @ w2 - target) ** 2).sum().backward()
    torch.testing.assert_close(layer.w1.grad.to_dense(), w1.grad)
    torch.testing.assert_close(layer.w2.grad, w2.grad)
    assert layer.w1.grad.is_sparse


def test_per_sample_weights():
    layer = MultiLayerEmbedding(12, 8, 16)
    bags, weights = [[1, 2], [5]], [torch.tensor([0.5, -2.0]), torch.tensor([3.0])]
    out = layer(*bags_of(bags), per_sample_weights=torch.cat(weights))
    torch.testing.assert_close(out, dense_twin(layer, bags, weights), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_collapse_has_the_same_outputs_and_leaves_the_layer_alone(mode):
    layer = MultiLayerEmbedding(50, 4, 16, mode=mode)
    before = [w.clone() for w in layer.parameters()]
    table = layer.collapse()
    ids = torch.tensor([[0, 49], [7, 7]])
    torch.testing.assert_close(table(ids), layer(ids), atol=1e-6, rtol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(before, layer.parameters(), strict=True))
    assert table.weight.shape == (50, 4)


def test_collapse_in_chunks_equals_collapse_at_once(monkeypatch):
    w1, w2 = torch.randn(101, 16), torch.randn(16, 4)
    whole, chunked = torch.empty(101, 4), torch.empty(101, 4)
    collapse_rows(w1, w2, whole)
    monkeypatch.setattr("mlet.embedding.COLLAPSE_CHUNK_BYTES", 16 * 4 * 7)
    collapse_rows(w1, w2, chunked)
    torch.testing.assert_close(chunked, whole)
    torch.testing.assert_close(whole, w1 @ w2)


def test_collapse_names_the_row_that_is_not_finite():
    w1 = torch.ones(10, 2)
    w1[6, 1] = float("inf")
    with pytest.raises(ValueError, match="row 6 of the table is not finite"):
        collapse_rows(w1, torch.ones(2, 2), torch.empty(10, 2))


@pytest.mark.parametrize("mode", ["max", "median"])
def test_pooling_that_does_not_commute_is_refused(mode):
    with pytest.raises(ValueError, match="does not commute"):
        MultiLayerEmbedding(5, 2, 4, mode=mode)


@pytest.mark.parametrize(
    ("init", "std"),
    [("normal", 0.25), ("normal-0.48", 0.48), ("scaled", 64**-0.5), ("xavier", (2 / (64 + 400)) ** 0.5)],
)
def test_gaussian_initial_projections_have_their_standard_deviation(init, std):
    w2 = initial_projection(64, 400, init, np.random.default_rng(0))
    assert w2.dtype == np.float32 and w2.shape == (64, 400)
    assert w2.std() == pytest.approx(std, rel=0.02)
    assert abs(w2.mean()) < 4 * std / w2.size**0.5


@pytest.mark.parametrize(("inner", "dim"), [(16, 4), (4, 16), (8, 8)])
def test_orthogonal_projection(inner, dim):
    w2 = initial_projection(inner, dim, "orthogonal", np.random.default_rng(0))
    gram = w2.T @ w2 if inner >= dim else w2 @ w2.T
    np.testing.assert_allclose(gram, np.eye(min(inner, dim)), atol=1e-6)


@pytest.mark.parametrize("init", ["normal-", "normal-0", "normal-x", "normal-nan", "kaiming", "0.25", ""])
def test_unknown_init_is_refused(init):
    with pytest.raises(ValueError, match="initial W2"):
        initial_projection(4, 2, init, np.random.default_rng(0))


def test_uniform_fill_does_not_depend_on_the_chunk():
    one, many = torch.empty(50, 3), torch.empty(50, 3)
    fill_uniform(one, 0.1, np.random.default_rng(3))
    fill_uniform(many, 0.1, np.random.default_rng(3), chunk=12)
    assert torch.equal(one, many)
    assert one.abs().max() <= 0.1 and one.abs().max() > 0.09 and one.min() < 0 < one.max()


def test_ids_of_one_dimension_need_offsets():
    layer = MultiLayerEmbedding(10, 2, 4)
    with pytest.raises(ValueError, match="need offsets"):
        layer(torch.tensor([1, 2]))
    assert layer(torch.tensor([[1], [2]])).shape == (2, 2)
