"""What the driver does to the tables' rows in training: decay, clipping, id dropout, rules of their own, rare ids."""

import math

import numpy as np
import pytest
import torch
from test_driver_data import write_clicks

import dlrm_mlet
from data_utils import Store
from mlet.checkpoint import load_checkpoint
from mlet.models import model_from_config
from mlet.tables import row_groups

BASE = (
    "--data-generation=dataset --data-set=kaggle --arch-sparse-feature-size=4 --arch-mlp-bot=13-8-4 "
    "--arch-mlp-top=8-1 --loss-function=bce --mini-batch-size=64 --print-freq=1000 --metrics-file=run.jsonl "
    "--processed-data-file=store"
)
ONE_STEP = "--num-batches=1 --data-randomize=none --emb-init=uniform-3"
ROWS = "tables.units.0.rows.weight"


def train(driver, small_tsv, flags, name="model"):
    result = driver(f"{BASE} {flags} --save-model={name}", "--raw-data-file", small_tsv)
    assert result.code == 0, result.err
    return *load_checkpoint(result.folder / name / "last"), result


def rows_read(result, state, tensors, batches, size=64):
    """For each of the first batches in file order the rows that it reads in the first group of tables."""
    model = model_from_config(state["model"])
    model.load_state_dict(tensors)
    store = Store(result.folder / "store")
    for _, batch in zip(range(batches), store.batches(store.rows_of("train"), size), strict=False):
        yield next(model.tables.rows_read(batch.ids, batch.offsets))[1]


@pytest.mark.parametrize("at", ["update", "lookup"])
@pytest.mark.parametrize("more", ["", "--mlet-inner-dim=6 --optimizer=adam", "--hash-method=modulo --hash-min-rows=50"])
def test_rows_lose_what_their_idling_costs(driver, small_tsv, more, at):
    """Without a rate nothing else moves them: W1's rows with MLET, buckets with hashing. 29 batches an epoch."""
    flags = f"--learning-rate=0 --data-randomize=none {more}"
    start, state, _ = train(driver, small_tsv, flags, "start")
    decayed = f"{flags} --nepochs=2 --emb-idle-decay=0.02 --emb-idle-decay-at={at}"
    after, _, result = train(driver, small_tsv, decayed, "after")
    expected, last = start[ROWS].numpy().copy(), np.full(len(start[ROWS]), -1)
    once = [np.unique(rows.numpy()) for rows in rows_read(result, state, start, 29)]
    for step, rows in enumerate(once * 2):
        idle = np.where(last[rows] < 0, 0, step - 1 - last[rows])
        expected[rows] *= 1 - np.minimum(1, 0.02 * idle)[:, None]
        last[rows] = step
    expected = torch.from_numpy(expected)
    assert len(once) == 29 and (expected - start[ROWS]).abs().max() > 0.01
    torch.testing.assert_close(after[ROWS], expected, rtol=1e-5, atol=1e-7)
    assert all(torch.equal(after[key], start[key]) for key in start if key != ROWS)


def test_the_rule_sees_decayed_rows_only_if_asked(driver, small_tsv):
    """Decay before the lookup changes the loss, decay with the update not before the next one of that row."""
    losses = {}
    for at in ("off", "update", "lookup"):
        flags = f"--learning-rate=0 --emb-idle-decay={0 if at == 'off' else 1} --nepochs=2 --print-freq=29"
        flags += "" if at == "off" else f" --emb-idle-decay-at={at}"
        _, _, result = train(driver, small_tsv, flags, at)
        losses[at] = [event["loss"] for event in result.events if event["event"] == "train"]
    assert losses["lookup"][0] != losses["update"][0] != losses["off"][0]
    assert losses["off"][0] == losses["off"][1]


def test_weight_decay_is_a_share_of_the_step_of_touched_rows(driver, small_tsv):
    flags = f"{ONE_STEP} --learning-rate=0.5 --emb-learning-rate-multiplier=2 --arch-model=deepfm"
    start, state, result = train(driver, small_tsv, flags.replace("0.5", "0"), "start")
    plain, _, _ = train(driver, small_tsv, flags, "plain")
    decayed, _, _ = train(driver, small_tsv, f"{flags} --emb-weight-decay=0.125", "decayed")
    touched = torch.zeros(len(start[ROWS]), 1)
    touched[next(rows_read(result, state, start, 1))] = 1
    expected = plain[ROWS] - 0.5 * 2 * 0.125 * touched * start[ROWS]
    torch.testing.assert_close(decayed[ROWS], expected)
    assert (expected - plain[ROWS]).abs().max() > 1e-2
    assert all(torch.equal(decayed[key], plain[key]) for key in plain if not key.endswith("rows.weight"))


@pytest.mark.parametrize("more", ["--emb-l2=0.0005", "--mlperf-grad-accum-iter=2 --mini-batch-size=32 --num-batches=2"])
def test_clipping_by_the_lookups_of_a_step(driver, small_tsv, more):
    """One step of SGD; two batches of half the size are the same step. First-order weights are left alone, the
    penalty is clipped with the rest.
    """
    flags = f"{ONE_STEP} --learning-rate=1 --arch-model=deepfm {more}"
    start, state, result = train(driver, small_tsv, flags.replace("rate=1", "rate=0"), "start")
    plain, _, _ = train(driver, small_tsv, flags, "plain")
    ratio, floor = 0.001, 0.1
    clipped, _, _ = train(driver, small_tsv, f"{flags} --emb-clip={ratio} --emb-clip-floor={floor}", "clipped")
    lookups = next(rows_read(result, state, start, 1, size=64))
    count = torch.zeros(len(start[ROWS])).index_add_(0, lookups, torch.ones(len(lookups)))
    moved = plain[ROWS] - start[ROWS]
    limit = ratio * count * start[ROWS].norm(dim=1).clamp(min=ratio * math.sqrt(4) * floor)
    share = (limit / moved.norm(dim=1)).nan_to_num(1.0).clamp(max=1.0)
    assert 0.05 < (share[count > 0] < 1).float().mean() < 0.95
    torch.testing.assert_close(clipped[ROWS], start[ROWS] + share.unsqueeze(1) * moved, rtol=1e-4, atol=1e-7)
    assert all(torch.equal(clipped[key], plain[key]) for key in plain if not key.startswith("tables."))


@pytest.mark.parametrize("more", ["", "--mlet-inner-dim=6", "--arch-model=deepfm --emb-learning-rate-multiplier=2"])
def test_rows_have_a_rule_of_their_own(driver, small_tsv, more):
    """After one step from the same start, rows are where one rule puts them, everything else where the other does."""
    flags = f"{ONE_STEP} --learning-rate=0.1 {more}"
    adam, _, _ = train(driver, small_tsv, f"{flags} --optimizer=adam", "adam")
    sgd, _, _ = train(driver, small_tsv, f"{flags} --optimizer=sgd", "sgd")
    both, state, result = train(driver, small_tsv, f"{flags} --optimizer=adam --emb-optimizer=sgd", "both")
    for name, value in both.items():
        is_row = name.endswith("rows.weight")
        torch.testing.assert_close(value, (sgd if is_row else adam)[name], rtol=1e-6, atol=1e-7)
        assert not torch.equal(sgd[name], adam[name])
    kept = {key for key, values in state["optimizer"]["state"].items() if "exp_avg" in values}
    assert kept == {name for name in both if not name.endswith("rows.weight")}
    dense = sum(value.numel() for name, value in both.items() if not name.endswith("rows.weight"))
    assert result.events[-1]["train_bytes"] == 4 * (sum(value.numel() for value in both.values()) + 2 * dense)


def test_the_same_rule_named_twice_is_one_rule(driver, small_tsv):
    one, _, _ = train(driver, small_tsv, "--optimizer=adam", "one")
    two, _, _ = train(driver, small_tsv, "--optimizer=adam --emb-optimizer=adam", "two")
    assert all(torch.equal(value, two[name]) for name, value in one.items())


@pytest.mark.parametrize("rule", ["--optimizer=adam", "--optimizer=sgd --emb-optimizer=adam"])
def test_row_steps_count_the_updates_of_a_row(driver, small_tsv, rule):
    flags = f"{rule} --data-randomize=none --learning-rate=0.01"
    after, state, result = train(driver, small_tsv, f"{flags} --adam-row-steps", "after")
    expected = torch.zeros(len(after[ROWS]), dtype=torch.int32)
    for rows in rows_read(result, state, after, 29):
        expected[rows.unique()] += 1
    assert torch.equal(state["optimizer"]["state"][ROWS]["row_steps"], expected)
    plain, _, _ = train(driver, small_tsv, flags, "plain")
    assert not torch.equal(plain[ROWS], after[ROWS])


def test_dropped_ids_train_the_unknown_rows(driver, small_tsv):
    """With all ids dropped nothing but unknown rows moves; they stay as trained, also for who loads the model."""
    flags = "--vocabulary-fit=train --learning-rate=0.1"
    start, _, result = train(driver, small_tsv, flags.replace("0.1", "0"), "start")
    all_dropped, _, _ = train(driver, small_tsv, f"{flags} --emb-id-dropout=1", "all")
    sizes = np.array(list(Store(result.folder / "store").tables.values()))
    unknown = np.cumsum(sizes + 1) - 1
    moved = (all_dropped[ROWS] != start[ROWS]).any(dim=1)
    assert moved.nonzero().flatten().tolist() == unknown.tolist()
    some, _, result = train(driver, small_tsv, f"{flags} --emb-id-dropout=0.3", "some")
    assert all(some[ROWS][unknown].any(dim=1))
    trained = result.events[-1]["val"]
    (result.folder / "run.jsonl").unlink()
    loaded = driver(f"{BASE} {flags} --load-model=some/last --inference-only", "--raw-data-file", small_tsv)
    assert loaded.code == 0, loaded.err
    assert loaded.events[-1]["val"] == pytest.approx(trained)


def test_ids_are_dropped_from_bags(driver, tmp_path):
    write_clicks(tmp_path)
    flags = (
        "--data-generation=dataset --data-set=schema --raw-data-file=clicks.json --arch-sparse-feature-size=4 "
        "--arch-mlp-bot=1-4 --arch-mlp-top=8-1 --loss-function=bce --mini-batch-size=64 --print-freq=1000 "
        "--learning-rate=0.1 --processed-data-file=store"
    )
    weights = {}
    for share in ("0", "1", "0.3"):
        result = driver(f"{flags} --num-batches=5 --emb-id-dropout={share} --save-model=m{share}")
        assert result.code == 0, result.err
        weights[share] = load_checkpoint(tmp_path / f"m{share}" / "last")[0][ROWS]
    unknown, first = [], 0
    for n in Store(tmp_path / "store").tables.values():
        unknown.append(first + n)
        first += n + 2  # the padding row of bags lies behind
    # ids that are never dropped train no unknown row; those that always are, nothing else
    assert not weights["0"][unknown].any()
    moved = (weights["1"] != driver_start(driver, flags, tmp_path)).any(dim=1)
    assert moved.nonzero().flatten().tolist() == unknown
    assert weights["0.3"][unknown].any(dim=1).all()


def driver_start(driver, flags, folder):
    """The rows that a run starts from."""
    assert driver(f"{flags.replace('rate=0.1', 'rate=0')} --num-batches=1 --save-model=start").code == 0
    return load_checkpoint(folder / "start" / "last")[0][ROWS]


def test_dropout_leaves_other_draws_alone(driver, small_tsv):
    """Paired comparisons: the data order and the initial weights are those of the run without it; each epoch's drops
    are others.
    """
    flags, losses = "--learning-rate=0 --emb-init=normal-1 --nepochs=2 --print-freq=29", []
    plain, one, result = train(driver, small_tsv, flags, "plain")
    losses.append([event["loss"] for event in result.events if event["event"] == "train"])
    dropped, other, result = train(driver, small_tsv, f"{flags} --emb-id-dropout=0.5", "dropped")
    losses.append([event["loss"] for event in result.events if event["event"] == "train"])
    assert all(torch.equal(value, dropped[name]) for name, value in plain.items())
    assert np.array_equal(one["generators"]["numpy"]["state"]["key"], other["generators"]["numpy"]["state"]["key"])
    assert losses[0][0] == losses[0][1] and losses[1][0] != losses[1][1] != losses[0][0]


def snapshot(trainer):
    """Every parameter, and what the optimizer knows of each row of tables."""
    weights = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    states = {}
    for name, p in trainer.model.named_parameters():
        values = trainer.optimizer.state.get(p, {}) if name.endswith("rows.weight") else {}
        states |= {(name, key): value.clone() for key, value in values.items() if torch.is_tensor(value)}
    return weights, states


@pytest.mark.parametrize(
    "more",
    [
        "--optimizer=sgd",
        "--arch-model=deepfm --adam-row-steps --mlet-inner-dim=6",
        "--emb-optimizer=rwsadagrad --hash-method=modulo --hash-min-rows=50",
        "--md-flag --md-threshold=20",
        "--emb-id-dropout=0.3",
    ],
)
def test_only_rows_of_rare_ids_are_drawn_anew(driver, small_tsv, monkeypatch, more):
    """Those read at most 4 times an epoch, in tables of 20 ids and more; other rows keep weights and state."""
    renew, seen = dlrm_mlet.Trainer._renew_tables, []

    def watch(trainer):
        seen.append(snapshot(trainer))
        renew(trainer)
        seen.extend([snapshot(trainer), trainer.model])

    monkeypatch.setattr(dlrm_mlet.Trainer, "_renew_tables", watch)
    flags = f"--optimizer=adam --learning-rate=0.01 --nepochs=2 --num-batches=29 --emb-idle-decay=0.01 {more}"
    _, _, result = train(
        driver, small_tsv, f"{flags} --emb-reinit=epoch --emb-reinit-min-rows=20 --emb-reinit-max-count=4"
    )
    (before, states), (after, states_after), model = seen
    store = Store(result.folder / "store")
    counts = store.counts_in(store.rows_of("train"))
    if "dropout" in more:
        for each in counts:
            each[-1] = 0.3 * each.sum()  # what the unknown row is read
    drawn = rows_that_are_rare(model, counts, plain="hash" not in more)
    assert any(rows.any() for rows in drawn.values()) and any(key == "last_step" for _, key in states)
    for name, p in model.named_parameters():
        rows = drawn.get(p, torch.zeros(len(p), dtype=torch.bool))
        assert torch.equal(after[name][~rows], before[name][~rows])
        if rows.any():
            assert not rows.all() and (after[name][rows] != before[name][rows]).any()
            assert not name.startswith("wide") or not after[name][rows].any()
        for key in (key for of, key in states if of == name):
            assert not states_after[name, key][rows].any()
            assert torch.equal(states_after[name, key][~rows], states[name, key][~rows])
            assert states[name, key][~rows].any()


def rows_that_are_rare(model, counts, plain):
    """Flat parameter -> bool [R]: in tables of at least 20 ids, rows read at most 4 times."""
    drawn = {group.weight: torch.zeros(len(group.weight), dtype=torch.bool) for group in row_groups(model)}
    for tables in model.table_sets:
        totals = tables.row_counts([torch.from_numpy(each) for each in counts])
        for part in tables.parts():
            first, rows = int(part.group.first_row[part.index]), part.counted_rows + 1
            rare = totals[part.group][first : first + rows] <= 4
            assert not plain or torch.equal(rare, torch.from_numpy(counts[part.table]) <= 4)
            drawn[part.group.weight][first : first + rows] = rare & (tables.specs[part.table].rows >= 20)
    return drawn


@pytest.mark.parametrize(
    "more",
    [
        "--emb-idle-decay=0.01 --emb-weight-decay=0.1 --emb-lr-frequency=log",
        "--emb-idle-decay=0.05 --emb-idle-decay-at=lookup --mlet-inner-dim=6 --emb-reinit=epoch",
        "--emb-clip=0.01 --emb-l2=0.01 --arch-model=deepfm",
        "--emb-optimizer=rwsadagrad --emb-idle-decay=0.01 --lr-num-warmup-steps=20 --lr-plateau-factor=0.5",
        "--adam-row-steps --emb-id-dropout=0.2 --mlperf-grad-accum-iter=3",
        "--emb-id-dropout=0.2 --emb-optimizer=sgd --hash-method=double --hash-min-rows=50 --arch-model=deepfm",
        "--emb-reinit=epoch --emb-reinit-max-count=4 --emb-idle-decay=0.01 --emb-clip=0.1",
    ],
)
def test_a_resumed_run_is_the_uninterrupted_one(driver, small_tsv, monkeypatch, more):
    """Cut off in the second epoch, some batches after a checkpoint."""
    flags = f"--optimizer=adam --learning-rate=0.01 --test-freq=12 --nepochs=2 {more}"
    whole, _, _ = train(driver, small_tsv, flags, "whole")
    step, steps = dlrm_mlet.Trainer._step, []

    def cut_off(trainer, batch):
        steps.append(batch)
        if len(steps) == 29 + 16:
            raise KeyboardInterrupt
        step(trainer, batch)

    with monkeypatch.context() as patch:
        patch.setattr(dlrm_mlet.Trainer, "_step", cut_off)
        assert driver(f"{BASE} {flags} --save-model=part", "--raw-data-file", small_tsv).code == 130
    result = driver(f"{BASE} {flags} --resume=part", "--raw-data-file", small_tsv)
    assert result.code == 0 and "epoch 1, iteration 12" in result.out, result.err
    part, state = load_checkpoint(result.folder / "part" / "last")
    assert all(torch.equal(value, part[name]) for name, value in whole.items())


@pytest.mark.parametrize(
    "more",
    [
        "--optimizer=adam --adam-row-steps --emb-idle-decay=0.01",
        "--optimizer=adam --emb-optimizer=rwsadagrad --emb-idle-decay=0.01 --emb-lr-frequency=log",
        "--optimizer=sgd --emb-optimizer=adam --adam-row-steps --weighted-pooling=learned",
    ],
)
def test_the_bill_is_what_the_run_keeps(driver, small_tsv, more):
    tensors, _, result = train(driver, small_tsv, more)
    flags = dlrm_mlet.parse_flags([*BASE.split(), *more.split(), "--raw-data-file", str(small_tsv)])
    data = dlrm_mlet.open_data(flags, np.random.RandomState(0))
    bill = dlrm_mlet.bill_of_run(flags, data, torch.device("cpu"))
    weights = 4 * sum(value.numel() for value in tensors.values())
    assert result.events[-1]["train_bytes"] - weights == bill.optimizer + bill.other


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--emb-idle-decay=0.1 --emb-precision=bf16", "--emb-idle-decay works without --emb-precision=bf16"),
        ("--emb-weight-decay=0.1 --emb-precision=bf16", "--emb-weight-decay works without --emb-precision=bf16"),
        ("--emb-clip=1 --mlet-inner-dim=6 --mlet-cross-term=masked", "--emb-clip changes W1"),
        ("--emb-idle-decay=1 --mlet-inner-dim=6 --mlet-cross-term=masked", "--emb-idle-decay changes W1"),
        ("--emb-lr-halflife=5", "--emb-lr-halflife needs --emb-lr-frequency"),
        ("--emb-lr-frequency=log --emb-lr-counts=data --emb-lr-halflife=5", "--emb-lr-halflife needs"),
        ("--emb-lr-counts=data", "--emb-lr-counts needs --emb-lr-frequency"),
        ("--emb-lr-frequency=log --emb-lr-power=0.5", "--emb-lr-power needs --emb-lr-frequency=tail"),
        ("--emb-reinit-min-rows=10", "--emb-reinit-min-rows needs --emb-reinit"),
        ("--emb-reinit=epoch-w2", "--emb-reinit=epoch-w2 needs --mlet-inner-dim"),
        ("--dropout=0.1 --mlperf-grad-accum-iter=4 --test-freq=22 --save-model=m", "--test-freq=22 would save within"),
        ("--emb-id-dropout=1.1", "outside 0 to 1"),
        ("--emb-id-dropout=0.1 --data-generation=random", "--emb-id-dropout needs --data-generation=dataset"),
        ("--emb-clip=-1", "outside 0 to inf"),
        ("--emb-idle-decay-at=lookup", "--emb-idle-decay-at needs --emb-idle-decay"),
        ("--emb-clip-floor=0.1", "--emb-clip-floor needs --emb-clip"),
        ("--adam-row-steps", "--adam-row-steps needs --optimizer=adam"),
        ("--optimizer=adam --emb-optimizer=sgd --adam-row-steps", "--adam-row-steps needs"),
        ("--emb-optimizer=adamax", "invalid choice"),
        ("--emb-reinit-max-count=3", "--emb-reinit-max-count needs --emb-reinit=epoch"),
        (
            "--emb-reinit-max-count=3 --emb-reinit=epoch-w2 --mlet-inner-dim=6",
            "--emb-reinit-max-count needs --emb-reinit=epoch",
        ),
        ("--emb-reinit-max-count=3 --emb-reinit=epoch --data-generation=random", "it counts ids in a store"),
    ],
)
def test_bad_input_is_one_line(driver, small_tsv, flags, message):
    result = driver(f"{BASE} {flags}", "--raw-data-file", small_tsv)
    assert result.code == 2 and message in result.err and len(result.err.splitlines()) == 1
