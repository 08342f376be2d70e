import numpy as np
import pytest
import torch

from mlet.controls import MaskedCrossTerm
from mlet.inference import collapse_tables
from mlet.initialize import initialize_tables
from mlet.table_spec import plan_tables
from mlet.tables import EmbeddingTables

ROWS = {"a": 9, "b": 5, "c": 30}
K, D, RATE = 6, 3, 0.1


def make():
    tables = EmbeddingTables(plan_tables(ROWS, D), unknown=True)
    masked = MaskedCrossTerm(tables, K)
    masked.initialize(seed=3, mlet_init="normal", emb_init="uniform")
    return tables, masked


def batch(size=40):
    return torch.stack([torch.randint(0, n, (size,)) for n in ROWS.values()], dim=1)


def step(tables, masked, ids, weights):
    optimizer = torch.optim.SGD([*tables.parameters(), *masked.parameters()], lr=RATE)
    (tables(ids) * weights).sum().backward()
    masked.before_step()
    optimizer.step()
    masked.after_step()


def test_starts_where_mlet_with_the_same_seed_does():
    tables, _ = make()
    mlet = EmbeddingTables(plan_tables(ROWS, D, inner_dim=K), unknown=True)
    initialize_tables(mlet, np.random.RandomState(7), 3, "normal")
    ids = batch()
    torch.testing.assert_close(tables(ids), mlet(ids))


def test_a_step_is_the_own_row_term_alone():
    tables, masked = make()
    ids, weights = batch(), torch.randn(40, 3, D)
    served = tables.units[0].rows
    before, w2 = served.weight.detach().clone(), masked.rows.inner_projection.detach().clone()
    grad = torch.zeros_like(before)
    grad.index_add_(0, (ids + served.first_row).flatten(), weights.flatten(0, 1))
    step(tables, masked, ids, weights)
    table = torch.bucketize(torch.arange(len(before)), served.first_row, right=True) - 1
    expected = before - RATE * torch.einsum("rd,rkd,rke->re", grad, w2[table], w2[table])
    torch.testing.assert_close(served.weight.detach(), expected)
    untouched = grad.abs().sum(dim=1) == 0
    assert untouched.any() and torch.equal(served.weight[untouched], before[untouched])


def test_the_factors_are_trained_as_in_mlet_while_the_tables_agree():
    """In the first step W equals W1 W2, so that both factors must get the gradients of MLET's own."""
    tables, masked = make()
    twin = EmbeddingTables(plan_tables(ROWS, D, inner_dim=K), unknown=True)
    twin.load_state_dict(masked.factors.state_dict())
    ids, weights = batch(), torch.randn(40, 3, D)
    (twin(ids) * weights).sum().backward()
    torch.optim.SGD(twin.parameters(), lr=RATE).step()
    step(tables, masked, ids, weights)
    for ours, theirs in zip(masked.factors.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert not torch.allclose(tables(ids), collapse_tables(twin)(ids), atol=1e-4)  # the masked term is missing


def test_refuses_tables_that_are_not_plain():
    for options in (
        {"inner_dim": 4},
        {"qr_collisions": 2, "qr_threshold": 8},
        {"md_temperature": 0.5, "md_threshold": 8},
    ):
        with pytest.raises(ValueError, match="plain float32 tables only"):
            MaskedCrossTerm(EmbeddingTables(plan_tables(ROWS, D, **options)), K)
