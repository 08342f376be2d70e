"""What holds for every registered model: one that is registered tomorrow is tested here without a change."""

import functools
import json

import numpy as np
import pytest
import torch

from mlet import export
from mlet.inference import collapse, full_config, inference_tensors, load_collapsed, save_collapsed
from mlet.initialize import set_unknown_rows
from mlet.memory import bill_of
from mlet.models import build_model, model_from_config, model_names
from mlet.quantize import bytes_of, quantize_mlps, quantize_tables
from mlet.table_spec import RowMap, plan_tables
from mlet.tables import EmbeddingTables

ROWS = {"a": 4, "b": 50, "c": 30, "d": 7}
DENSE, WIDTH = 5, 8
VARIANTS = {
    "plain": {},
    "mlet": {"inner_dim": 12},
    "qr mult mlet": {"qr_collisions": 4, "qr_threshold": 20, "inner_dim": 12},
    "qr concat mlet": {"qr_collisions": 4, "qr_threshold": 20, "qr_operation": "concat", "inner_dim": 12},
    "md mlet": {"md_temperature": 0.5, "md_threshold": 20, "inner_dim": 12},
    "hashed mlet": {
        "row_maps": {"b": RowMap((9,), (None,)), "c": RowMap((7, 6), ((3, 1, 1, 7), None), "add")},
        "inner_dim": 12,
    },
}
NAMES = model_names()


def make(name, variant="mlet", dense=True, mode="sum", weighted=False, **arguments):
    specs = plan_tables(ROWS, WIDTH, **VARIANTS[variant])
    tables = EmbeddingTables(specs, unknown=True, padding=True, mode=mode, weighted=weighted)
    bottom = (DENSE, 6, tables.dim) if dense else ()
    return build_model(name, tables, **({"bottom": bottom, "top": (10, 6, 1)} | arguments))


def randomize(model, scale=1.0):
    """Large enough that every table and layer matters; padding rows stay zero."""
    generator = torch.Generator().manual_seed(7)
    for name, value in model.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.2, 1.0, generator=generator)
        elif value.is_floating_point():
            fan_in = value.shape[1] if value.dim() == 2 and not name.startswith(("tables.", "wide.")) else 9
            value.normal_(std=scale * fan_in**-0.5, generator=generator)
    for tables in model.table_sets:
        for part in tables.parts():
            part.group.part(part.index, part.counted_rows + tables.special_rows)[-1] = 0
    if "rows0" in dict(model.tables.maps.named_buffers()):
        model.tables.set_map("b", 0, np.arange(50) % 9)
        model.tables.set_map("c", 1, np.arange(30) // 5)
    return model


def ready(*arguments, scale=1.0, **named):
    return randomize(make(*arguments, **named), scale).eval()


def one_hot_batch(size, seed=0, dense=True):
    rng = np.random.default_rng(seed)
    ids = np.stack([rng.integers(0, n + 1, size) for n in ROWS.values()], axis=1)
    ids[0] = list(ROWS.values())  # unknown ids
    return torch.from_numpy(rng.random((size, DENSE * dense), np.float32)), torch.from_numpy(ids), None


def bag_batch(size, seed=0, dense=True):
    rng = np.random.default_rng(seed)
    bags = [rng.integers(0, n + 1, rng.choice([0, 1, 3])) for n in ROWS.values() for _ in range(size)]
    ids, ends = torch.from_numpy(np.concatenate(bags).astype(np.int64)), np.cumsum([0, *map(len, bags)])
    return torch.from_numpy(rng.random((size, DENSE * dense), np.float32)), ids, torch.from_numpy(ends)


BATCHES = {"one-hot": one_hot_batch, "bags": bag_batch}


def same(a, b):
    torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def loss_of(model, batch, seed=0):
    label = torch.from_numpy(np.random.default_rng(seed).integers(0, 2, (len(batch[0]), 1)).astype(np.float32))
    return torch.nn.functional.binary_cross_entropy(model(*batch), label)


# ------------------------------------------------------------------------------- collapse, file, ONNX


@pytest.mark.parametrize("hot", BATCHES)
@pytest.mark.parametrize("dense", [True, False], ids=["dense", "no dense"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", NAMES)
def test_trained_collapsed_and_reloaded_are_equal(name, variant, dense, hot, tmp_path):
    model = ready(name, variant, dense, batch_norm=True, dropout=0.3)
    inference = collapse(model)
    assert not inference.training and not any(s.inner_dim for t in inference.table_sets for s in t.specs)
    save_collapsed(inference, tmp_path / "model.safetensors")
    reloaded = load_collapsed(tmp_path / "model.safetensors")
    for sample in (BATCHES[hot](33, 1, dense), BATCHES[hot](2, 2, dense)):
        before = model(*sample)
        same(inference(*sample), before)
        assert torch.equal(reloaded(*sample), inference(*sample))
    assert model(*BATCHES[hot](33, 1, dense)).std() > 3e-5


MIXED = [True, False, True, False]


def mixed_batch(size, seed=0, dense=True):
    """Tables a and c in bags, the others one-hot."""
    rng = np.random.default_rng(seed)
    hot = [rng.choice([0, 2, 4], size) if multi else np.ones(size, int) for multi in MIXED]
    bags = [rng.integers(0, n + 1, h) for n, table in zip(ROWS.values(), hot, strict=True) for h in table]
    ids, ends = torch.from_numpy(np.concatenate(bags).astype(np.int64)), np.cumsum([0, *map(len, bags)])
    return torch.from_numpy(rng.random((size, DENSE * dense), np.float32)), ids, torch.from_numpy(ends)


def check_onnx(model, batch, multi, path):
    """The file against the collapsed model (in `export_onnx`) and against the trained one, at three batch sizes."""
    inference = collapse(model)
    assert export.export_onnx(inference, path, [batch(33, 1), batch(2, 2)], multi) < 2e-6
    session, last = export.open_session(path, threads=1), batch(9, 3)
    padding = [n + 1 for n in ROWS.values()]
    inputs = export.graph_inputs(*last, dict(zip(ROWS, multi, strict=True)), padding)
    torch.testing.assert_close(
        torch.from_numpy(export.run_session(session, inputs)), model(*last).detach(), atol=2e-6, rtol=1e-5
    )
    return {given.name for given in session.get_inputs()}


@pytest.mark.parametrize(
    "name",
    [name if name in ("nfm", "pnn") else pytest.param(name, marks=pytest.mark.slow) for name in NAMES],  # 3 s each
)
def test_onnx_is_equal(name, tmp_path):
    model = ready(name, batch_norm=True, dropout=0.3)
    assert check_onnx(model, mixed_batch, MIXED, tmp_path / "m.onnx") == {"dense", "ids", "ids_a", "ids_c"}


@pytest.mark.slow
@pytest.mark.parametrize(("hot", "dense"), [("one-hot", True), ("one-hot", False), ("bags", True), ("bags", False)])
@pytest.mark.parametrize("name", NAMES)
def test_onnx_of_either_kind_of_ids_with_and_without_dense_features(name, hot, dense, tmp_path):
    batch = functools.partial(BATCHES[hot], dense=dense)
    inputs = check_onnx(ready(name, dense=dense), batch, [hot == "bags"] * len(ROWS), tmp_path / "m.onnx")
    assert inputs == ({"dense"} if dense else set()) | (
        {"ids"} if hot == "one-hot" else {f"ids_{table}" for table in ROWS}
    )


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["qr mult mlet", "qr concat mlet", "md mlet"])
@pytest.mark.parametrize("name", ["deepfm", "nfm", "wide-deep"])
def test_onnx_of_composed_tables_and_their_first_order_weights(name, variant, tmp_path):
    check_onnx(ready(name, variant, mode="mean"), mixed_batch, MIXED, tmp_path / "m.onnx")


@pytest.mark.parametrize("name", NAMES)
def test_learned_pooling_weights_fold_into_the_rows(name):
    model = ready(name, weighted=True)
    inference = collapse(model)
    assert not any(tables.weighted for tables in inference.table_sets)
    same(inference(*bag_batch(21)), model(*bag_batch(21)))


@pytest.mark.parametrize("name", NAMES)
def test_collapsed_file_names_each_table_once(name, tmp_path):
    from safetensors import safe_open

    model = ready(name)
    save_collapsed(collapse(model), tmp_path / "m.safetensors")
    kinds = {"table": WIDTH} | ({"wide": 1} if model.wide is not None else {})
    with safe_open(str(tmp_path / "m.safetensors"), framework="pt") as file:
        for kind, width in kinds.items():
            assert file.get_tensor(f"{kind}.b").shape == (ROWS["b"] + 2, width)
        assert not [key for key in file.keys() if key.startswith(("tables.", "wide.units"))]


# ------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("hot", BATCHES)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", NAMES)
def test_a_gradient_reaches_every_parameter(name, variant, hot):
    for batch_norm in (False, True):
        model = ready(name, variant, batch_norm=batch_norm).train()
        loss_of(model, BATCHES[hot](64)).backward()
        for key, parameter in model.named_parameters():
            assert parameter.grad is not None, key
            grad = parameter.grad.to_dense() if parameter.grad.is_sparse else parameter.grad
            # batch normalisation takes the bias before it off again, with the mean
            assert torch.isfinite(grad).all() and (grad.abs().max() > 1e-7 or (batch_norm and "bias" in key)), key


@pytest.mark.parametrize("hot", BATCHES)
@pytest.mark.parametrize("name", NAMES)
def test_bf16_arithmetic_gives_a_float32_probability_close_by(name, hot):
    model = ready(name, batch_norm=True).train()
    batch = BATCHES[hot](64)
    exact = model(*batch)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(*batch)
    assert rough.dtype == torch.float32 and rough.shape == (64, 1)
    assert 0 < (rough - exact).abs().max() < 2e-2
    with torch.autocast("cpu", torch.bfloat16):
        out = model(*batch)
    out.sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_one_sample_trains_with_batch_normalisation(name):
    model = ready(name, batch_norm=True)
    one = one_hot_batch(1)
    expected = model(*one).detach()
    before = {key: value.clone() for key, value in model.named_buffers()}
    model.train()
    out = model(*one)
    assert torch.equal(out, expected)
    out.sum().backward()
    assert all(torch.equal(value, before[key]) for key, value in model.named_buffers())
    model(*one_hot_batch(2))
    assert not all(torch.equal(value, before[key]) for key, value in model.named_buffers())


@pytest.mark.parametrize("name", NAMES)
def test_dropout_acts_in_training_only_and_draws_from_torchs_generator(name):
    model, without = ready(name, dropout=0.5), ready(name)
    for theirs, ours in zip(without.parameters(), model.parameters(), strict=True):
        theirs.data.copy_(ours)
    batch = one_hot_batch(40)
    assert torch.equal(model(*batch), without(*batch))
    model.train(), without.train()
    assert torch.equal(without(*batch), without(*batch))
    state = torch.get_rng_state()
    first, second = model(*batch), model(*batch)
    assert not torch.equal(first, second)
    torch.set_rng_state(state)
    assert torch.equal(model(*batch), first) and torch.equal(model(*batch), second)


@pytest.mark.parametrize("variant", [variant for variant in VARIANTS if variant not in ("plain", "qr concat mlet")])
@pytest.mark.parametrize("name", NAMES)
def test_paired_runs_start_from_the_same_layers(name, variant):
    """What is drawn outside the tables does not depend on the tables' kind; first-order weights start at zero."""
    plain, other = make(name, "plain"), make(name, variant)
    for model in (plain, other):
        randomize(model).initialize(np.random.RandomState(4), 4, "normal")
    layers = {key for key in plain.state_dict() if not key.startswith(("tables.", "wide."))}
    assert layers == {key for key in other.state_dict() if not key.startswith(("tables.", "wide."))}
    for key in (key for key in layers if key.endswith("weight")):
        assert torch.equal(plain.state_dict()[key], other.state_dict()[key]), key
    if other.wide is not None:
        assert all(not parameter.any() for parameter in other.wide.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_initialize_leaves_no_weight_as_it_was(name):
    """Memory from torch.empty holds anything: filled with NaN, nothing of it may be left."""
    model = make(name)
    for parameter in model.parameters():
        parameter.data.fill_(float("nan"))
    untouched = {"bias"} if name != "dlrm" else set()
    model.initialize(np.random.RandomState(4), 4, "normal")
    left = {key for key, value in model.named_parameters() if not torch.isfinite(value).all()}
    linear = {f"{key}.bias" for key, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)}
    assert {key.split(".")[-1] for key in left} <= untouched and not left & linear  # biases that torch starts at zero
    fresh = make(name).state_dict()
    assert all(not fresh[key].any() for key in left)


# ------------------------------------------------------------------------- configuration, memory, the rest


@pytest.mark.parametrize("name", NAMES)
def test_the_configuration_rebuilds_the_model(name):
    several = {"batch_norm": True, "dropout": 0.25, "loss_threshold": 0.01, "top": (4, 1), "bottom_end": "linear"}
    for arguments in ({}, several):
        for dense in (True, False):
            model = ready(name, dense=dense, **arguments)
            config = json.loads(json.dumps(full_config(model)))
            again = model_from_config(config)
            again.load_state_dict(model.state_dict())
            assert full_config(again.eval()) == config
            assert torch.equal(again(*one_hot_batch(8, dense=dense)), model(*one_hot_batch(8, dense=dense)))


@pytest.mark.parametrize(
    ("name", "variant", "dense", "batch_norm"),
    [
        *((name, "mlet", True, True) for name in NAMES),
        *((name, "plain", False, False) for name in NAMES),
        *(("nfm", variant, True, True) for variant in VARIANTS if variant not in ("plain", "mlet")),
    ],
)
def test_the_memory_bill_is_that_of_the_real_model(name, variant, dense, batch_norm):
    def bill(model):
        return bill_of(model, dense_width=DENSE * dense, lookups=4, batch_size=16, optimizer="adam")

    arguments = {"batch_norm": batch_norm, "dropout": 0.5 * batch_norm}
    with torch.device("meta"):
        predicted = bill(make(name, variant, dense, **arguments))
    model = randomize(make(name, variant, dense, **arguments))
    assert predicted == bill(model)
    buffers = [b for key, b in model.named_buffers() if not key.startswith(("tables.", "wide."))]
    assert predicted.model == sum(t.numel() * t.element_size() for t in [*model.parameters(), *buffers])
    assert predicted.optimizer == 2 * 4 * sum(p.numel() for p in model.parameters())
    served = collapse(model)
    of_tables = sum(p.numel() * 4 for tables in served.table_sets for p in tables.parameters())
    of_tables += served.tables.maps.nbytes
    assert predicted.inference_tables == of_tables and predicted.activations > 0


@pytest.mark.parametrize("name", NAMES)
def test_the_memory_bill_grows_with_the_batch(name):
    with torch.device("meta"):
        model = make(name, batch_norm=True)
    one, ten = (
        bill_of(model, dense_width=DENSE, lookups=4, batch_size=size, optimizer="adam").activations
        for size in (1000, 10_000)
    )
    assert 9 * one < ten * 2 and ten < 10.1 * one  # blocks above 32 MB waste nothing


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("name", NAMES)
def test_quantised_mlps_stay_close(name, bits):
    model = ready(name, scale=0.7, batch_norm=True)
    exact, rough = collapse(model), collapse(model)
    quantize_mlps(rough, bits)
    difference = (rough(*bag_batch(50)) - exact(*bag_batch(50))).abs().max()
    assert 0 < difference < (6e-2 if bits == 8 else 4e-3)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", NAMES)
def test_quantised_tables_stay_close(name, bits):
    exact, rough = (collapse(ready(name, scale=0.7)) for _ in range(2))
    quantize_tables(rough, bits)
    difference = (rough(*bag_batch(50)) - exact(*bag_batch(50))).abs().max()
    assert 0 < difference < (1e-2 if bits == 8 else 0.2)


@pytest.mark.parametrize("name", NAMES)
def test_quantised_bytes_count_linear_layers_only(name):
    """Batch normalisation stays in float32: its own weights are not quantised."""
    model = collapse(ready(name, batch_norm=True))
    linear = sum(
        layer.weight.numel()
        for key, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear) and not key.startswith(("tables", "wide"))
    )
    tensors = list(inference_tensors(model))
    assert bytes_of(tensors) - bytes_of(tensors, mlp_bits=8) == 3 * linear


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", NAMES)
def test_unknown_rows_are_set_on_every_set_of_tables(name, variant):
    model = ready(name, variant)
    rng = np.random.default_rng(0)
    trained = [rng.random(n) < 0.6 for n in ROWS.values()]
    for tables in model.table_sets:
        set_unknown_rows(tables, trained, keep=["d"])
        for part in tables.parts():
            spec = tables.specs[part.table]
            rows = part.group.part(part.index, part.counted_rows + tables.special_rows)
            ids = np.flatnonzero(trained[part.table])
            if not spec.is_plain:
                ids = tables.rows_of(part, torch.from_numpy(ids)).numpy()
            expected = rows[:-2][ids].mean(dim=0)
            assert torch.allclose(rows[-2], expected, atol=1e-6) == (spec.name != "d")
            assert not rows[-1].any()
    unknown = one_hot_batch(1)
    assert unknown[1].tolist() == [list(ROWS.values())]
    same(collapse(model)(*unknown), model(*unknown))


@pytest.mark.parametrize("name", NAMES)
def test_loss_threshold_clamps_the_probability(name):
    model = randomize(make(name, loss_threshold=0.45), scale=4.0).eval()
    out = model(*one_hot_batch(64))
    model.loss_threshold = 0.0
    free = model(*one_hot_batch(64))
    assert ((free < 0.45) | (free > 0.55)).any() and torch.equal(out, free.clamp(0.45, 0.55))


@pytest.mark.parametrize("name", NAMES)
def test_look_up_and_the_rest_make_the_whole(name):
    """The driver calls the two halves itself; padded bags look up what jagged ones do."""
    model = ready(name)
    dense, ids, offsets = bag_batch(12)
    looked_up = model.look_up(ids, offsets)
    assert [v.shape[2] for v in looked_up] == [tables.dim for tables in model.table_sets]
    assert torch.equal(model.vectors_to_probability(dense, *looked_up), model(dense, ids, offsets))
    named = export.graph_inputs(dense, ids, offsets, dict.fromkeys(ROWS, True), [n + 1 for n in ROWS.values()])
    padded = model.look_up_padded([named[f"ids_{table}"] for table in ROWS])
    for a, b in zip(padded, looked_up, strict=True):
        same(a, b)


def test_the_memory_bill_of_single_layer_tables_in_bf16():
    tables = EmbeddingTables(plan_tables({"a": 1000}, WIDTH), unknown=True, storage=torch.bfloat16)
    model = randomize(build_model("deepfm", tables, bottom=[DENSE, WIDTH], top=[4, 1]))
    bill = bill_of(model, dense_width=DENSE, lookups=1, batch_size=4, optimizer="sgd")
    served = collapse(model)
    assert served.tables is not model.tables and served.tables.storage == torch.float32
    copied = sum(p.numel() * 4 for p in served.tables.parameters())
    assert bill.collapsed >= copied
    assert bill.inference_tables == sum(p.numel() * 4 for sets in served.table_sets for p in sets.parameters())
