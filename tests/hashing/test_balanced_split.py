"""Balanced splitting: equal to a recursive twin in exact arithmetic, and what holds of every partition."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hashing.balanced_split import balanced_split, fair_mass


def recursive_split(points, buckets, mass):
    """The twin: lists of positions, one a bucket."""

    def split(ids, b):
        if b == 1:
            return [ids]
        total = sum(mass[i] for i in ids)

        def variance(axis):
            square = sum(mass[i] * points[i][axis] ** 2 for i in ids)
            return total * square - sum(mass[i] * points[i][axis] for i in ids) ** 2

        axis = max(range(len(points[0])), key=variance)
        ids, target, before, left = sorted(ids, key=lambda i: points[i][axis]), Fraction(total * (b // 2), b), 0, 0
        for i in ids:
            left += before + Fraction(mass[i], 2) <= target
            before += mass[i]
        left = min(max(left, b // 2), len(ids) - (b - b // 2))
        return split(ids[:left], b // 2) + split(ids[left:], b - b // 2)

    return split(list(range(len(points))), buckets)


@st.composite
def problems(draw, least_mass=0):
    """Few values, so that coordinates, vectors and masses often tie; some have no mass at all."""
    n, d = draw(st.integers(1, 30)), draw(st.integers(1, 3))
    points = draw(st.lists(st.lists(st.integers(-4, 4), min_size=d, max_size=d), min_size=n, max_size=n))
    mass = draw(st.lists(st.integers(least_mass, 9), min_size=n, max_size=n))
    return points, draw(st.integers(1, n)), mass


@settings(deadline=None, max_examples=200)
@given(problem=problems(), weighted=st.booleans())
def test_equals_the_recursive_twin(problem, weighted):
    points, buckets, mass = problem
    expected = np.empty(len(points), np.int64)
    for number, ids in enumerate(recursive_split(points, buckets, mass if weighted else [1] * len(points))):
        expected[ids] = number
    vectors = np.array(points, np.float32)
    found = balanced_split(vectors, buckets, np.array(mass) if weighted else None)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(vectors, points)  # the input stays as it is


@settings(deadline=None, max_examples=50)
@given(n=st.integers(1, 200), share=st.floats(0, 1), dim=st.integers(1, 4), seed=st.integers(0, 99))
def test_equal_masses_give_sizes_that_differ_by_one_at_most(n, share, dim, seed):
    buckets = max(1, round(share * n))
    vectors = np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)
    numbers = balanced_split(vectors, buckets)
    sizes = np.bincount(numbers, minlength=buckets)
    assert len(sizes) == buckets and set(sizes) <= {n // buckets, math.ceil(n / buckets)}
    np.testing.assert_array_equal(numbers, balanced_split(vectors, buckets, np.full(n, 4.0)))


@settings(deadline=None, max_examples=50)
@given(n=st.integers(1, 60), share=st.floats(0, 1), dim=st.integers(1, 3), seed=st.integers(0, 99))
def test_order_of_ids_does_not_matter_where_no_coordinate_ties(n, share, dim, seed):
    generator = np.random.default_rng(seed)
    vectors = np.stack([generator.permutation(n) for _ in range(dim)], axis=1).astype(np.float32)
    mass, order = generator.integers(1, 20, n), generator.permutation(n)
    buckets = max(1, round(share * n))
    numbers = balanced_split(vectors, buckets, mass)
    np.testing.assert_array_equal(balanced_split(vectors[order], buckets, mass[order]), numbers[order])


def test_one_coordinate_is_cut_into_quantiles():
    values = np.random.default_rng(1).normal(size=(40, 1)).astype(np.float32)
    expected = np.empty(40, np.int64)
    expected[np.argsort(values[:, 0])] = np.arange(40) // 5
    np.testing.assert_array_equal(balanced_split(values, 8), expected)


def test_equal_vectors_are_divided_by_position():
    np.testing.assert_array_equal(balanced_split(np.ones((12, 2), np.float32), 4), np.arange(12) // 3)
    zeros = np.array([[0.0], [-0.0], [0.0], [-0.0]], np.float32)
    np.testing.assert_array_equal(balanced_split(zeros, 2), [0, 0, 1, 1])


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_blobs_of_equal_size_are_recovered(offset):
    generator, blobs = np.random.default_rng(2), 13
    centres = np.stack([generator.permutation(blobs) for _ in range(3)], axis=1) * 10.0  # apart on every axis
    group = generator.permutation(np.repeat(np.arange(blobs), 20))
    vectors = (offset + centres[group] + generator.uniform(-1, 1, (len(group), 3))).astype(np.float32)
    numbers = balanced_split(vectors, blobs)
    assert len(set(zip(group.tolist(), numbers.tolist(), strict=True))) == blobs


def test_one_bucket_an_id_and_one_for_all():
    vectors = np.random.default_rng(3).normal(size=(33, 4)).astype(np.float32)
    assert sorted(balanced_split(vectors, 33, np.arange(33.0) ** 3)) == list(range(33))
    assert not balanced_split(vectors, 1).any()


def test_axes_without_spread_are_not_split_however_far_they_lie():
    generator, n = np.random.default_rng(5), 100
    vectors = np.tile(
        1e4 * generator.random(7), (n, 1)
    )  # W sum(w x^2) - (sum(w x))^2 of these rounds to about 1e-8 W^2
    vectors[:, 6] = 1e-6 * generator.random(n)
    vectors, mass = vectors.astype(np.float32), generator.random(n)
    np.testing.assert_array_equal(balanced_split(vectors, 9, mass), balanced_split(vectors[:, 6:], 9, mass))


@settings(deadline=None, max_examples=100)
@given(problem=problems(least_mass=1))
def test_fair_mass_is_a_fixed_point(problem):
    _, buckets, mass = problem
    mass = np.array(mass)
    fair = fair_mass(mass, buckets)
    assert (fair <= mass).all()
    assert fair.max() <= fair.sum() / buckets + 1e-9  # nothing heavier than a fair bucket
    if (cut := fair < mass).any():
        assert fair[cut] == pytest.approx(fair.sum() / buckets)
    elif mass.max() <= mass.sum() / buckets:
        np.testing.assert_array_equal(fair, mass)


def test_fair_mass_leaves_rare_ids_rows_to_share():
    generator, n, buckets = np.random.default_rng(4), 4000, 400
    vectors = generator.normal(size=(n, 4)).astype(np.float32)
    counts = np.maximum(1, 20_000 // np.arange(1, n + 1))[generator.permutation(n)]

    def alone(mass):
        return (np.bincount(balanced_split(vectors, buckets, mass)) == 1).mean()

    assert alone(fair_mass(counts, buckets)) < 0.1 < 0.25 < alone(counts)


def test_refuses_what_does_not_fit():
    vectors = np.zeros((3, 2), np.float32)
    for buckets in (0, 4):
        with pytest.raises(ValueError, match=f"{buckets} buckets for 3 ids"):
            balanced_split(vectors, buckets)
    with pytest.raises(ValueError, match="position 1 is negative"):
        balanced_split(vectors, 2, np.array([1.0, -2.0, 1.0]))
    with pytest.raises(ValueError, match="for 3 ids"):
        balanced_split(vectors, 2, np.ones(2))
    with pytest.raises(ValueError, match="dimensions"):
        balanced_split(np.zeros(3, np.float32), 2)
