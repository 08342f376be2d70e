"""Memory that large gradients are written to step after step: the same numbers, and never under somebody's hands."""

import copy
import pickle

import pytest
import torch

from mlet import kept_memory, row_lookup
from mlet.kept_memory import KeptMemory
from mlet.row_lookup import BagLookup, RowLookup, sum_rows

ROWS, WIDTH = 50, 8


@pytest.fixture(autouse=True)
def small_is_large(monkeypatch):
    """Gradients of a few hundred bytes go to the kept memory, in pieces of three rows."""
    monkeypatch.setattr(row_lookup, "LARGE", 1)
    monkeypatch.setattr(kept_memory, "CHUNK", 3 * WIDTH * 4)


def drawn(count, seed=0):
    return torch.randint(ROWS, (count,), generator=torch.Generator().manual_seed(seed))


def test_the_block_is_given_out_again_once_it_is_free():
    kept, places = KeptMemory(), set()
    for rows, width in ((10, 4), (9, 4), (2, 3), (11, 4)):  # an eighth more than was asked for first still fits
        block = kept.take(rows, width)
        assert block.shape == (rows, width)
        places.add(block.data_ptr())
        del block
    assert len(places) == 1
    assert kept.take(100, 4).numel() == 400


@pytest.mark.parametrize("hold", [lambda t: t[3:], lambda t: torch.sparse_coo_tensor([[1, 4]], t[:2], (9, 4))])
@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_what_somebody_holds_is_not_given_out(hold):
    kept = KeptMemory()
    block = kept.take(10, 4).fill_(1.0)
    held = hold(block)
    del block
    before = held.to_dense().clone()
    kept.take(10, 4).fill_(2.0)
    assert torch.equal(held.to_dense(), before)
    kept.clear()
    assert torch.equal(held.to_dense(), before)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda kept: pickle.loads(pickle.dumps(kept))])
def test_a_copy_starts_with_none(copied):
    kept = KeptMemory()
    place = kept.take(10, 4).data_ptr()
    other = copied(kept)
    assert other._block.numel() == 0 and other.take(10, 4).data_ptr() != place


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 30])
def test_sums_are_those_of_one_piece(count):
    rows = drawn(4 * count, seed=count).sort().values
    starts = torch.searchsorted(rows, torch.arange(count + 1))  # some of the ranges are empty
    values, order = torch.randn(25, WIDTH), drawn(int(starts[-1]), seed=1) % 25
    assert torch.equal(sum_rows(values, order, starts, KeptMemory()), sum_rows(values, order, starts))


def looked_up(weight, kept, seed):
    if kept is None or seed % 2:
        return RowLookup.apply(weight, drawn(40, seed), kept)
    return BagLookup.apply(weight, drawn(40, seed), torch.tensor([0, 3, 3, 20, 40]), "mean", kept)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize("lookup", [1, 2])
def test_gradients_add_up_over_batches_and_outlive_the_next_step(lookup):
    """Accumulated batches: the second gradient must not be written over the first, which is still `grad`."""
    weight, kept = torch.nn.Parameter(torch.randn(ROWS, WIDTH)), KeptMemory()
    factors = torch.randn(2, 40, WIDTH)

    def backward(number, memory):
        out = looked_up(weight, memory, 2 * number + lookup)
        (out * factors[number, : len(out)]).sum().backward()

    backward(0, kept)
    first = weight.grad
    expected = first.to_dense().clone()
    weight.grad = None
    backward(1, kept)
    assert torch.equal(first.to_dense(), expected)  # still held, as by somebody who looks at gradients
    expected += weight.grad.to_dense()
    first = weight.grad = None
    backward(0, kept)
    backward(1, kept)
    torch.testing.assert_close(weight.grad.to_dense(), expected)
