import importlib

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st

import hashing
from hashing import (
    Request,
    fit_map,
    least_rows,
    method_lookups,
    method_names,
    method_options,
    parse_options,
    register_method,
)
from hashing.frequency import private_ids

# n, m with 1 <= m <= n
sizes = st.integers(1, 300).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n)))
seeds = st.integers(0, 50)
shares = st.floats(0, 1, exclude_max=True)


def history(n, seed=0):
    """Counts with a long tail and some ids never seen; at least one is seen."""
    draw = np.random.default_rng(seed)
    counts = (draw.pareto(1, n) * 3).astype(np.int64)
    counts[draw.integers(n)] += 1
    return counts


def rows_of(id_map):
    return [np.asarray(rows) for rows in id_map.rows_of(np.arange(id_map.ids))]


def assert_within_budget(id_map, request):
    assert id_map.ids == request.ids
    assert id_map.rows <= request.rows
    for rows, part in zip(rows_of(id_map), id_map.rows_by_lookup, strict=True):
        assert rows.shape == (request.ids,) and np.issubdtype(rows.dtype, np.integer)
        assert rows.min() >= 0 and rows.max() < part


@given(sizes)
def test_modulo(size):
    n, m = size
    (rows,) = rows_of(fit_map("modulo", Request("t", n, m)))
    assert np.array_equal(rows, np.arange(n) % m)


@given(sizes, seeds)
def test_universal(size, seed):
    request = Request("t", *size, seed=seed)
    id_map = fit_map("universal", request)
    assert_within_budget(id_map, request)
    assert id_map.nbytes == 0


@given(sizes, seeds, shares)
def test_the_most_frequent_ids_have_rows_that_nobody_else_reads(size, seed, share):
    n, m = size
    request = Request("t", n, m, history(n, seed), seed=seed)
    id_map = fit_map("frequency", request, private=share)
    assert_within_budget(id_map, request)
    (rows,) = rows_of(id_map)
    top = np.lexsort((np.arange(n), -request.counts))[: min(int(share * m), m - 1)]
    top = top[request.counts[top] > 0]
    assert np.array_equal(private_ids(request, share), top)
    alone = np.bincount(rows, minlength=m) == 1
    assert alone[rows[top]].all()


def test_frequency_without_private_rows_is_the_universal_hash():
    request = Request("t", 50, 9, history(50), seed=4)
    frequency = rows_of(fit_map("frequency", request, private=0.0))
    assert np.array_equal(frequency, rows_of(fit_map("universal", request)))


@pytest.mark.parametrize("name", method_names())
def test_the_register_knows_lookups_and_the_smallest_budget(name):
    if name == "graph":
        pytest.importorskip("sknetwork", reason="graph needs scikit-network")
    edges = scipy.sparse.csr_matrix(np.arange(60).reshape(20, 3) % 4 + 1.0)
    request = Request("t", 20, least_rows(name), history(20), np.random.default_rng(0).random((20, 2)), edges)
    id_map = fit_map(name, request)
    assert len(id_map.lookups) == method_lookups(name) and len(id_map.part_rows) == least_rows(name) == id_map.rows


@given(sizes, seeds)
def test_double_reads_two_hashes_of_one_part(size, seed):
    request = Request("t", *size, seed=seed)
    id_map = fit_map("double", request)
    assert_within_budget(id_map, request)
    assert len(id_map.lookups) == 2 and id_map.part_rows == (request.rows,) and id_map.combine == "add"
    assert id_map.lookups[0] != id_map.lookups[1]
    assert fit_map("double", request).checksum() == id_map.checksum()
    assert fit_map("double", Request("t", *size, seed=seed + 1)).checksum() != id_map.checksum()


def test_double_shares_both_rows_far_less_often_than_one():
    first, second = rows_of(fit_map("double", Request("t", 3000, 100)))
    one, both = len(np.unique(first)), len(np.unique(np.sort([first, second], axis=0), axis=1).T)
    assert one <= 100 and both > 1500  # of 5050 unordered pairs


@given(sizes, seeds, shares)
def test_frequency_double_gives_private_ids_their_own_row_twice(size, seed, share):
    n, m = size
    request = Request("t", n, m, history(n, seed), seed=seed)
    id_map = fit_map("frequency-double", request, private=share)
    assert_within_budget(id_map, request)
    first, second = rows_of(id_map)
    hot = private_ids(request, share)
    assert np.array_equal(first[hot], second[hot])
    readers = np.bincount(np.concatenate([first, second]), minlength=m)
    assert (readers[first[hot]] == 2).all()


@given(st.integers(2, 3000).flatmap(lambda n: st.tuples(st.just(n), st.integers(2, n))))
def test_quotient_remainder(size):
    n, m = size
    request = Request("t", n, m)
    id_map = fit_map("quotient-remainder", request)
    assert_within_budget(id_map, request)
    quotients, remainders = id_map.part_rows
    ids = np.arange(n)
    first, second = rows_of(id_map)
    assert np.array_equal(first, ids // remainders % quotients)
    assert np.array_equal(second, ids % remainders)
    assert id_map.combine == "mult" and id_map.nbytes == 0
    if m * m >= 4 * n + 8:
        assert np.array_equal(first, ids // remainders)
        assert len(np.unique(first * remainders + second)) == n


def test_quotient_remainder_of_one_row_is_refused():
    with pytest.raises(ValueError, match="table user: .*2 rows"):
        fit_map("quotient-remainder", Request("user", 5, 1))


def full_request(seed=0, n=120, m=24):
    """Counts with ids never seen, vectors and neighbours."""
    draw = np.random.default_rng(7)
    counts = history(n, 7)
    vectors = draw.standard_normal((n, 4)).astype(np.float32)
    together = draw.poisson(0.3, (n, 30)) * (counts > 0)[:, None]
    return Request("item", n, m, counts, vectors, scipy.sparse.csr_matrix(together), seed)


def fit_or_skip(name, request, **options):
    module = hashing._entry(name).module
    try:
        importlib.import_module(module)
        if module == "hashing.graph":
            importlib.import_module("sknetwork")
        if "vectors" in hashing.method_needs(name):
            importlib.import_module("hashing.cluster")
    except ModuleNotFoundError as error:
        pytest.skip(f"{name}: {error}")
    return fit_map(name, request, **options)


@pytest.mark.parametrize("name", method_names())
def test_every_method_makes_a_map_within_its_budget(name):
    request = full_request(seed=3)
    id_map = fit_or_skip(name, request)
    assert (request.counts == 0).any()  # such ids are placed too
    assert_within_budget(id_map, request)
    assert id_map.method == name
    assert id_map.about["seed"] == 3 and id_map.about["options"] == dict(method_options(name))
    assert all(np.array_equal(a, b) for a, b in zip(rows_of(fit_map(name, request)), rows_of(id_map), strict=True))


@pytest.mark.parametrize("name", method_names())
def test_every_method_survives_a_file(name, tmp_path):
    id_map = fit_or_skip(name, full_request())
    with open(tmp_path / "maps", "wb") as file:
        hashing.save_maps(file, {"item": id_map}, {})
    assert hashing.load_maps(tmp_path / "maps")[0]["item"].checksum() == id_map.checksum()


@pytest.mark.parametrize("name", sorted(set(method_names()) - {"quotient-remainder", "cce"}))
def test_every_method_of_one_part_makes_one_row(name):
    id_map = fit_or_skip(name, full_request(m=1))
    assert id_map.rows == 1 and not any(rows.any() for rows in rows_of(id_map))


@pytest.mark.parametrize("name", method_names())
def test_every_method_makes_as_many_rows_as_ids(name):
    request = full_request(n=40, m=40)
    assert_within_budget(fit_or_skip(name, request), request)


def request(**changes):
    fitting = {"table": "user", "ids": 20, "rows": 5, "counts": np.ones(20, np.int64)}
    fitting |= {"vectors": np.ones((20, 3), np.float32), "neighbours": scipy.sparse.csr_matrix(np.eye(20))}
    return Request(**(fitting | changes))


not_finite = np.ones((20, 3), np.float32)
not_finite[4, 1] = np.nan
infinite = np.where(np.isnan(not_finite), np.inf, not_finite)


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("modulo", {"rows": 0}, "0 rows"),
        ("modulo", {"rows": -3}, "-3 rows"),
        ("modulo", {"rows": 21}, "more rows than ids"),
        ("modulo", {"ids": 0, "rows": 1}, "0 ids"),
        ("modulo", {"ids": (1 << 31) - 1}, "2147483647 ids"),
        ("learned", {"vectors": not_finite}, "id 4 is not finite"),
        ("learned", {"vectors": infinite}, "id 4 is not finite"),
        ("learned", {"vectors": np.ones((19, 3), np.float32)}, "vectors of shape (19, 3)"),
        ("learned", {"vectors": None}, "vectors"),
        ("frequency", {"counts": np.ones(19, np.int64)}, "counts of shape (19,)"),
        ("frequency", {"counts": np.zeros(20, np.int64)}, "none of its 20 ids"),
        ("frequency", {"counts": None}, "counts"),
        ("graph", {"neighbours": None}, "neighbours"),
        ("graph", {"neighbours": scipy.sparse.csr_matrix((18, 4))}, "neighbours of shape (18, 4)"),
    ],
)
def test_a_bad_history_is_refused_by_the_name_of_its_table(name, changes, says):
    with pytest.raises(ValueError, match="table user: ") as caught:
        fit_map(name, request(**changes))
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "option"),
    [(name, option) for name in ("frequency", "frequency-double") for option in ("private",)] + [("sketch", "hot")],
)
@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_share_of_rows_outside_its_range_is_refused(name, option, share):
    with pytest.raises(ValueError, match=f"table user: {option}={share}"):
        fit_map(name, request(), **{option: share})


def test_unknown_methods_are_refused_with_those_that_are_known():
    with pytest.raises(ValueError, match="'nonsense' is not known; choose from .*frequency, "):
        fit_map("nonsense", request())
    with pytest.raises(ValueError, match="nonsense"):
        hashing.method_needs("nonsense")


def test_options():
    assert parse_options("frequency", []) == {}
    assert parse_options("frequency", ["private=0.25"]) == {"private": 0.25}
    parsed = parse_options("learned", ["private=1e-1", "min_count=3"])
    assert parsed == {"private": 0.1, "min_count": 3} and isinstance(parsed["min_count"], int)
    with pytest.raises(ValueError, match="frequency has no option 'hot'.*private"):
        parse_options("frequency", ["hot=0.5"])
    with pytest.raises(ValueError, match="modulo has no option 'private'.*none"):
        parse_options("modulo", ["private=0.5"])
    for bad in ("private", "private=", "private=much"):
        with pytest.raises(ValueError, match=f"--hash-option={bad}: .*no number"):
            parse_options("frequency", [bad])
    with pytest.raises(ValueError, match="min_count=1.5"):
        parse_options("learned", ["min_count=1.5"])


def test_a_name_is_registered_once():
    with pytest.raises(ValueError, match="'modulo' is already registered by hashing.trick"):
        register_method("modulo", "somewhere.else")
    with pytest.raises(ValueError, match="'fresh' needs .*labels"):
        register_method("fresh", "somewhere.else", needs=["labels"])
    assert "fresh" not in method_names()


def test_a_method_of_ones_own(monkeypatch):
    monkeypatch.setattr(hashing, "_METHODS", dict(hashing._METHODS))
    register_method("own", "hashing.frequency", needs=["counts"], private=0.2)
    assert "own" in method_names() and method_options("own") == {"private": 0.2}
    assert fit_map("own", request()).method == "own"
