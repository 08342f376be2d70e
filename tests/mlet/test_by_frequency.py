"""Bins and their metrics against a twin in plain Python and scikit-learn."""

import json

import numpy as np
import pytest
import sklearn.metrics
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlet.by_frequency import NO_ID, bin_edges, counts_of_rows, frequency_report, rare_ids, rarest_counts
from mlet.metrics import binary_metrics

COUNT_LISTS = st.lists(st.one_of(st.integers(0, 3), st.integers(0, 1000)), min_size=1, max_size=60)


def drawn(rows, tables, seed=0, skew=1.5):
    rng = np.random.default_rng(seed)
    counts = (rng.zipf(skew, (rows, tables)) % 500 - 1).astype(np.int32)  # many zeros
    return rng.integers(0, 2, rows).astype(np.float32), rng.random(rows).astype(np.float32), counts


def check_bins(parts, counts, labels, scores):
    """Each bin is what lies from its lowest count to its highest, and nothing lies between the bins."""
    for part in parts:
        chosen = (counts >= part["low"]) & (counts <= part["high"])
        assert (part["samples"], part["positives"]) == (chosen.sum(), labels[chosen].sum())
        both = 0 < labels[chosen].sum() < chosen.sum()
        exact = scores[chosen].astype(np.float64)
        auc = sklearn.metrics.roc_auc_score(labels[chosen], exact) if both else None
        assert part["auc"] == (pytest.approx(auc, abs=1e-12) if both else None)
        loss = sklearn.metrics.log_loss(labels[chosen], exact, labels=[0, 1])
        assert part["logloss"] == pytest.approx(loss, rel=1e-12)
    assert sum(part["samples"] for part in parts) == (counts >= 0).sum()


def test_every_part_equals_scikit_learn_on_its_rows():
    labels, scores, counts = drawn(3000, 3)
    counts[:, 2] = np.random.default_rng(1).integers(0, 10**6, 3000)
    counts[::7, 1] = NO_ID
    report = frequency_report(labels[:, None], scores[:, None], counts, {"a": 5, "b": 6, "c": 7})
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    whole = binary_metrics(labels, scores)
    assert report["all"] == {"positives": int(labels.sum())} | {k: whole[k] for k in ("samples", "auc", "logloss")}
    for t, name in enumerate("abc"):
        check_bins(report["tables"][name]["bins"], counts[:, t], labels, scores)
    rarest = [min(count for count in row if count >= 0) for row in counts.tolist()]
    check_bins(report["rarest"]["bins"], np.array(rarest), labels, scores)
    rare = [sum(0 <= count < 10 for count in row) for row in counts.tolist()]
    check_bins(report["rare_ids"]["bins"], np.array(rare), labels, scores)
    assert report["rare_ids"]["below"] == 10
    empty, bags = report["tables"]["b"]["empty"], counts[:, 1] == NO_ID
    assert empty["samples"] == bags.sum() and empty["auc"] == sklearn.metrics.roc_auc_score(labels[bags], scores[bags])
    assert report["rarest"]["empty"] is report["tables"]["a"]["empty"] is None
    assert [part["samples"] for part in report["tables"]["c"]["bins"]] == [300] * 10  # hardly a tie: deciles


@given(COUNT_LISTS, st.integers(1, 12))
@settings(max_examples=200, deadline=None)
def test_bins_hold_every_row_once_and_none_is_tiny(values, bins):
    counts = np.array(values)
    edges = bin_edges(counts, bins)
    assert 1 <= len(edges) <= bins and edges[0] == counts.min() and (np.diff(edges) > 0).all()
    assert set(edges) <= set(values)
    sizes = [((counts >= low) & (counts < high)).sum() for low, high in zip(edges, [*edges[1:], np.inf], strict=True)]
    assert sum(sizes) == len(values) and min(sizes) >= len(values) / (2 * bins)
    assert bin_edges(np.random.default_rng(0).permutation(counts), bins).tolist() == edges.tolist()


@pytest.mark.parametrize(
    ("counts", "edges"),
    [
        ([0] * 50, [0]),
        ([0] * 95 + [7] * 5, [0]),  # less than a decile is no bin
        ([0] * 35 + [1] * 30 + list(range(2, 37)), [0, 1, 7, 17, 27]),
        ([0] * 2 + [1] * 50 + [2] * 48, [0, 2]),  # two rows would make a bin of their own
        (range(100), range(0, 100, 10)),
        ([5, 3], [3, 5]),
        ([], []),
    ],
)
def test_ties_share_a_bin(counts, edges):
    assert bin_edges(np.array(counts, np.int64)).tolist() == list(edges)


def test_bins_are_the_same_for_every_model():
    labels, scores, counts = drawn(500, 2)
    first, second = (frequency_report(labels, s, counts, "ab") for s in (scores, scores[::-1]))
    assert first["rarest"] != second["rarest"]
    for one, two in zip(first["rarest"]["bins"], second["rarest"]["bins"], strict=True):
        assert all(one[key] == two[key] for key in ("low", "high", "samples", "positives"))


def test_rows_of_empty_bags_have_a_part_of_their_own():
    counts = np.array([[NO_ID, 4], [2, NO_ID], [NO_ID, NO_ID], [3, 1]])
    assert rarest_counts(counts).tolist() == [4, 2, NO_ID, 1]
    assert rare_ids(counts, 3).tolist() == [0, 1, 0, 1]
    report = frequency_report(np.array([0, 1, 1, 0]), np.full(4, 0.5), counts, "ab", bins=2)
    assert [(part["low"], part["high"], part["samples"]) for part in report["rarest"]["bins"]] == [(1, 1, 1), (2, 4, 2)]
    assert report["rarest"]["empty"] == {"samples": 1, "positives": 1, "auc": None, "logloss": pytest.approx(np.log(2))}
    nothing = frequency_report(np.array([0, 1]), np.full(2, 0.5), np.full((2, 1), NO_ID), "a")
    assert nothing["tables"]["a"]["bins"] == [] and nothing["tables"]["a"]["empty"] == nothing["all"]


@pytest.mark.parametrize("as_tensors", [False, True])
def test_counts_of_one_hot_rows(as_tensors):
    rng = np.random.default_rng(0)
    counts = [rng.integers(0, 99, n + 1) for n in (3, 5)]
    ids = np.stack([rng.integers(0, n + 1, 20) for n in (3, 5)], axis=1)
    batches = [(torch.from_numpy(part) if as_tensors else part, None) for part in (ids[:15], ids[15:])]
    found = counts_of_rows(batches, counts, 20)
    assert found.dtype == np.int32
    expected = [[0 if i == len(of) - 1 else of[i] for i, of in zip(row, counts, strict=True)] for row in ids]
    assert found.tolist() == expected


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_counts_of_bags_are_those_of_their_rarest_ids(data):
    sizes, rows = (4, 7), data.draw(st.integers(0, 6))
    counts = [np.array(data.draw(st.lists(st.integers(0, 9), min_size=n + 1, max_size=n + 1))) for n in sizes]
    bags = [[data.draw(st.lists(st.integers(0, n), max_size=3)) for _ in range(rows)] for n in sizes]
    split = data.draw(st.integers(0, rows))

    def batch(first, last):
        chosen = [bag for of_table in bags for bag in of_table[first:last]]
        offsets = np.cumsum([0, *map(len, chosen)])
        return np.array([i for bag in chosen for i in bag], np.int64), offsets

    found = counts_of_rows([batch(0, split), batch(split, rows)], counts, rows)
    for t, (of_table, n) in enumerate(zip(bags, sizes, strict=True)):
        expected = [min((0 if i == n else counts[t][i] for i in bag), default=NO_ID) for bag in of_table]
        assert found[:, t].tolist() == expected


def test_large_counts_are_kept():
    found = counts_of_rows([(np.array([[0], [1]]), None)], [np.array([2**40, 1, 0])], 2)
    assert found.tolist() == [[2**40], [1]]


def test_what_does_not_fit_is_refused():
    counts, ids = [np.array([1, 2, 0])], np.array([[0], [3]])
    with pytest.raises(ValueError, match="table 0: ids from 0 to 3, the last one counted is 2"):
        counts_of_rows([(ids, None)], counts, 2)
    for rows in (1, 3):
        with pytest.raises(ValueError, match=f"more than 1 rows|have 2 rows, expected {rows}"):
            counts_of_rows([(ids % 3, None)], counts, rows)
    labels, scores, found = drawn(10, 2)
    with pytest.raises(ValueError, match=r"counts of shape \(10, 2\) for 10 rows and 3 tables"):
        frequency_report(labels, scores, found, "abc")
    with pytest.raises(ValueError, match="9 scores for 10 labels"):
        frequency_report(labels, scores[1:], found, "ab")
    with pytest.raises(ValueError, match="0 bins"):
        frequency_report(labels, scores, found, "ab", bins=0)
