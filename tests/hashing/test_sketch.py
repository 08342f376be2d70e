from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hashing import Request, fit_map
from hashing.sketch import FREE, HotSketch

# batches of (id, importance in whole numbers: sums are then exact)
batches = st.lists(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 9)), max_size=40), max_size=6)


def fill(sketch, stream):
    """Insert the batches. Returns the true importance of each id."""
    truth = Counter()
    for batch in stream:
        ids = np.array([i for i, _ in batch], np.int64)
        weights = np.array([w for _, w in batch], np.float64)
        sketch.insert(ids, weights)
        for i, w in batch:
            truth[i] += w
    return truth


@given(batches, st.integers(1, 5), st.integers(1, 4), st.integers(0, 5))
def test_scores_keep_the_bounds_of_space_saving(stream, buckets, slots, seed):
    sketch = HotSketch(buckets, slots, seed)
    truth = fill(sketch, stream)
    taken_in = np.zeros(buckets)
    for i, weight in truth.items():
        taken_in[sketch.bucket_of(np.array([i]))[0]] += weight
    assert np.array_equal(sketch.scores.sum(axis=1), taken_in)
    assert ((sketch.ids == FREE) == (sketch.scores == 0)).all()
    smallest = sketch.scores.min(axis=1)
    assert (smallest <= taken_in / slots).all()
    inside = set()
    for bucket, slot in zip(*np.nonzero(sketch.ids != FREE), strict=True):
        i, score = int(sketch.ids[bucket, slot]), sketch.scores[bucket, slot]
        assert bucket == sketch.bucket_of(np.array([i]))[0] and i not in inside
        inside.add(i)
        error = sketch.errors[bucket, slot]
        assert score - error <= truth[i] <= score <= truth[i] + smallest[bucket]
        assert error <= smallest[bucket]
    for i, weight in truth.items():
        bucket = sketch.bucket_of(np.array([i]))[0]
        assert i in inside or weight <= smallest[bucket]
        assert i in inside or weight <= taken_in[bucket] / slots


def test_one_access_after_the_other_is_space_saving_by_hand():
    sketch = HotSketch(1, 2)
    for i in (5, 5, 6, 7):
        sketch.insert(np.array([i]))
    assert dict(zip(sketch.ids[0].tolist(), sketch.scores[0].tolist(), strict=True)) == {5: 2.0, 7: 2.0}


def test_importance_is_one_by_default_and_zero_leaves_no_trace():
    counted, weighted = HotSketch(3), HotSketch(3)
    ids = np.array([4, 4, 9, 4, 2])
    counted.insert(ids)
    weighted.insert(ids, np.ones(5))
    weighted.insert(np.array([11, 12]), np.zeros(2))
    weighted.insert(np.array([], np.int64))
    assert np.array_equal(counted.ids, weighted.ids) and np.array_equal(counted.scores, weighted.scores)
    assert counted.hot(2).tolist() == [4, 2] and counted.hot(99).tolist() == [4, 2, 9]


def test_a_batch_of_newcomers_keeps_the_greatest_of_each_bucket():
    sketch = HotSketch(8, 3)
    ids = np.arange(200)
    importance = np.random.default_rng(0).permutation(200) + 1.0
    sketch.insert(ids, importance)
    for bucket in range(8):
        there = ids[sketch.bucket_of(ids) == bucket]
        greatest = there[np.argsort(-importance[there])[:3]]
        assert set(sketch.ids[bucket]) == set(greatest)


def test_a_long_tailed_stream_in_bounded_memory():
    draw = np.random.default_rng(1)
    stream = draw.zipf(1.2, 200_000) % 50_000
    sketch = HotSketch(100, 4)  # of about 20,000 ids that occur
    for part in np.array_split(stream, 40):
        sketch.insert(part)
    assert sketch.ids.shape == sketch.scores.shape == (100, 4)
    truth = np.bincount(stream, minlength=50_000)
    top = np.argsort(-truth, kind="stable")[:100]
    assert truth[sketch.hot(100)].sum() > 0.97 * truth[top].sum()
    assert len(np.intersect1d(sketch.hot(50), top[:50])) >= 47
    assert sketch.hot(5).tolist() == top[:5].tolist()


@given(st.integers(0, 99), st.lists(st.integers(1, 4000), max_size=12), st.floats(1.1, 2.0))
def test_however_a_stream_is_cut_its_heavy_hitters_have_slots(seed, cuts, exponent):
    """Fed in any chunks: who takes more than W / s of what falls into its bucket is there, within the error it says."""
    draw = np.random.default_rng(seed)
    stream = draw.permutation(1000)[draw.zipf(exponent, 4000) % 1000]
    sketch = HotSketch(20, 4, seed)
    for part in np.split(stream, np.sort(cuts)):
        sketch.insert(part)
    truth = np.bincount(stream, minlength=1000)
    bucket = sketch.bucket_of(np.arange(1000))
    fair = np.bincount(bucket, truth, minlength=20)[bucket] / 4  # W / s
    heavy = np.flatnonzero(truth > fair)
    assert len(heavy) and np.isin(heavy, sketch.ids).all()
    found = sketch.ids != FREE
    true, score, error = truth[sketch.ids[found]], sketch.scores[found], sketch.errors[found]
    assert (score - error <= true).all() and (true <= score).all() and (error <= fair[sketch.ids[found]]).all()
    assert set(sketch.hot(1)) <= set(np.flatnonzero(truth >= np.sort(score - error)[-1]))


@pytest.mark.parametrize(
    ("ids", "importance"),
    [
        ([1, 2], [1.0]),
        ([[1], [2]], [[1.0], [1.0]]),
        ([-1, 2], [1.0, 1.0]),
        ([1, 2], [1.0, -1.0]),
        ([1, 2], [1.0, float("nan")]),
        ([1, 2], [1.0, float("inf")]),
    ],
)
def test_bad_accesses_are_refused_and_leave_the_sketch_as_it_was(ids, importance):
    sketch = HotSketch(2)
    with pytest.raises(ValueError):
        sketch.insert(np.array(ids), np.array(importance))
    assert (sketch.ids == FREE).all() and not sketch.scores.any()


@pytest.mark.parametrize("shape", [(0, 4), (4, 0)])
def test_a_sketch_of_nothing_is_refused(shape):
    with pytest.raises(ValueError, match="at least 1 each"):
        HotSketch(*shape)


def zipf_counts(n):
    counts = (10_000 / np.arange(1, n + 1)).astype(np.int64)
    counts[::7] = 0
    return counts


def test_the_map_gives_hot_ids_private_rows():
    request = Request("t", 2000, 200, zipf_counts(2000))
    id_map = fit_map("sketch", request, hot=0.4)
    (rows,) = id_map.rows_of(np.arange(2000))
    own = id_map.about["private_rows"]
    assert own == 80 and id_map.about["sketch"] == [40, 4]
    assert (np.bincount(rows, minlength=200)[:own] == 1).all()
    hot = np.flatnonzero(rows < own)
    assert request.counts[hot].min() > 0
    truly = np.argsort(-request.counts, kind="stable")[:80]
    assert len(np.intersect1d(hot, truly)) >= 72


def test_without_overflow_it_is_the_map_by_frequency():
    counts = np.zeros(400, np.int64)
    counts[::20] = np.random.default_rng(2).permutation(20) + 1  # no two alike
    request = Request("t", 400, 200, counts, seed=9)
    sketch, frequency = (fit_map(name, request).rows_of(np.arange(400))[0] for name in ("sketch", "frequency"))
    assert np.array_equal(sketch, frequency)


def test_the_history_goes_through_in_chunks(monkeypatch):
    counts = zipf_counts(500)
    monkeypatch.setattr("hashing.sketch.CHUNK", 64)
    (rows,) = fit_map("sketch", Request("t", 500, 100, counts)).rows_of(np.arange(500))
    hot = np.flatnonzero(rows < 50)
    assert len(hot) == 50 and (np.bincount(rows)[:50] == 1).all()
    # frequent ids come first here, the hardest order: each later chunk pushes some of them out
    assert counts[hot].sum() > 0.8 * np.sort(counts)[-50:].sum()


def test_fewer_ids_seen_than_private_rows():
    counts = np.zeros(50, np.int64)
    counts[[3, 8]] = 5, 9
    id_map = fit_map("sketch", Request("t", 50, 20, counts))
    (rows,) = id_map.rows_of(np.arange(50))
    assert rows[8] == 0 and rows[3] == 1 and np.delete(rows, [3, 8]).min() >= 2
