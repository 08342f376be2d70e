import builtins

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st

from hashing import Request, fit_map
from hashing.graph import RUNS, cut, fold, search

weights = st.lists(st.integers(1, 50), min_size=1, max_size=60)


def planted(groups=6, each=20, values=8, seed=0):
    """Ids that occur with the values of their own group only. Returns the group of each id, counts, neighbours."""
    draw = np.random.default_rng(seed)
    group = draw.permutation(np.repeat(np.arange(groups), each))
    own = group[:, None] == np.repeat(np.arange(groups), values)[None, :]
    together = np.where(own, draw.integers(1, 5, own.shape), 0)
    return group, together.sum(axis=1), scipy.sparse.csr_matrix(together)


def request(rows, counts, neighbours, seed=0):
    return Request("item", len(counts), rows, counts, neighbours=neighbours, seed=seed)


def rows_of(id_map):
    return id_map.rows_of(np.arange(id_map.ids))[0]


def same_partition(first, second):
    pairs = len({*zip(first.tolist(), second.tolist(), strict=True)})
    return pairs == len(set(first.tolist())) == len(set(second.tolist()))


@pytest.fixture(scope="module", autouse=True)
def library():
    pytest.importorskip("sknetwork", reason="the method graph needs scikit-network")


@pytest.mark.parametrize("seed", range(3))
def test_planted_clusters_become_rows(seed):
    group, counts, neighbours = planted(seed=seed)
    id_map = fit_map("graph", request(6, counts, neighbours, seed))
    assert id_map.about["clusters"] == 6
    assert same_partition(rows_of(id_map), group)
    assert np.array_equal(rows_of(fit_map("graph", request(6, counts, neighbours, seed))), rows_of(id_map))


def test_modularity_is_barbers():
    group, counts, neighbours = planted()
    about = fit_map("graph", request(6, counts, neighbours), resolution=0.7).about
    of_group = np.bincount(group, counts) / counts.sum()  # all edges are inside: e_c = a_c = b_c
    assert about["modularity"] == pytest.approx(1 - 0.7 * np.square(of_group).sum(), abs=1e-6)


def test_as_many_values_as_ids_are_still_two_sides():
    group, counts, neighbours = planted(groups=4, each=8, values=8)
    assert neighbours.shape[0] == neighbours.shape[1]
    id_map = fit_map("graph", request(4, counts, neighbours))
    assert same_partition(rows_of(id_map), group) and 0 < id_map.about["modularity"] < 1


def test_too_many_clusters_are_folded_whole():
    group, counts, neighbours = planted()
    rows = rows_of(fit_map("graph", request(4, counts, neighbours)))
    assert len(np.unique(rows)) == 4
    assert all(len(np.unique(rows[group == each])) == 1 for each in range(6))


def test_too_few_clusters_are_cut_until_the_rows_are_used():
    group, counts, neighbours = planted()
    rows = rows_of(fit_map("graph", request(30, counts, neighbours)))
    assert len(np.unique(rows)) == 30
    assert all(len(np.unique(group[rows == row])) == 1 for row in range(30))


def test_ids_never_seen_and_ids_without_neighbours():
    group, counts, neighbours = planted()
    together = neighbours.toarray()
    together[5] = 0  # seen, but alone
    counts[[0, 1, 2]] = 0  # never seen: what they occur with must not matter
    first = rows_of(fit_map("graph", request(7, counts, scipy.sparse.csr_matrix(together))))
    together[[0, 1, 2]] = 0
    id_map = fit_map("graph", request(7, counts, scipy.sparse.csr_array(together)))
    assert np.array_equal(rows_of(id_map), first)
    assert id_map.about["clusters"] == 7
    seen = np.setdiff1d(np.arange(len(group)), [0, 1, 2])
    expected = group.copy()
    expected[5] = 99
    assert same_partition(first[seen], expected[seen])


def test_resolution_decides_how_many_clusters():
    draw = np.random.default_rng(3)
    neighbours = scipy.sparse.csr_matrix(draw.poisson(0.2, (200, 60)))
    counts = np.maximum(np.asarray(neighbours.sum(axis=1)).ravel(), 1)
    found = [fit_map("graph", request(9, counts, neighbours), resolution=r).about["clusters"] for r in (0.5, 1.0, 4.0)]
    assert found == sorted(found) and found[0] < found[2]


def communities(ids, groups, seed=0, values=600, noise=0.3):
    """Ids of Zipf counts, 70 % of whose accesses are with values of their group's own. Returns counts, neighbours."""
    draw = np.random.default_rng(seed)
    counts = np.minimum(draw.zipf(1.4, ids), 300)
    each = np.repeat(np.arange(ids), counts)
    own = draw.integers(0, groups, ids)[each] * (values // groups) + draw.integers(0, values // groups, len(each))
    value = np.where(draw.random(len(each)) < noise, draw.integers(0, values, len(each)), own)
    return counts, scipy.sparse.coo_matrix((np.ones(len(each)), (each, value)), (ids, values)).tocsr()


@pytest.mark.parametrize("rows", [4, 20, 60, 300])
def test_the_resolution_is_searched_that_gives_about_the_rows(rows):
    """As many as the 20 planted groups, far fewer, and far more; at resolution 1 there are about 20 each time."""
    counts, neighbours = communities(1000, 20)
    about = fit_map("graph", request(rows, counts, neighbours)).about
    assert rows / 1.5 <= about["clusters"] <= 1.5 * rows
    assert 1 <= about["louvain_runs"] <= RUNS and about["resolution"] > 0
    given = fit_map("graph", request(rows, counts, neighbours), resolution=about["resolution"]).about
    assert given["clusters"] == about["clusters"] and given["louvain_runs"] == 1


@given(st.floats(0.25, 3), st.floats(0.1, 1000), st.integers(2, 100_000))
def test_the_search_finds_what_a_smooth_curve_has(slope, at_one, wanted):
    runs = search(lambda g: max(1, round(at_one * g**slope)), wanted)
    assert len(runs) <= RUNS
    if abs(np.log(wanted / at_one)) / slope < 3 * np.log(64) and wanted > 10:
        assert 1 / 1.5 <= runs[-1][1] / wanted <= 1.5


@given(st.integers(2, 1000), st.integers(1, 1000), st.integers(1, 1000), st.floats(0.01, 100))
def test_the_search_ends_where_the_number_leaps_over_the_wanted(wanted, few, many, at):
    tried = search(lambda g: few if g < at else few + many, wanted)
    assert 1 <= len(tried) <= RUNS and all(0 < g < np.inf for g, _ in tried)


@pytest.mark.parametrize("resolution", [-2.0, -1.0, float("nan"), float("inf")])
def test_a_bad_resolution_is_refused(resolution):
    _, counts, neighbours = planted()
    with pytest.raises(ValueError, match="table item: resolution="):
        fit_map("graph", request(6, counts, neighbours), resolution=resolution)


def test_bad_neighbours_are_refused():
    _, counts, neighbours = planted()
    for bad in (-1.0, np.nan):
        broken = neighbours.astype(np.float64)
        broken.data[3] = bad
        with pytest.raises(ValueError, match="table item: its neighbours"):
            fit_map("graph", request(6, counts, broken))
    with pytest.raises(ValueError, match="table item: none of its ids occurs together"):
        fit_map("graph", request(6, counts, neighbours * 0))


def test_without_the_library_the_message_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def refuse(name, *rest, **more):
        if name.startswith("sknetwork"):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return real(name, *rest, **more)

    _, counts, neighbours = planted()
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ValueError, match="table item: .*pip install scikit-network"):
        fit_map("graph", request(6, counts, neighbours))


@given(weights.filter(lambda masses: len(masses) > 1), st.data())
def test_fold_keeps_heavy_clusters_apart_and_uses_all_rows(masses, data):
    masses = np.array(masses, np.float64)
    rows = data.draw(st.integers(1, len(masses) - 1))
    of_cluster = fold(np.arange(len(masses)), masses, rows)
    assert np.array_equal(np.unique(of_cluster), np.arange(rows))
    load, clusters = np.bincount(of_cluster, masses), np.bincount(of_cluster)
    shared = clusters > 1
    assert load[~shared].min(initial=np.inf) >= 0 and shared.any()
    assert masses.max() <= load.max() <= max(masses.max(), masses.sum() / rows + masses.max())
    twice = fold(np.repeat(np.arange(len(masses)), 2), np.repeat(masses / 2, 2), rows)
    assert np.array_equal(twice, np.repeat(of_cluster, 2))


def test_fold_by_hand():
    masses = np.array([1.0, 100, 1, 50, 1, 1])
    assert fold(np.arange(6), masses, 4).tolist() == [2, 0, 3, 1, 2, 3]
    assert fold(np.arange(6), masses, 1).tolist() == [0] * 6


@given(weights, st.integers(1, 5), st.data())
def test_cut_makes_all_rows_out_of_parts_of_clusters(masses, clusters, data):
    masses = np.array(masses, np.float64)
    _, number = np.unique(np.arange(len(masses)) * 7 % clusters, return_inverse=True)
    rows = data.draw(st.integers(int(number.max()) + 1, len(masses) + 3))
    row = cut(number, masses, rows)
    used = min(rows, len(masses))
    assert np.array_equal(np.unique(row), np.arange(used))
    assert all(len(np.unique(number[row == each])) == 1 for each in range(used))
    whole = np.bincount(number, masses).max()
    load = np.bincount(row, masses)
    assert load.max() <= whole
    for each in range(used):  # within a cluster, heavier ids come in earlier rows
        later = (number == number[row == each][0]) & (row > each)
        assert masses[row == each].min() >= masses[later].max(initial=0)


def test_cut_by_hand():
    masses = np.array([1.0, 8, 1, 2, 4, 5])
    assert cut(np.array([0, 0, 0, 0, 0, 1]), masses, 2).tolist() == [0, 0, 0, 0, 0, 1]
    assert cut(np.array([0, 0, 0, 0, 0, 1]), masses, 3).tolist() == [1, 0, 1, 1, 1, 2]
    assert cut(np.array([0, 0, 0, 0, 0, 1]), masses, 4).tolist() == [2, 0, 2, 2, 1, 3]
    assert cut(np.array([0, 0, 0, 0, 0, 1]), masses, 9).tolist() == [3, 0, 4, 2, 1, 5]
