"""The driver's --arch-model with every registered model: train, resume, export, score; and what it refuses."""

import subprocess
import sys

import numpy as np
import pytest
from sklearn.metrics import log_loss

import dlrm_mlet
from mlet.checkpoint import load_checkpoint, save_checkpoint
from mlet.models import model_names, model_options, option_text

NAMES = model_names()
MODEL = (
    "--data-generation=dataset --data-set=kaggle --arch-sparse-feature-size=4 --arch-mlp-bot=13-8-4 "
    "--arch-mlp-top=8-4-1 --loss-function=bce --mini-batch-size=256 --print-freq=4"
)
FULL = f"{MODEL} --mlet-inner-dim=8 --batch-norm --dropout=0.2 --optimizer=adam --learning-rate=0.01"
TEST_ROWS = slice(1800, 1950)  # of small_tsv: the first half of the last of seven days of 300 rows


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """One prepared store for all runs."""
    return tmp_path_factory.mktemp("store") / "store"


@pytest.fixture
def data(small_tsv, store):
    return f"--raw-data-file={small_tsv} --processed-data-file={store}"


def losses(result):
    assert result.code == 0, result.err
    return [line.split("loss ")[1] for line in result.out.splitlines() if line.startswith("Finished training")]


def last(result):
    assert result.code == 0, result.err
    return result.events[-1]


def score(driver, folder, small_tsv):
    """Labels and scores of the test rows, by --predict."""
    rows = small_tsv.read_text().splitlines()[TEST_ROWS]
    (folder / "new.txt").write_text("\n".join(rows) + "\n")
    scored = driver("--predict=new.txt --load-onnx=m.onnx --predictions=scores.txt")
    assert scored.code == 0, scored.err
    return np.array([int(row[0]) for row in rows]), np.loadtxt(folder / "scores.txt")


def auc_range(labels, scores, tie):
    """Least and greatest AUC if scores that lie within `tie` of each other may stand in either order.

    Units that are dead for many rows give these one logit, and torch's vectorised sigmoid turns one logit into two
    numbers that differ in the last digit.
    """
    ahead = scores[labels == 1][:, None] - scores[labels == 0]
    return (ahead > tie).mean(), (ahead >= -tie).mean()


def exported(*quick):
    """Every model; the quick tests export but some, since an export takes seconds."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]


@pytest.mark.parametrize("name", NAMES)
def test_an_interrupted_run_equals_a_whole_one_bit_for_bit(driver, data, name):
    """Adam's state, dropout's draws and the running statistics of batch normalisation included."""
    options = f"{FULL} {data} --arch-model={name} --metrics-file=run.jsonl"
    whole = driver(f"{options} --nepochs=2 --save-collapsed=whole")
    first = driver(f"{options} --nepochs=1 --save-model=run")
    rest = driver(f"{options} --nepochs=2 --resume=run --save-collapsed=rest")
    assert len(losses(first)) == 2 and losses(first) + losses(rest) == losses(whole)
    assert (whole.folder / "whole").read_bytes() == (whole.folder / "rest").read_bytes()
    assert last(rest)["test"] == last(whole)["test"] and last(whole)["config"]["arch_model"] == name


@pytest.mark.parametrize("name", exported("deepfm"))
def test_the_exported_file_scores_as_the_run_did(driver, data, small_tsv, name):
    run = driver(f"{FULL} {data} --arch-model={name} --nepochs=3 --save-onnx=m.onnx --metrics-file=run.jsonl")
    labels, scores = score(driver, run.folder, small_tsv)
    test = last(run)["test"]
    low, high = auc_range(labels, scores, tie=1e-6)
    assert low <= test["auc"] <= high and high - low < 0.05
    assert log_loss(labels, scores) == pytest.approx(test["logloss"], rel=1e-5)
    assert scores.std() > 1e-3


def test_dropout_and_batch_norm_really_act(driver, data):
    plain, dropped, normed = (
        losses(driver(f"{MODEL} {data} --arch-model=deepfm {flags}")) for flags in ("", "--dropout=0.5", "--batch-norm")
    )
    assert plain != dropped and plain != normed
    assert plain == losses(driver(f"{MODEL} {data} --arch-model=deepfm --dropout=0.0 --batch-norm=False"))


@pytest.mark.parametrize("name", NAMES)
def test_multi_hot_random_data(driver, name):
    run = driver(
        f"--arch-model={name} --arch-embedding-size=50-20-9 --arch-sparse-feature-size=4 --arch-mlp-bot=5-8-4 "
        "--arch-mlp-top=8-1 --mini-batch-size=16 --data-size=100 --loss-function=bce --round-targets=True "
        "--mlet-inner-dim=8 --print-freq=4 --batch-norm --learning-rate=0.05"
    )
    assert len(losses(run)) == 2  # the last batch holds 4 samples


def test_an_epoch_may_end_in_a_batch_of_one_sample(driver):
    run = driver(
        "--arch-model=nfm --arch-embedding-size=50-20-9 --arch-sparse-feature-size=4 --arch-mlp-bot=5-8-4 "
        "--arch-mlp-top=8-1 --mini-batch-size=16 --data-size=33 --loss-function=bce --round-targets=True --batch-norm"
    )
    assert len(losses(run)) == 3


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("dcn", "cross_layers=1"),
        ("xdeepfm", "cin_widths=3-2-2"),
        ("dlrm", "interaction=cat"),
        ("autoint", "head_width=3"),
    ],
)
def test_options_reach_the_model_and_its_checkpoint(driver, data, name, options):
    flags = f"{MODEL} {data} --arch-model={name}"
    run = driver(f"{flags} --arch-option={options} --save-model=run --metrics-file=run.jsonl")
    assert last(run)["config"]["arch_option"] == [options]
    assert losses(run) != losses(driver(flags))
    refused = driver(f"{flags} --resume=run")
    assert refused.code == 2 and "resume the same run" in refused.err and refused.err.count("\n") == 1
    refused = driver(f"{flags} --load-model=run --inference-only")
    assert refused.code == 2 and "does not fit this model" in refused.err and refused.err.count("\n") == 1
    assert driver(f"{flags} --arch-option={options} --load-model=run --inference-only").code == 0


def test_a_linear_end_of_the_bottom_mlp_reaches_the_exported_file(driver, data, small_tsv):
    flags = f"{MODEL} {data} --arch-mlp-bot-end=linear"
    run = driver(f"{flags} --save-model=run --save-onnx=m.onnx --metrics-file=run.jsonl")
    assert losses(run) != losses(driver(f"{MODEL} {data}"))
    labels, scores = score(driver, run.folder, small_tsv)
    assert log_loss(labels, scores) == pytest.approx(last(run)["test"]["logloss"], rel=1e-5)
    refused = driver(f"{MODEL} {data} --load-model=run --inference-only")
    assert refused.code == 2 and "bottom_end is linear there, relu here" in refused.err
    driver(f"{MODEL} {data} --save-model=old")
    tensors, state = load_checkpoint(run.folder / "old/last")
    del state["model"]["arguments"]["bottom_end"]  # as before there was a choice
    save_checkpoint(run.folder / "old/last", tensors, state)
    refused = driver(f"{flags} --load-model=old --inference-only")
    assert refused.code == 2 and "bottom_end is relu there, linear here" in refused.err
    assert driver(f"{MODEL} {data} --load-model=old --inference-only").code == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["deepfm", "pnn"])
@pytest.mark.parametrize(
    "flags", ["--qr-flag --mlet-inner-dim=8", "--md-flag --mlet-inner-dim=8", "--emb-precision=bf16"]
)
def test_tables_of_every_kind_keep_their_first_order_weights(driver, data, small_tsv, name, flags):
    run = driver(f"{MODEL} {data} --arch-model={name} {flags} --save-onnx=m.onnx --metrics-file=run.jsonl")
    labels, scores = score(driver, run.folder, small_tsv)
    assert log_loss(labels, scores) == pytest.approx(last(run)["test"]["logloss"], rel=1e-3)


def test_first_order_weights_are_trained_and_unknown_ids_get_their_mean(driver, data):
    from mlet.inference import inference_tensors, load_collapsed

    run = driver(f"{MODEL} {data} --arch-model=wide-deep --learning-rate=0.5 --save-collapsed=m")
    assert run.code == 0, run.err
    tensors = dict(inference_tensors(load_collapsed(run.folder / "m")))
    for kind in ("wide", "table"):
        rows = tensors[f"{kind}.C3"]
        assert rows[:-1].any() and rows[-1].any()
        # all ids of the training rows come first, those that only test or validation has stay at zero in `wide`
    trained = tensors["wide.C3"][:-1][tensors["wide.C3"][:-1] != 0]
    assert tensors["wide.C3"][-1].item() == pytest.approx(trained.mean().item(), rel=1e-3)


def test_bf16_arithmetic_follows_fp32(driver, data, monkeypatch):
    flags = f"{MODEL} {data} --arch-model=dcn-v2 --optimizer=adam --learning-rate=0.01 --batch-norm"
    exact = [float(loss) for loss in losses(driver(flags))]
    monkeypatch.setattr(dlrm_mlet, "computes_in_bf16", lambda _device: False)
    rough = driver(f"{flags} --precision=bf16")
    assert "warning: no bf16 arithmetic here" in rough.err
    assert [float(loss) for loss in losses(rough)] == pytest.approx(exact, abs=0.02) and losses(rough) != exact


@pytest.mark.parametrize("name", ["xdeepfm", "nfm"])
@pytest.mark.parametrize("flags", ["--quantize-emb-with-bit=8 --quantize-mlp-with-bit=8", "--quantize-emb-with-bit=4"])
def test_quantised_inference_is_close(driver, data, name, flags):
    options = f"{FULL} {data} --arch-model={name} --metrics-file=run.jsonl"
    exact = last(driver(f"{options} --save-model=run"))
    rough = last(driver(f"{options} --load-model=run/last --inference-only {flags}"))
    assert rough["test"]["logloss"] == pytest.approx(exact["test"]["logloss"], abs=0.02)
    assert rough["test"]["logloss"] != exact["test"]["logloss"]
    assert rough["inference_bytes"] < exact["inference_bytes"]


# ------------------------------------------------------------------------------------------------- bad input

BAD = {
    "--arch-model=fm": "invalid choice: 'fm'",
    "--arch-model=dcn --arch-option=layers=2": "dcn has no option 'layers' (it has: cross_layers)",
    "--arch-model=nfm --arch-option=cross_layers=2": "nfm has no option 'cross_layers' (it has: none)",
    "--arch-model=dcn --arch-option=cross_layers=two": "'two' is not a value like 3",
    "--arch-model=dcn --arch-option=cross_layers=1.5": "'1.5' is not a value like 3",
    "--arch-model=dcn --arch-option=cross_layers": "is not of the form NAME=VALUE",
    "--arch-model=xdeepfm --arch-option=cin_widths=16,16": "'16,16' is not a value like 16-16",
    "--arch-option=itself=2": "'2' is not a value like False",
    "--arch-model=deepfm --arch-interaction-op=cat": "--arch-interaction-op is for --arch-model=dlrm",
    "--arch-model=deepfm --arch-interaction-itself": "--arch-interaction-itself is for --arch-model=dlrm",
    "--arch-option=interaction=dot --arch-interaction-op=cat": "is given once",
    "--arch-model=dcn --arch-mlp-top=8-2": "--arch-mlp-top ends in width 2",
    "--arch-model=dcn --arch-mlp-bot=13-5": "the tables' vectors are 4 wide",
    "--dropout=1": "1 lies outside",
    "--dropout=-0.1": "-0.1 lies outside",
    "--batch-norm=maybe": "neither True nor False",
}
BAD_SIZES = {
    "--arch-model=dcn --arch-option=cross_layers=0": "cross_layers=0: at least 1",
    "--arch-model=xdeepfm --arch-option=cin_widths=8-0": "cin_widths=[8, 0]",
    "--arch-model=autoint --arch-option=head_width=0": "head_width=0: at least 1",
    "--arch-option=interaction=sum": "interaction 'sum' is not known",
}


@pytest.mark.parametrize("flags", BAD)
def test_bad_flags_are_one_line_before_any_data_is_prepared(driver, small_tsv, flags):
    run = driver(f"{MODEL} --raw-data-file={small_tsv} {flags}")
    assert run.code == 2 and BAD[flags] in run.err and run.err.count("\n") == 1, run.err
    assert not list(run.folder.iterdir())


@pytest.mark.parametrize("flags", BAD_SIZES)
def test_bad_sizes_are_one_line(driver, data, flags):
    run = driver(f"{MODEL} {data} {flags}")
    assert run.code == 2 and BAD_SIZES[flags] in run.err and run.err.count("\n") == 1, run.err


@pytest.mark.parametrize("flags", BAD_SIZES)
def test_bad_sizes_are_found_before_the_data_is_prepared(driver, small_tsv, flags):
    run = driver(f"{MODEL} --raw-data-file={small_tsv} {flags}")
    assert run.code == 2 and not list(run.folder.iterdir())


def test_help_lists_models_and_options():
    done = subprocess.run(
        [sys.executable, dlrm_mlet.__file__, "--help"], capture_output=True, text=True, env={"COLUMNS": "1000"}
    )
    assert done.returncode == 0 and "--batch-norm" in done.stdout and "--dropout" in done.stdout
    for name in NAMES:
        assert name in done.stdout
        for option, default in model_options(name).items():
            assert f"{option}={option_text(default)}" in done.stdout
