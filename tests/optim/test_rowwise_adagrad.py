"""Row-wise Adagrad: equal to a dense twin, exact on rows it must not touch, and exact across a save."""

import io

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from optim.rowwise_adagrad import RowWiseAdagrad

N, D = 9, 4


def sparse_gradient(rows, seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(len(rows), D, generator=generator).to(dtype)
    return torch.sparse_coo_tensor(torch.tensor([rows], dtype=torch.int64), values, (N, D), check_invariants=True)


def table(dtype=torch.float32):
    return torch.nn.Parameter(torch.linspace(-1, 1, N * D).reshape(N, D).to(dtype))


def run(p, optimizer, gradients):
    for gradient in gradients:
        p.grad = gradient
        optimizer.step()
    return p.detach().clone()


def dense_twin(weight, gradients, lr, eps=1e-10):
    weight, accumulator = weight.detach().clone(), torch.zeros(len(weight), 1)
    for gradient in gradients:
        g = gradient.to_dense()
        accumulator += (g * g).mean(dim=1, keepdim=True)
        weight -= lr * g / (accumulator.sqrt() + eps)
    return weight, accumulator.squeeze(1)


@given(
    steps=st.lists(st.lists(st.integers(0, N - 1), max_size=20), min_size=1, max_size=5),
    lr=st.sampled_from([0.0, 0.01, 1.0]),
)
def test_equals_dense_twin_and_leaves_other_rows_alone(steps, lr):
    gradients = [sparse_gradient(rows, seed) for seed, rows in enumerate(steps)]
    p = table()
    before = p.detach().clone()
    optimizer = RowWiseAdagrad([p], lr=lr)
    after = run(p, optimizer, gradients)
    expected, accumulator = dense_twin(before, gradients, lr)
    torch.testing.assert_close(after, expected)
    torch.testing.assert_close(optimizer.state[p]["sum"], accumulator)
    untouched = sorted(set(range(N)) - {row for rows in steps for row in rows})
    assert torch.equal(after[untouched], before[untouched])


def test_numbers_of_the_reference():
    # facebookresearch/dlrm at 090956e, optim/rwsadagrad.py under torch 2.13: W = arange(8).reshape(4, 2) / 8,
    # lr 0.1, two steps with the gradients below; printed with tolist()
    p = torch.nn.Parameter(torch.arange(8.0).reshape(4, 2) / 8)
    optimizer = RowWiseAdagrad([p], lr=0.1)
    for rows, values in (
        ([1, 3, 1], [[0.5, -1.0], [2.0, 0.25], [0.125, 3.0]]),
        ([0, 3], [[1.0, 1.0], [-0.7, 0.3]]),
    ):
        p.grad = torch.sparse_coo_tensor([rows], values, (4, 2), check_invariants=True)
        optimizer.step()
    assert p.tolist() == [
        [-0.10000000149011612, 0.02499999850988388],
        [0.20781753957271576, 0.2400161474943161],
        [0.5, 0.625],
        [0.6556155681610107, 0.8377681970596313],
    ]
    assert optimizer.state[p]["sum"].tolist() == [1.0, 2.1953125, 0.0, 2.3212499618530273]


@given(rows=st.lists(st.integers(0, N - 1), min_size=1, max_size=20))
def test_uncoalesced_equals_coalesced(rows):
    left, right = table(), table()
    gradient = sparse_gradient(rows, seed=0)
    assert torch.equal(
        run(left, RowWiseAdagrad([left]), [gradient]),
        run(right, RowWiseAdagrad([right]), [gradient.coalesce()]),
    )


@pytest.mark.parametrize("rows", [[], [4], [4, 4, 2]])
@pytest.mark.parametrize("coalesced", [False, True])
def test_gradient_is_left_as_it_was(rows, coalesced):
    p = table()
    gradient = sparse_gradient(rows, seed=0)
    gradient = gradient.coalesce() if coalesced else gradient
    before = gradient.clone()
    run(p, RowWiseAdagrad([p]), [gradient])
    assert gradient.is_coalesced() == before.is_coalesced()
    assert torch.equal(gradient._values(), before._values())


def test_dense_gradient_is_elementwise_adagrad():
    left, right = table(), table()
    gradients = [sparse_gradient([0, 1, 5], seed).to_dense() for seed in range(4)]
    ours = run(left, RowWiseAdagrad([left], lr=0.1), gradients)
    torch.testing.assert_close(ours, run(right, torch.optim.Adagrad([right], lr=0.1), gradients))


def model_and_optimizer(dtype):
    sparse, dense = table(dtype), table(dtype)
    return sparse, dense, RowWiseAdagrad([{"params": [dense]}, {"params": [sparse], "lr": 0.5}], lr=0.1)


def train(sparse, dense, optimizer, seeds):
    for seed in seeds:
        sparse.grad = sparse_gradient([seed % N, 3, 3], seed, sparse.dtype)
        dense.grad = sparse_gradient(list(range(N)), seed, dense.dtype).to_dense()
        optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_going_on_after_a_save_equals_going_straight_through(dtype):
    straight = model_and_optimizer(dtype)
    train(*straight, range(10))

    first = model_and_optimizer(dtype)
    train(*first, range(5))
    file = io.BytesIO()
    torch.save(first[2].state_dict(), file)
    file.seek(0)
    second = model_and_optimizer(dtype)
    with torch.no_grad():
        second[0].copy_(first[0])
        second[1].copy_(first[1])
    second[2].load_state_dict(torch.load(file, weights_only=True))
    train(*second, range(5, 10))

    for left, right in zip(straight[:2], second[:2], strict=True):
        assert torch.equal(left, right)
        left_sum, right_sum = straight[2].state[left]["sum"], second[2].state[right]["sum"]
        assert left_sum.dtype == right_sum.dtype and torch.equal(left_sum, right_sum)
    assert straight[2].state[straight[0]]["sum"].shape == (N,)
    assert straight[2].state[straight[1]]["sum"].shape == (N, D)


def test_loaded_state_is_a_copy():
    first, second = table(), table()
    source, target = RowWiseAdagrad([first]), RowWiseAdagrad([second])
    run(first, source, [sparse_gradient([1], 0)])
    target.load_state_dict(source.state_dict())
    kept = source.state[first]["sum"].clone()
    run(second, target, [sparse_gradient([1, 2], 1)])
    assert torch.equal(source.state[first]["sum"], kept)


def test_state_that_does_not_fit_is_refused_and_nothing_loaded():
    p = table()
    optimizer = RowWiseAdagrad([p])
    run(p, optimizer, [sparse_gradient([1], 0)])
    state = optimizer.state_dict()
    state["state"][0] = {"sum": torch.zeros(N + 1)}
    kept = optimizer.state[p]["sum"].clone()
    with pytest.raises(ValueError, match=r"parameter 0: its accumulator has shape \[10\].*\[9, 4\]"):
        optimizer.load_state_dict(state)
    assert torch.equal(optimizer.state[p]["sum"], kept)


def test_parameter_without_gradient_in_the_first_step_trains_later():
    first, late = table(), table()
    optimizer = RowWiseAdagrad([first, late])
    run(first, optimizer, [sparse_gradient([1], 0)])
    assert late not in optimizer.state
    before = late.detach().clone()
    assert not torch.equal(run(late, optimizer, [sparse_gradient([1], 0)]), before)


def test_changing_between_sparse_and_dense_is_refused():
    p = table()
    optimizer = RowWiseAdagrad([p])
    run(p, optimizer, [sparse_gradient([1], 0)])
    with pytest.raises(ValueError, match=r"shape \[9, 4\] had an accumulator of shape \[9\] and now needs \[9, 4\]"):
        run(p, optimizer, [torch.ones(N, D)])


def test_sparse_gradient_of_another_form_is_refused():
    p = table()
    with pytest.raises(ValueError, match=r"must be \[N, D\].*2 sparse and 0 dense"):
        run(p, RowWiseAdagrad([p]), [torch.ones(N, D).to_sparse()])


@pytest.mark.parametrize(("options", "message"), [({"lr": -1.0}, "lr is -1.0"), ({"eps": -1e-9}, "eps is -1e-09")])
def test_negative_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        RowWiseAdagrad([table()], **options)


def test_closure_runs_with_gradients_and_its_loss_is_returned():
    p = table()
    optimizer = RowWiseAdagrad([p])

    def closure():
        optimizer.zero_grad()
        loss = torch.nn.functional.embedding(torch.tensor([2, 2]), p, sparse=True).square().sum()
        loss.backward()
        return loss

    before = p.detach().clone()
    assert optimizer.step(closure).item() > 0
    assert (p != before).any(dim=1).nonzero().flatten().tolist() == [2]
