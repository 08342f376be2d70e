"""What `mlet.factorize` and `mlet.collapse` refuse or leave alone, by name and before anything is changed."""

import pytest
import torch
from test_factorize import assert_same_state, state
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import mlet
from mlet.factorized_layers import FactorizedEmbedding

FEW = 20  # min_rows of most tests


class Tables(nn.Module):
    def __init__(self):
        super().__init__()
        self.items = nn.Embedding(50, 6, padding_idx=0)
        self.words = nn.EmbeddingBag(40, 5)
        self.days = nn.Embedding(7, 6)
        self.top = nn.Linear(17, 1)


def hooked(table):
    table.register_forward_hook(lambda *_: None)


def weight_hooked(table):
    table.weight.register_hook(lambda gradient: gradient)


def with_its_own_forward(table):
    table.forward = lambda ids: table.weight[ids] * 2


def with_a_buffer(table):
    table.register_buffer("counts", torch.zeros(50))


def with_nan(table):
    nn.init.constant_(table.weight.data[3], float("nan"))


REFUSED = [
    (lambda: nn.Embedding(50, 16), None, "embedding_dim=16 is not below inner_dim=16"),
    (lambda: nn.Embedding(50, 4, max_norm=1.0), None, "max_norm=1.0"),
    (lambda: nn.Embedding(50, 4, scale_grad_by_freq=True), None, "scale_grad_by_freq=True"),
    (lambda: nn.EmbeddingBag(50, 4, mode="max"), None, "mode='max'"),
    (lambda: nn.Embedding(50, 4, device="meta"), None, "meta device"),
    (lambda: nn.Embedding(50, 4, dtype=torch.complex64), None, "not a matrix of floats"),
    (lambda: nn.Embedding(50, 4), hooked, "has hooks"),
    (lambda: nn.Embedding(50, 4), weight_hooked, "has hooks"),
    (lambda: nn.Embedding(50, 4), with_its_own_forward, "a forward of its own"),
    (lambda: nn.Embedding(50, 4), with_a_buffer, "more than a weight: counts"),
    (lambda: nn.Embedding(50, 4), with_nan, "not finite"),
    (lambda: nn.Embedding(50, 4), torch.nn.utils.weight_norm, "has hooks"),
]


@pytest.mark.filterwarnings("ignore:.*weight_norm")
@pytest.mark.parametrize(("make", "change", "message"), REFUSED)
def test_what_cannot_be_replaced_is_refused_by_name_before_anything_changes(make, change, message):
    model = nn.ModuleDict({"fine": nn.Embedding(60, 4), "strange": make()})
    if change:
        change(model["strange"])
    modules, before = dict(model.named_modules()), state(model["fine"])
    with pytest.raises(ValueError, match=f"cannot factorize strange: .*{message}.*Leave a table out"):
        mlet.factorize(model, 16, FEW)
    assert dict(model.named_modules()) == modules
    assert_same_state(before, state(model["fine"]))
    mlet.factorize(model, 16, FEW, names=["fine"])
    assert type(model["fine"]) is FactorizedEmbedding and model["strange"] is modules["strange"]


def test_all_that_is_wrong_is_said_at_once():
    model = nn.Sequential(nn.Embedding(50, 99, max_norm=2.0), nn.EmbeddingBag(50, 4, mode="max"))
    with pytest.raises(ValueError, match="0: max_norm=2.0.*0: embedding_dim=99.*1: mode='max'"):
        mlet.factorize(model, 16, FEW)


def tied_to_a_decoder():
    model = nn.Sequential(nn.Embedding(50, 4), nn.Linear(4, 50))
    model[1].weight = model[0].weight
    return model, "0: its weight is shared with 1.weight .Linear"


def tied_through_memory():
    model = nn.Sequential(nn.Embedding(50, 4), nn.Linear(4, 50))
    model[1].weight = nn.Parameter(model[0].weight.detach())
    return model, "0: its weight is shared with 1.weight .Linear"


def tied_with_another_padding():
    model = nn.Sequential(nn.Embedding(50, 4, padding_idx=0), nn.Embedding(50, 4))
    model[1].weight = model[0].weight
    return model, "padding_idx=0, but None in 1.weight, tied to it"


def two_tables_in_one_memory():
    model = nn.Sequential(nn.Embedding(50, 4), nn.Embedding(40, 4))
    model[1].weight = nn.Parameter(model[0].weight.detach()[10:])
    return model, "0: its weight is shared with 1.weight .Embedding"


def a_parameter_of_the_parent():
    model = nn.Sequential(nn.Embedding(50, 4))
    model.table = model[0].weight
    return model, "shared with table .Sequential"


@pytest.mark.parametrize(
    "make",
    [
        tied_to_a_decoder,
        tied_through_memory,
        tied_with_another_padding,
        two_tables_in_one_memory,
        a_parameter_of_the_parent,
    ],
)
def test_a_weight_that_others_use_is_refused(make):
    model, message = make()
    before = state(model)
    with pytest.raises(ValueError, match=message):
        mlet.factorize(model, 16, FEW)
    assert_same_state(before, state(model))


class Scaled(nn.Embedding):
    def forward(self, ids):
        return super().forward(ids) * 2


def test_subclasses_are_left_with_a_warning_and_refused_by_name():
    model = nn.ModuleDict({"scaled": Scaled(50, 4), "plain": nn.Embedding(50, 4), "normed": nn.Embedding(50, 4)})
    parametrizations.weight_norm(model["normed"])
    with pytest.raises(ValueError, match="scaled is of class Scaled"):
        mlet.factorize(model, 16, names=["scaled"])
    with pytest.warns(UserWarning, match=r"leaves subclasses as they are: scaled \(Scaled\), normed"):
        mlet.factorize(model, 16, FEW)
    assert type(model["scaled"]) is Scaled and parametrize.is_parametrized(model["normed"])
    assert type(model["plain"]) is FactorizedEmbedding


def test_frozen_tables_are_left_and_refused_by_name():
    model = nn.Sequential(nn.Embedding.from_pretrained(torch.randn(50, 4)), nn.Embedding(50, 4))
    mlet.factorize(model, 16, FEW)
    assert type(model[0]) is nn.Embedding and type(model[1]) is FactorizedEmbedding
    with pytest.raises(ValueError, match="0 is frozen"):
        mlet.factorize(model, 16, names=["0"])


def test_nothing_to_replace_says_what_there_is():
    model = Tables()
    with pytest.raises(ValueError, match=r"min_rows=1000 or more; it has items \(Embedding, 50 x 6\), words"):
        mlet.factorize(model)
    with pytest.raises(ValueError, match="it has no tables at all"):
        mlet.factorize(nn.Linear(2, 1))
    mlet.factorize(model, 16, FEW)
    with pytest.raises(ValueError, match=r"items \(FactorizedEmbedding, 50 x 6\)"):
        mlet.factorize(model, 16, FEW)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["item"], "no table 'item'; it has items, words, days"),
        ("items", "give a list of names"),
        ([], "names is empty"),
        (["top"], "no table 'top'"),
    ],
)
def test_bad_names_are_refused(names, message):
    with pytest.raises(ValueError, match=message):
        mlet.factorize(Tables(), names=names)


def test_nothing_to_collapse_is_refused():
    with pytest.raises(ValueError, match="nothing to collapse: Tables has no factorized table"):
        mlet.collapse(Tables())


def test_unknown_init_changes_nothing():
    model = Tables()
    with pytest.raises(ValueError, match="kaiming"):
        mlet.factorize(model, 16, FEW, init="kaiming")
    assert type(model.items) is nn.Embedding


@pytest.mark.parametrize(
    "numbers", ({"inner_dim": 64.0}, {"inner_dim": "64"}, {"inner_dim": True}, {"min_rows": -1}, {"seed": None})
)
def test_numbers_that_are_none_are_named(numbers):
    model = Tables()
    before = state(model)
    with pytest.raises(ValueError, match=f"{next(iter(numbers))}=.*whole number"):
        mlet.factorize(model, **{"inner_dim": 8, "min_rows": FEW} | numbers)
    assert_same_state(state(model), before)


def test_tables_without_values_can_start_afresh():
    model = mlet.factorize(nn.Sequential(nn.Embedding(50, 4, device="meta")), 8, FEW, keep=False)
    assert model[0].w1.is_meta and model[0].w1.shape == (50, 8)


def test_the_product_cannot_be_set():
    layer = mlet.factorize(nn.Sequential(nn.Embedding(50, 4)), 8, FEW)[0]
    with pytest.raises(AttributeError, match="product of w1 and w2"):
        layer.weight = nn.Parameter(torch.zeros(50, 4))


def test_what_its_dtype_cannot_hold_once_it_is_split():
    """Every value is finite in 16 bits, and the random start added to it is not."""
    model = Tables().half()
    with torch.no_grad():
        model.items.weight.mul_(2e4).clamp_(-6e4, 6e4)
    before = state(model)
    with pytest.raises(ValueError, match=r"cannot factorize items: values up to 60000 .* torch.float16 cannot hold"):
        mlet.factorize(model, inner_dim=64, min_rows=FEW)
    assert_same_state(before, state(model))
