"""The driver over several epochs: rates by frequency, tables drawn anew."""

import numpy as np
import pytest
import torch

from data_utils import Store
from mlet.checkpoint import load_checkpoint

BASE = (
    "--data-generation=dataset --data-set=kaggle --arch-sparse-feature-size=4 --arch-mlp-bot=13-8-4 "
    "--arch-mlp-top=8-1 --loss-function=bce --mini-batch-size=64 --print-freq=1000 --metrics-file=run.jsonl "
    "--processed-data-file=store"
)


def train(driver, small_tsv, flags, name="model"):
    result = driver(f"{BASE} {flags} --save-model={name}", "--raw-data-file", small_tsv)
    assert result.code == 0, result.err
    return load_checkpoint(result.folder / name / "last")[0], result


def test_given_frequencies_scale_each_rows_step(driver, small_tsv):
    """One step of SGD: what a row moves is its plain step times log(F + 1) / log(max F + 1)."""
    flags = "--learning-rate=0.5 --num-batches=1 --data-randomize=none"
    start, result = train(driver, small_tsv, "--learning-rate=0 --num-batches=1 --data-randomize=none", "start")
    plain, _ = train(driver, small_tsv, flags, "plain")
    scaled, _ = train(driver, small_tsv, f"{flags} --emb-lr-frequency=log --emb-lr-counts=data", "scaled")
    store = Store(result.folder / "store")
    share = []
    for counts in store.counts_in(store.rows_of("train")):
        share.append(np.log1p(counts) / np.log1p(counts.max()))
    share = torch.from_numpy(np.concatenate(share)).float().unsqueeze(1)
    name = "tables.units.0.rows.weight"
    moved, expected = scaled[name] - start[name], share * (plain[name] - start[name])
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(moved, expected, rtol=1e-4, atol=1e-6)
    assert all(torch.equal(scaled[key], plain[key]) for key in plain if not key.startswith("tables."))


def test_counting_online_holds_rare_rows_back(driver, small_tsv):
    name = "tables.units.0.rows.weight"
    start, _ = train(driver, small_tsv, "--learning-rate=0", "start")
    moved = {}
    for kind in ("none", "log", "linear", "tail-increase"):
        after, result = train(driver, small_tsv, f"--learning-rate=0.5 --emb-lr-frequency={kind}", kind)
        moved[kind] = (after[name] - start[name]).norm()
        more = result.events[-1]["train_bytes"] - (0 if kind == "none" else 4 * len(start[name]))
        assert more == 4 * sum(value.numel() for value in after.values())
    assert moved["linear"] < moved["log"] < moved["none"] < moved["tail-increase"]


@pytest.mark.parametrize("more", ["", "--hash-method=double --hash-min-rows=50", "--mlperf-grad-accum-iter=3"])
def test_a_halflife_is_in_optimizer_steps(driver, small_tsv, more):
    """However many hashes read a row, and however many batches make a step: 29 batches here."""
    _, result = train(driver, small_tsv, f"--emb-lr-frequency=log --emb-lr-halflife=50 {more}")
    steps = 10 if "accum" in more else 29
    for rate in load_checkpoint(result.folder / "model" / "last")[1]["row_rates"]:
        assert rate["exponent"] == pytest.approx(steps / 50)


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_tables_are_drawn_anew_for_each_further_epoch(driver, small_tsv, epochs):
    """Without a rate nothing but the new draws changes: tables of 100 ids and more, each epoch others; never W2."""
    flags = "--learning-rate=0 --mlet-inner-dim=6 --emb-reinit=epoch --emb-reinit-min-rows=100"
    start, result = train(driver, small_tsv, flags.split(" --emb-reinit")[0], "start")
    after, _ = train(driver, small_tsv, f"{flags} --nepochs={epochs}", "after")
    sizes = list(Store(result.folder / "store").tables.values())
    name, first = "tables.units.0.rows.weight", 0
    for n in sizes:
        same = torch.equal(after[name][first : first + n], start[name][first : first + n])
        assert same == (epochs == 1 or n < 100)
        assert after[name][first : first + n].abs().max() <= n**-0.5 and not after[name][first + n].any()
        first += n + 1
    assert all(torch.equal(after[key], start[key]) for key in start if key != name)
    if epochs == 3:
        two, _ = train(driver, small_tsv, f"{flags} --nepochs=2", "two")
        assert not torch.equal(two[name], after[name])
    w2 = "tables.units.0.rows.inner_projection"
    with_w2, _ = train(driver, small_tsv, f"{flags.replace('=epoch', '=epoch-w2')} --nepochs={epochs}", "with")
    assert torch.equal(with_w2[w2], start[w2]) == (epochs == 1)


def test_the_state_of_drawn_rows_is_dropped(driver, small_tsv):
    flags = "--optimizer=adagrad --learning-rate=0.1 --nepochs=2 --emb-reinit=epoch --num-batches=1"
    train(driver, small_tsv, flags, "m")
    _, result = train(driver, small_tsv, flags.replace("--nepochs=2", "--nepochs=1"), "one")
    sums = [
        load_checkpoint(result.folder / name / "last")[1]["optimizer"]["state"]["tables.units.0.rows.weight"]["sum"]
        for name in ("m", "one")
    ]
    # the same batch in both epochs: as many rows have a sum, of one step's squares each
    assert (sums[0] > 0).sum() == (sums[1] > 0).sum() > 0 and sums[0].max() < 10 * sums[1].max()


@pytest.mark.parametrize(
    "more",
    [
        "--emb-lr-frequency=log --emb-lr-halflife=20",
        "--emb-lr-frequency=tail-decrease --emb-lr-power=0.5 --emb-reinit=epoch --mlet-inner-dim=6",
        "--emb-lr-frequency=sqrt --hash-method=double --hash-min-rows=50 --arch-model=deepfm",
    ],
)
def test_a_resumed_run_is_the_uninterrupted_one(driver, small_tsv, more):
    flags = f"--optimizer=adam --learning-rate=0.01 --test-freq=10 {more}"
    whole, _ = train(driver, small_tsv, f"{flags} --nepochs=3", "whole")
    train(driver, small_tsv, f"{flags} --nepochs=1", "part")
    result = driver(f"{BASE} {flags} --nepochs=3 --resume=part", "--raw-data-file", small_tsv)
    assert result.code == 0, result.err
    part = load_checkpoint(result.folder / "part" / "last")[0]
    assert all(torch.equal(value, part[name]) for name, value in whole.items())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--emb-lr-frequency=log --emb-precision=bf16", "without --emb-precision=bf16"),
        ("--emb-reinit=epoch --mlet-inner-dim=6 --mlet-cross-term=masked", "--mlet-cross-term=masked"),
        ("--emb-lr-frequency=cube", "invalid choice"),
        ("--emb-lr-frequency=log --emb-lr-halflife=-1", "outside"),
    ],
)
def test_bad_input_is_one_line(driver, small_tsv, flags, message):
    result = driver(f"{BASE} {flags}", "--raw-data-file", small_tsv)
    assert result.code == 2 and message in result.err and len(result.err.splitlines()) == 1
