"""Adam's own: how the steps of rows are counted, and the two places of eps. The rest is in test_rules.py."""

import pytest
import torch

from optim.adam import Adam


def touch(rows, value=1.0):
    values = torch.full((len(rows), 2), value)
    return torch.sparse_coo_tensor([rows], values, (4, 2), check_invariants=True)


def run(gradients, **options):
    p = torch.nn.Parameter(torch.zeros(4, 2))
    optimizer = Adam([p], lr=0.1, **options)
    for gradient in gradients:
        p.grad = gradient
        optimizer.step()
    return p.detach(), optimizer.state[p]


def test_a_rare_row_first_moves_by_the_rate_if_rows_count_their_own_steps():
    gradients = [touch([0])] * 50 + [touch([0, 2])]
    by_row, state = run(gradients, row_steps=True)
    assert by_row[2].tolist() == pytest.approx([-0.1, -0.1], rel=1e-5)  # m = g and v = g^2 when corrected
    assert state["row_steps"].dtype == torch.int32 and state["row_steps"].tolist() == [51, 0, 1, 0]
    assert state["step"] == 51
    by_step, state = run(gradients)
    expected = 0.1 * (1 - 0.999**51) ** 0.5 / (1 - 0.9**51) * 0.1 / 0.001**0.5
    assert by_step[2].tolist() == pytest.approx([-expected, -expected], rel=1e-5)
    assert "row_steps" not in state


def test_a_row_of_every_step_moves_alike_under_both_counts():
    gradients = [touch([1, 1, 3], value) for value in (1.0, -0.5, 0.25, 2.0)]
    by_row, _ = run(gradients, row_steps=True)
    by_step, _ = run(gradients)
    torch.testing.assert_close(by_row, by_step)


def test_sparse_equals_dense_adam_where_all_rows_are_touched_but_for_eps():
    gradients = [touch([0, 1, 2, 3], value) for value in (1.0, -0.5, 0.25, 2.0)]
    sparse, _ = run(gradients, eps=0.0)
    dense, _ = run([gradient.to_dense() for gradient in gradients], eps=0.0)
    torch.testing.assert_close(sparse, dense)


def test_moments_decay_only_when_touched():
    _, state = run([touch([1])] + [touch([2])] * 9)
    assert state["exp_avg"][:3, 0].tolist() == pytest.approx([0.0, 0.1, 1 - 0.9**9])
    assert state["exp_avg_sq"][:3, 0].tolist() == pytest.approx([0.0, 0.001, 1 - 0.999**9])


@pytest.mark.parametrize("row_steps", [False, True])
def test_betas_of_zero_move_each_touched_row_by_the_rate(row_steps):
    p, _ = run([touch([1], 3.0)], betas=(0.0, 0.0), row_steps=row_steps)
    assert p[1].tolist() == pytest.approx([-0.1, -0.1])
