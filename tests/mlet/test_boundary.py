"""Losses around an epoch boundary: against plain Python over all losses, and resumed anywhere."""

import random

import pytest
import torch

from mlet.boundary import EpochBoundary


def epochs_of(batches, epochs, size=7, last=3):
    """[(loss, samples) ...] an epoch; the last batch is smaller."""
    draw = random.Random(batches)
    return [
        [(draw.uniform(0.2, 0.9), last if i == batches - 1 else size) for i in range(batches)] for _ in range(epochs)
    ]


def mean(part):
    return sum(loss * samples for loss, samples in part) / sum(samples for _, samples in part)


def expected(epochs, window):
    for before, after in zip(epochs, epochs[1:], strict=False):
        last, first = mean(before[-window:]), mean(after[:window])
        yield {"last": last, "first": first, "jump_percent": 100 * (first - last) / last, "batches": window}


def feed(boundary, epoch, start=0, every=1):
    """What an epoch shows where it is read after every so many batches, and at its end."""
    found = []
    for number in range(start, len(epoch)):
        loss, samples = epoch[number]
        boundary.add(number, torch.tensor(loss, dtype=torch.float64), samples)
        if (number + 1) % every == 0 or number + 1 == len(epoch):
            found += [event] if (event := boundary.take()) else []
    return found


@pytest.mark.parametrize(("batches", "window"), [(1, 1), (2, 1), (24, 1), (100, 2), (134, 3), (1000, 20)])
@pytest.mark.parametrize("every", [1, 7, 10**9])
def test_means_are_those_of_plain_python(batches, window, every):
    epochs, boundary = epochs_of(batches, 3), EpochBoundary(batches)
    found = [event for epoch in epochs for event in feed(boundary, epoch, every=every)]
    assert boundary.window == window and len(found) == 2
    for event, right in zip(found, expected(epochs, window), strict=True):
        assert event == pytest.approx(right, rel=1e-12)


@pytest.mark.parametrize("at", [0, 1, 2, 3, 99])
@pytest.mark.parametrize("repeated", [0, 1, 40])
def test_a_resumed_run_shows_the_same_also_where_batches_are_repeated(at, repeated):
    """Saved after batch `at` of the second epoch; going on from some batches before, as accumulation makes it."""
    epochs, boundary = epochs_of(100, 3), EpochBoundary(100)
    whole = [event for epoch in epochs for event in feed(boundary, epoch)]
    first, second = EpochBoundary(100), EpochBoundary(100)
    feed(first, epochs[0])
    feed(first, epochs[1][:at] if at < 99 else epochs[1][:99])
    second.load_state_dict({name: value.clone() for name, value in first.state_dict().items()})
    start = max(0, at - repeated)
    events = feed(second, epochs[1], start=start) + feed(second, epochs[2])
    assert events == whole[0 if start < 2 else 1 :]


def test_without_a_beginning_nothing_is_said():
    boundary, epoch = EpochBoundary(10), epochs_of(10, 1)[0]
    assert not feed(boundary, epoch) and boundary.take() is None
    zero = EpochBoundary(1)
    zero.add(0, torch.zeros(()), 4)
    zero.add(0, torch.ones(()), 4)
    assert zero.take() == {"last": 0.0, "first": 1.0, "jump_percent": None, "batches": 1}


def test_nothing_is_read_from_the_device_before_take():
    """Tensors without data stand for a device: a read would raise."""
    boundary = EpochBoundary(100, "meta")
    for _ in range(2):
        for number in range(100):
            boundary.add(number, torch.empty((), device="meta"), 8)
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        boundary.take()


def test_what_does_not_fit_is_refused():
    for share in (0, -1, 1.1):
        with pytest.raises(ValueError, match=str(share)):
            EpochBoundary(10, share=share)
    with pytest.raises(ValueError, match="of 2 batches .* here it is 20"):
        EpochBoundary(1000).load_state_dict(EpochBoundary(100).state_dict())
