import copy

import pytest
import torch
from test_collapse_export import bag_batch, make_model, one_hot_batch

from mlet.collapse import collapse
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
