"""Quantised tables and MLPs: close to the exact ones, as small as promised, the same in torch and in onnxruntime."""

import copy

import numpy as np
import onnx
import pytest
import torch
from test_collapse_export import bag_batch, make_model, one_hot_batch
from test_tables import ROWS, draw_bags, jagged

from mlet import export
from mlet.inference import collapse
from mlet.models import build_model
from mlet.quantize import QuantizedTables, quantize_mlps, quantize_tables


@pytest.mark.parametrize("batch", [one_hot_batch, bag_batch])
@pytest.mark.parametrize(("bits", "step"), [(8, 255), (4, 15)])
def test_quantised_rows_are_within_half_a_step_of_their_range(batch, bits, step):
    tables = collapse(make_model("mlet")).tables
    _, ids, offsets = batch(20)
    exact, rough = tables(ids, offsets), QuantizedTables(tables, bits)(ids, offsets)
    weight = tables.units[0].rows.weight
    widest = (weight.max(dim=1).values - weight.min(dim=1).values).max()
    most_rows_in_a_bag = 1 if offsets is None else int(offsets.diff().max())
    # half a quantisation step a row; 4-bit rows keep their scale and offset as float16
    assert (exact - rough).abs().max() <= most_rows_in_a_bag * widest * (0.5 / step + 2e-3)
    assert rough.shape == exact.shape and not torch.equal(rough, exact)


def test_tables_shrink():
    tables = collapse(make_model("plain")).tables
    rows, dim = tables.units[0].rows.weight.shape
    assert QuantizedTables(tables, 8).packed.numel() == rows * (dim + 8)
    assert QuantizedTables(tables, 4).packed.numel() == rows * (dim // 2 + 4)


@pytest.mark.parametrize("bits", [8, 16])
def test_quantised_mlps_stay_close(bits):
    model = collapse(make_model("plain"))
    exact = model(*one_hot_batch(50)).detach()
    rough = copy.deepcopy(model)
    quantize_mlps(rough, bits)
    difference = (rough(*one_hot_batch(50)) - exact).abs().max()
    assert 0 < difference < (2e-2 if bits == 8 else 2e-3)


def test_thirty_two_bits_change_nothing():
    model = collapse(make_model("plain"))
    before = model(*one_hot_batch(5))
    quantize_mlps(model, 32)
    quantize_tables(model, 32)
    assert torch.equal(model(*one_hot_batch(5)), before)


@pytest.mark.parametrize("variant", ["qr mult", "md", "mlet"])
def test_tables_that_are_not_plain_and_collapsed_are_refused(variant):
    with pytest.raises(ValueError, match="tables need"):
        QuantizedTables(make_model(variant).tables, 8)


@pytest.mark.parametrize("bits", [2, 16, 0])
def test_other_widths_are_refused(bits):
    model = collapse(make_model("plain"))
    with pytest.raises(ValueError, match="4 or 8 bits"):
        QuantizedTables(model.tables, bits)
    with pytest.raises(ValueError, match="8 or 16 bits"):
        quantize_mlps(model, 3)


def mixed_batch(size, seed=0):
    """Tables a and c in bags, the others one-hot."""
    rng = np.random.default_rng(seed)
    bags = draw_bags(rng, size, [1])
    for t in (0, 2):
        bags[t] = draw_bags(rng, size, [0, 2, 4])[t]
    return torch.from_numpy(rng.random((size, 13), np.float32)), *jagged(bags)


ONE_HOT, BAGS, MIXED = [False] * 5, [True] * 5, [True, False, True, False, False]


@pytest.mark.parametrize(
    ("bits", "batch", "multi_hot"), [(8, one_hot_batch, ONE_HOT), (8, mixed_batch, MIXED), (4, bag_batch, BAGS)]
)
def test_the_onnx_file_scores_as_the_quantised_tables_of_torch(bits, batch, multi_hot, tmp_path):
    model = collapse(make_model("mlet"))
    rows, dim = model.tables.units[0].rows.weight.shape
    samples = [batch(33, 1), batch(2, 2)]  # with unknown ids, largest ids and empty bags
    exact = model(*samples[0]).detach()
    quantize_tables(model, bits)
    tables, path = model.tables, tmp_path / "m.onnx"
    assert export.export_onnx(model, path, samples, multi_hot) < 1e-6
    assert model.tables is tables  # the export works on a form of its own
    got = export.score_onnx(path, model, samples, multi_hot)
    expected = torch.cat([model(*sample) for sample in samples])[:, 0].detach()
    torch.testing.assert_close(torch.from_numpy(got), expected, atol=1e-6, rtol=0)
    assert 1e-6 < np.abs(got[:33] - exact[:, 0].numpy()).max() < (0.02 if bits == 8 else 0.3)
    stored = [i for i in onnx.load(path).graph.initializer if i.dims and i.dims[0] == rows]
    assert sum(len(i.raw_data) for i in stored) == rows * (dim + 8 if bits == 8 else dim // 2 + 4)
    if batch is one_hot_batch:
        check_ids_outside(path, model)


@pytest.mark.parametrize("variant", ["mlet", "qr mult", "qr concat", "md", "qr concat mlet", "md rounded mlet"])
@pytest.mark.parametrize(("batch", "multi_hot"), [(one_hot_batch, ONE_HOT), (bag_batch, BAGS)])
def test_sixteen_bits_are_every_row_rounded_once(variant, batch, multi_hot, tmp_path):
    model = collapse(make_model(variant))
    rounded = copy.deepcopy(model)
    for part in rounded.tables.parts():
        part.group.weight.data = part.group.weight.data.half().float()
    exact = model(*batch(30)).detach()
    quantize_tables(model, 16)
    assert all(part.group.weight.dtype == torch.float16 for part in model.tables.parts())
    samples = [batch(30), batch(2)]
    got, expected = model(*samples[0]).detach(), rounded(*samples[0]).detach()
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)
    assert not torch.equal(got, exact)
    assert export.export_onnx(model, tmp_path / "m.onnx", samples, multi_hot) < 1e-5


def test_sixteen_bits_refuse_numbers_out_of_range():
    model = collapse(make_model("plain"))
    with torch.no_grad():
        model.tables.units[0].rows.weight[int(model.tables.units[0].rows.first_row[2])] = 7e4
    with pytest.raises(ValueError, match="table c has numbers above 65504"):
        quantize_tables(model, 16)


def check_ids_outside(path, model):
    dense, ids, _ = one_hot_batch(3)
    last = ids.clone()
    ids[1, 2], last[1, 2] = -5, ROWS["c"] + 1
    ids[2, 4], last[2, 4] = 10**12, ROWS["e"] + 1
    outside, padding = (export.score_onnx(path, model, [(dense, i, None)], ONE_HOT) for i in (ids, last))
    assert np.array_equal(outside, padding)


def test_a_graph_without_dense_features_and_with_self_products(tmp_path):
    tables = make_model("plain").tables
    model = build_model("dlrm", tables, bottom=(), top=(8, 1), itself=True).eval()
    samples = [(torch.zeros(size, 0), one_hot_batch(size)[1], None) for size in (5, 3)]
    assert export.export_onnx(model, tmp_path / "m.onnx", samples, ONE_HOT) < 1e-6
