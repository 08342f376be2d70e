"""Learned maps: who is private, clustered and hashed, and that similar ids meet."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hashing import Request, fit_map, universal
from hashing import cluster as clusters
from hashing.balanced_split import fair_mass

METHODS = ["learned", "learned-weighted", "learned-coordinate", "learned-embedding", "learned-frequency"]
pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(autouse=True, params=["kmeans", "split"])
def small_and_large_tables(request, monkeypatch):
    if request.param == "split":
        monkeypatch.setattr(clusters, "KMEANS_LIMIT", 0)


def request_of(n=300, rows=40, groups=20, seed=0, unseen=0.3):
    """Noisy copies of group centres; Zipf counts, some ids never seen."""
    generator = np.random.default_rng(seed)
    group = generator.integers(0, groups, n)
    vectors = 4 * generator.normal(size=(groups, 6))[group] + 0.1 * generator.normal(size=(n, 6))
    counts = np.maximum(1, 500 // np.arange(1, n + 1))[generator.permutation(n)]
    counts[generator.random(n) < unseen] = 0
    return Request("user", n, rows, counts, vectors.astype(np.float32), seed=seed), group


def rows_of(id_map):
    return id_map.rows_of(np.arange(id_map.ids))[0]


def private_rows(method, request):
    return int(0.5 * request.rows) if method == "learned" else 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("min_count", [0, 1, 3])
def test_rare_ids_follow_the_hash_over_the_shared_rows(method, min_count):
    request, _ = request_of(seed=3)
    id_map = fit_map(method, request, min_count=min_count)
    rows, hot = rows_of(id_map), private_rows(method, request)
    head = np.argsort(-request.counts, kind="stable")[:hot]
    rare = request.counts < max(1, min_count)
    assert not rare[head].any()
    np.testing.assert_array_equal(rows[rare], hot + universal(40 - hot, (3, 0))(np.flatnonzero(rare)))
    np.testing.assert_array_equal(rows[head], np.arange(hot))
    assert np.bincount(rows)[:hot].tolist() == [1] * hot
    assert id_map.method == method and id_map.part_rows == (40,)
    expected = {"clustered": 300 - rare.sum() - hot, "hashed": rare.sum(), "private": hot}
    assert expected.items() <= id_map.about.items()


@pytest.mark.parametrize("method", METHODS)
def test_few_seen_ids_have_rows_of_their_own(method):
    request, _ = request_of(rows=280)
    seen = request.counts > 0
    assert seen.sum() < 280
    id_map = fit_map(method, request)
    rows, hot = rows_of(id_map), private_rows(method, request)
    assert len(np.unique(rows[seen])) == seen.sum()
    np.testing.assert_array_equal(rows[~seen], hot + universal(280 - hot, (0, 0))(np.flatnonzero(~seen)))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rows", [1, 2, 20])
def test_one_seen_id(method, rows):
    counts = np.zeros(20, np.int64)
    counts[7] = 5
    vectors = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    id_map = fit_map(method, Request("user", 20, rows, counts, vectors))
    about = id_map.about
    assert (about["clustered"], about["private"]) == ((0, 1) if method == "learned" and rows > 1 else (1, 0))
    assert about["hashed"] == 19
    assert rows_of(id_map)[7] == 0


@pytest.mark.parametrize("method", METHODS)
def test_a_threshold_above_all_counts_hashes_everything(method):
    request, _ = request_of()
    about = fit_map(method, request, min_count=1000).about
    assert about["clustered"] == 0 and about["hashed"] == 300 - private_rows(method, request)


def same_row(rows, group, ids):
    """Share of pairs within a group that share a row."""
    rows, group = rows[ids], group[ids]
    pairs = (group[:, None] == group) & ~np.eye(len(ids), dtype=bool)
    return (rows[:, None] == rows)[pairs].mean()


@pytest.mark.parametrize("method", METHODS[:4])
def test_similar_ids_meet(method):
    request, group = request_of(unseen=0)
    tail = np.argsort(-request.counts, kind="stable")[20:]
    learned, modulo = (same_row(rows_of(fit_map(name, request)), group, tail) for name in (method, "modulo"))
    assert learned > 0.25 > 0.1 > modulo


@pytest.mark.parametrize("method", ["learned-weighted", "learned-frequency"])
def test_frequent_ids_are_alone_or_nearly(method):
    request, _ = request_of(unseen=0)
    rows = rows_of(fit_map(method, request))
    others = np.bincount(rows)[rows] - 1
    top = np.argsort(-request.counts)[:5]
    assert others[top].mean() < 0.5 * others.mean()


@pytest.mark.parametrize("method", ["learned-weighted", "learned-frequency"])
def test_rare_ids_share_rows(method):
    request, _ = request_of(n=3000, rows=300, groups=500, unseen=0)
    rows = rows_of(fit_map(method, request))
    alone = (np.bincount(rows, minlength=300) == 1)[rows] & (request.counts < 3)
    assert alone.sum() < 10


@pytest.mark.parametrize("method", ["learned", "learned-weighted", "learned-coordinate", "learned-embedding"])
def test_seed_draws_the_centres_of_kmeans(method):
    if clusters.KMEANS_LIMIT == 0:
        pytest.skip("a split draws nothing")
    request, _ = request_of(unseen=0)
    other = replace(request, seed=1)
    assert (rows_of(fit_map(method, request)) != rows_of(fit_map(method, other))).any()


def test_scale_of_the_embedding_does_not_matter_beside_frequency():
    request, _ = request_of(unseen=0)
    larger = replace(request, vectors=64 * request.vectors)
    maps = [rows_of(fit_map("learned-coordinate", each, strength=2.0)) for each in (request, larger)]
    np.testing.assert_array_equal(*maps)


def test_strength_moves_from_embedding_to_frequency():
    request, _ = request_of(unseen=0)

    def spread_of_frequency(strength):
        rows, frequency = rows_of(fit_map("learned-coordinate", request, strength=strength)), np.log1p(request.counts)
        mean = np.bincount(rows, frequency)[rows] / np.bincount(rows)[rows]
        return ((frequency - mean) ** 2).mean()

    plain = fit_map("learned-embedding", request)
    same = spread_of_frequency(0.0), spread_of_frequency(1.0), spread_of_frequency(30.0)
    assert same[0] > same[1] > same[2]
    if clusters.KMEANS_LIMIT == 0:  # k-means draws its centres otherwise in 7 dimensions than in 6
        np.testing.assert_array_equal(rows_of(plain), rows_of(fit_map("learned-coordinate", request, strength=0.0)))


def test_equal_counts_give_the_coordinate_nothing():
    request, _ = request_of(unseen=0)
    equal = Request("user", 300, 40, np.full(300, 3), request.vectors)
    assert np.isfinite(rows_of(fit_map("learned-coordinate", equal))).all()


def test_frequency_alone_keeps_the_order_of_counts():
    counts = np.array([8, 1, 1, 1, 1, 4, 2, 2, 2, 2])
    rows = rows_of(fit_map("learned-frequency", Request("user", 10, 3, counts)))
    np.testing.assert_array_equal(rows, [2, 0, 0, 0, 0, 1, 0, 0, 1, 1])  # each row 8 accesses


def test_frequency_alone_leaves_no_row_far_below_a_fair_share():
    counts = np.maximum(1, 5000 // np.arange(1, 3001))
    rows = rows_of(fit_map("learned-frequency", Request("user", 3000, 300, counts)))
    assert np.bincount(rows, counts).min() >= fair_mass(counts, 300).max() / 2


@settings(deadline=None, max_examples=30)
@given(n=st.integers(1, 50), share=st.floats(0, 1), seed=st.integers(0, 99), method=st.sampled_from(METHODS))
def test_any_table_gets_a_map(n, share, seed, method):
    generator = np.random.default_rng(seed)
    counts = generator.integers(0, 5, n)
    counts[0] = 1
    vectors = generator.integers(-1, 2, (n, 2)).astype(np.float32)
    request = Request("user", n, max(1, round(share * n)), counts, vectors, seed=seed)
    id_map = fit_map(method, request, min_count=2)
    assert sum(id_map.about[kind] for kind in ("clustered", "hashed", "private")) == n
    assert id_map.checksum() == fit_map(method, request, min_count=2).checksum()
