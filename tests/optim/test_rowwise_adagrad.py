"""Row-wise Adagrad's own: the reference's numbers, one accumulator per row. The rest is in test_rules.py."""

import io

import pytest
import torch

from optim.rowwise_adagrad import RowWiseAdagrad

N, D = 9, 4


def table():
    return torch.nn.Parameter(torch.linspace(-1, 1, N * D).reshape(N, D))


def touch(rows):
    values = torch.ones(len(rows), D)
    return torch.sparse_coo_tensor([rows], values, (N, D), check_invariants=True)


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


def test_accumulators_are_one_per_row_or_one_per_element_and_survive_torch_save():
    sparse, dense = table(), table()
    optimizer = RowWiseAdagrad([sparse, dense])
    sparse.grad, dense.grad = touch([1, 1]), torch.ones(N, D)
    optimizer.step()
    assert optimizer.state[sparse]["sum"].tolist() == [0.0, 4.0] + [0.0] * (N - 2)
    assert optimizer.state[dense]["sum"].shape == (N, D)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    other = RowWiseAdagrad([table(), table()])
    other.load_state_dict(torch.load(file, weights_only=True))
    loaded = [state["sum"] for state in other.state.values()]
    assert [list(each.shape) for each in loaded] == [[N], [N, D]]


@pytest.mark.parametrize(
    ("gradients", "message"),
    [
        ((touch([1]), torch.ones(N, D)), r"shape \[9, 4\] had an accumulator of shape \[9\] and now needs \[9, 4\]"),
        ((torch.ones(N, D), touch([1])), r"shape \[9, 4\] had an accumulator of shape \[9, 4\] and now needs \[9\]"),
    ],
)
def test_changing_between_sparse_and_dense_is_refused(gradients, message):
    p = table()
    optimizer = RowWiseAdagrad([p])
    p.grad = gradients[0]
    optimizer.step()
    p.grad = gradients[1]
    with pytest.raises(ValueError, match=message):
        optimizer.step()
