"""The tree of a checkpoint: JSON, tensors and arrays come back exactly, nothing else is taken."""

import math
import os
import tempfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mlet.checkpoint import load_checkpoint, save_checkpoint

ARRAYS = st.one_of(
    hnp.integer_dtypes(endianness="?"),
    hnp.unsigned_integer_dtypes(endianness="?"),
    hnp.floating_dtypes(endianness="?", sizes=(16, 32, 64)),
    hnp.complex_number_dtypes(endianness="?", sizes=(64, 128)),
    hnp.boolean_dtypes(),
).flatmap(lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)))
KEYS = st.one_of(st.text(max_size=6), st.sampled_from(["$tensor", "$array", "$float", "$dict", "$"]))
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=6), ARRAYS)
TREES = st.recursive(
    LEAVES,
    lambda tree: st.one_of(st.lists(tree, max_size=3), st.dictionaries(KEYS, tree, max_size=3)),
    max_leaves=12,
)


def round_trip(state: dict) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(Path(folder, "ckpt"), {}, state)
        return load_checkpoint(Path(folder, "ckpt"))[1]


def assert_same(value, expected):
    """Equal in type, dtype, shape and bits (NaN equals NaN, 0.0 is not -0.0), all the way down."""
    assert type(value) is type(expected)
    if isinstance(expected, dict):
        assert list(value) == list(expected)
        for key in expected:
            assert_same(value[key], expected[key])
    elif isinstance(expected, list):
        assert len(value) == len(expected)
        for item, other in zip(value, expected, strict=True):
            assert_same(item, other)
    elif isinstance(expected, torch.Tensor):
        assert (value.dtype, value.shape) == (expected.dtype, expected.shape)
        assert value.numpy().tobytes() == expected.numpy().tobytes()
    elif isinstance(expected, np.ndarray):
        assert (value.dtype, value.shape) == (expected.dtype.newbyteorder("="), expected.shape)
        assert value.tobytes() == expected.astype(value.dtype).tobytes()
    elif isinstance(expected, float):
        assert repr(value) == repr(expected)
    else:
        assert value == expected


@given(TREES)
@settings(max_examples=40, deadline=None)
def test_any_tree_comes_back(tree):
    state = round_trip({"tree": tree})
    assert_same(state, {"tree": tree})


def test_special_values_come_back():
    state = {
        "integers": [2**53 + 1, -(2**63), 2**200, True, False],
        "floats": [0.1, -0.0, 5e-324, math.inf, -math.inf, math.nan],
        "tensor": torch.arange(6.0).reshape(2, 3).t().contiguous(),
        "deep": [{"array": np.arange(3, dtype=np.uint32)}, np.array(2.5), {"$tensor": "not one"}, {}, []],
    }
    assert_same(round_trip(state), state)


def test_other_types_become_plain_ones():
    state = {
        "scalars": (np.float32(0.1), np.int64(7), np.bool_(True), np.str_("a")),
        "dict": OrderedDict(a=1),
    }
    expected = {"scalars": [float(np.float32(0.1)), 7, True, "a"], "dict": {"a": 1}}
    assert_same(round_trip(state), expected)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": [1, {"b": {1, 2}}]}, r"state\['a'\]\[1\]\['b'\] is a set"),
        ({"a": {3: 1}}, r"state\['a'\] has the key 3"),
        ({"a": b"x"}, r"state\['a'\] is a bytes"),
        ({"a": 1j}, r"state\['a'\] is a complex"),
        ({"a": np.array(["x"])}, r"state\['a'\] is an array of <U1"),
        ({"a": np.array([None])}, r"state\['a'\] is an array of object"),
        ({"a": torch.eye(2).to_sparse()}, r"state\['a'\]\" is not dense"),
    ],
)
def test_anything_else_is_refused(tmp_path, state, message):
    with pytest.raises(TypeError, match=message):
        save_checkpoint(tmp_path / "ckpt", {}, state)
    assert os.listdir(tmp_path) == []
