"""mlet/interaction.py against autograd of its plain formula."""

import pytest
import torch

from mlet.interaction import PairwiseDots, take_columns


@pytest.mark.parametrize("itself", [False, True])
@pytest.mark.parametrize("lead", [False, True])
def test_pairwise_dots_and_their_gradient(itself: bool, lead: bool) -> None:
    every = torch.randn(7, 5, 3, dtype=torch.float64, requires_grad=True)
    dots = PairwiseDots(5, itself, lead)
    pairs = [(i, j) for i in range(5) for j in range(i + itself)]
    products = torch.stack([(every[:, i] * every[:, j]).sum(1) for i, j in pairs], dim=1)
    plain = torch.cat([every[:, 0], products], dim=1) if lead else products
    torch.testing.assert_close(dots(every), plain)
    with torch.no_grad():
        torch.testing.assert_close(dots(every), plain)
    assert torch.autograd.gradcheck(dots, (every,))


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float64))
@pytest.mark.parametrize("samples", (0, 1, 6))
def test_columns_are_taken_in_any_precision(samples: int, dtype: torch.dtype) -> None:
    values, columns = torch.randn(samples, 9).to(dtype)[:, 2:], torch.tensor([3, 0, 3, 6])
    assert torch.equal(take_columns(values, columns), values[:, columns])
