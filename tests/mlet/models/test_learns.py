"""Each model reaches the planted teacher, the best that any model can, where every id is seen often enough.

The teacher is that of `sources.synthetic`: a factorisation machine over points of few dimensions, with the same shares
of dense, id and pair terms. There, most ids are too rare for anybody to learn; here tables are small.
"""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from mlet.models import build_model, model_names
from mlet.table_spec import plan_tables
from mlet.tables import EmbeddingTables
from optim import build_optimizer
from sources.synthetic import LABEL_RATE, RANK, SPREAD, TERM_SHARES

ROWS = {"a": 20, "b": 30, "c": 40, "d": 25, "e": 35}
DENSE, WIDTH, INNER = 3, 8, 32
TRAIN, TEST, BATCH, EPOCHS, RATE = 120_000, 40_000, 512, 4, 0.004
# NFM's tower sees products of two vectors only, and single-layer tables start small: near a saddle, which it leaves
# slowly. At the others' rate it stands at 0.766 after 4 epochs (teacher 0.819); with 8 at three times that, at 0.812.
SCHEDULES = {"nfm": (8, 0.012)}
SLACK = 0.01


@pytest.fixture(scope="module")
def planted():
    """Dense features [n, M], ids [n, T], labels [n] and the teacher's scores [n]."""
    rng = np.random.default_rng(11)
    n = TRAIN + TEST
    dense = rng.standard_normal((n, DENSE)).astype(np.float32)
    ids = np.stack([rng.integers(0, rows, n) for rows in ROWS.values()], axis=1)
    points = [rng.uniform(-(3**0.5), 3**0.5, (rows, RANK)) for rows in ROWS.values()]
    chosen = np.stack([(u - u.mean(axis=0))[ids[:, t]] for t, u in enumerate(points)], axis=1)  # [n, T, RANK]
    total = chosen.sum(axis=1)
    pairs = ((total**2).sum(axis=1) - (chosen**2).sum(axis=(1, 2))) / 2
    terms = np.stack([dense @ rng.standard_normal(DENSE), total.sum(axis=1), pairs], axis=1)
    logit = (SPREAD * np.sqrt(TERM_SHARES) * terms / terms.std(axis=0)).sum(axis=1) + np.log(
        LABEL_RATE / (1 - LABEL_RATE)
    )
    labels = (rng.random(n) < 1 / (1 + np.exp(-logit))).astype(np.float32)
    return torch.from_numpy(dense), torch.from_numpy(ids), torch.from_numpy(labels)[:, None], logit


def test_auc(model, dense, ids, labels):
    model.eval()
    with torch.no_grad():
        scores = torch.cat([model(d, i) for d, i in zip(dense.split(8192), ids.split(8192), strict=True)])
    return roc_auc_score(labels[:, 0], scores[:, 0])


test_auc.__test__ = False


def train(name, k, planted):
    dense, ids, labels, _ = planted
    model = build_model(
        name, EmbeddingTables(plan_tables(ROWS, WIDTH, inner_dim=k)), bottom=(DENSE, 16, WIDTH), top=(64, 32, 1)
    )
    model.initialize(np.random.RandomState(1), 1, "normal")
    epochs, rate = SCHEDULES.get(name, (EPOCHS, RATE))
    optimizer = build_optimizer("adam", model.parameters(), rate)
    generator = torch.Generator().manual_seed(1)
    steps = epochs * (TRAIN // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, cycle_momentum=False)
    for _ in range(epochs):
        order = torch.randperm(TRAIN, generator=generator)
        for rows in order[: TRAIN // BATCH * BATCH].split(BATCH):
            loss = torch.nn.functional.binary_cross_entropy(model(dense[rows], ids[rows]), labels[rows])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    return test_auc(model, dense[TRAIN:], ids[TRAIN:], labels[TRAIN:])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "k"), [*((name, 0) for name in model_names()), ("dlrm", INNER), ("nfm", INNER)])
def test_reaches_the_teacher(name, k, planted):
    _, _, labels, best = planted
    teacher = roc_auc_score(labels[TRAIN:, 0], best[TRAIN:])
    auc = train(name, k, planted)
    print(f"{name}, K={k}: test AUC {auc:.4f}, teacher {teacher:.4f}")
    assert 0.7 < teacher < 0.9
    assert auc > teacher - SLACK


@pytest.mark.slow
def test_the_set_needs_pairs(planted):
    """Without them nobody comes near the teacher: logistic regression over one-hot ids and dense features."""
    dense, ids, labels, best = planted
    offsets = torch.tensor([0, *np.cumsum(list(ROWS.values()))[:-1]])
    one_hot = torch.zeros(len(ids), sum(ROWS.values())).scatter_(1, ids + offsets, 1.0)
    x = torch.cat([dense, one_hot], dim=1)
    weights = torch.linalg.lstsq(x[:TRAIN], labels[:TRAIN] - labels[:TRAIN].mean(), driver="gelsd").solution
    linear = roc_auc_score(labels[TRAIN:, 0], (x[TRAIN:] @ weights)[:, 0])
    print(f"linear: test AUC {linear:.4f}")
    assert linear < roc_auc_score(labels[TRAIN:, 0], best[TRAIN:]) - 5 * SLACK
