"""Several tasks on one model: the heads equal their equations, and every registered model has them."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from test_models_everywhere import BATCHES, MIXED, NAMES, ROWS, check_onnx, make, mixed_batch, randomize, ready, same

from mlet.inference import collapse, full_config, load_collapsed, save_collapsed
from mlet.initialize import initialize_layers
from mlet.memory import bill_of
from mlet.models import build_model, model_from_config
from mlet.models.heads import HiddenByExperts, tower
from mlet.models.layers import Tower
from mlet.quantize import quantize_mlps, quantize_tables
from mlet.table_spec import plan_tables
from mlet.tables import EmbeddingTables

HEADS = ("towers", "mmoe")
TASKS = 3


def several(name, heads="towers", **arguments):
    return ready(name, tasks=TASKS, task_heads=heads, mmoe_experts=2, **arguments)


def weight_of_task(state, key, like, task):
    """What a single-task model calls `key` (of the shape of `like`), of one task of a model with several towers."""
    if key in state:
        value = state[key]
        for axis in range(value.dim()):
            if value.shape[axis] != like.shape[axis]:  # one output a task
                value = value.narrow(axis, task, 1)
        return value
    module, *rest = key.split(".")
    if module == "head":  # dcn
        return state[f"head.heads.{task}.{rest[-1]}"]
    hidden, heads = (f"{module}.0.towers", f"{module}.1.heads") if f"{module}.1.heads.0.bias" in state else (
        f"{module}.towers", "")  # fmt: skip
    place = f"{hidden}.{task}.{'.'.join(rest)}"
    return state[place] if place in state else state[f"{heads}.{task}.{rest[-1]}"]


@pytest.mark.parametrize("hot", BATCHES)
@pytest.mark.parametrize("dense", [True, False], ids=["dense", "no dense"])
@pytest.mark.parametrize("top", [(10, 6, 1), (1,)], ids=["hidden", "linear"])
@pytest.mark.parametrize("name", NAMES)
def test_towers_are_single_task_models_over_shared_tables(name, top, dense, hot):
    model = several(name, dense=dense, top=top, batch_norm=True)
    if name == "deepfm":
        model.second_order_weight.data.fill_(1.0)
    batch, state = BATCHES[hot](19, 3, dense), model.state_dict()
    out = model(*batch)
    assert out.shape == (19, TASKS) and (out.std(dim=1) > 1e-4).any()
    for task in range(TASKS):
        single = make(name, dense=dense, top=top, batch_norm=True).eval()
        own = {key: weight_of_task(state, key, value, task) for key, value in single.state_dict().items()}
        single.load_state_dict(own)
        same(out[:, task : task + 1], single(*batch))


def test_each_task_of_deepfm_weighs_the_second_order_that_they_share():
    model = several("deepfm")
    batch = BATCHES["one-hot"](9)
    out = {}
    for weight in (0.0, 1.0, 3.0):
        model.second_order_weight.data = torch.tensor([weight, 1.0, 1.0])
        out[weight] = torch.logit(model(*batch).double())
    shared = out[1.0] - out[0.0]
    assert shared[:, 0].abs().max() > 1e-3 and not shared[:, 1:].any()
    torch.testing.assert_close(out[3.0] - out[0.0], 3 * shared, atol=1e-4, rtol=1e-3)
    fresh = make("deepfm", tasks=TASKS)
    fresh.initialize(np.random.RandomState(1), 1, "normal")
    assert fresh.second_order_weight.tolist() == [1.0] * TASKS


# ------------------------------------------------------------------------------------------------- mmoe


def softmax(x):
    return np.exp(x) / np.exp(x).sum()


def test_mmoe_equals_the_papers_equations():
    """Ma et al., KDD 2018, equations 5 to 7: y_k = h^k(f^k(x)), f^k = sum_i g^k_i f_i, g^k = softmax(W_gk x)."""
    model = tower(7, (5, 4, 1), tasks=3, heads="mmoe", experts=2)
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(6, 7)).astype(np.float32))
    w = {key: value.double().numpy() for key, value in model.state_dict().items()}
    assert sorted(key for key in w if "gates" in key) == [f"0.gates.{k}.weight" for k in range(3)]  # no bias
    expected = np.empty((6, 3))
    for b, row in enumerate(x.double().numpy()):
        experts = []
        for i in range(2):
            f = row
            for layer in (0, 2):
                f = np.maximum(w[f"0.experts.{i}.{layer}.weight"] @ f + w[f"0.experts.{i}.{layer}.bias"], 0)
            experts.append(f)
        for k in range(3):
            gate = softmax(w[f"0.gates.{k}.weight"] @ row)
            mixed = sum(g * f for g, f in zip(gate, experts, strict=True))
            expected[b, k] = (w[f"1.heads.{k}.weight"] @ mixed + w[f"1.heads.{k}.bias"])[0]
    assert expected.std() > 0.01
    np.testing.assert_allclose(model(x).detach().numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_mmoe_of_equal_experts_is_towers_of_equal_hidden_layers(name):
    """Gates sum to 1: where there is nothing to choose, they change nothing. And where there is, they do."""
    towers, mmoe = several(name), several(name, "mmoe")
    own = towers.state_dict()
    for key, value in own.items():
        if ".towers." in key:
            first, _, rest = key.partition(".towers.")
            value.copy_(own[f"{first}.towers.0.{rest.split('.', 1)[1]}"])
    moved = {}
    for key, value in mmoe.state_dict().items():
        first, found, rest = key.partition(".experts.")
        moved[key] = own[f"{first}.towers.0.{rest.split('.', 1)[1]}"] if found else own.get(key, value)
    mmoe.load_state_dict(moved)
    batch = BATCHES["bags"](17)
    same(mmoe(*batch), towers(*batch))
    for key, value in mmoe.state_dict().items():
        if ".experts.1." in key:
            value.mul_(2.0)
    assert (mmoe(*batch) - towers(*batch)).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tasks": 0}, "tasks=0: at least 1"),
        ({"task_heads": "mmoe"}, "mmoe heads need several tasks"),
        ({"tasks": 2, "task_heads": "mmoe", "top": (1,)}, "mmoe heads need hidden layers"),
        ({"tasks": 2, "task_heads": "mmoe", "mmoe_experts": 0}, "mmoe_experts=0: at least 1"),
        ({"tasks": 2, "task_heads": "ple"}, "task heads 'ple' are not known; choose from towers, mmoe"),
    ],
)
@pytest.mark.parametrize("name", ["dlrm", "dcn", "autoint"])
def test_heads_that_cannot_be_are_refused(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(name, **arguments)


def test_one_task_is_a_plain_tower_and_experts_need_layers():
    assert type(tower(4, (3, 1))) is Tower
    with pytest.raises(ValueError, match="mmoe heads need hidden layers"):
        HiddenByExperts(4, (), 2, 2, False, 0.0)


# ------------------------------------------------------------------------------- what holds for every model


@pytest.mark.parametrize("hot", BATCHES)
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("name", NAMES)
def test_trained_collapsed_and_reloaded_are_equal(name, heads, hot, tmp_path):
    model = several(name, heads, batch_norm=True, dropout=0.3)
    inference = collapse(model)
    save_collapsed(inference, tmp_path / "model.safetensors")
    reloaded = load_collapsed(tmp_path / "model.safetensors")
    for sample in (BATCHES[hot](33, 1), BATCHES[hot](2, 2)):
        same(inference(*sample), model(*sample))
        assert torch.equal(reloaded(*sample), inference(*sample))
    config = json.loads(json.dumps(full_config(model)))
    assert config["arguments"]["tasks"] == TASKS and config["arguments"]["task_heads"] == heads
    assert full_config(model_from_config(config)) == config


@pytest.mark.parametrize(
    ("name", "heads"),
    [
        (name, heads) if (name, heads) in (("nfm", "towers"), ("deepfm", "mmoe"))  # 3 s each
        else pytest.param(name, heads, marks=pytest.mark.slow)
        for name in NAMES
        for heads in HEADS
    ],
)  # fmt: skip
def test_onnx_is_equal(name, heads, tmp_path):
    """One-hot tables and bags in one graph; every column of the output."""
    assert "ids_a" in check_onnx(several(name, heads, batch_norm=True), mixed_batch, MIXED, tmp_path / "m.onnx")


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("name", NAMES)
def test_a_gradient_reaches_every_parameter_and_a_task_moves_its_own_head_alone(name, heads):
    model = several(name, heads).train()
    model(*BATCHES["bags"](64)).sum().backward()
    for key, parameter in model.named_parameters():
        grad = parameter.grad.to_dense() if parameter.grad.is_sparse else parameter.grad
        assert torch.isfinite(grad).all() and grad.abs().max() > 1e-8, key
    model.zero_grad()
    model(*BATCHES["bags"](64))[:, 1].sum().backward()
    others = [key for key, _ in model.named_parameters() if any(f".{part}.{k}." in key for part in
              ("towers", "heads", "gates") for k in (0, 2))]  # fmt: skip
    assert others and not any(g is not None and g.any() for g in (model.get_parameter(key).grad for key in others))
    assert model.tables.units[0].rows.weight.grad.to_dense().any()


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("name", NAMES)
def test_bf16_arithmetic_gives_float32_probabilities_close_by(name, heads):
    model = several(name, heads, batch_norm=True).train()
    batch = BATCHES["one-hot"](64)
    exact = model(*batch)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(*batch)
    assert rough.dtype == torch.float32 and 0 < (rough - exact).abs().max() < 2e-2


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("name", NAMES)
def test_the_memory_bill_is_that_of_the_real_model(name, heads):
    def bill(model):
        return bill_of(model, dense_width=5, lookups=4, batch_size=256, optimizer="adam")

    arguments = {"tasks": TASKS, "task_heads": heads, "batch_norm": True}
    with torch.device("meta"):
        predicted, one = bill(make(name, **arguments)), bill(make(name, batch_norm=True))
    model = randomize(make(name, **arguments))
    assert predicted == bill(model)
    buffers = [b for key, b in model.named_buffers() if not key.startswith(("tables.", "wide."))]
    assert predicted.model == sum(t.numel() * t.element_size() for t in [*model.parameters(), *buffers])
    assert predicted.activations > one.activations
    of_tables = sum(p.numel() * 4 for tables in collapse(model).table_sets for p in tables.parameters())
    assert predicted.inference_tables == of_tables + model.tables.maps.nbytes


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("name", NAMES)
def test_quantised_inference_stays_close(name, heads):
    exact, rough = (collapse(several(name, heads, scale=0.7)) for _ in range(2))
    quantize_mlps(rough, 8)
    quantize_tables(rough, 8)
    difference = (rough(*BATCHES["bags"](50)) - exact(*BATCHES["bags"](50))).abs().max()
    assert 0 < difference < 6e-2


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("name", NAMES)
def test_initialize_draws_every_head(name, heads):
    model = make(name, tasks=TASKS, task_heads=heads)
    for key, parameter in model.named_parameters():
        if not key.endswith(("bias", "second_order_weight")):
            parameter.data.fill_(float("nan"))
    model.initialize(np.random.RandomState(4), 4, "normal")
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    drawn = [value for key, value in model.named_parameters() if ".towers." in key and key.endswith("0.weight")]
    assert all(not torch.equal(a, b) for a, b in pairwise(drawn))


def test_one_task_has_the_names_and_draws_that_it_had():
    """The first draws behind the tables are those of the tower's layers in order, as before there were heads."""
    tables = EmbeddingTables(plan_tables(ROWS, 8), unknown=True)
    model = build_model("wide-deep", tables, bottom=(5, 8), top=(6, 1))
    rng = np.random.RandomState(2)
    initialize_layers([model.bottom, model.deep], rng)
    names = ["bottom.0.weight", "bottom.0.bias", "deep.0.weight", "deep.0.bias", "deep.2.weight", "deep.2.bias"]
    assert [key for key in model.state_dict() if key.startswith(("bottom", "deep"))] == names
    twin = np.random.RandomState(2)
    for key in names[::2]:
        out, inputs = model.state_dict()[key].shape
        drawn = twin.normal(0.0, np.sqrt(2 / (out + inputs)), size=(out, inputs)).astype(np.float32)
        np.testing.assert_array_equal(model.state_dict()[key].numpy(), drawn)
