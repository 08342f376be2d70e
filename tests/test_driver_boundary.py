"""What a run of several epochs shows of its boundaries: training loss across them, validation by frequency."""

import numpy as np
import pytest

import dlrm_mlet
from data_utils import Store
from mlet.metrics import binary_metrics

# 1,800 training rows: 113 batches, the last of 8; windows of 2
BASE = (
    "--data-generation=dataset --data-set=kaggle --arch-sparse-feature-size=4 --arch-mlp-bot=13-8-4 "
    "--arch-mlp-top=8-1 --loss-function=bce --mini-batch-size=16 --metrics-file=run.jsonl "
    "--processed-data-file=store --optimizer=adam --learning-rate=0.01"
)


def of_kind(run, kind):
    return [event for event in run.events if event["event"] == kind]


def recomputed(losses, sizes, window):
    """Boundary events out of each batch's loss: [epochs][batches]."""

    def mean(values, weights):
        return float(np.average(values, weights=weights))

    for epoch in range(1, len(losses)):
        last = mean(losses[epoch - 1][-window:], sizes[-window:])
        first = mean(losses[epoch][:window], sizes[:window])
        numbers = {"last": last, "first": first, "jump_percent": 100 * (first - last) / last, "batches": window}
        yield {"epoch": epoch, "iteration": window, **numbers}


@pytest.mark.parametrize(
    ("more", "batches", "window"),
    [
        ("", 113, 2),
        ("--num-batches=9", 9, 1),
        ("--mini-batch-size=1800", 1, 1),
        ("--mlperf-grad-accum-iter=4 --num-workers=1", 113, 2),
    ],
)
def test_boundary_events_are_means_of_the_batches_losses(driver, small_tsv, more, batches, window):
    flags = f"{BASE} --nepochs=3 {more}"
    run = driver(f"{flags} --print-freq=1", "--raw-data-file", small_tsv)
    assert run.code == 0, run.err
    losses = np.reshape([event["loss"] for event in of_kind(run, "train")], (3, batches))
    sizes = [16] * (batches - 1) + [8] if batches == 113 else [16] * batches
    found, right = of_kind(run, "boundary"), list(recomputed(losses, sizes, window))
    for event, numbers in zip(found, right, strict=True):
        jump = pytest.approx(numbers.pop("jump_percent"), abs=1e-4)
        assert event == {"event": "boundary", "jump_percent": jump} | {
            name: pytest.approx(value, rel=1e-6) for name, value in numbers.items()
        }
    assert run.out.count("Loss from epoch ") == 2
    assert f"Loss from epoch 0 to 1, last and first {window} batches: {found[0]['last']:.6f} ->" in run.out
    rare = driver(f"{flags} --print-freq=1000000", "--raw-data-file", small_tsv)
    assert of_kind(rare, "boundary") == found


def killed_after(monkeypatch, epoch, iteration):
    """The driver tests and saves there, too, and then ends with an error. Returns what undoes that."""
    save, is_due = dlrm_mlet.Trainer.save, dlrm_mlet.Trainer._test_is_due

    def is_there(trainer):
        return (trainer.progress.epoch, trainer.progress.iteration) == (epoch, iteration)

    def save_then_stop(self, is_best):
        save(self, is_best)
        if is_there(self):
            raise ValueError("killed")

    patch = monkeypatch.context()
    within = patch.__enter__()
    within.setattr(dlrm_mlet.Trainer, "save", save_then_stop)
    within.setattr(dlrm_mlet.Trainer, "_test_is_due", lambda self: is_due(self) or is_there(self))
    return lambda: patch.__exit__(None, None, None)


@pytest.mark.parametrize("more", ["", "--mlperf-grad-accum-iter=5"])
@pytest.mark.parametrize("iteration", [1, 2, 3, 112])
def test_a_resumed_run_writes_the_same_events_once(driver, small_tsv, monkeypatch, more, iteration):
    """Killed within the second epoch's first 2 %, at their end, behind them, and within its last 2 %.

    With accumulation the batches of an incomplete step are repeated, those of either window among them.
    """
    data = ("--raw-data-file", small_tsv)
    flags = f"{BASE} --nepochs=3 --print-freq=1000 {more}"
    whole = of_kind(driver(flags, *data), "boundary")
    mend = killed_after(monkeypatch, 1, iteration)
    killed = driver(f"{flags} --save-model=run", *data)
    mend()
    assert killed.code == 2 and len(of_kind(killed, "boundary")) == (iteration > 1)
    rest = driver(f"{flags} --resume=run", *data)
    assert rest.code == 0, rest.err
    assert f"Resumed from run/last: epoch 1, iteration {iteration - iteration % 5 if more else iteration}\n" in rest.out
    assert of_kind(rest, "boundary") == whole and [event["epoch"] for event in whole] == [1, 2]


def test_a_stopped_run_and_random_data(driver, small_tsv):
    stopped = driver(f"{BASE} --nepochs=9 --print-freq=99 --mlperf-auc-threshold=0.01", "--raw-data-file", small_tsv)
    assert stopped.code == 0 and not of_kind(stopped, "boundary")
    random = "--mini-batch-size=16 --num-batches=100 --loss-function=bce --round-targets=True --print-freq=50"
    run = driver(f"{random} --nepochs=2 --metrics-file=run.jsonl")
    assert [(event["epoch"], event["iteration"]) for event in of_kind(run, "boundary")] == [(1, 2)]


# ------------------------------------------------------------------------------------------ validation by frequency


def plain_bins(store, labels, scores, train_rows, report):
    """The bins again, row by row."""
    counts = store.counts_in(train_rows)
    known = [np.append(of_table[:-1], 0) for of_table in counts]
    ids = np.concatenate([batch.ids.numpy() for batch in store.batches(store.rows_of("val"), 64)])
    rarest = np.array([min(of_table[i] for of_table, i in zip(known, row, strict=True)) for row in ids])
    assert sum(part["samples"] for part in report["bins"]) == len(labels)
    for part in report["bins"]:
        inside = (rarest >= part["low"]) & (rarest <= part["high"])
        yield binary_metrics(labels[inside], scores[inside])["auc"], int(inside.sum())


@pytest.mark.parametrize("more", ["", "--num-batches=20"])
def test_validation_by_frequency_at_each_epochs_end(driver, small_tsv, monkeypatch, more):
    scored = []
    evaluate = dlrm_mlet.evaluate
    monkeypatch.setattr(dlrm_mlet, "evaluate", lambda *a, **k: scored.append(evaluate(*a, **k)) or scored[-1])
    flags = f"{BASE} --nepochs=3 --print-freq=1000 --test-freq=15 {more}"
    run = driver(f"{flags} --frequency-report=epoch", "--raw-data-file", small_tsv)
    assert run.code == 0, run.err
    events, last = of_kind(run, "frequency"), run.events[-1]
    batches = 20 if more else 113
    assert [(e["split"], e["epoch"], e["iteration"]) for e in events] == [("val", e, batches) for e in range(3)]
    store = Store(run.folder / "store")
    order = store.training_order("total", _generator())
    at_ends = [result for result in scored if "val" in result]
    at_ends = [at_ends[len(at_ends) // 3 * (epoch + 1) - 1] for epoch in range(3)]
    for event, result in zip(events, at_ends, strict=True):
        right = plain_bins(store, *result["val"], order[: batches * 16], event["rarest"])
        assert [(part["auc"], part["samples"]) for part in event["rarest"]["bins"]] == list(right)
    assert last["by_frequency"]["all"]["samples"] == last["test"]["samples"]
    assert last["config"]["frequency_report"] == "epoch"


def _generator():
    return np.random.RandomState(123)


@pytest.mark.parametrize(("given", "asked"), [("", True), ("=True", True), ("=end", True), ("=False", False)])
def test_the_boolean_forms_report_at_the_end_alone(driver, small_tsv, given, asked):
    flags = f"{BASE} --print-freq=1000 --num-batches=5 --frequency-report{given}"
    run = driver(flags, "--raw-data-file", small_tsv)
    assert run.code == 0 and not of_kind(run, "frequency")
    assert bool(run.events[-1]["by_frequency"]) == asked


def test_another_word_is_one_line(driver):
    run = driver(f"{BASE} --frequency-report=daily")
    assert run.code == 2 and run.err.count("\n") == 1 and "'daily' is none of True, False, end and epoch" in run.err


def test_the_board_has_jump_and_deciles(driver, small_tsv, monkeypatch):
    written = []

    class Board:
        def add_scalar(self, name, value, step):
            written.append((name, value, step))

    monkeypatch.setattr(dlrm_mlet, "open_board", lambda _: Board())
    run = driver(f"{BASE} --nepochs=2 --print-freq=1000 --frequency-report=epoch", "--raw-data-file", small_tsv)
    values = {(name, step): value for name, value, step in written}
    (boundary,) = of_kind(run, "boundary")
    assert [value for (name, _), value in values.items() if name == "Train/BoundaryJump"] == [boundary["jump_percent"]]
    for event, step in zip(of_kind(run, "frequency"), (113, 226), strict=True):
        for number, part in enumerate(event["rarest"]["bins"], 1):
            assert values["Val/AUC/decile-" + str(number), step] == part["auc"]
    val = [event["auc"] for event in of_kind(run, "eval") if event["split"] == "val"]
    assert [values["Val/AUC", step] for step in (113, 226)] == val
