"""mlet/row_plan.py and mlet/row_lookup.py against plain autograd."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from mlet.row_lookup import BagLookup, ProjectedLookup, RowLookup
from mlet.row_plan import BLOCK, plan_blocks, plan_rows
from mlet.table_spec import TableSpec
from mlet.tables import PLANNED_LOOKUPS, EmbeddingTables

PART_ROWS = [5, 700, 1, 90]
FIRST_ROW = torch.tensor([0, 5, 705, 706])
ROWS = sum(PART_ROWS)


def lookups(samples: int) -> torch.Tensor:
    """Rows [samples, P] with many repeats."""
    generator = np.random.default_rng(3)
    columns = [np.minimum(generator.zipf(1.3, samples), n) - 1 for n in PART_ROWS]
    return torch.from_numpy(np.stack(columns, axis=1)) + FIRST_ROW


@given(st.lists(st.integers(0, 40), max_size=60), st.sampled_from([41, 1 << 60]))
def test_a_plan_groups_the_lookups_of_each_row(rows: list[int], table_rows: int) -> None:
    # 2^60 rows do not leave room for the position beside the row: the other branch
    plan = plan_rows(torch.tensor(rows, dtype=torch.int64), table_rows)
    assert plan.rows.tolist() == sorted(set(rows))
    found = [plan.order[a:b].tolist() for a, b in zip(plan.starts[:-1], plan.starts[1:], strict=True)]
    assert found == [[i for i, r in enumerate(rows) if r == row] for row in sorted(set(rows))]
    assert [plan.rows[slot].item() for slot in plan.slot_of_lookup()] == rows


def test_blocks_hold_rows_of_one_part_each() -> None:
    plan = plan_rows(lookups(300).flatten(), ROWS)
    blocks = plan_blocks(plan, FIRST_ROW)
    assert torch.equal(blocks.rows[blocks.slots], plan.rows)
    part_of_row = torch.searchsorted(FIRST_ROW, plan.rows, right=True) - 1
    assert torch.equal(blocks.part[blocks.slots // BLOCK], part_of_row)
    lengths = blocks.starts.diff()
    assert torch.equal(lengths[blocks.slots], plan.starts.diff()) and lengths.sum() == len(plan.order)
    assert torch.equal(blocks.rows[blocks.slot_of_lookup], lookups(300).flatten())


def grads(output: torch.Tensor, *leaves: torch.Tensor) -> list[torch.Tensor]:
    """Gradients of a fixed weighted sum of the output."""
    weights = torch.from_numpy(np.random.default_rng(1).normal(size=tuple(output.shape)).astype(np.float32))
    return list(torch.autograd.grad((output * weights).sum(), leaves))


def assert_same_sparse(ours: torch.Tensor, dense: torch.Tensor, rows: torch.Tensor) -> None:
    assert ours.is_coalesced() and ours.indices()[0].tolist() == sorted(set(rows.flatten().tolist()))
    torch.testing.assert_close(ours.to_dense(), dense, rtol=1e-5, atol=1e-5)


def test_row_lookup_is_embedding_with_summed_gradients() -> None:
    rows = lookups(300)
    weight = torch.randn(ROWS, 6, requires_grad=True)
    ours, plain = RowLookup.apply(weight, rows), F.embedding(rows, weight)
    assert torch.equal(ours, plain)
    assert_same_sparse(grads(ours, weight)[0], grads(plain, weight)[0], rows)


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_bag_lookup_is_embedding_bag_with_summed_gradients(mode: str) -> None:
    rows = lookups(100).flatten()
    lengths = torch.from_numpy(np.random.default_rng(0).multinomial(len(rows), np.ones(60) / 60))
    lengths[7], lengths[8] = 0, lengths[8] + lengths[7]  # an empty bag
    offsets = F.pad(lengths.cumsum(0), (1, 0))
    weight = torch.randn(ROWS, 6, requires_grad=True)
    plain = F.embedding_bag(rows, weight, offsets, mode=mode, include_last_offset=True)
    ours = BagLookup.apply(weight, rows, offsets, mode)
    torch.testing.assert_close(ours, plain)
    assert_same_sparse(grads(ours, weight)[0], grads(plain, weight)[0], rows)


def test_projected_lookup_is_gather_and_product() -> None:
    rows = lookups(300)
    weight = torch.randn(ROWS, 6, requires_grad=True)
    matrices = torch.randn(len(PART_ROWS), 6, 3, requires_grad=True)
    ours = ProjectedLookup.apply(weight, matrices, rows, FIRST_ROW)
    plain = torch.bmm(F.embedding(rows, weight).transpose(0, 1), matrices).transpose(0, 1)
    torch.testing.assert_close(ours, plain)
    (of_weight, of_matrices), (dense, expected) = grads(ours, weight, matrices), grads(plain, weight, matrices)
    assert_same_sparse(of_weight, dense, rows)
    torch.testing.assert_close(of_matrices, expected, rtol=1e-5, atol=1e-4)


def test_rows_in_bf16_have_float32_gradients() -> None:
    rows = lookups(50)
    weight = torch.randn(ROWS, 6, dtype=torch.bfloat16).requires_grad_()
    weight.grad_dtype = torch.float32
    offsets = torch.arange(0, rows.numel() + 1, 4)
    for output in (RowLookup.apply(weight, rows), BagLookup.apply(weight, rows.flatten(), offsets, "sum")):
        assert output.dtype == torch.float32
        assert grads(output, weight)[0].dtype == torch.float32
    exact = F.embedding_bag(rows.flatten(), weight.float(), offsets, mode="sum", include_last_offset=True)
    torch.testing.assert_close(output, exact)


@pytest.mark.parametrize(
    "tricks", [{}, {"inner_dim": 8}, {"collisions": 7}, {"collisions": 7, "inner_dim": 8}, {"width": 2, "inner_dim": 8}]
)
def test_a_large_batch_equals_small_ones(tricks: dict) -> None:
    """Below PLANNED_LOOKUPS nothing is planned: both ways must give the same vectors and gradients."""
    specs = [TableSpec(f"t{n}", n, 4, **({"width": 4} | tricks)) for n in (900, 40)]
    tables = EmbeddingTables(specs, unknown=True)
    for parameter in tables.parameters():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(2))
    samples = PLANNED_LOOKUPS // 2
    generator = np.random.default_rng(5)
    ids = torch.from_numpy(np.stack([generator.integers(0, s.rows + 1, samples) for s in specs], axis=1))
    whole = tables(ids)
    parts = torch.cat([tables(part) for part in ids.split(samples // 4)])
    torch.testing.assert_close(whole, parts)
    leaves = list(tables.parameters())
    for large, small in zip(grads(whole, *leaves), grads(parts, *leaves), strict=True):
        torch.testing.assert_close(large.to_dense(), small.to_dense(), rtol=1e-4, atol=1e-3)
