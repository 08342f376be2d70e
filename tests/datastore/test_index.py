import zlib

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

import datastore.index
from datastore.index import IntegerIndex, TableIndex

chunks_of = st.lists(st.lists(st.integers(-5, 60), max_size=40), max_size=12)


def dict_twin(chunks, key=lambda v: v):
    seen = {}
    return [[seen.setdefault(key(value), len(seen)) for value in chunk] for chunk in chunks], seen


@given(chunks_of)
def test_integers_get_ids_in_order_of_first_appearance(chunks):
    index = TableIndex("t")
    expected, seen = dict_twin(chunks)
    for chunk, ids in zip(chunks, expected, strict=True):
        before = len(index)
        got, new = index.grow(pl.Series(chunk, dtype=pl.Int64))
        assert got.tolist() == ids
        assert new.to_list() == list(seen)[before : len(index)]
    assert index.values_by_id().to_list() == list(seen)


@given(chunks_of)
def test_texts_too(chunks):
    index = TableIndex("t")
    chunks = [[None if v < -3 else f"v{v}" for v in chunk] for chunk in chunks]
    expected, seen = dict_twin(chunks, lambda v: v or "")
    for chunk, ids in zip(chunks, expected, strict=True):
        assert index.grow(pl.Series(chunk, dtype=pl.String))[0].tolist() == ids
    assert index.values_by_id().to_list() == list(seen)


@given(chunks_of, st.integers(1, 20))
def test_capped_values_are_taken_modulo(chunks, cap):
    integers, texts = TableIndex("t", cap), TableIndex("t", cap)
    as_number, _ = dict_twin(chunks, lambda v: v % cap)
    as_text, _ = dict_twin(chunks, lambda v: zlib.crc32(f"v{v}".encode()) % cap)
    for chunk, numbers, of_text in zip(chunks, as_number, as_text, strict=True):
        assert integers.grow(pl.Series(chunk, dtype=pl.Int64))[0].tolist() == numbers
        assert texts.grow(pl.Series([f"v{v}" for v in chunk], dtype=pl.String))[0].tolist() == of_text
    assert len(integers) <= cap and len(texts) <= cap


@pytest.mark.parametrize("dtype", [np.uint32, np.int64])
def test_many_additions_of_every_size_are_all_found(dtype):
    rng = np.random.default_rng(0)
    values = rng.permutation(20_000).astype(dtype) * 3
    index, at = IntegerIndex(), 0
    while at < len(values):
        size = int(rng.integers(0, 600))
        index.add(values[at : at + size])
        at += size
    assert np.array_equal(index.find(values), np.arange(len(values)))
    assert (index.find(values + 1) == -1).all()
    assert np.array_equal(index.values_by_id(), values)
    assert len(index._levels) <= 2


def test_a_finished_vocabulary_encodes_as_it_grew():
    column = pl.Series(["b", None, "a", "b", ""])
    grown = TableIndex("t")
    ids, _ = grown.grow(column)
    finished = TableIndex.of_values("t", -1, "text", grown.values_by_id())
    assert finished.encode(column).tolist() == ids.tolist() == [0, 1, 2, 0, 1]
    assert finished.encode(pl.Series(["z", "a"])).tolist() == [3, 2]


def test_rows_to_score_may_come_in_another_type():
    index = TableIndex.of_values("t", -1, "integer", pl.Series([7, 2**32 - 1], dtype=pl.UInt32))
    assert index.encode(pl.Series(["7", "x", None, "4294967295"])).tolist() == [0, 2, 2, 1]
    assert index.encode(pl.Series([-1, 2**40, 7], dtype=pl.Int64)).tolist() == [2, 2, 0]
    text = TableIndex.of_values("t", -1, "text", pl.Series(["7"]))
    assert text.encode(pl.Series([7, 8])).tolist() == [0, 1]
    assert TableIndex("t").encode(pl.Series([3])).tolist() == [0]


def test_a_column_may_not_change_between_numbers_and_texts():
    index = TableIndex("city")
    index.grow(pl.Series([1]))
    with pytest.raises(ValueError, match="table city: integer values first, then text"):
        index.grow(pl.Series(["x"]))


def test_a_value_above_int64_and_too_many_ids_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="table user: the value 9223372036854775808 lies above"):
        TableIndex("user").grow(pl.Series("user", [2**63], dtype=pl.UInt64))
    monkeypatch.setattr(datastore.index, "MAX_IDS", 3)
    with pytest.raises(ValueError, match="table user: more than 3 ids: cap them with --max-ind-range"):
        TableIndex("user").grow(pl.Series([1, 2, 3, 4]))
