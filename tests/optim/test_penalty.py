import torch
import torch.nn.functional as F

from optim import build_optimizer
from optim.penalty import add_row_penalty


def test_equals_a_dense_penalty_on_the_rows_of_the_batch():
    weight = torch.nn.Parameter(torch.randn(20, 3))
    twin = torch.nn.Parameter(weight.detach().clone())
    ids = torch.tensor([3, 5, 3, 3, 19])  # a row counts once, however often it occurs
    for p in (weight, twin):
        F.embedding(ids, p, sparse=p is weight).pow(2).sum().backward()
    touched = torch.zeros(20, 1)
    touched[ids] = 1
    twin.grad += 0.3 * twin.detach() * touched
    add_row_penalty([weight], 0.3)
    torch.testing.assert_close(weight.grad.to_dense(), twin.grad)
    for p in (weight, twin):
        build_optimizer("sgd", [p], 0.1).step()
    torch.testing.assert_close(weight, twin)


def test_leaves_dense_and_missing_gradients_and_a_zero_weight_alone():
    dense, none, sparse = (torch.nn.Parameter(torch.randn(4, 2)) for _ in range(3))
    dense.grad = torch.ones(4, 2)
    F.embedding(torch.tensor([1, 1]), sparse, sparse=True).sum().backward()
    kept = sparse.grad
    add_row_penalty([dense, none], 0.5)
    add_row_penalty([sparse], 0.0)
    assert torch.equal(dense.grad, torch.ones(4, 2)) and none.grad is None and sparse.grad is kept
