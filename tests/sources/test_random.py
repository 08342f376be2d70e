"""Random batches: equal to a slow twin, and to numbers that the reference driver's generator gave."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sources.random import RandomData

GAUSSIAN = {"distribution": "gaussian", "low": 0.0, "high": 6.0}


def slow_epoch(dense, table_rows, batch_sizes, options):
    """Batches by the plainest loop: lists of dense, bags[table][sample] and labels."""
    rng = np.random.RandomState(options["seed"])
    for samples in batch_sizes:
        features = rng.rand(samples, dense).astype(np.float32)
        bags = []
        for rows in table_rows:
            bags.append([])
            for _ in range(samples):
                size = options["lookups"]
                if not options["lookups_fixed"]:
                    size = int(np.round(max(1.0, rng.rand() * min(rows, options["lookups"]))))
                if options["distribution"] == "gaussian":
                    low, high, mu = options["low"], options["high"], options["mu"]
                    drawn = rng.normal((low + high) / 2 if mu == -1 else mu, options["sigma"], size)
                    bags[-1].append(np.unique(np.clip(drawn, low, high)).astype(np.int64).tolist())
                else:
                    bags[-1].append(np.unique(np.round(rng.rand(size) * (rows - 1)).astype(np.int64)).tolist())
        labels = rng.rand(samples, 1).astype(np.float32)
        yield features, bags, np.round(labels) if options["round_targets"] else labels


def unpack(batch, tables):
    """Bags [table][sample] of a batch in either layout."""
    if batch.offsets is None:
        return [[[row[t]] for row in batch.ids.tolist()] for t in range(tables)]
    bags = [batch.ids[a:b].tolist() for a, b in itertools.pairwise(batch.offsets.tolist())]
    samples = len(batch.dense)
    assert len(bags) == tables * samples
    return [bags[t * samples : (t + 1) * samples] for t in range(tables)]


def assert_same(left, right):
    for name, a, b in zip(left._fields, left, right, strict=True):
        assert (a is None and b is None) or (a.dtype == b.dtype and torch.equal(a, b)), name


OPTIONS = st.fixed_dictionaries(
    {
        "lookups": st.sampled_from([1, 2, 3, 10, 60]),
        "lookups_fixed": st.booleans(),
        "round_targets": st.booleans(),
        "distribution": st.sampled_from(["uniform", "gaussian"]),
        "low": st.sampled_from([0.0, -0.5, 1.0]),
        "high": st.sampled_from([1.0, 2.5, 4.0]),
        "mu": st.sampled_from([-1.0, 0.0, 3.0]),
        "sigma": st.sampled_from([0.0, 0.3, 5.0]),
        "seed": st.integers(0, 2**32 - 1),
    }
)


@given(
    dense=st.integers(0, 4),
    table_rows=st.lists(st.sampled_from([5, 7, 100, 10**6, 2**40]), min_size=1, max_size=4),
    data_size=st.integers(1, 50),
    batch_size=st.integers(1, 20),
    options=OPTIONS,
    data=st.data(),
)
def test_equals_slow_twin_from_any_start(dense, table_rows, data_size, batch_size, options, data):
    random = RandomData(dense, table_rows, data_size=data_size, batch_size=batch_size, **options)
    sizes = [min(batch_size, data_size - at) for at in range(0, data_size, batch_size)]
    start = data.draw(st.integers(0, len(sizes)))
    assert (len(random), random.rows) == (len(sizes), data_size)
    expected = list(slow_epoch(dense, table_rows, sizes, options))[start:]
    for batch, (features, bags, labels) in zip(random.batches(start), expected, strict=True):
        assert batch.dense.dtype == batch.labels.dtype == torch.float32 and batch.ids.dtype == torch.int64
        assert np.array_equal(batch.dense.numpy(), features) and np.array_equal(batch.labels.numpy(), labels)
        assert unpack(batch, len(table_rows)) == bags


@given(table_rows=st.lists(st.integers(1, 4), min_size=1, max_size=3), lookups=st.integers(1, 9))
def test_tiny_tables_stay_in_range(table_rows, lookups):
    batch = next(RandomData(1, table_rows, batch_size=8, num_batches=1, lookups=lookups).batches())
    for rows, bags in zip(table_rows, unpack(batch, len(table_rows)), strict=True):
        for bag in bags:
            assert bag == sorted(set(bag)) and 0 <= bag[0] and bag[-1] < rows


def test_read_ahead_runs_out_within_a_batch(monkeypatch):
    whole = list(RandomData(3, [50, 1000], batch_size=7, data_size=40, lookups=30).batches())
    monkeypatch.setattr("sources.random.READ_AHEAD", 1)
    pieces = list(RandomData(3, [50, 1000], batch_size=7, data_size=40, lookups=30).batches())
    for left, right in zip(whole, pieces, strict=True):
        assert_same(left, right)


# The numbers of the next four tests were printed by RandomDataset of facebookresearch/dlrm at 090956e under
# NumPy 1.26, with m_den 2, reset_seed_on_access and the arguments that the test names.


def test_reference_uniform_with_short_last_batch():
    first, last = RandomData(2, [4, 1000, 3], data_size=5, batch_size=3, lookups=4, seed=123).batches()
    assert first.dense.flatten().tolist() == [
        0.6964691877365112, 0.2861393392086029, 0.2268514484167099,
        0.5513147711753845, 0.7194689512252808, 0.42310646176338196,
    ]  # fmt: skip
    assert first.ids.tolist() == [1, 2, 0, 1, 1, 2] + [634, 849, 323, 610, 722, 228] + [1, 1, 1]
    assert first.offsets.tolist() == [0, 2, 4, 6, 8, 11, 12, 13, 14, 15]
    assert first.labels.tolist() == [[0.42583030462265015], [0.3122612237930298], [0.42635130882263184]]
    assert unpack(last, 3) == [[[1], [1, 3]], [[519, 985], [121, 826]], [[1], [1]]]
    assert last.labels.tolist() == [[0.6813007593154907], [0.8754568696022034]]


def test_reference_fixed_lookups_and_rounded_targets():
    random = RandomData(
        2, [4, 1000], data_size=3, batch_size=3, lookups=3, lookups_fixed=True, round_targets=True, seed=7
    )
    (batch,) = random.batches()
    assert unpack(batch, 2) == [
        [[0, 1, 2], [1, 2], [0, 1]],
        [[213, 452, 909], [25, 600, 930], [230, 548, 949]],
    ]
    assert batch.labels.tolist() == [[1.0], [0.0], [1.0]]


def test_reference_gaussian_keeps_ids_that_are_equal_only_after_the_cut():
    random = RandomData(2, [10, 7], num_batches=2, batch_size=3, lookups=5, sigma=2.0, **GAUSSIAN)
    first, last = random.batches()
    assert unpack(first, 2) == [[[0, 0, 2, 2, 6], [6], [1, 4]], [[6], [3, 4, 6], [0, 1, 5]]]
    assert unpack(last, 2) == [[[1, 1, 3, 4], [3, 5], [2]], [[3, 3], [0, 4, 6], [0, 4]]]
    assert last.dense[0].tolist() == [0.43370118737220764, 0.43086275458335876]
    assert last.labels.tolist() == [[0.5104223489761353], [0.6693137884140015], [0.5859365463256836]]


def test_reference_one_fixed_lookup_is_one_hot():
    (batch,) = RandomData(2, [4, 1000, 3], data_size=3, batch_size=3, lookups=1, lookups_fixed=True).batches()
    assert batch.offsets is None and batch.ids.is_contiguous()
    assert batch.ids.tolist() == [[3, 392, 1], [2, 343, 0], [1, 728, 1]]
    assert batch.labels.tolist() == [[0.7379953861236572], [0.182491734623909], [0.17545175552368164]]


@pytest.mark.parametrize("options", [{}, GAUSSIAN, {"lookups": 1, "lookups_fixed": True}])
def test_every_epoch_is_the_same_and_start_only_skips(options):
    random = RandomData(3, [20, 9], data_size=11, batch_size=4, **options)
    first, second = list(random.batches()), list(random.batches())
    assert [len(batch.dense) for batch in first] == [4, 4, 3]
    for start in range(4):
        for left, right in zip(first[start:], random.batches(start), strict=True):
            assert_same(left, right)
    for left, right in zip(first, second, strict=True):
        assert_same(left, right)


def test_num_batches_overrides_data_size():
    random = RandomData(1, [5], data_size=10_000, num_batches=3, batch_size=4)
    assert (len(random), random.rows) == (3, 12)
    assert [len(batch.labels) for batch in random.batches()] == [4, 4, 4]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"high": 50.0, "mu": 40.0}, r"table 1: drew id \d\d, but its 9 rows are 0 to 8"),
        ({"low": -9.0, "mu": -5.0}, r"table 0: drew id -\d, but its 100 rows are 0 to 99"),
    ],
)
def test_gaussian_id_outside_its_table_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        next(RandomData(1, [100, 9], batch_size=9, num_batches=1, **(GAUSSIAN | options)).batches())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"distribution": "zipf"}, "distribution 'zipf' is not known; choose uniform or gaussian"),
        ({"data_size": 0}, "data_size is 0, must be at least 1"),
        ({"num_batches": -1}, "num_batches is -1, must be at least 0"),
        ({"batch_size": 0}, "batch_size is 0, must be at least 1"),
        ({"lookups": 0}, "lookups is 0, must be at least 1"),
        ({"seed": -1}, "seed is -1, must be at least 0"),
        ({"seed": 2**32}, "seed is 4294967296, must be below"),
        ({"dense": -2}, "dense is -2, must be at least 0"),
        ({"table_rows": []}, "tables is 0, must be at least 1"),
        ({"table_rows": [3, 0]}, "rows of table 1 is 0, must be at least 1"),
        (GAUSSIAN | {"sigma": -0.5}, "sigma is -0.5, must be at least 0"),
        (GAUSSIAN | {"mu": float("nan")}, "mu is nan, must be finite"),
        (GAUSSIAN | {"low": 7.0}, "low is 7.0, must not be above high, 6.0"),
    ],
)
def test_bad_arguments_are_refused_by_value(options, message):
    with pytest.raises(ValueError, match=message):
        RandomData(**({"dense": 1, "table_rows": [5]} | options))


@pytest.mark.parametrize("start", [-1, 4])
def test_start_outside_the_epoch_is_refused_at_once(start):
    with pytest.raises(ValueError, match=f"start is {start}, must be from 0 to the number of batches, 3"):
        RandomData(1, [5], num_batches=3).batches(start)
