"""Clusters: tight on planted blobs, by every way, with scikit-learn's full k-means as the twin."""

import importlib.util
import sys

import numpy as np
import pytest
from sklearn.cluster import KMeans

from hashing import cluster as module
from hashing.balanced_split import balanced_split
from hashing.cluster import cluster

WAYS = ["kmeans", "split"] + (["faiss"] if importlib.util.find_spec("faiss") else [])


def blobs(n=2000, groups=20, seed=0):
    generator = np.random.default_rng(seed)
    group = generator.integers(0, groups, n)
    centres = 5 * generator.normal(size=(groups, 4))
    return (centres[group] + 0.3 * generator.normal(size=(n, 4))).astype(np.float32), generator.integers(1, 50, n)


def inertia(vectors, numbers, mass):
    total = 0.0
    for number in np.unique(numbers):
        inside, weight = vectors[numbers == number], mass[numbers == number]
        total += (weight[:, None] * (inside - np.average(inside, axis=0, weights=weight)) ** 2).sum()
    return total


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("weighted", [False, True])
def test_inertia_lies_between_random_and_the_twin(how, weighted):
    vectors, counts = blobs()
    mass = counts if weighted else np.ones(len(counts))
    numbers = cluster(vectors, 20, counts if weighted else None, how=how)
    assert numbers.dtype == np.int64 and numbers.shape == (2000,)
    assert 0 <= numbers.min() and numbers.max() < 20
    twin = KMeans(20, n_init=3, random_state=0).fit(vectors, sample_weight=mass)
    by_chance = inertia(vectors, np.random.default_rng(1).integers(0, 20, 2000), mass)
    reached = inertia(vectors, numbers, mass)
    assert 0.99 * twin.inertia_ <= reached < 0.4 * by_chance


@pytest.mark.parametrize("how", WAYS)
def test_the_same_twice(how):
    vectors, counts = blobs(500)
    np.testing.assert_array_equal(cluster(vectors, 9, counts, 3, how), cluster(vectors, 9, counts, 3, how))


@pytest.mark.parametrize("how", ["auto", "kmeans", "faiss", "split"])
def test_one_bucket_and_one_an_id_need_no_library(how, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    monkeypatch.setitem(sys.modules, "faiss", None)
    vectors, _ = blobs(50)
    assert not cluster(vectors, 1, how=how).any()
    assert sorted(cluster(vectors, 50, how=how)) == list(range(50))


def test_auto_takes_kmeans_for_small_tables_only(monkeypatch):
    vectors, _ = blobs(300)
    np.testing.assert_array_equal(cluster(vectors, 10, seed=1), cluster(vectors, 10, seed=1, how="kmeans"))
    monkeypatch.setattr(module, "KMEANS_LIMIT", 2999)
    np.testing.assert_array_equal(cluster(vectors, 10, seed=1), balanced_split(vectors, 10))


def test_says_what_is_missing_or_wrong(monkeypatch):
    vectors, _ = blobs(50)
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ValueError, match="pip install faiss-cpu"):
        cluster(vectors, 5, how="faiss")
    with pytest.raises(ValueError, match="choose from auto, kmeans, faiss, split"):
        cluster(vectors, 5, how="best")
    for buckets in (0, 51):
        with pytest.raises(ValueError, match=f"{buckets} buckets for 50 ids"):
            cluster(vectors, buckets)
