"""The layers that the models share, and the reading of --arch-option."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from mlet.interaction import PairwiseDots, pooled_products
from mlet.models import model_options, option_text, parse_options
from mlet.models.autoint import SelfAttention
from mlet.models.layers import BatchNorm, Dropout, FirstOrder, Linear, Tower, first_order_tables, in_float32, mlp
from mlet.models.xdeepfm import CompressedInteraction
from mlet.table_spec import plan_tables
from mlet.tables import EmbeddingTables


def kinds(layers):
    return [type(layer).__name__ for layer in layers]


def test_order_within_a_hidden_layer():
    assert kinds(mlp((3, 4))) == ["Linear", "ReLU"]
    assert kinds(mlp((3, 4), True, 0.5)) == ["Linear", "BatchNorm", "ReLU", "Dropout"]
    assert kinds(Tower(3, (4, 1), True, 0.5)) == ["Linear", "BatchNorm", "ReLU", "Dropout", "Linear"]
    assert kinds(Tower(3, (1,), True, 0.5)) == ["Linear"] and len(mlp((3,))) == 0


@pytest.mark.parametrize("inputs", [131, 160, 20])
def test_padded_inputs_of_bf16_products_change_nothing(inputs):
    ours, plain = Linear(inputs, 9), nn.Linear(inputs, 9)
    plain.load_state_dict(ours.state_dict())
    x = torch.randn(40, inputs)
    assert torch.equal(ours(x), plain(x))
    grads = []
    for layer in (ours, plain):
        leaf = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            out = layer(leaf)
        out.float().square().sum().backward()
        grads.append((out, leaf.grad, layer.weight.grad, layer.bias.grad))
    for mine, torchs in zip(*grads, strict=True):
        assert mine.dtype == torchs.dtype
        torch.testing.assert_close(mine, torchs, rtol=0.02, atol=0.02 * torchs.abs().max().item())


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
@pytest.mark.parametrize("shape", ((7,), (5, 3), (400, 501)))
def test_dropout_keeps_or_drops_and_its_gradient_is_the_same_factor(shape, dtype):
    x = torch.randn(shape, dtype=dtype).requires_grad_()
    torch.manual_seed(1)
    out = Dropout(0.25)(x)
    out.sum().backward()
    assert out.dtype == dtype and torch.equal(out, x * x.grad)
    assert all(value in (0, torch.tensor(1 / 0.75, dtype=dtype)) for value in x.grad.unique())
    torch.manual_seed(1)
    assert torch.equal(Dropout(0.25)(x), out)


@pytest.mark.parametrize("p", (0.001, 0.2, 0.5, 0.9, 0.9999999))
def test_dropout_drops_independently_the_share_that_it_says(p):
    torch.manual_seed(2)
    kept = Dropout(p)(torch.ones(1000, 1000)) > 0
    rate = kept.double().mean()
    assert abs(rate - (1 - p)) < 5e-3 * min(1, 10 * (1 - p)) + 2e-5
    for step in (1, 2, 4, 1000):  # neighbours, the lanes of one draw, the row below
        flat = kept.flatten().double() - rate
        assert abs((flat[:-step] * flat[step:]).mean()) < 5e-3 * rate * (1 - rate) + 1e-5
    mean = Dropout(p)(torch.ones(1000, 1000)).mean()
    assert p > 0.99 or abs(mean - 1) < 0.01


def test_dropout_does_nothing_in_evaluation_and_at_zero():
    layer, x = Dropout(0.5), torch.randn(8, 4)
    assert torch.equal(layer.eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x)
    assert isinstance(layer, nn.Dropout)


def test_batch_norm_is_torchs_but_for_one_sample():
    ours, torchs = BatchNorm(4), nn.BatchNorm1d(4)
    for step in range(3):
        x = torch.randn(6, 4, generator=torch.Generator().manual_seed(step))
        assert torch.equal(ours(x), torchs(x))
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    one = torch.randn(1, 4, requires_grad=True)
    out = ours(one)
    out.sum().backward()
    assert torch.equal(out, torchs.eval()(one)) and one.grad.abs().sum() > 0
    assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items())
    with pytest.raises(ValueError, match="more than 1 value"):
        torchs.train()(one)


def test_a_towers_logit_is_float32_under_autocast():
    tower = Tower(5, (8, 1))
    x = torch.randn(7, 5)
    exact = tower(x)
    with torch.autocast("cpu", torch.bfloat16):
        rough = tower(x)
    assert rough.dtype == torch.float32 and 0 < (rough - exact).abs().max() < 2e-2


def test_in_float32_is_exact_under_autocast():
    layer, x = nn.Linear(5, 1), torch.randn(7, 5)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
        assert torch.equal(in_float32(layer, x), in_float32(layer, x.double().float()))
        inside = in_float32(layer, x)
        assert in_float32(layer, x.bfloat16()).dtype == torch.float32
        assert torch.is_autocast_enabled("cpu")
    assert torch.equal(inside, layer(x)) and inside.dtype == torch.float32


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"inner_dim": 6},
        {"qr_collisions": 3, "qr_threshold": 10},
        {"qr_collisions": 3, "qr_threshold": 10, "qr_operation": "concat", "inner_dim": 6},
        {"md_temperature": 0.5, "md_threshold": 10, "inner_dim": 6},
    ],
)
def test_first_order_weights_stand_beside_the_same_rows(options):
    rows = {"a": 5, "b": 50}
    tables = EmbeddingTables(plan_tables(rows, 4, **options), unknown=True, padding=True, mode="mean")
    wide = first_order_tables(tables)
    assert wide.dim == 1 and (wide.unknown, wide.padding, wide.mode) == (True, True, "mean")
    of_tables, of_wide = ([(p.table, p.name, p.counted_rows) for p in t.parts()] for t in (tables, wide))
    assert of_tables == of_wide
    assert all(not spec.inner_dim for spec in wide.specs)
    assert [n for n, _ in wide.named_parameters() if n.endswith("projection")] == []
    for parameter in wide.parameters():
        parameter.data.copy_(torch.randn(parameter.shape))
    parts = {(p.table, p.name): p.group.part(p.index, p.counted_rows)[:, 0] for p in wide.parts()}
    for i, j in itertools.product(range(5), (0, 4, 49)):
        got = wide(torch.tensor([[i, j]]))[0, :, 0]
        b = parts[1, "rows"][j] if "qr_collisions" not in options else None
        b = parts[1, "quotient"][j // 3] + parts[1, "remainder"][j % 3] if b is None else b
        assert torch.allclose(got, torch.stack([parts[0, "rows"][i], b]))


def test_first_order_without_dense_features():
    layer = FirstOrder(0)
    nn.init.constant_(layer.bias, 0.5)
    assert torch.equal(layer(torch.zeros(2, 0), torch.tensor([[[1.0], [2]], [[3], [4]]])), torch.tensor([[3.5], [7.5]]))
    assert [name for name, _ in layer.named_parameters()] == ["bias"]


def test_pooled_products_are_the_sum_over_pairs():
    vectors = torch.randn(3, 5, 4, dtype=torch.float64, requires_grad=True)
    expected = sum(vectors[:, i] * vectors[:, j] for i in range(5) for j in range(i))
    torch.testing.assert_close(pooled_products(vectors), expected)
    assert torch.equal(pooled_products(vectors[:, :1]), torch.zeros(3, 4, dtype=torch.float64))
    assert torch.autograd.gradcheck(pooled_products, (vectors,))


@pytest.mark.parametrize("itself", [False, True])
@pytest.mark.parametrize("lead", [False, True])
def test_gradient_of_the_products_without_a_lead(lead, itself):
    vectors = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)
    dots = PairwiseDots(4, itself, lead)
    assert torch.autograd.gradcheck(dots, (vectors,))
    with torch.no_grad():
        assert torch.allclose(dots(vectors), dots(vectors.detach()))
        assert dots(vectors).shape[1] == dots.pairs + 5 * lead


def test_compressed_interaction_by_einsum():
    cin = CompressedInteraction(3, (4, 2)).double()
    x = torch.randn(5, 3, 6, dtype=torch.float64)
    first, second = (layer.weight for layer in cin.layers)
    one = torch.einsum("hij,bid,bjd->bhd", first.view(4, 3, 3), x, x)
    two = torch.einsum("hij,bid,bjd->bhd", second.view(2, 4, 3), one, x)
    torch.testing.assert_close(cin(x), torch.cat([one, two], dim=1).sum(dim=2))


def test_attention_by_torchs_own():
    """F.scaled_dot_product_attention with scale 1."""
    layer, x = SelfAttention(6, 3, 4).double(), torch.randn(5, 7, 6, dtype=torch.float64)
    query, key, value = (
        torch.stack(linear(x).split(4, dim=2), dim=1) for linear in (layer.query, layer.key, layer.value)
    )
    mixed = nn.functional.scaled_dot_product_attention(query, key, value, scale=1.0)
    expected = torch.relu(torch.cat(mixed.unbind(1), dim=2) + x @ layer.residual.weight.T)
    torch.testing.assert_close(layer(x), expected)


def test_fields_are_interchangeable_in_attention():
    layer, x = SelfAttention(6, 2, 3), torch.randn(2, 5, 6)
    order = torch.from_numpy(np.random.default_rng(0).permutation(5))
    torch.testing.assert_close(layer(x[:, order]), layer(x)[:, order])


# ----------------------------------------------------------------------------------------------- --arch-option


def test_options_take_the_type_of_their_default():
    assert parse_options("autoint", ["attention_heads=4", "head_width=8"]) == {"attention_heads": 4, "head_width": 8}
    assert parse_options("xdeepfm", ["cin_widths=8-4"]) == {"cin_widths": (8, 4)}
    assert parse_options("xdeepfm", ["cin_widths=8"]) == {"cin_widths": (8,)}
    assert parse_options("dlrm", ["itself=TRUE", "interaction=cat"]) == {"itself": True, "interaction": "cat"}
    assert parse_options("nfm", []) == {}


def test_an_options_text_reads_back():
    for name in ("dlrm", "xdeepfm", "autoint"):
        given = dict(model_options(name))
        assert parse_options(name, [f"{option}={option_text(value)}" for option, value in given.items()]) == given


@pytest.mark.parametrize(
    ("name", "setting", "message"),
    [
        ("dcn", "cross_layer=2", r"dcn has no option 'cross_layer' \(it has: cross_layers\)"),
        ("nfm", "cross_layers=2", r"nfm has no option 'cross_layers' \(it has: none\)"),
        ("dcn", "cross_layers=two", "'two' is not a value like 3"),
        ("dcn", "cross_layers=2.5", "'2.5' is not a value like 3"),
        ("dcn", "cross_layers=", "'' is not a value like 3"),
        ("dlrm", "itself=perhaps", "'perhaps' is not a value like False"),
        ("xdeepfm", "cin_widths=8-x", "'8-x' is not a value like 16-16"),
        ("xdeepfm", "cin_widths=8,8", "'8,8' is not a value like 16-16"),
    ],
)
def test_other_options_are_refused(name, setting, message):
    with pytest.raises(ValueError, match=f"--arch-option={setting}: {message}"):
        parse_options(name, [setting])
