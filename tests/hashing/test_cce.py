import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hashing import IdMap, Request, load_maps, save_maps
from hashing.cce import fit, recluster

WIDTH = 5


def start(n=300, m=21, seed=0, scale=1.0):
    """A map, its parts as if trained, and counts with a fifth of the ids never seen."""
    id_map = fit(Request("user", n, m, seed=seed))
    draw = np.random.default_rng(seed)
    parts = [(scale * draw.standard_normal((rows, WIDTH))).astype(np.float32) for rows in id_map.part_rows]
    counts = draw.integers(1, 100, n) * (draw.random(n) < 0.8)
    counts[draw.integers(n)] += 1
    return id_map, parts, counts


def vectors_of(id_map, parts):
    first, second = id_map.rows_of(np.arange(id_map.ids))
    return parts[0][first].astype(np.float64) + parts[1][second]


def loss(before, after, counts):
    return float((counts[:, None] * np.square(before - after)).sum())


@given(st.integers(2, 300).flatmap(lambda n: st.tuples(st.just(n), st.integers(2, n))), st.integers(0, 20))
def test_the_start_is_two_stored_hashes_into_parts_of_half_the_budget(size, seed):
    n, m = size
    id_map = fit(Request("user", n, m, seed=seed))
    assert id_map.rows == m and id_map.part_rows == (m - m // 2, m // 2)
    assert id_map.combine == "add" and id_map.method == "cce"
    assert all(isinstance(lookup, np.ndarray) and lookup.dtype == np.int32 for lookup in id_map.lookups)
    assert fit(Request("user", n, m, seed=seed)).checksum() == id_map.checksum()


def test_the_two_hashes_are_independent():
    first, second = fit(Request("user", 5000, 100)).rows_of(np.arange(5000))
    assert len(np.unique(first * 50 + second)) > 1700  # of 2500; 2500 (1 - 1/e^2) = 2162 by chance


def test_one_row_is_refused():
    with pytest.raises(ValueError, match="table user: cce has two parts, and needs 2 rows; 1 is asked for$"):
        fit(Request("user", 5, 1))


@settings(max_examples=25, deadline=None)
@given(st.integers(4, 120), st.data())
def test_what_a_recluster_promises(n, data):
    m, seed = data.draw(st.integers(2, n)), data.draw(st.integers(0, 99))
    id_map, parts, counts = start(n, m, seed)
    copies = [part.copy() for part in parts]
    new, (t0, t1) = recluster(id_map, parts, counts, seed)
    assert all(np.array_equal(a, b) for a, b in zip(parts, copies, strict=True))
    assert [t0.shape, t1.shape] == [part.shape for part in parts] and t0.dtype == t1.dtype == np.float32
    assert np.isfinite(t0).all() and np.isfinite(t1).all()
    assert new.part_rows == id_map.part_rows and new.combine == "add" and new.method == "cce"
    assert new.about["reclustered"] == 1
    assert np.array_equal(new.lookups[0][counts == 0], id_map.lookups[0][counts == 0])
    before, after = vectors_of(id_map, parts), vectors_of(new, [t0, t1])
    alone = loss(before, vectors_of(new, [t0, 0 * t1]), counts)
    assert loss(before, after, counts) <= alone * (1 + 1e-5) + 1e-6


def test_the_first_part_holds_weighted_means_and_the_second_what_they_leave():
    id_map, parts, counts = start()
    new, (t0, t1) = recluster(id_map, parts, counts, 3)
    before, (h0, h1) = vectors_of(id_map, parts), new.rows_of(np.arange(id_map.ids))
    for row in range(len(t0)):
        if counts[h0 == row].any():
            assert np.allclose(t0[row], np.average(before[h0 == row], axis=0, weights=counts[h0 == row]), atol=1e-5)
    for row in range(len(t1)):
        left = before[h1 == row] - t0[h0[h1 == row]]
        expected = np.average(left, axis=0, weights=counts[h1 == row]) if counts[h1 == row].any() else 0
        assert np.allclose(t1[row], expected, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 100.0])
@pytest.mark.parametrize("seed", range(4))
def test_vectors_of_as_many_kinds_as_rows_are_kept(seed, scale):
    id_map, parts, counts = start(400, 40, seed, scale)
    parts[1][:] = parts[1][0]  # the vectors are then those of h0, at most m0 kinds
    new, fresh = recluster(id_map, parts, counts, seed)
    before, after = vectors_of(id_map, parts), vectors_of(new, fresh)
    assert np.allclose(after[counts > 0], before[counts > 0], atol=1e-5 * max(scale, 1), rtol=1e-5)


def test_fewer_kinds_than_rows_make_no_nan():
    id_map, parts, counts = start()
    for part in parts:
        part[:] = part[0]
    new, fresh = recluster(id_map, parts, counts, 0)
    assert all(np.isfinite(part).all() for part in fresh)
    assert np.allclose(vectors_of(new, fresh)[counts > 0], vectors_of(id_map, parts)[counts > 0], atol=1e-5)


def test_fewer_ids_seen_than_rows():
    id_map, parts, _ = start()
    counts = np.zeros(300, np.int64)
    counts[[7, 70, 207]] = 1, 5, 2
    new, fresh = recluster(id_map, parts, counts, 0)
    assert all(np.isfinite(part).all() for part in fresh)
    assert np.allclose(vectors_of(new, fresh)[counts > 0], vectors_of(id_map, parts)[counts > 0], atol=1e-5)


def test_clustering_loses_less_than_a_new_hash_would():
    id_map, parts, counts = start(2000, 120)
    before = vectors_of(id_map, parts)
    new, fresh = recluster(id_map, parts, counts, 0)
    spread = loss(before, np.average(before, axis=0, weights=counts), counts)
    assert loss(before, vectors_of(new, fresh), counts) < 0.5 * spread


@pytest.mark.parametrize("chunk", [1, 64, 299])
def test_chunks_change_nothing(monkeypatch, chunk):
    id_map, parts, counts = start()
    whole, at_once = recluster(id_map, parts, counts, 5)
    monkeypatch.setattr("hashing.cce.CHUNK", chunk)
    new, fresh = recluster(id_map, parts, counts, 5)
    assert new.checksum() == whole.checksum()
    assert all(np.allclose(a, b, atol=1e-6) for a, b in zip(fresh, at_once, strict=True))


def test_a_sample_of_the_ids_and_other_ways_to_cluster():
    id_map, parts, counts = start(2000, 20)
    before = vectors_of(id_map, parts)
    spread = loss(before, np.average(before, axis=0, weights=counts), counts)
    for settings_of in ({"sample": 1}, {"sample": 8}, {"how": "kmeans"}, {"how": "split"}):
        new, fresh = recluster(id_map, parts, counts, 1, **settings_of)
        assert all(np.isfinite(part).all() for part in fresh)
        assert loss(before, vectors_of(new, fresh), counts) < spread
        again, same = recluster(id_map, parts, counts, 1, **settings_of)
        assert again.checksum() == new.checksum()
        assert all(np.array_equal(a, b) for a, b in zip(fresh, same, strict=True))


def test_each_time_another_second_hash():
    id_map, parts, counts = start()
    once, fresh = recluster(id_map, parts, counts, 0)
    twice, _ = recluster(once, fresh, counts, 0)
    assert (once.about["reclustered"], twice.about["reclustered"]) == (1, 2)
    seconds = [each.lookups[1] for each in (id_map, once, twice)]
    assert all((seconds[a] == seconds[b]).mean() < 0.5 for a, b in ((0, 1), (0, 2), (1, 2)))


def test_a_reclustered_map_survives_a_file(tmp_path):
    new, _ = recluster(*start(), 0)
    with open(tmp_path / "maps", "wb") as file:
        save_maps(file, {"user": new}, {})
    read = load_maps(tmp_path / "maps")[0]["user"]
    assert read.checksum() == new.checksum() and read.about == new.about


def test_bad_input_is_refused():
    id_map, parts, counts = start()
    broken = [part.copy() for part in parts]
    broken[1][2, 3] = np.nan
    one_part = IdMap(300, id_map.lookups, (21,), "double")
    multiplied = IdMap(300, id_map.lookups, id_map.part_rows, "any", "mult")
    for arguments in (
        (one_part, parts, counts),
        (multiplied, parts, counts),
        (id_map, parts[:1], counts),
        (id_map, parts[::-1], counts),
        (id_map, [parts[0], parts[1][:, :2]], counts),
        (id_map, broken, counts),
        (id_map, parts, counts[:-1]),
        (id_map, parts, 0 * counts),
        (id_map, parts, counts - 1),
    ):
        with pytest.raises(ValueError):
            recluster(*arguments, 0)
    with pytest.raises(ValueError, match="sample=0"):
        recluster(id_map, parts, counts, 0, sample=0)
