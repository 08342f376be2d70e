"""The driver's controls of MLET, rates and early stop."""

import numpy as np
import pytest
import torch

from mlet.checkpoint import load_checkpoint

BASE = (
    "--data-generation=dataset --data-set=kaggle --arch-sparse-feature-size=4 --arch-mlp-bot=13-8-4 "
    "--arch-mlp-top=8-1 --loss-function=bce --mini-batch-size=128 --print-freq=1000 --metrics-file=run.jsonl"
)


def train(driver, small_tsv, flags, name="model"):
    result = driver(f"{BASE} {flags} --save-model={name}", "--raw-data-file", small_tsv)
    assert result.code == 0, result.err
    return load_checkpoint(result.folder / name / "last")[0], result.events


def test_a_table_multiplier_is_the_tables_rate_alone(driver, small_tsv):
    """With SGD and one step, tables move X times as far and the MLPs as before."""
    flags = "--learning-rate=0.1 --num-batches=1"
    start, _ = train(driver, small_tsv, "--learning-rate=0 --num-batches=1", "start")
    plain, _ = train(driver, small_tsv, flags, "plain")
    times3, _ = train(driver, small_tsv, f"{flags} --emb-learning-rate-multiplier=3", "times3")
    table = next(name for name in start if name.startswith("tables.") and name.endswith("weight"))
    moved, moved3 = plain[table] - start[table], times3[table] - start[table]
    assert moved.abs().max() > 0
    torch.testing.assert_close(moved3, 3 * moved, rtol=1e-3, atol=1e-6)
    for name in start:
        if not name.startswith("tables."):
            assert torch.equal(times3[name], plain[name])


def test_w2_is_fixed_at_multiplier_zero(driver, small_tsv):
    flags = "--learning-rate=0.1 --mlet-inner-dim=8"
    start, _ = train(driver, small_tsv, f"{flags} --learning-rate=0", "start")
    fixed, _ = train(driver, small_tsv, f"{flags} --mlet-w2-rate-multiplier=0", "fixed")
    free, _ = train(driver, small_tsv, flags, "free")
    w2 = next(name for name in start if name.endswith("inner_projection"))
    assert torch.equal(fixed[w2], start[w2]) and not torch.equal(free[w2], start[w2])
    w1 = w2.replace("inner_projection", "weight")
    assert not torch.equal(fixed[w1], start[w1])


def test_a_matched_single_layer_starts_as_wide_as_told(driver, small_tsv):
    one, _ = train(driver, small_tsv, "--learning-rate=0 --num-batches=1", "one")
    two, _ = train(driver, small_tsv, "--learning-rate=0 --num-batches=1 --emb-init=uniform-2", "two")
    normal, _ = train(driver, small_tsv, "--learning-rate=0 --num-batches=1 --emb-init=normal-0.01", "normal")
    table = next(name for name in one if name.startswith("tables."))
    torch.testing.assert_close(two[table], 2 * one[table])
    assert normal[table].std() == pytest.approx(0.01, rel=0.05)


def test_a_masked_run_resumes_exactly(driver, small_tsv):
    flags = "--learning-rate=0.1 --mlet-inner-dim=8 --mlet-cross-term=masked --nepochs=2"
    whole, _ = train(driver, small_tsv, f"{flags} --save-onnx=m.onnx", "whole")
    train(driver, small_tsv, flags.replace("--nepochs=2", "--nepochs=1"), "half")
    result = driver(f"{BASE} {flags} --resume=half", "--raw-data-file", small_tsv)
    assert result.code == 0, result.err
    resumed = load_checkpoint(result.folder / "half" / "last")[0]
    assert whole.keys() == resumed.keys() and any(name.startswith("masked.") for name in whole)
    for name in whole:
        assert torch.equal(whole[name], resumed[name]), name


def test_stops_early_and_lowers_the_rate_where_validation_does_not_improve(driver, small_tsv):
    flags = "--learning-rate=0 --nepochs=9 --early-stop-patience=2 --lr-plateau-factor=0.5"
    result = driver(f"{BASE} {flags} --save-model=m", "--raw-data-file", small_tsv)
    assert result.code == 0 and "No better validation AUC in 2 evaluations" in result.out
    evaluations = [event for event in result.events if event["event"] == "eval" and event["split"] == "val"]
    assert len(evaluations) == 3  # the first is the best, two are not better
    group = load_checkpoint(result.folder / "m" / "last")[1]["optimizer"]["groups"][0]
    assert group["lr"] == 0 and group["initial_lr"] == 0
    result = driver(f"{BASE} {flags} --learning-rate=1e-30 --save-model=n", "--raw-data-file", small_tsv)
    group = load_checkpoint(result.folder / "n" / "last")[1]["optimizer"]["groups"][0]
    assert group["initial_lr"] == pytest.approx(0.25e-30)


def test_reports_by_frequency_and_spectra(driver, small_tsv):
    flags = "--learning-rate=0.1 --mlet-inner-dim=8 --frequency-report --spectra"
    _, events = train(driver, small_tsv, flags)
    result = events[-1]
    whole, test = result["by_frequency"]["all"], result["test"]
    assert (whole["auc"], whole["samples"]) == (pytest.approx(test["auc"]), test["samples"])
    spectrum = next(event for event in events if event["event"] == "spectrum")
    assert len(spectrum["tables"]) == 26 and all(len(values) == 4 for values in spectrum["tables"].values())
    assert all(np.diff(values).max() <= 0 for values in spectrum["tables"].values())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--mlet-cross-term=masked", "needs --mlet-inner-dim"),
        ("--mlet-cross-term=masked --mlet-inner-dim=8 --qr-flag", "plain fp32 tables"),
        ("--emb-init=normal-0", "--emb-init='normal-0': choose uniform"),
        ("--emb-init=wide", "--emb-init='wide': choose uniform"),
    ],
)
def test_refuses_what_cannot_work_in_one_line(driver, flags, message):
    result = driver(f"--data-generation=random {flags}")
    assert result.code == 2 and message in result.err and result.err.count("\n") == 1


def test_reports_need_a_metrics_file_and_a_store(driver):
    for flags, message in (
        ("--spectra", "--spectra writes to --metrics-file"),
        ("--frequency-report --metrics-file=x.jsonl", "--frequency-report needs --data-generation=dataset"),
    ):
        result = driver(f"--data-generation=random {flags}")
        assert result.code == 2 and message in result.err


def test_weights_of_another_model_are_refused_though_their_shapes_fit(driver, small_tsv):
    deep = "--learning-rate=0.1 --num-batches=2 --arch-model=deepfm"
    train(driver, small_tsv, deep, "deepfm")
    train(driver, small_tsv, "--learning-rate=0.1 --num-batches=2 --qr-flag --qr-operation=mult", "mult")
    for flags, message in (
        ("--load-model=deepfm --arch-model=wide-deep", "holds --arch-model=deepfm, this run has wide-deep"),
        ("--load-model=mult --qr-flag --qr-operation=add", "its tables differ"),
        ("--load-model=deepfm --arch-model=deepfm --loss-threshold=0.1", "loss_threshold is 0.0 there, 0.1 here"),
    ):
        result = driver(f"{BASE} {flags} --inference-only", "--raw-data-file", small_tsv)
        assert result.code == 2 and message in result.err and result.err.count("\n") == 1, result.err
    assert driver(f"{BASE} {deep} --load-model=deepfm --inference-only", "--raw-data-file", small_tsv).code == 0


def test_a_run_that_stopped_early_is_not_gone_on_with(driver, small_tsv):
    flags = "--learning-rate=0 --nepochs=9 --early-stop-patience=2"
    train(driver, small_tsv, flags, "m")
    result = driver(f"{BASE} {flags} --resume=m", "--raw-data-file", small_tsv)
    assert result.code == 0 and "it had stopped early" in result.out and "Finished training" not in result.out
    assert load_checkpoint(result.folder / "m" / "last")[1]["progress"]["epoch"] == 3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--spectra --metrics-file=x --inference-only --quantize-emb-with-bit=8", "--spectra needs tables of floats"),
        ("--batch-norm --mini-batch-size=1", "--batch-norm needs batches"),
        ("--early-stop-patience=1", "look at validation"),
        ("--lr-plateau-factor=0.5", "look at validation"),
        ("--mlet-cross-term=masked --mlet-inner-dim=8 --emb-l2=0.1", "--emb-l2 penalises W1"),
        ("--arch-mlp-bot=8", "--arch-mlp-bot needs two widths"),
    ],
)
def test_refuses_what_would_do_nothing_or_harm(driver, flags, message):
    result = driver(f"--data-generation=random {flags}")
    assert result.code == 2 and message in result.err and result.err.count("\n") == 1
