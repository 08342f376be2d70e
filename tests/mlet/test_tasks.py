"""Loss and metrics of several labels, some of them missing, against twins that loop over tasks."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy

from mlet.metrics import binary_metrics
from mlet.tasks import QUALITIES, Tasks, masked_loss

WEIGHTS = torch.tensor([1.0, 0.5, 2.0])


def cross_entropies(probability, label):
    return binary_cross_entropy(probability, label, reduction="none")


LOSS = masked_loss(cross_entropies, WEIGHTS)


def draw(rows=40, seed=0, missing=0.4):
    generator = torch.Generator().manual_seed(seed)
    probability = torch.rand(rows, 3, generator=generator) * 0.9 + 0.05
    label = (torch.rand(rows, 3, generator=generator) < 0.4).float()
    label[torch.rand(rows, 3, generator=generator) < missing] = math.nan
    return probability.requires_grad_(), label


def test_the_loss_is_each_tasks_sum_over_its_known_labels():
    probability, label = draw()
    expected = 0.0
    for task, weight in enumerate(WEIGHTS.tolist()):
        for p, y in zip(probability[:, task].tolist(), label[:, task].tolist(), strict=True):
            if not math.isnan(y):
                expected -= weight * math.log(p if y else 1 - p) / len(label)
    assert LOSS(probability, label).item() == pytest.approx(expected, rel=1e-5)


def test_nothing_depends_on_the_prediction_of_a_missing_label():
    probability, label = draw()
    LOSS(probability, label).backward()
    missing = label.isnan()
    assert not probability.grad[missing].any() and (probability.grad[~missing] != 0).all()
    other = torch.where(missing, 1.0, probability.detach()).requires_grad_()  # 1: an infinite loss, were it one
    loss = LOSS(other, label)
    loss.backward()
    assert torch.equal(loss, LOSS(probability, label)) and torch.equal(other.grad, probability.grad)


def test_a_batch_is_the_mean_of_its_parts_by_size_whatever_is_missing():
    """So that accumulated micro-batches equal one batch of the sum of their sizes."""
    probability, label = draw()
    label[:7] = math.nan
    whole = LOSS(probability, label)
    parts = [slice(0, 7), slice(7, 20), slice(20, 40)]
    summed = sum(LOSS(probability[p], label[p]) * (p.stop - p.start) / 40 for p in parts)
    assert summed.item() == pytest.approx(whole.item(), rel=1e-6)
    assert LOSS(probability[:7], label[:7]).item() == 0.0


def test_one_task_without_missing_labels_is_the_plain_mean():
    probability, label = draw(missing=0.0)
    one = masked_loss(cross_entropies, torch.ones(1))
    expected = binary_cross_entropy(probability[:, :1], label[:, :1])
    assert one(probability[:, :1], label[:, :1]).item() == pytest.approx(expected.item(), rel=1e-6)


def test_a_prediction_that_is_not_finite_shows_where_its_label_is_known():
    probability, label = torch.tensor([[0.5, math.nan, 0.5]]), torch.tensor([[1.0, math.nan, 1.0]])
    squares = masked_loss(lambda p, y: (p - y) ** 2, WEIGHTS)
    assert math.isfinite(squares(probability, label))
    assert math.isnan(squares(probability.roll(1), label))


# ------------------------------------------------------------------------------------------------ metrics


def arrays(**options):
    probability, label = draw(**options)
    return label.numpy(), probability.detach().numpy()


def test_metrics_of_a_task_are_those_of_the_rows_that_have_its_label():
    labels, scores = arrays(rows=200)
    tasks = Tasks(("a", "b", "c"), (1.0, 0.5, 2.0))
    result = tasks.metrics(labels, scores)
    assert list(result["tasks"]) == ["a", "b", "c"] and result["samples"] == 200
    for column, values in enumerate(result["tasks"].values()):
        known = ~np.isnan(labels[:, column])
        assert 100 < values["samples"] < 200
        assert values == binary_metrics(labels[known, column], scores[known, column])
    for quality in QUALITIES:
        each = [values[quality] for values in result["tasks"].values()]
        assert result[quality] == pytest.approx((each[0] + 0.5 * each[1] + 2 * each[2]) / 3.5)


def test_tasks_without_an_auc_are_left_out_of_its_mean():
    labels, scores = arrays(rows=60, missing=0.0)
    labels[:, 1] = 0.0
    labels[:, 2] = math.nan
    result = Tasks(("a", "b", "c")).metrics(labels, scores)
    a, b, c = result["tasks"].values()
    assert b["auc"] is None and b["logloss"] > 0 and set(c.values()) == {None, 0}
    assert result["auc"] == a["auc"] and result["ne"] == a["ne"]
    assert result["logloss"] == pytest.approx((a["logloss"] + b["logloss"]) / 2)
    labels[:, 0] = 1.0
    assert Tasks(("a", "b", "c")).metrics(labels, scores)["auc"] is None
    assert Tasks(("a", "b", "c"), (0.0, 1.0, 1.0)).metrics(*arrays(missing=0.0))["auc"] is not None


def test_one_task_has_plain_metrics():
    labels, scores = arrays(missing=0.0)
    assert Tasks(("a",)).metrics(labels[:, 0], scores[:, 0]) == binary_metrics(labels[:, 0], scores[:, 0])
    name, rows, *pair = next(Tasks(("a",)).known(labels[:, 0], scores[:, 0]))
    assert name == "a" and rows.all() and np.array_equal(pair[0], labels[:, 0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((),), "tasks need names, each once: none"),
        ((("a", "a"),), "each once: a, a"),
        ((("a", "b"), (1.0,)), r"1 weights for 2 tasks \(a, b\)"),
        ((("a", "b"), (1.0, -1.0)), "at least 0"),
        ((("a", "b"), (0.0, 0.0)), "and one above"),
    ],
)
def test_what_makes_no_tasks_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Tasks(*arguments)
