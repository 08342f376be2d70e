"""How alike ids are that share rows: an id is set against the others of its bucket, not against itself."""

import numpy as np
import pytest

from hashing import IdMap
from hashing.report import similarity

VECTORS = np.array([[1.0, 0.0], [2.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])


def likeness(rows, counts, vectors=VECTORS):
    id_map = IdMap(len(rows), (np.array(rows),), (max(rows) + 1,), "test")
    return similarity(id_map, vectors, np.array(counts))


def test_parallel_ids_are_alike_and_opposite_ones_are_not():
    assert likeness([0, 0, 1, 2, 3], [5, 1, 1, 1, 1]) == pytest.approx(1)
    assert likeness([0, 1, 0, 2, 3], [5, 1, 1, 1, 1]) == pytest.approx(-1)


def test_a_frequent_id_is_not_compared_with_itself():
    """Its bucket's mean would be nearly its own vector, whatever else is in there."""
    assert likeness([0, 1, 0, 2, 3], [1000, 1, 1, 1, 1]) == pytest.approx(-1)


def test_ids_that_collide_with_nobody_or_are_never_seen_do_not_count():
    assert np.isnan(likeness([0, 1, 2, 3, 4], [1, 1, 1, 1, 1]))
    assert np.isnan(likeness([0, 1, 0, 2, 3], [1, 1, 0, 1, 1]))


def test_the_others_are_weighted_by_their_accesses():
    # id 4 against 9 x (1, 0) + 1 x (0, 1); the two others against id 4 and each other
    found = likeness([0, 1, 2, 0, 0], [9, 0, 0, 1, 1])
    by_hand = [(0 + 1) / np.hypot(1, 2), (0 + 1) / np.hypot(10, 1), (9 + 1) / (np.hypot(9, 1) * np.sqrt(2))]
    assert found == pytest.approx(np.average(by_hand, weights=[9, 1, 1]))
