"""CowClip against a loop over rows."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from optim.row_clip import clip_row_gradients

N, D = 7, 3


def weight(scale=1.0):
    p = torch.nn.Parameter(torch.linspace(-1, 1, N * D).reshape(N, D) * scale)
    p.data[2] = 0  # only the floor lets it move
    return p


@settings(deadline=None, max_examples=60)
@given(
    rows=st.lists(st.integers(0, N - 1), min_size=1, max_size=12),
    ratio=st.sampled_from([0.01, 0.3, 1.0, 5.0]),
    floor=st.sampled_from([0.0, 1e-5, 0.5]),
    scale=st.sampled_from([1.0, 1e-3]),
)
def test_equals_a_loop(rows, ratio, floor, scale):
    p = weight(scale)
    factors = torch.linspace(0.5, 2, len(rows)).unsqueeze(1)
    (F.embedding(torch.tensor(rows), p, sparse=True).exp() * factors).sum().backward()
    expected = p.grad.to_dense().double()
    for i in set(rows):
        limit = rows.count(i) * max(p[i].norm().item(), ratio * math.sqrt(D) * floor) * ratio
        expected[i] *= min(1.0, limit / expected[i].norm().item())
    clip_row_gradients(p, torch.tensor(rows), ratio, floor)
    torch.testing.assert_close(p.grad.to_dense().double(), expected, rtol=1e-5, atol=1e-9)
    assert p.grad.is_coalesced()


def test_a_batch_in_two_parts_counts_as_one():
    """Accumulated gradients: lookups of all batches of the step are counted, in any order."""
    rows, grads = [1, 1, 4, 0, 1], []
    for parts in ([rows], [rows[:2], rows[2:]]):
        p = weight()
        for part in parts:
            F.embedding(torch.tensor(part), p, sparse=True).exp().sum().backward()
        clip_row_gradients(p, torch.tensor(rows[::-1]), 0.2)
        grads.append(p.grad.to_dense())
    torch.testing.assert_close(*grads)


def test_leaves_dense_missing_and_zero_gradients_alone():
    dense, none, zero, off = weight(), weight(), weight(), weight()
    dense.grad = torch.ones(N, D)
    (F.embedding(torch.tensor([2, 2]), zero, sparse=True) * 0).sum().backward()
    F.embedding(torch.tensor([1]), off, sparse=True).sum().backward()
    kept = off.grad
    for p in (dense, none, zero):
        clip_row_gradients(p, torch.tensor([2, 2]), 1e-9, 0.0)
    clip_row_gradients(off, torch.tensor([1]), 0.0)
    assert torch.equal(dense.grad, torch.ones(N, D)) and none.grad is None and off.grad is kept
    assert torch.equal(zero.grad.to_dense(), torch.zeros(N, D))


@pytest.mark.parametrize(("name", "value"), [("ratio", -1.0), ("ratio", float("nan")), ("floor", float("inf"))])
def test_bad_numbers_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} of clipping rows is {value}"):
        clip_row_gradients(weight(), torch.tensor([0]), **{"ratio": 1.0, name: value})
