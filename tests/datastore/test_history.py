"""Older rows in the ids of a store: what `Vocabulary` makes of the same rows, kept as a store."""

import shutil

import numpy as np
import polars as pl
import pytest
from frames import LAYOUT, FrameSource, make_frame

from data_utils import Store, StoreOptions, Vocabulary, prepare, prepare_history, share_among
from sources import DataError


@pytest.fixture
def older(tmp_path, make_source):
    """Rows of other days, half of whose users and cities the store does not know."""
    (tmp_path / "older").mkdir()
    frame = make_frame(120, seed=1).with_columns(pl.col("user") + 40, pl.col("city").replace("c3", "elsewhere"))
    return FrameSource(tmp_path / "older", frame)


def store_and_history(make_source, older, **options):
    store = Store(prepare(make_source(), StoreOptions("kaggle", **options)))
    return store, prepare_history(older, store.directory)


@pytest.mark.parametrize("options", [{}, {"min_count": 3}, {"max_ind_range": 11}, {"id_order": "frequency"}])
def test_rows_are_those_that_the_vocabulary_encodes(make_source, older, options):
    store, directory = store_and_history(make_source, older, **options)
    history = Store(directory)
    got, expected = history.batch(range(120)), Vocabulary(store.directory).encode(older.frame)
    assert got.ids.equal(expected.ids) and got.offsets.equal(expected.offsets) and got.dense.equal(expected.dense)
    assert got.labels[:, 0].tolist() == older.frame["click"].to_list()
    assert history.tables == store.tables and len(history.rows_of("train")) == 120
    counts = history.counts_in(range(120))
    assert all(history.counts_of(table).tolist() == counts[t].tolist() for t, table in enumerate(store.tables))
    if not options:
        assert counts[0][-1] > 0 and counts[1][-1] > 0  # the unknown id


def test_found_again_and_apart_from_that_of_other_rows(make_source, older, tmp_path):
    store, directory = store_and_history(make_source, older)
    assert prepare_history(older, store.directory) == directory and prepare(make_source(), StoreOptions("kaggle"))
    (tmp_path / "third").mkdir()
    third = FrameSource(tmp_path / "third", make_frame(50, seed=2))
    assert prepare_history(third, store.directory) != directory


def test_an_interrupted_one_goes_on(make_source, older):
    store, directory = store_and_history(make_source, older)
    whole = np.load(directory / "rows.npy").tobytes()
    shutil.rmtree(directory)
    older.fail_at, older.read = 70, []
    with pytest.raises(KeyboardInterrupt):
        prepare_history(older, store.directory)
    older.fail_at, older.read = None, []
    assert np.load(prepare_history(older, store.directory) / "rows.npy").tobytes() == whole
    assert older.read[0] > 0


def test_missing_labels_are_counted(make_source, older):
    history = Store(store_and_history(make_source, older)[1])
    assert history.schema["labels"] == {"click": 0, "buy": older.frame["buy"].null_count()}


def test_rows_in_common_are_counted(make_source, older, tmp_path):
    """Of a plain Python reading: which rows of the history are among the store's, bags left aside."""
    store = Store(prepare(make_source(), StoreOptions("kaggle")))
    frame = pl.concat([make_source().frame[10:40], older.frame[:50], make_source().frame[150:170]])
    older.frame = frame.with_columns(tags=pl.lit(None, pl.List(pl.String)))
    history = Store(prepare_history(older, store.directory))
    assert share_among(history, store, range(200), chunk=64) == 0.5
    some = np.random.default_rng(0).permutation(200)[:120]
    there = {tuple(map(float, row)) for row in store.records(some)[[*list(store.schema["dense"]), "click", "user"]]}
    own = [
        tuple(map(float, row)) for row in history.records(range(100))[[*list(store.schema["dense"]), "click", "user"]]
    ]
    by_hand = np.mean([row in there for row in own])  # rows with a missing age are NaN, equal to nothing here
    assert by_hand <= share_among(history, store, some) <= 0.5
    assert 0 < share_among(history, store, some) < 0.5 and share_among(history, store, range(200), sample=10) == 0.5


def test_other_columns_and_no_rows_are_refused(make_source, older, tmp_path):
    store = Store(prepare(make_source(), StoreOptions("kaggle")))
    fewer = type(LAYOUT)(LAYOUT.labels, LAYOUT.dense, ("user", "tags"), ("tags",))
    older.layout = fewer
    with pytest.raises(ValueError, match="has other categorical columns than the data: user, tags, not user, city"):
        prepare_history(older, store.directory)
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="no rows"):
        prepare_history(FrameSource(tmp_path / "none", make_frame(5).clear()), store.directory)
