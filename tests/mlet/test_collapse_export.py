"""before == collapsed == reloaded == onnxruntime, for every kind of table, one-hot and multi-hot."""

import json

import numpy as np
import onnx
import pytest
import torch
from test_tables import ROWS, VARIANTS, draw_bags, fill_maps, jagged

from mlet import export
from mlet.inference import collapse, collapse_tables, full_config, inference_tensors, load_collapsed, save_collapsed
from mlet.models import build_model, model_from_config
from mlet.table_spec import plan_tables
from mlet.tables import EmbeddingTables


def make_model(variant, interaction="dot", weighted=False, mode="sum"):
    tables = EmbeddingTables(
        plan_tables(ROWS, 8, **VARIANTS[variant]), unknown=True, padding=True, weighted=weighted, mode=mode
    )
    model = build_model("dlrm", tables, bottom=(13, 16, tables.dim), top=(32, 1), interaction=interaction)
    model.initialize(np.random.RandomState(0), 0, "normal")
    with torch.no_grad():  # large enough that every table matters to the output
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(parameter.numel()))
        for part in tables.parts():
            part.group.part(part.index, part.counted_rows + 2)[-1] = 0
    fill_maps(tables)
    return model


def one_hot_batch(size, seed=0):
    rng = np.random.default_rng(seed)
    ids = np.stack([rng.integers(0, n + 1, size) for n in ROWS.values()], axis=1)
    ids[0] = list(ROWS.values())  # unknown ids
    ids[-1] = [n - 1 for n in ROWS.values()]  # largest ids
    return torch.from_numpy(rng.random((size, 13), np.float32)), torch.from_numpy(ids), None


def bag_batch(size, seed=0):
    rng = np.random.default_rng(seed)
    bags = draw_bags(rng, size, [0, 1, 3])
    bags[1][0] = []
    return torch.from_numpy(rng.random((size, 13), np.float32)), *jagged(bags)


def same(a, b):
    torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("batch", [one_hot_batch, bag_batch])
def test_before_collapsed_reloaded_onnxruntime(variant, batch, tmp_path):
    model = make_model(variant).eval()
    inference = collapse(model)
    assert not any(spec.inner_dim for spec in inference.tables.specs)
    save_collapsed(inference, tmp_path / "model.safetensors")
    reloaded = load_collapsed(tmp_path / "model.safetensors")
    samples = [batch(33, 1), batch(2, 2)]
    assert model(*samples[0]).std() > 1e-3
    for sample in samples:
        before = model(*sample)
        same(inference(*sample), before)
        assert torch.equal(reloaded(*sample), inference(*sample))
    multi = [batch is bag_batch] * len(ROWS)
    assert export.export_onnx(inference, tmp_path / "model.onnx", samples, multi, {"a": 1}) < 1e-6


def test_gather_and_no_loop_and_named_inputs(tmp_path):
    inference = collapse(make_model("mlet"))
    path = tmp_path / "model.onnx"
    export.export_onnx(inference, path, [one_hot_batch(5), one_hot_batch(3)], [False] * 5, {"rows": 7})
    model = onnx.load(path)
    onnx.checker.check_model(model)
    operations = {node.op_type for node in model.graph.node}
    assert "Gather" in operations and not operations & {"Loop", "EmbeddingBag", "Scan"}
    inputs = {i.name: i.type.tensor_type for i in model.graph.input}
    assert list(inputs) == ["dense", "ids"]
    assert inputs["dense"].elem_type == onnx.TensorProto.FLOAT and inputs["ids"].elem_type == onnx.TensorProto.INT64
    assert [d.dim_param or d.dim_value for d in inputs["ids"].shape.dim] == ["batch", 5]
    assert [o.name for o in model.graph.output] == ["probability"]
    assert json.loads({p.key: p.value for p in model.metadata_props}["mlet"]) == {"rows": 7}
    assert sum(np.prod(i.dims) for i in model.graph.initializer) < 1.1 * sum(
        tensor.numel() for _, tensor in inference_tensors(inference)
    )


def test_mixed_one_hot_and_multi_hot_inputs(tmp_path):
    model = make_model("mlet for large tables").eval()
    multi = [True, False, True, False, False]
    samples = []
    for size in (9, 1):
        rng = np.random.default_rng(size)
        bags = draw_bags(rng, size, [1])
        for t in (0, 2):
            bags[t] = draw_bags(rng, size, [0, 2, 4])[t]
        samples.append((torch.rand(size, 13), *jagged(bags)))
    export.export_onnx(collapse(model), tmp_path / "m.onnx", samples, multi)
    session = export.open_session(tmp_path / "m.onnx")
    assert [i.name for i in session.get_inputs()] == ["dense", "ids", "ids_a", "ids_c"]
    serving = export.ServingModel(collapse(model), multi)
    for sample in samples:
        named = serving.inputs_of(*sample)
        got = session.run(None, {name: tensor.numpy() for name, tensor in named.items()})[0]
        same(torch.from_numpy(got), model(*sample))


def test_mean_pooling_is_exported_exactly(tmp_path):
    inference = collapse(make_model("mlet", mode="mean"))
    samples = [bag_batch(17, 3), bag_batch(4, 4)]
    assert export.export_onnx(inference, tmp_path / "m.onnx", samples, [True] * 5) < 1e-6


def test_an_id_outside_its_table_reads_the_last_row(tmp_path):
    inference = collapse(make_model("plain"))
    export.export_onnx(inference, tmp_path / "m.onnx", [one_hot_batch(5), one_hot_batch(3)], [False] * 5)
    session = export.open_session(tmp_path / "m.onnx")
    dense, ids, _ = one_hot_batch(3)
    last = ids.clone()
    ids[1, 2], last[1, 2] = -5, ROWS["c"] + 1
    ids[2, 4], last[2, 4] = 10**12, ROWS["e"] + 1
    runs = [session.run(None, {"dense": dense.numpy(), "ids": i.numpy()})[0] for i in (ids, last)]
    assert np.array_equal(*runs)


def test_learned_pooling_weights_fold_into_the_rows():
    model = make_model("mlet", weighted=True)
    inference = collapse(model)
    assert not inference.tables.weighted
    same(inference(*bag_batch(21)), model(*bag_batch(21)))


@pytest.mark.parametrize("variant", ["mlet", "qr mult mlet", "md rounded mlet", "plain"])
def test_collapse_twice_is_collapse_once(variant):
    once = collapse(make_model(variant))
    assert collapse_tables(once.tables) is once.tables
    assert torch.equal(collapse(once)(*one_hot_batch(8)), once(*one_hot_batch(8)))


def test_collapse_names_a_table_that_is_not_finite():
    model = make_model("mlet")
    part = next(p for p in model.tables.parts() if model.tables.specs[p.table].name == "c")
    part.group.part(part.index, 10)[4, 0] = float("nan")
    with pytest.raises(ValueError, match="table c: collapse: row 4 "):
        collapse(model)


def test_a_failed_check_leaves_an_older_file_alone(tmp_path, monkeypatch):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"older")
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    with pytest.raises(ValueError, match="onnxruntime differs from the model"):
        export.export_onnx(collapse(make_model("plain")), path, [one_hot_batch(5), one_hot_batch(3)], [False] * 5)
    assert path.read_bytes() == b"older" and list(tmp_path.iterdir()) == [path]


def test_weights_beyond_the_protobuf_limit_lie_beside_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "PROTOBUF_LIMIT_BYTES", 1000)
    path = tmp_path / "m.onnx"
    worst = export.export_onnx(collapse(make_model("mlet")), path, [one_hot_batch(5), one_hot_batch(3)], [False] * 5)
    assert worst < 1e-6 and path.stat().st_size < 40_000
    assert sorted(f.name for f in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
    export.open_session(path)


def test_the_configuration_rebuilds_the_model():
    for variant in VARIANTS:
        model = make_model(variant)
        again = model_from_config(json.loads(json.dumps(full_config(model))))
        again.load_state_dict(model.state_dict())
        assert torch.equal(again(*one_hot_batch(8)), model(*one_hot_batch(8)))


def test_collapsed_file_has_one_tensor_a_table(tmp_path):
    from safetensors import safe_open

    save_collapsed(collapse(make_model("mlet")), tmp_path / "m.safetensors")
    with safe_open(str(tmp_path / "m.safetensors"), framework="pt") as file:
        assert {f"table.{name}" for name in ROWS} <= set(file.keys())
        assert file.get_tensor("table.c").shape == (ROWS["c"] + 2, 8)


@pytest.mark.parametrize("content", [b"", b"junk" * 100])
def test_a_damaged_collapsed_file_is_named(content, tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="m.safetensors"):
        load_collapsed(path)
    with pytest.raises(ValueError, match="m.safetensors cannot be loaded by onnxruntime"):
        export.open_session(path)


def test_an_uncollapsed_model_is_not_saved_as_collapsed(tmp_path):
    with pytest.raises(ValueError, match="table a is not collapsed"):
        save_collapsed(make_model("mlet"), tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())


def test_one_batch_size_is_not_enough_for_the_check(tmp_path):
    with pytest.raises(ValueError, match="two batch sizes"):
        export.export_onnx(collapse(make_model("plain")), tmp_path / "m.onnx", [one_hot_batch(5)] * 2, [False] * 5)
