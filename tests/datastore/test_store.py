"""A store against a twin in plain Python: ids, split, counts, transforms, batches."""

from collections import Counter

import numpy as np
import polars as pl
import pytest
import torch
from frames import LAYOUT, FrameSource, by_group, make_frame

from data_utils import Store, StoreOptions, Vocabulary, prepare
from datastore.schema import FORMAT_VERSION
from sources import GROUP, PARTS
from sources.kaggle import KaggleSource

OPTIONS = StoreOptions("kaggle")  # the name matters for scoring raw files only


def twin_ids(frame, part_of_row, min_count=1, fit="all", order="appearance"):
    """Vocabulary and ids of each table, row by row: table -> (values in id order, ids or bags)."""
    result = {}
    for table in LAYOUT.tables:
        cells = frame[table].to_list()
        empty = "" if frame[table].dtype != pl.Int64 else 0
        bags = [c or [] if table in LAYOUT.multi_hot else [empty if c is None else c] for c in cells]
        seen = list(dict.fromkeys(v for bag in bags for v in bag))
        counted = Counter(
            v for bag, part in zip(bags, part_of_row, strict=True) if fit == "all" or part == 0 for v in bag
        )
        kept = [v for v in seen if counted[v] >= min_count]
        if order == "frequency":
            kept.sort(key=lambda v: -counted[v])
        ids = [[kept.index(v) if v in kept else len(kept) for v in bag] for bag in bags]
        result[table] = kept, ids
    return result


def everything(store):
    rows = range(len(store))
    return store.batch(rows)


@pytest.mark.parametrize("order", ["appearance", "frequency"])
@pytest.mark.parametrize(("min_count", "fit"), [(1, "all"), (3, "all"), (1, "train"), (2, "train")])
def test_ids_counts_and_order_equal_plain_python(make_source, min_count, fit, order):
    source = make_source()
    options = StoreOptions("kaggle", min_count=min_count, fit=fit, id_order=order)
    store = Store(prepare(source, options))
    part = source.split(200, None).part_of_row
    expected = twin_ids(source.frame, part, min_count, fit, order)
    placed = np.argsort(part, kind="stable")
    batch = everything(store)
    bags = np.split(batch.ids.numpy(), batch.offsets.numpy()[1:-1])
    for t, (table, (values, ids)) in enumerate(expected.items()):
        assert store.tables[table] == len(values)
        got = pl.read_parquet(store.directory / "vocabulary" / f"{table}.parquet")["value"].to_list()
        assert got == values
        assert [bag.tolist() for bag in bags[t * 200 : (t + 1) * 200]] == [ids[row] for row in placed]
        counts = Counter(i for row in np.flatnonzero(part == 0) for i in ids[row])
        assert store.counts_of(table).tolist() == [counts[i] for i in range(len(values) + 1)]
    unknown = {table for table in LAYOUT.tables if store.counts_of(table)[-1]}
    assert set(store.schema["trained_unknown"]) == unknown
    assert (min_count > 1) == bool(unknown)


def test_dense_values_are_transformed_and_missing_ones_neutral(make_source):
    source = make_source()
    store = Store(prepare(source, OPTIONS))
    part = source.split(200, None).part_of_row
    placed = np.argsort(part, kind="stable")
    frame = source.frame[placed]
    age = frame["age"].cast(pl.Float32).cast(pl.Float64)
    train = age.head(int((part == 0).sum())).drop_nulls()
    expected = np.stack(
        [
            ((age - train.mean()) / train.std(ddof=0)).fill_null(0.0),
            np.log(frame["price"].fill_null(0).to_numpy() + 1),
            frame["score"],
        ],
        axis=1,
    )
    np.testing.assert_allclose(everything(store).dense.numpy(), expected, rtol=1e-5, atol=1e-5)


def test_rows_without_a_label_are_left_out_for_that_label(make_source):
    source = make_source()
    directory = prepare(source, OPTIONS)
    click, buy = Store(directory), Store(directory, ["buy"])
    part = source.split(200, None).part_of_row
    for split, number in PARTS.items():
        known = source.frame.filter(pl.Series(part == number))["buy"].drop_nulls()
        assert buy.labels_of(split).tolist() == known.to_list()
        assert len(click.rows_of(split)) == (part == number).sum() > len(known)
    order = buy.training_order("total", np.random.RandomState(5))
    twin = np.random.RandomState(5).permutation(len(click.rows_of("train")))
    assert order.tolist() == [row for row in twin if row in set(buy.rows_of("train"))]
    assert buy.describe()["label"] == "buy" and "label buy" in buy.summary()
    with pytest.raises(ValueError, match="label 'sold' is not in .*: it has click, buy"):
        Store(directory, ["sold"])


def test_several_labels_are_columns_and_a_missing_one_is_nan(make_source):
    source = make_source()
    frame = source.frame = source.frame.with_columns(pl.when(pl.int_range(pl.len()) % 7 > 0).then("click"))
    source.paths[0].write_text(str(frame.rows()))
    directory = prepare(source, OPTIONS)
    store = Store(directory, ["buy", "click"])
    some = frame.filter(pl.any_horizontal(pl.col("buy", "click").is_not_null()))
    part = source.split(200, None).part_of_row
    assert 0 < some.height < 200 and len(store) == 200
    for split, number in PARTS.items():
        here = frame.filter(pl.Series(part == number))
        here = here.filter(pl.any_horizontal(pl.col("buy", "click").is_not_null()))
        expected = here.select("buy", "click").to_numpy().astype(np.float32)
        rows = store.rows_of(split)
        assert np.isnan(expected).any() and not np.isnan(expected).all(axis=1).any()
        np.testing.assert_array_equal(store.labels_of(split), expected)
        np.testing.assert_array_equal(store.batch(rows).labels.numpy(), expected)
        assert store.labels_of(split).dtype == np.float32
    order = store.training_order("total", np.random.RandomState(5))
    assert sorted(order) == list(store.rows_of("train")) and len(order) == store.describe()["rows"]["train"]
    assert store.describe()["labels"] == ["buy", "click"] and "labels buy, click" in store.summary()
    with pytest.raises(ValueError, match="label 'buy' is named twice: buy, click, buy"):
        Store(directory, ["buy", "click", "buy"])


def test_a_label_that_every_row_has_keeps_every_row(make_source):
    directory = prepare(make_source(), OPTIONS)
    both, click = Store(directory, ["buy", "click"]), Store(directory)
    assert both.rows_of("train") == click.rows_of("train") and isinstance(both.rows_of("train"), range)
    np.testing.assert_array_equal(both.labels_of("val")[:, 1], click.labels_of("val"))
    orders = [store.training_order("total", np.random.RandomState(5)) for store in (both, click)]
    np.testing.assert_array_equal(*orders)


def test_batches_of_bags_in_any_order(make_source):
    store = Store(prepare(make_source(), OPTIONS))
    whole = everything(store)
    bags = np.split(whole.ids.numpy(), whole.offsets.numpy()[1:-1])
    rows = np.array([199, 0, 7, 7, 50])
    batch = store.batch(rows)
    got = np.split(batch.ids.numpy(), batch.offsets.numpy()[1:-1])
    assert [g.tolist() for g in got] == [bags[t * 200 + row].tolist() for t in range(3) for row in rows]
    assert torch.equal(batch.dense, whole.dense[rows]) and torch.equal(batch.labels, whole.labels[rows])
    seen = store.ids_in(rows, chunk=2)
    for t, flags in enumerate(seen):
        assert np.flatnonzero(flags).tolist() == sorted({i for row in rows for i in bags[t * 200 + row]})


@pytest.mark.parametrize("min_count", [1, 3])
def test_counts_of_some_rows_part_by_part(make_source, min_count):
    store = Store(prepare(make_source(), StoreOptions("kaggle", min_count=min_count)))
    rows = np.random.default_rng(0).permutation(200)[:90]
    counts = store.counts_in(rows, chunk=7)
    whole = everything(store)
    bags = np.split(whole.ids.numpy(), whole.offsets.numpy()[1:-1])
    for t, (table, n) in enumerate(store.tables.items()):
        ids = np.concatenate([bags[t * 200 + row] for row in rows])
        assert counts[t].dtype == np.int64 and counts[t].tolist() == np.bincount(ids, minlength=n + 1).tolist()
        assert store.counts_in(store.rows_of("train"), chunk=7)[t].tolist() == store.counts_of(table).tolist()


def test_groups_that_lie_apart_are_brought_together(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datastore.collect.PART_ROWS", 20)
    frame = make_frame(60)
    group = np.random.default_rng(1).integers(0, 3, 60)
    layout = type(LAYOUT)(**(vars(LAYOUT) | {"grouped": True}))
    source = FrameSource(tmp_path, frame.with_columns(pl.Series(GROUP, group)), layout, split=by_group)
    store = Store(prepare(source, OPTIONS))
    for split, number in PARTS.items():
        expected = frame.filter(pl.Series(group == number))["click"].to_list()
        assert store.labels_of(split).tolist() == expected
    assert store.split.description == "by group" == store.schema["split"]["description"]


def test_columns_lie_in_the_narrowest_types(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    frame = pl.DataFrame(
        {
            "click": pl.Series([0, 1] * 200, dtype=pl.Int8),
            "small": pl.Series([5] * 399 + [255]),
            "signed": pl.Series([-1] * 400),
            "large": pl.Series([2**31] * 400),
            "few": pl.Series([i % 255 for i in range(400)]),
            "many": pl.Series(range(400)),
        }
    )
    layout = type(LAYOUT)(("click",), dict.fromkeys(("small", "signed", "large"), "none"), ("few", "many"))
    monkeypatch.setattr("datastore.collect.PART_ROWS", 100)
    store = Store(prepare(FrameSource(tmp_path, frame, layout, size=50), OPTIONS))
    types = {name: field[0].name for name, field in np.load(store.directory / "rows.npy").dtype.fields.items()}
    assert types == {
        "click": "int8", "small": "uint8", "signed": "int8", "large": "uint32", "few": "uint8", "many": "uint16",
    }  # fmt: skip
    batch = everything(store)
    assert sorted(batch.ids[:, 1].tolist()) == list(range(400)) and batch.dense[:, 2].min() == 2**31


def test_a_store_of_another_format_version_is_named(make_source):
    store = Store(prepare(make_source(), OPTIONS))
    schema = store.directory / "schema.json"
    text = schema.read_text()
    schema.write_text(text.replace(f'"format": {FORMAT_VERSION}', '"format": 99'))
    with pytest.raises(ValueError, match="store format 99"):
        Store(store.directory)
    for damaged in ("{", "[]"):
        schema.write_text(damaged)
        with pytest.raises(ValueError, match="damaged"):
            Store(store.directory)


def test_a_table_that_loses_every_id_is_named(make_source):
    with pytest.raises(ValueError, match="table user: none of .* lower --vocabulary-min-count"):
        prepare(make_source(), StoreOptions("kaggle", min_count=1000))


def test_vocabulary_encodes_rows_as_the_store_did(make_source):
    source = make_source()
    store = Store(prepare(source, StoreOptions("kaggle", min_count=2)))
    placed = np.argsort(source.split(200, None).part_of_row, kind="stable")
    batch, expected = Vocabulary(store.directory).encode(source.frame[placed]), everything(store)
    assert torch.equal(batch.ids, expected.ids) and torch.equal(batch.offsets, expected.offsets)
    assert torch.equal(batch.dense, expected.dense)
    assert Vocabulary(store.directory).layout == LAYOUT


def test_criteo_rows_are_at_most_half_of_the_text(small_tsv, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = Store(prepare(KaggleSource(str(small_tsv)), OPTIONS))
    assert (store.directory / "rows.npy").stat().st_size < small_tsv.stat().st_size / 2
