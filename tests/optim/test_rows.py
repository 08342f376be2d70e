"""Rows of tables: reading and writing, and bfloat16 ones with unbiased, repeatable rounding."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import optim
from mlet.row_lookup import RowLookup
from optim.penalty import add_row_penalty
from optim.row_clip import clip_row_gradients
from optim.row_decay import RowDecay
from optim.row_rate import RowRate
from optim.rows import (
    mark_if_summed,
    read_rows,
    round_stochastically,
    rounding_noise,
    row_pieces,
    summed_rows,
    sums_in_place,
    write_rows,
)

CPU = torch.device("cpu")
RULES = ["sgd", "adagrad", "rwsadagrad", "adam"]
BFLOAT16_MAX = torch.finfo(torch.bfloat16).max


def bfloat16_table(weights):
    p = torch.nn.Parameter(weights.to(torch.bfloat16))
    p.grad_dtype = None  # lets it take gradients of float32
    return p


def touch(rows, shape, seed=0, dtype=torch.float32):
    values = torch.randn(len(rows), shape[1], generator=torch.Generator().manual_seed(seed)).to(dtype)
    return torch.sparse_coo_tensor(torch.as_tensor(rows)[None], values, shape, check_invariants=True)


@settings(deadline=None, max_examples=30)
@given(value=st.floats(-BFLOAT16_MAX, BFLOAT16_MAX, width=32))
def test_mean_over_all_noise_is_the_value(value):
    rounded = round_stochastically(torch.full((1 << 16,), value), torch.arange(1 << 16, dtype=torch.int32))
    assert rounded.double().mean().item() == value
    assert len(rounded.unique()) <= 2


def test_what_bfloat16_holds_stays_as_it_is():
    every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    rounded = round_stochastically(every.float(), rounding_noise(every.shape, CPU, (0, 0, 1)))
    numbers = ~every.isnan()
    assert torch.equal(rounded[numbers].view(torch.int16), every[numbers].view(torch.int16))
    assert every.isinf().sum() == 2 and rounded[~numbers].isnan().all()


@pytest.mark.parametrize("bits", [0x7F800001, 0x7FFFFFFF, -1, -0x7FFFFF])
def test_nan_with_low_bits_stays_nan(bits):
    value = torch.tensor([bits], dtype=torch.int32).view(torch.float32)
    for noise in (0, 0xFFFF):
        assert round_stochastically(value, torch.tensor([noise], dtype=torch.int32)).isnan().all()


@pytest.mark.parametrize("shape", [(0, 4), (7, 3), (300, 333)])
def test_noise_is_uniform_and_follows_from_its_seed(shape):
    noise = rounding_noise(shape, CPU, (5, 1, 2))
    assert noise.shape == shape and noise.dtype == torch.int32
    assert torch.equal(noise, rounding_noise(shape, CPU, (5, 1, 2)))
    if len(noise) > 0:
        assert noise.min() >= 0 and noise.max() < 1 << 16
        for other in ((6, 1, 2), (5, 2, 2), (5, 1, 3), (5, 2, 1)):
            assert not torch.equal(noise, rounding_noise(shape, CPU, other))
    if noise.numel() > 10**4:
        counts = np.bincount(noise.flatten().numpy() >> 10, minlength=64)
        assert counts.sum() == noise.numel() and abs(counts / counts.mean() - 1).max() < 0.15  # 6 sigma


@pytest.mark.parametrize(
    ("dtype", "wide"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_read_and_write_rows(dtype, wide):
    p = torch.arange(12.0).reshape(4, 3).to(dtype)
    rows = torch.tensor([3, 1])
    values = read_rows(p, rows)
    assert values.dtype == wide and values.tolist() == [[9.0, 10.0, 11.0], [3.0, 4.0, 5.0]]
    values.add_(1.0)
    assert p[1].tolist() == [3.0, 4.0, 5.0]
    write_rows(p, rows, values)
    assert p.dtype == dtype
    assert p.tolist() == [[0.0, 1.0, 2.0], [4.0, 5.0, 6.0], [6.0, 7.0, 8.0], [10.0, 11.0, 12.0]]


def test_rows_are_summed_in_the_wider_type():
    values = torch.tensor([[1.0], [2**-9], [2**-9]], dtype=torch.bfloat16)  # a sum in bfloat16 stays at 1
    grad = torch.sparse_coo_tensor([[2, 2, 2]], values, (4, 1), check_invariants=True)
    rows, sums = summed_rows(grad, torch.float32)
    assert rows.tolist() == [2] and sums.tolist() == [[1 + 2**-8]]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bfloat16_table_is_within_a_unit_of_its_float32_twin(rule, dtype):
    weights = torch.randn(50, 8, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    p, q = bfloat16_table(weights), torch.nn.Parameter(weights.float())
    ours, twin = optim.build_optimizer(rule, [p], 0.1), optim.build_optimizer(rule, [q], 0.1)
    for step in range(4):
        with torch.no_grad():
            q.copy_(p)
        p.grad = touch([1, 7, 7, 49, 20 + step], p.shape, step, dtype)
        q.grad = p.grad.float()
        ours.step()
        twin.step()
        # neighbours in bfloat16 are at most 2^-7 of the smaller one's size apart
        assert ((p.float() - q).abs() <= 2**-7 * q.abs() + 1e-30).all()
        for key, value in ours.state[p].items():
            if torch.is_tensor(value):
                assert value.dtype == torch.float32 and torch.equal(value, twin.state[q][key])
    untouched = sorted(set(range(50)) - {1, 7, 49, 20, 21, 22, 23})
    assert torch.equal(p[untouched], weights[untouched])


def test_updates_below_a_unit_add_up():
    p = bfloat16_table(torch.ones(128, 64))
    optimizer = optim.SGD([p], lr=1e-4)
    for _ in range(20):
        p.grad = torch.sparse_coo_tensor(
            torch.arange(128)[None], torch.ones(128, 64), p.shape, is_coalesced=True, check_invariants=True
        )
        optimizer.step()
    # each step is 1/39 of a unit: rounded to nearest, the weights would stay at 1
    assert p.double().mean().item() == pytest.approx(1 - 20e-4, abs=2e-4)  # 6 sigma


@pytest.mark.parametrize("rule", RULES)
def test_rounding_follows_from_seed_parameter_and_step(rule):
    def train(seed):
        tables = [bfloat16_table(torch.ones(20, 8)) for _ in range(2)]
        optimizer = optim.build_optimizer(rule, tables, 0.01, rounding_seed=seed)
        for step in range(3):
            for p in tables:
                p.grad = touch(list(range(20)), p.shape, step)
            optimizer.step()
        return tables

    first, second = train(3)
    again, _ = train(3)
    other, _ = train(4)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("rule", RULES)
def test_non_finite_gradients_show_in_a_bfloat16_table(rule):
    p = bfloat16_table(torch.ones(4, 2))
    optimizer = optim.build_optimizer(rule, [p], 0.1)
    values = torch.tensor([[float("nan"), 1.0]])
    p.grad = torch.sparse_coo_tensor([[2]], values, (4, 2), check_invariants=True)
    optimizer.step()
    assert p[2, 0].isnan() and not p[[0, 1, 3]].isnan().any()


@given(st.lists(st.integers(0, 9), max_size=40))
def test_sums_in_place_are_a_coalesced_gradients(rows):
    """What CUDA steps on: the same rows and sums, in as many places as there were."""
    grad = touch(rows, (10, 3), seed=len(rows)).double()
    expected = grad.coalesce()
    found, sums, place = sums_in_place(torch.tensor(rows, dtype=torch.int64), grad._values())
    count = len(set(rows))
    assert len(found) == len(sums) == len(rows) and found[:count].tolist() == expected.indices()[0].tolist()
    torch.testing.assert_close(sums[:count], expected.values())
    if rows:
        assert (found[count:] == found[count - 1]).all() and not sums[count:].any()
        assert place.tolist() == [*range(count), *[count - 1] * (len(rows) - count)]


@pytest.fixture
def as_on_cuda(monkeypatch):
    """The way of CUDA, taken on the CPU."""

    def use():
        monkeypatch.setattr("optim.rows.waits_if_coalesced", lambda grad: not grad.is_coalesced())
        monkeypatch.setattr("optim.row_optimizer.waits_if_coalesced", lambda grad: not grad.is_coalesced())

    return use


def steps(rule, set_up=lambda optimizer, p: None, before=lambda p, rows: None):
    """Three steps of rows that repeat, the last one too, so that writing it twice would show: weights and state."""
    p = torch.nn.Parameter(torch.arange(15.0).view(5, 3))
    optimizer = optim.build_optimizer(rule, [p], lr=0.1)
    set_up(optimizer, p)
    for seed, rows in enumerate([[0, 4, 4, 0], [2, 2, 2], [0, 1, 0]]):
        p.grad = touch(rows, (5, 3), seed)
        before(p, torch.tensor(rows))
        optimizer.step()
    return p.detach(), {name: value for name, value in optimizer.state[p].items() if torch.is_tensor(value)}


def with_row_options(optimizer, p):
    rate = RowRate("sqrt", [0], 5, counts=torch.tensor([9.0, 4.0, 1.0, 1.0, 4.0]), online=False)
    optimizer.set_row_rate(p, rate)
    optimizer.set_row_decay(p, RowDecay(weight=0.1, idle=0.2))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("set_up", "before"),
    [
        (lambda optimizer, p: None, lambda p, rows: None),
        (with_row_options, lambda p, rows: None),
        (lambda optimizer, p: None, lambda p, rows: add_row_penalty([p], 0.3)),
        (with_row_options, lambda p, rows: clip_row_gradients(p, rows, 0.01)),
    ],
    ids=["plain", "rate and decay", "penalty", "all"],
)
def test_steps_are_alike_with_sums_in_place(rule, set_up, before, as_on_cuda):
    expected, expected_state = steps(rule, set_up, before)
    as_on_cuda()
    found, state = steps(rule, set_up, before)
    torch.testing.assert_close(found, expected)
    assert state.keys() == expected_state.keys()
    for name, value in expected_state.items():
        torch.testing.assert_close(state[name], value)


@pytest.mark.parametrize("options", [{}, {"row_steps": True}])
@pytest.mark.parametrize("rule", RULES)
def test_a_large_gradient_in_pieces_is_the_same_update(rule, options, monkeypatch):
    if options and rule != "adam":
        pytest.skip("row_steps is Adam's")
    start = torch.randn(60, 4, generator=torch.Generator().manual_seed(7))
    ends, pieces = [], []
    for least in (1 << 25, 1):
        monkeypatch.setattr(optim.rows, "_LARGE", least)
        monkeypatch.setattr(optim.rows, "_PIECE", 7 * 4 * 4)
        p = torch.nn.Parameter(start.clone())
        optimizer = optim.build_optimizer(rule, [p], lr=0.1, **options)
        for seed in range(3):
            p.grad = touch(torch.arange(seed, 60, 2), p.shape, seed)
            optimizer.step()
        pieces.append(len(list(row_pieces(*summed_rows(p.grad, torch.float32)))))
        ends.append(p.detach())
    assert pieces == [1, 5] and torch.equal(*ends)


@pytest.mark.parametrize("rule", RULES)
def test_pieces_of_a_bfloat16_table_are_rounded_with_noise_of_their_own(rule, monkeypatch):
    monkeypatch.setattr(optim.rows, "_LARGE", 1)
    monkeypatch.setattr(optim.rows, "_PIECE", 64 * 4)
    p = bfloat16_table(torch.ones(1000, 1))
    p.grad = torch.sparse_coo_tensor(torch.arange(1000)[None], torch.ones(1000, 1), p.shape, check_invariants=True)
    optim.build_optimizer(rule, [p], lr=2**-10).step()
    parts = p.detach().float().flatten().split(64)
    assert all(len(part.unique()) == 2 for part in parts) and len({tuple(part.tolist()) for part in parts}) == 16


@settings(deadline=None)
@given(rows=st.lists(st.integers(0, 9), max_size=8))
def test_a_gradient_is_marked_as_summed_if_its_rows_are_distinct_and_ascend(rows):
    grad = touch(torch.tensor(rows, dtype=torch.int64), (10, 2))
    mark_if_summed(grad)
    assert grad.is_coalesced() == (len(rows) < 2 or rows == sorted(set(rows)))


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_the_gradient_of_a_lookup_is_not_summed_once_more():
    """Autograd drops the mark that the backward pass sets; without it every rule sorted and copied the gradient."""
    p = torch.nn.Parameter(torch.ones(50, 3))
    RowLookup.apply(p, torch.tensor([4, 9, 4, 30])).sum().backward()
    values = p.grad._values()
    assert values[:, 0].tolist() == [2.0, 1.0, 1.0]
    optim.build_optimizer("adagrad", [p], lr=0.1).step()
    assert summed_rows(p.grad, torch.float32)[1].data_ptr() == values.data_ptr()
