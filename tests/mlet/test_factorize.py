import copy
import io
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations

import mlet
from mlet.embedding import MultiLayerEmbedding
from mlet.factorization import collapse_factorized
from mlet.factorized_layers import FactorizedEmbedding, FactorizedEmbeddingBag

FEW = 20  # min_rows of most tests


class Recommender(nn.Module):
    """One table of each kind, a small one, and a bag with weights."""

    def __init__(self, **bag):
        super().__init__()
        self.items = nn.Embedding(50, 6, padding_idx=0)
        self.words = nn.EmbeddingBag(40, 5, **bag)
        self.days = nn.Embedding(7, 6)
        self.top = nn.Linear(6 + 5 + 6, 1)

    def forward(self, items, words, days):
        return self.top(torch.cat([self.items(items).mean(dim=1), self.words(words), self.days(days)], dim=1))[:, 0]


def batch(seed=0, size=9):
    draw = torch.Generator().manual_seed(seed)
    return (
        torch.randint(0, 50, (size, 4), generator=draw),
        torch.randint(0, 40, (size, 3), generator=draw),
        torch.randint(0, 7, (size,), generator=draw),
    )


def train(model, steps=5, optimizers=None):
    for optimizer in optimizers or [torch.optim.Adam(model.parameters(), lr=0.05)]:
        for step in range(steps):
            optimizer.zero_grad()
            ((model(*batch(step)) - 1) ** 2).mean().backward()
            optimizer.step()


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same_state(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_model_before_equals_factorized_equals_collapsed(dtype, atol, keep):
    model = Recommender(mode="sum").to(dtype)
    before, days = model(*batch()), model.days
    assert mlet.factorize(model, 16, FEW, keep=keep) is model
    assert type(model.items) is FactorizedEmbedding and type(model.words) is FactorizedEmbeddingBag
    assert model.days is days
    if keep:
        torch.testing.assert_close(model(*batch()), before, atol=atol, rtol=0)
    train(model)
    collapsed = mlet.collapse(model)
    assert type(model.items) is FactorizedEmbedding  # the trained model stays
    torch.testing.assert_close(collapsed(*batch()), model(*batch()), atol=atol, rtol=0)
    original = Recommender(mode="sum").to(dtype)
    original.load_state_dict(collapsed.state_dict())
    assert torch.equal(original(*batch()), collapsed(*batch()))
    for fresh, plain in zip(original.modules(), collapsed.modules(), strict=True):
        assert type(fresh) is type(plain) and str(fresh) == str(plain)


def test_both_matrices_and_all_of_the_inner_width_learn():
    model = mlet.factorize(Recommender(), 16, FEW)
    before = state(model)
    assert np.linalg.matrix_rank(before["items.w1"].double().numpy(), tol=1e-3) == 16
    train(model)
    for name in ("items.w1", "items.w2", "words.w1", "words.w2"):
        assert not torch.equal(before[name], model.state_dict()[name])


def test_a_table_of_zeros_stays_zero_and_gets_a_full_first_matrix():
    table = nn.Embedding(100, 3)
    nn.init.zeros_(table.weight)
    layer = mlet.factorize(table, 8, 0)
    torch.testing.assert_close(layer.weight, torch.zeros(100, 3), atol=1e-7, rtol=0)
    assert layer.w1.std().item() == pytest.approx((5 / 8 / 300) ** 0.5, rel=0.2)  # 5 of 8 directions are free of W2


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 30),
    dim=st.integers(1, 8),
    more=st.integers(1, 12),
    kind=st.sampled_from(["embedding", "sum", "mean", "weighted"]),
    options=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    init=st.sampled_from(["orthogonal", "normal", "scaled", "xavier"]),
    data=st.data(),
)
def test_any_table_before_factorized_and_collapsed(rows, dim, more, kind, options, init, data):
    sparse, last, padded = options
    padding = data.draw(st.integers(-rows, rows - 1)) if padded else None
    if kind == "embedding":
        table = nn.Embedding(rows, dim, padding_idx=padding, sparse=sparse, dtype=torch.float64)
        nn.init.normal_(table.weight)  # the padding row too
        inputs = [torch.tensor(data.draw(st.lists(st.integers(0, rows - 1), max_size=8)), dtype=torch.long)]
    else:
        mode = "mean" if kind == "mean" else "sum"
        extra = {"padding_idx": padding, "sparse": sparse, "include_last_offset": last}
        table = nn.EmbeddingBag(rows, dim, mode=mode, dtype=torch.float64, **extra)
        bags = data.draw(st.lists(st.lists(st.integers(0, rows - 1), max_size=4), min_size=1, max_size=5))
        ends = [0, *np.cumsum([len(bag) for bag in bags])]
        inputs = [torch.tensor(sum(bags, []), dtype=torch.long), torch.tensor(ends if last else ends[:-1])]
        inputs += [torch.randn(ends[-1], dtype=torch.float64)] if kind == "weighted" else []
    layer = mlet.factorize(table, dim + more, 0, init=init)
    for other in (layer, layer.collapse(), pickle.loads(pickle.dumps(layer)), mlet.collapse(layer)):
        torch.testing.assert_close(other(*inputs), table(*inputs), atol=1e-10, rtol=1e-10)
        torch.testing.assert_close(other.weight, table.weight.data, atol=1e-10, rtol=1e-10, check_layout=False)
        for name in ("num_embeddings", "embedding_dim", "padding_idx", "sparse", "max_norm", "training", "norm_type"):
            assert getattr(other, name) == getattr(table, name), name
    assert str(layer.collapse()) == str(table)


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_gradients_equal_those_of_two_dense_matrices(kind):
    layer = mlet.factorize(kind(12, 4, padding_idx=2), 9, 0)
    w1, w2 = (w.detach().clone().requires_grad_() for w in (layer.w1, layer.w2))
    ids = torch.tensor([[3, 3, 7], [2, 11, 0], [2, 2, 2]])
    one_hot = F.one_hot(ids, 12) * (ids != 2)[..., None]
    if kind is nn.EmbeddingBag:
        one_hot = one_hot.sum(dim=1) / (ids != 2).sum(dim=1, keepdim=True).clamp(min=1)
    target = torch.randn(*one_hot.shape[:-1], 4, generator=torch.Generator().manual_seed(0))
    ((layer(ids) - target) ** 2).sum().backward()
    ((one_hot.float() @ w1 @ w2 - target) ** 2).sum().backward()
    torch.testing.assert_close(layer.w1.grad, w1.grad)
    torch.testing.assert_close(layer.w2.grad, w2.grad)


def test_first_sgd_step_of_w1_moves_the_rows_of_the_batch_as_the_single_table_moves():
    table = nn.Embedding(30, 4)
    layer = mlet.factorize(copy.deepcopy(table), 16, 0, init="orthogonal")
    layer.w2.requires_grad_(False)
    ids = torch.tensor([1, 5, 5, 29])
    for module in (table, layer):
        (module(ids) ** 2).sum().backward()
        torch.optim.SGD(module.parameters(), lr=0.1).step()
    torch.testing.assert_close(layer.weight, table.weight.data, atol=1e-6, rtol=1e-5)


def test_sparse_gradients_and_their_optimizers():
    model = Recommender(mode="sum", sparse=True)
    mlet.factorize(model, 16, FEW)
    sparse = torch.optim.SparseAdam([model.words.w1], lr=0.05)
    dense = torch.optim.Adam([p for p in model.parameters() if p is not model.words.w1], lr=0.05)
    before = state(model)
    train(model, optimizers=[sparse, dense])
    assert model.words.w1.grad.is_sparse and not model.words.w2.grad.is_sparse
    used = torch.cat([batch(step)[1].flatten() for step in range(5)]).unique()
    untouched = torch.ones(40, dtype=torch.bool).index_fill(0, used, False)
    assert torch.equal(model.words.w1[untouched], before["words.w1"][untouched])
    assert (model.words.w1[used] != before["words.w1"][used]).any(dim=1).all()
    collapsed = mlet.collapse(model)
    assert collapsed.words.sparse
    torch.testing.assert_close(collapsed(*batch()), model(*batch()), atol=1e-5, rtol=0)


@pytest.mark.parametrize("value", [0.0, 0.7])
def test_the_padding_row_stays_as_it_was_through_training(value):
    model = Recommender()
    nn.init.constant_(model.items.weight.data[0], value)
    mlet.factorize(model, 16, FEW)
    train(model)
    ids = torch.tensor([[0, 3], [4, 0]])
    for module in (model.items, mlet.collapse(model).items):
        assert torch.equal(module(ids)[ids == 0], torch.full((2, 6), value))
        assert torch.equal(module.weight[0], torch.full((6,), value))
    assert mlet.factorize(nn.Embedding(9, 2, padding_idx=-1), 4, 0, keep=False)(torch.tensor(8)).eq(0).all()


class Tied(nn.Module):
    """The same weight in two tables, and one of the modules under a second name."""

    def __init__(self):
        super().__init__()
        self.one = nn.Embedding(30, 4, padding_idx=1)
        self.two = nn.EmbeddingBag(30, 4, padding_idx=1)
        self.two.weight = self.one.weight
        self.again = nn.ModuleDict({"table": self.one})

    def forward(self, ids):
        return self.one(ids).sum(dim=1) + self.two(ids) + self.again["table"](ids).mean(dim=1)


@pytest.mark.parametrize("inplace", [True, False])
def test_tied_tables_stay_tied(inplace):
    model, ids = Tied(), torch.tensor([[1, 2], [29, 29]])
    before = model(ids)
    mlet.factorize(model, 8, FEW)
    assert model.one.w1 is model.two.w1 and model.one.w2 is model.two.w2 and model.again["table"] is model.one
    assert len(list(model.parameters())) == 2
    torch.testing.assert_close(model(ids), before, atol=1e-5, rtol=0)
    model(ids).sum().backward()
    torch.optim.SGD(model.parameters(), 0.1).step()
    trained, copied = model(ids), copy.deepcopy(model)
    assert copied.one.w1 is copied.two.w1 and copied.one.w1 is not model.one.w1
    collapsed = mlet.collapse(model, inplace=inplace)
    assert (collapsed is model) == inplace
    assert collapsed.one.weight is collapsed.two.weight and collapsed.again["table"] is collapsed.one
    torch.testing.assert_close(collapsed(ids), trained, atol=1e-5, rtol=0)
    Tied().load_state_dict(collapsed.state_dict())


def test_a_module_with_two_names_answers_to_both_and_its_twin_must_be_named_too():
    with pytest.raises(ValueError, match="shared with two.weight .EmbeddingBag"):
        mlet.factorize(Tied(), 8, names=["again.table"])
    model = mlet.factorize(Tied(), 8, names=["again.table", "two"])
    assert type(model.one) is FactorizedEmbedding and model.again["table"] is model.one


def test_code_that_reads_the_weight_sees_the_table_and_trains_both_matrices():
    layer = mlet.factorize(nn.Embedding(30, 4), 8, 0)
    F.linear(torch.ones(2, 4), layer.weight).pow(2).sum().backward()
    w1, w2 = (w.detach().clone().requires_grad_() for w in (layer.w1, layer.w2))
    F.linear(torch.ones(2, 4), w1 @ w2).pow(2).sum().backward()
    torch.testing.assert_close(layer.w1.grad, w1.grad)
    torch.testing.assert_close(layer.w2.grad, w2.grad)
    for value in (torch.zeros(30, 4), nn.Parameter(torch.zeros(30, 4))):
        with pytest.raises((AttributeError, KeyError)):  # loud: it would be lost
            layer.weight = value


def test_collapse_needs_no_copy_of_the_matrices(monkeypatch):
    model = mlet.factorize(Recommender(), 16, FEW)
    copied = []
    deepcopy = nn.Parameter.__deepcopy__
    monkeypatch.setattr(nn.Parameter, "__deepcopy__", lambda p, memo: copied.append(p) or deepcopy(p, memo))
    mlet.collapse(model)
    assert {id(p) for p in copied} == {id(p) for p in (*model.days.parameters(), *model.top.parameters())}


@pytest.mark.parametrize("inplace", [True, False])
def test_collapse_of_a_table_that_is_not_finite_names_it_and_changes_nothing(inplace):
    model = mlet.factorize(Recommender(), 16, FEW)
    with torch.no_grad():
        model.words.w1[7, 3] = float("inf")
    modules = dict(model.named_modules())
    with pytest.raises(ValueError, match="words: collapse: row 7 of the table is not finite"):
        mlet.collapse(model, inplace=inplace)
    assert dict(model.named_modules()) == modules


def test_a_table_that_was_frozen_after_training_stays_frozen():
    model = mlet.factorize(Recommender(), 16, FEW)
    model.items.requires_grad_(False)
    collapsed = mlet.collapse(model)
    assert not collapsed.items.weight.requires_grad and collapsed.words.weight.requires_grad


def test_names_choose_and_already_factorized_tables_stay():
    model = Recommender()
    mlet.factorize(model, 16, names={"days"})  # named, so however small
    days = model.days
    assert type(days) is FactorizedEmbedding and type(model.items) is nn.Embedding
    mlet.factorize(model, 8, FEW)
    assert model.days is days and model.items.inner_dim == 8


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_and_training_mode_are_kept(dtype):
    model = Recommender().to(dtype).eval()
    mlet.factorize(model, 16, FEW)
    collapsed = mlet.collapse(model)
    for each in (model, collapsed):
        assert all(value.dtype == dtype for value in each.state_dict().values())
        assert not any(module.training for module in each.modules())
    ids = torch.arange(50)
    epsilon = torch.finfo(dtype).eps
    torch.testing.assert_close(model.items(ids), collapsed.items(ids), atol=20 * epsilon, rtol=0)


def test_the_dtype_under_autocast_is_that_of_a_plain_lookup():
    table = nn.Embedding(50, 4, padding_idx=0)
    layer = mlet.factorize(table, 16, 0)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.tensor([0, 1])).dtype == table(torch.tensor([0, 1])).dtype == torch.float32
        assert layer.weight.dtype == torch.float32


def test_the_same_seed_gives_the_same_matrices_in_chunks_of_any_size(monkeypatch):
    table = nn.Embedding(103, 4)
    one = mlet.factorize(table, 8, 0, seed=3)
    monkeypatch.setattr("mlet.factorization.CHUNK_NUMBERS", 8 * 10)
    two, other = mlet.factorize(table, 8, 0, seed=3), mlet.factorize(table, 8, 0, seed=4)
    torch.testing.assert_close(two.w1, one.w1, atol=1e-6, rtol=0)
    assert torch.equal(two.w2, one.w2) and not torch.equal(other.w2, one.w2)


def test_copies_and_files_of_a_factorized_model():
    model = mlet.factorize(Recommender(), 16, FEW)
    train(model)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    again = mlet.factorize(Recommender(), 16, FEW, seed=9)
    again.load_state_dict(torch.load(file))
    for other in (again, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_same_state(state(model), state(other))
        assert torch.equal(other(*batch()), model(*batch()))


def test_layers_written_by_hand_collapse_too():
    model = nn.ModuleDict(
        {"bag": MultiLayerEmbedding(30, 4, 8), "one": FactorizedEmbedding(torch.ones(5, 3), torch.ones(3, 2))}
    )
    ids = torch.tensor([[1, 29]])
    before = model["bag"](ids)
    collapsed = collapse_factorized(model)
    assert type(collapsed["bag"]) is nn.EmbeddingBag and torch.equal(collapsed["one"].weight, torch.full((5, 2), 3.0))
    torch.testing.assert_close(collapsed["bag"](ids), before, atol=1e-6, rtol=1e-5)


def test_parametrized_layers_collapse_and_are_not_taken_for_tied():
    model = nn.ModuleList([nn.Embedding(30, 4), nn.Embedding(30, 4)])
    mlet.factorize(model, 8, FEW)
    for layer in model:
        parametrizations.weight_norm(layer, "w1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # its hooks are none that act when a layer is called
        collapsed = mlet.collapse(model)
    assert collapsed[0].weight is not collapsed[1].weight
    for layer, plain in zip(model, collapsed, strict=True):
        torch.testing.assert_close(plain.weight, layer.weight)


def test_layers_refuse_matrices_that_do_not_fit():
    for make in (FactorizedEmbedding, FactorizedEmbeddingBag):
        with pytest.raises(ValueError, match="no product"):
            make(torch.ones(5, 3), torch.ones(4, 2))
        with pytest.raises(ValueError, match="padding_idx=5"):
            make(torch.ones(5, 3), torch.ones(3, 2), padding_idx=5)
    with pytest.raises(ValueError, match="does not commute"):
        FactorizedEmbeddingBag(torch.ones(5, 3), torch.ones(3, 2), mode="max")


def test_models_of_this_project_collapse_as_before():
    from mlet.inference import collapse as collapse_ctr_model
    from mlet.models import build_model
    from mlet.tables import EmbeddingTables, TableSpec

    tables = EmbeddingTables([TableSpec("C1", 30, 4, 4, inner_dim=8)])
    model = build_model("dlrm", tables, bottom=[3, 4], top=[8, 1])
    model.initialize(np.random.RandomState(0), 0, "normal")
    assert_same_state(state(mlet.collapse(model)), state(collapse_ctr_model(model)))
    with pytest.raises(ValueError, match="inplace: the tables of a DLRM"):
        mlet.collapse(model, inplace=True)


def test_importing_the_package_imports_no_file_formats():
    code = (
        "import sys, mlet; print([m for m in ('safetensors', 'onnx', 'sklearn', 'mlet.inference') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 3e-6), (torch.float16, 2e-3), (torch.bfloat16, 1.5e-2)])
def test_small_rows_beside_large_ones_keep_their_digits(dtype, bound):
    """Rounding is a share of the row, not of the table: rows of one table differ by orders of magnitude."""
    table = nn.Embedding(3000, 8, dtype=dtype)
    with torch.no_grad():
        table.weight.mul_(torch.logspace(-3, 2, 3000)[:, None])
    before = table.weight.detach().double().clone()
    after = mlet.factorize(table)(torch.arange(3000)).detach().double()
    assert ((after - before).abs().amax(dim=1) < bound * before.square().mean(dim=1).sqrt()).all()


def test_collapse_says_which_hooks_stay_behind():
    model = mlet.factorize(nn.Sequential(nn.Embedding(50, 6)), inner_dim=16, min_rows=FEW)
    model[0].register_forward_hook(lambda *_: None)
    with pytest.warns(UserWarning, match="^0: its hooks do not go over to the plain table$"):
        mlet.collapse(model)
