"""Ids dropped in training: which, how many, and always the same for the same place."""

import numpy as np
import pytest
import torch

from mlet.id_dropout import drop_ids

UNKNOWN = [10, 20, 5]


def one_hot(batch=4000):
    return torch.stack([torch.arange(batch) % n for n in UNKNOWN], dim=1)


def bags():
    """As many ids in each table's bags, some empty: lengths 0, 1, 2 in turn."""
    lengths = torch.arange(3 * 2000) % 3
    offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    table = torch.repeat_interleave(torch.arange(3), lengths.view(3, -1).sum(dim=1))
    return torch.arange(len(table)) % torch.tensor(UNKNOWN)[table], offsets, table


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("kind", ["one-hot", "bags"])
def test_ids_become_their_tables_unknown_id_at_the_rate_asked_for(kind, share):
    if kind == "one-hot":
        ids, offsets, unknown = one_hot(), None, torch.tensor(UNKNOWN).expand(4000, 3)
    else:
        ids, offsets, table = bags()
        unknown = torch.tensor(UNKNOWN)[table]
    before = ids.clone()
    after = drop_ids(ids, offsets, UNKNOWN, share, (1, 2, 3))
    dropped = after != ids
    assert torch.equal(ids, before) and after.dtype == ids.dtype
    assert torch.equal(after, torch.where(dropped, unknown, ids))
    assert abs(dropped.float().mean() - share) < 4 * np.sqrt(share * (1 - share) / ids.numel()) + 1e-9
    if kind == "one-hot" and share == 0.5:  # ids of a sample are dropped independently
        assert np.abs(np.corrcoef(dropped.numpy().T) - np.eye(3)).max() < 0.07


def test_the_draw_follows_from_its_place_alone():
    ids = one_hot(50)
    state = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = drop_ids(ids, None, UNKNOWN, 0.5, (1, 0, 7))
    assert torch.equal(first, drop_ids(ids, None, UNKNOWN, 0.5, (1, 0, 7)))
    for other in ((1, 0, 8), (1, 1, 7), (2, 0, 7)):
        assert not torch.equal(first, drop_ids(ids, None, UNKNOWN, 0.5, other))
    assert torch.equal(state[0], torch.get_rng_state()) and np.array_equal(state[1], np.random.get_state()[1])
    assert drop_ids(ids, None, UNKNOWN, 0.0, ()) is ids


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="share of dropped ids is 1.5"):
        drop_ids(one_hot(2), None, UNKNOWN, 1.5, (0,))
    with pytest.raises(ValueError, match="these are on meta"):
        drop_ids(one_hot(2).to("meta"), None, UNKNOWN, 0.5, (0,))
