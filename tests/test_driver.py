"""The driver from its flags to its files. Numbers against the reference are in test_golden.py."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

import dlrm_mlet
from datastore.provenance import commit_of

SMALL = (
    "--arch-sparse-feature-size=4 --arch-mlp-bot=13-16-4 --arch-mlp-top=16-1 --loss-function=bce --learning-rate=0.1 "
    "--mini-batch-size=64 --print-freq=5"
)
DATA = f"--data-generation=dataset --data-set=kaggle {SMALL}"
RANDOM = (
    "--arch-embedding-size=50-20-9 --arch-sparse-feature-size=4 --arch-mlp-bot=5-8-4 --arch-mlp-top=8-1 "
    "--mini-batch-size=16 --num-batches=12 --loss-function=bce --round-targets=True --learning-rate=0.1 --print-freq=4"
)


@pytest.fixture
def data(small_tsv):
    return f"{DATA} --raw-data-file={small_tsv}"


def losses(result):
    assert result.code == 0, result.err
    return re.findall(r"loss (\S+)", result.out)


def last(result):
    assert result.code == 0, result.err
    assert result.events[-1]["event"] == "result"
    return result.events[-1]


# ------------------------------------------------------------------------------------------------- main job


def test_train_collapse_export_predict(driver, data, small_tsv):
    run = driver(
        f"{data} --mlet-inner-dim=16 --test-freq=10 --save-onnx=m.onnx --save-collapsed=m.safetensors "
        "--metrics-file=run.jsonl"
    )
    result = last(run)
    assert {"config", "versions", "data_sha256", "seed", "test", "best", "train_seconds"} <= result.keys()
    assert {"train_samples_per_second", "peak_rss_mb", "train_bytes", "inference_bytes"} <= result.keys()
    assert result["versions"]["commit"] == commit_of(dlrm_mlet.ROOT) and result["machine"]["cores"] == os.cpu_count()
    assert result["train_bytes"] > 3 * result["inference_bytes"]
    assert sorted(p.name for p in run.folder.iterdir()) == [
        ".dlrm_store", "m.onnx", "m.onnx.vocabulary", "m.safetensors", "m.safetensors.vocabulary", "run.jsonl",
    ]  # fmt: skip

    lines = small_tsv.read_text().splitlines()
    test_rows = lines[1800:1950]  # the first half of the last of seven days of 300 rows
    (run.folder / "test.txt").write_text("\n".join(test_rows) + "\n")
    (run.folder / "unlabelled.txt").write_text("\n".join(line.split("\t", 1)[1] for line in test_rows) + "\n")
    for name in ("test", "unlabelled"):
        scored = driver(f"--predict={name}.txt --load-onnx=m.onnx --predictions={name}.scores")
        assert scored.code == 0, scored.err
    scores = np.loadtxt(run.folder / "test.scores")
    assert np.array_equal(scores, np.loadtxt(run.folder / "unlabelled.scores"))
    auc = roc_auc_score([int(line[0]) for line in test_rows], scores)
    assert auc == pytest.approx(result["test"]["auc"], abs=1e-4)


def test_predict_scores_unseen_values_and_survives_them(driver, data, small_tsv):
    run = driver(f"{data} --save-onnx=m.onnx")
    fields = small_tsv.read_text().splitlines()[0].split("\t")
    (run.folder / "new.txt").write_text("\t".join([*fields[:14], *["feedc0de"] * 26]) + "\n")
    assert driver("--predict=new.txt --load-onnx=m.onnx --predictions=out").code == 0
    assert 0 < float((run.folder / "out").read_text()) < 1


def test_events_and_progress_lines(driver, data):
    run = driver(f"{data} --nepochs=2 --test-freq=20 --print-freq=10 --metrics-file=run.jsonl")
    lines = re.findall(r"^Finished training it (\d+)/29 of epoch (\d), -1.00 ms/it, loss \d\.\d{6}$", run.out, re.M)
    assert lines == [(j, k) for k in "01" for j in ("10", "20", "29")]
    events = [(e["event"], e.get("split"), e.get("epoch"), e.get("iteration")) for e in run.events]
    expected = []
    for k in (0, 1):
        expected += [("boundary", None, 1, 1)] if k else []  # 2 % of 29 batches are one
        for j in (10, 20, 29):
            expected.append(("train", None, k, j))
            if j != 10:
                expected += [("eval", "val", k, j), ("eval", "test", k, j)]
    assert events == [*expected, ("result", None, None, None)]
    evaluation = run.events[2]
    assert {"auc", "logloss", "ne", "accuracy", "samples"} <= evaluation.keys() and evaluation["samples"] == 150
    best = max((e for e in run.events if e.get("split") == "val"), key=lambda e: e["auc"])
    assert last(run)["best"]["val"]["auc"] == best["auc"]
    assert last(run)["test"] == {k: v for k, v in run.events[-2].items() if k in last(run)["test"]}


def test_a_data_set_is_evaluated_at_each_epochs_end_without_test_freq(driver, data):
    run = driver(f"{data} --nepochs=2 --metrics-file=run.jsonl")
    assert [(e["epoch"], e["iteration"]) for e in run.events if e.get("split") == "test"] == [(0, 29), (1, 29)]


def test_random_data_is_evaluated_only_where_asked(driver):
    assert "Testing" not in driver(f"{RANDOM} --metrics-file=run.jsonl").out
    assert [e["event"] for e in driver(f"{RANDOM} --metrics-file=run.jsonl").events] == ["train"] * 3 + ["result"]
    run = driver(f"{RANDOM} --test-freq=6 --metrics-file=run.jsonl")
    assert [e["iteration"] for e in run.events if e["event"] == "eval"] == [6, 12]


def test_evaluation_does_not_touch_training(driver, data):
    assert losses(driver(f"{data} --print-freq=29")) == losses(driver(f"{data} --print-freq=29 --test-freq=1000"))
    often = [line for line in driver(f"{RANDOM} --test-freq=2").out.splitlines() if "12/12" in line][0]
    seldom = [line for line in driver(f"{RANDOM} --print-freq=2").out.splitlines() if "12/12" in line][0]
    assert often == seldom


@pytest.mark.parametrize("flags", ["--num-workers=2 --test-num-workers=1", "--memory-map"])
def test_reading_in_the_background_changes_nothing(driver, data, flags):
    assert losses(driver(f"{data} {flags}")) == losses(driver(data))
    assert losses(driver(f"{RANDOM} {flags}")) == losses(driver(RANDOM))


def tensors_after(driver, flags):
    from mlet.inference import inference_tensors, load_collapsed

    run = driver(f"{flags} --save-collapsed=m.safetensors")
    assert run.code == 0, run.err
    return dict(inference_tensors(load_collapsed(run.folder / "m.safetensors")))


@pytest.mark.parametrize("option", ["--mlet-inner-dim=8", "--qr-flag", "--md-flag", "--weighted-pooling=learned"])
def test_paired_runs_start_from_the_same_weights_outside_the_tables(driver, data, option):
    plain, other = (tensors_after(driver, f"{data} --nepochs=0 {flags}") for flags in ("", option))
    layers = [name for name in plain if not name.startswith("table.")]
    assert len(layers) == 8
    assert all(torch.equal(plain[name], other[name]) for name in layers)
    few = tensors_after(driver, f"{data} --nepochs=0 --mlet-inner-dim=8 --mlet-min-rows=1000000")
    assert all(torch.equal(plain[name], few[name]) for name in plain)


def test_the_planted_teacher_is_printed(driver):
    run = driver(
        f"{DATA} --data-set=criteo-synthetic --synthetic-rows=1400 --synthetic-seed=3 --metrics-file=run.jsonl"
    )
    teacher = last(run)["teacher"]
    assert teacher["samples"] == 100 and 0.6 < teacher["auc"] < 1
    assert f"auc {teacher['auc']:.5f}" in run.out


# ------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    "flags",
    [
        "--qr-flag",
        "--qr-flag --qr-operation=add --mlet-inner-dim=8",
        "--qr-flag --qr-operation=concat --arch-mlp-bot=13-16-8",
        "--md-flag",
        "--md-flag --md-round-dims --md-temperature=0.2 --mlet-inner-dim=6",
        "--weighted-pooling=learned --mlet-inner-dim=8",
        "--weighted-pooling=fixed",
        "--mlet-inner-dim=8 --mlet-init=orthogonal --mlet-min-rows=100 --optimizer=rwsadagrad --learning-rate=0.01",
        "--mlet-inner-dim=8 --mlet-init=scaled --optimizer=adagrad --learning-rate=0.01",
        "--arch-interaction-op=cat --arch-interaction-itself --loss-function=wbce --loss-weights=0.5-2.0",
        "--loss-threshold=0.001 --lr-num-warmup-steps=5",
        "--data-sub-sample-rate=0.5 --max-ind-range=50 --data-randomize=day",
    ],
)
def test_options_train_export_and_learn(driver, data, flags):
    run = driver(f"{data} --nepochs=3 {flags} --save-onnx=m.onnx --metrics-file=run.jsonl")
    result = last(run)
    train = [e["loss"] for e in run.events if e["event"] == "train"]
    assert np.mean(train[-3:]) < np.mean(train[:3])
    assert 0 < result["test"]["auc"] < 1 and (run.folder / "m.onnx").exists()


@pytest.mark.parametrize(
    "flags",
    [
        "",
        "--num-indices-per-lookup=1 --num-indices-per-lookup-fixed",
        "--num-indices-per-lookup=1 --num-indices-per-lookup-fixed --rand-data-dist=gaussian --rand-data-max=8",
        "--qr-flag --qr-threshold=10",
    ],
)
def test_random_data_exports(driver, flags):
    run = driver(f"{RANDOM} --mlet-inner-dim=8 {flags} --save-onnx=m.onnx --save-collapsed=m.safetensors")
    assert run.code == 0, run.err
    assert "onnxruntime differs by at most" in run.out


def test_save_onnx_without_a_name_has_the_references_name(driver):
    assert (driver(f"{RANDOM} --save-onnx").folder / "dlrm_s_pytorch.onnx").exists()


@pytest.mark.parametrize("group", [2, 3, 100])
def test_accumulated_batches_equal_one_large_batch(driver, data, group):
    many = tensors_after(driver, f"{data} --mini-batch-size=16 --mlperf-grad-accum-iter={group}")
    one = tensors_after(driver, f"{data} --mini-batch-size={16 * group}")
    start = tensors_after(driver, f"{data} --nepochs=0")
    for name, tensor in one.items():
        torch.testing.assert_close(many[name], tensor, atol=2e-5, rtol=2e-4, msg=name)
    assert not torch.allclose(start["top.0.weight"], one["top.0.weight"], atol=1e-3)


@pytest.mark.parametrize(("flag", "metric"), [("acc", "accuracy"), ("auc", "auc")])
def test_thresholds_really_stop(driver, data, flag, metric):
    free = driver(f"{data} --nepochs=3 --test-freq=5 --metrics-file=run.jsonl")
    values = [e[metric] for e in free.events if e.get("split") == "test"]
    limit = sorted(values)[len(values) // 2] - 1e-9
    first = next(i for i, value in enumerate(values) if value > limit)
    scale = 100 if metric == "accuracy" else 1
    run = driver(
        f"{data} --nepochs=3 --test-freq=5 --mlperf-{flag}-threshold={limit / scale!r} --metrics-file=run.jsonl"
    )
    assert f"testing {metric} threshold" in run.out and "reached, stop training" in run.out
    assert [e[metric] for e in run.events if e.get("split") == "test"] == values[: first + 1]


def test_best_in_the_accuracy_line_is_the_best_so_far(driver, data):
    run = driver(f"{data} --nepochs=2 --test-freq=3")
    pairs = [tuple(map(float, p)) for p in re.findall(r"^ accuracy (\S+) %, best (\S+) %$", run.out, re.M)]
    assert len(pairs) > 5
    assert [best for _, best in pairs] == list(np.maximum.accumulate([accuracy for accuracy, _ in pairs]))


def test_mlperf_logging_prints_the_references_line(driver, data):
    run = driver(f"{data} --mlperf-logging")
    assert re.search(r"^recall .*, precision .*, f1 .*, ap .*, auc .*, best auc .*, accuracy .* %, best", run.out, re.M)


def test_tensorboard_is_written_only_when_asked(driver, data):
    assert not [p for p in driver(data).folder.rglob("*") if "tfevents" in p.name]
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError:
        refused = driver(f"{data} --tensor-board-filename=board")
        assert refused.code == 2 and "pip install tensorboard" in refused.err
        return
    run = driver(f"{data} --tensor-board-filename=board")
    assert [p for p in (run.folder / "board").iterdir() if "tfevents" in p.name]


def test_profiling_writes_two_tables_and_a_trace(driver):
    run = driver(f"{RANDOM} --enable-profiling --print-time")
    names = sorted(p.name for p in run.folder.iterdir())
    assert [name[-11:] for name in names if name.endswith(".prof")] == ["_shape.prof", "_total.prof"]
    assert (
        any(name.endswith(".json") for name in names)
        and "aten::addmm" in next(run.folder.glob("*_total.prof")).read_text()
    )


def test_debug_mode_prints_weights_before_and_after(driver):
    out = driver(f"{RANDOM} --debug-mode").out
    assert "initial parameters" in out and "updated parameters" in out and "tables.units.0.rows.weight" in out


# ------------------------------------------------------------------------------------ checkpoints and inference


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "rwsadagrad"])
@pytest.mark.parametrize(
    "flags", ["", "--mlet-inner-dim=8 --lr-num-warmup-steps=10 --lr-decay-start-step=20 --lr-num-decay-steps=60"]
)
def test_a_resumed_run_equals_an_uninterrupted_one(driver, data, optimizer, flags):
    options = f"{data} --optimizer={optimizer} --learning-rate=0.02 {flags}"
    whole = driver(f"{options} --nepochs=3 --save-collapsed=whole.safetensors --metrics-file=run.jsonl")
    driver(f"{options} --nepochs=1 --save-model=run --metrics-file=run.jsonl")
    rest = driver(f"{options} --nepochs=3 --resume=run --save-collapsed=rest.safetensors --metrics-file=run.jsonl")
    assert losses(rest) == losses(whole)[-len(losses(rest)) :]
    assert (rest.folder / "whole.safetensors").read_bytes() == (rest.folder / "rest.safetensors").read_bytes()
    assert last(rest)["test"] == last(whole)["test"]
    assert [e["epoch"] for e in rest.events if e.get("split") == "val"] == [0, 1, 2]  # appended to the first run's


def test_random_data_is_saved_at_each_epochs_end_and_resumes(driver):
    """The reference saves only where it tests, so that without --test-freq nothing is ever saved."""
    whole = losses(driver(f"{RANDOM} --nepochs=3"))
    driver(f"{RANDOM} --nepochs=2 --save-model=run")
    assert losses(driver(f"{RANDOM} --nepochs=3 --resume=run")) == whole[-3:]


def test_resume_in_the_middle_of_an_epoch(driver, data):
    """Killed after the second evaluation: the last checkpoint goes on where it stood."""
    whole = driver(f"{data} --nepochs=2 --test-freq=10")
    killed = subprocess.run(
        [sys.executable, "-c", f"""
import sys; sys.path.insert(0, {str(dlrm_mlet.__file__)!r}.rsplit("/", 1)[0])
import os, torch, dlrm_mlet
torch.set_num_threads(1)
save = dlrm_mlet.Trainer.save
def save_then_die(self, best):
    save(self, best)
    if self.progress.iteration == 20: os._exit(9)
dlrm_mlet.Trainer.save = save_then_die
dlrm_mlet.main({(data + " --nepochs=2 --test-freq=10 --save-model=run").split()!r})
"""],
        capture_output=True, text=True,
    )  # fmt: skip
    assert killed.returncode == 9, killed.stderr
    rest = driver(f"{data} --nepochs=2 --test-freq=10 --resume=run")
    assert (
        losses(rest) == losses(whole)[-len(losses(rest)) :]
        and "Resumed from run/last: epoch 0, iteration 20" in rest.out
    )


def test_resume_of_another_run_is_refused(driver, data, small_tsv, tmp_path):
    driver(f"{data} --save-model=run")
    for flags, message in (
        ("--learning-rate=0.05", "--learning-rate=0.1, this run has 0.05"),
        ("--mlet-inner-dim=8", "--mlet-inner-dim=0, this run has 8"),
        ("--numpy-rand-seed=9", "--numpy-rand-seed=123, this run has 9"),
    ):
        run = driver(f"{data} {flags} --resume=run")
        assert run.code == 2 and message in run.err and run.err.count("\n") == 1
    other = tmp_path / "other.txt"
    other.write_text(small_tsv.read_text().replace("\n1\t", "\n0\t", 1))
    run = driver(f"{data} --raw-data-file={other} --resume=run")
    assert run.code == 2 and "trained on other data" in run.err


def test_load_model_for_inference_gives_the_saved_metrics(driver, data):
    trained = last(driver(f"{data} --mlet-inner-dim=8 --nepochs=2 --save-model=run --metrics-file=run.jsonl"))
    loaded = last(
        driver(
            f"{data} --mlet-inner-dim=8 --load-model=run/last --inference-only --save-onnx=m.onnx",
            "--metrics-file=run.jsonl",
        )
    )
    assert loaded["test"]["auc"] == pytest.approx(trained["test"]["auc"], abs=1e-6)
    best = last(driver(f"{data} --mlet-inner-dim=8 --load-model=run --inference-only --metrics-file=run.jsonl"))
    assert best["val"]["auc"] == pytest.approx(trained["best"]["val"]["auc"], abs=1e-6)


@pytest.mark.parametrize(
    "flags",
    ["--quantize-emb-with-bit=8", "--quantize-emb-with-bit=4 --quantize-mlp-with-bit=8", "--quantize-mlp-with-bit=16"],
)
def test_quantised_inference_is_close(driver, data, flags):
    options = f"{data} --mlet-inner-dim=8 --nepochs=2 --metrics-file=run.jsonl"
    trained = last(driver(f"{options} --save-model=run"))
    rough = last(driver(f"{options} --load-model=run/last --inference-only {flags}"))
    assert rough["test"]["auc"] == pytest.approx(trained["test"]["auc"], abs=0.03)
    assert rough["test"]["logloss"] != trained["test"]["logloss"]


def test_checkpoints_that_do_not_fit_are_named(driver, data):
    run = driver(f"{data} --save-model=run")
    (run.folder / "old.pt").write_bytes(b"PK\x03\x04")
    for flags, message in (
        ("--load-model=old.pt", "old.pt"),
        ("--load-model=nowhere", "nowhere"),
        ("--load-model=run --mlet-inner-dim=8", "does not fit this model"),
        ("--load-model=run --arch-mlp-top=20-1", "top is [16, 1] there, [20, 1] here"),
    ):
        refused = driver(f"{data} {flags} --inference-only")
        assert refused.code == 2 and message in refused.err and refused.err.count("\n") == 1, refused.err


def test_a_new_run_takes_no_other_runs_checkpoints(driver, data):
    first = driver(f"{data} --save-model=run")
    before = {path: path.read_bytes() for path in (first.folder / "run").rglob("*") if path.is_file()}
    again = driver(f"{data} --save-model=run")
    assert again.code == 2 and "run/best is the checkpoint of an earlier run: go on with --resume=run" in again.err
    assert {path: path.read_bytes() for path in (first.folder / "run").rglob("*") if path.is_file()} == before
    assert driver(f"{data} --save-model=run --load-model=run/best").code == 2
    assert driver(f"{data} --save-model=run --resume=run --nepochs=2").code == 0


def test_other_flags_than_the_checkpoints_are_noticed_before_the_data_is_prepared(driver, data):
    first = driver(f"{data} --save-model=run")
    refused = driver(f"{data} --resume=run --learning-rate=0.3 --processed-data-file=other")
    assert refused.code == 2 and "was trained with --learning-rate=" in refused.err
    assert not (first.folder / "other").exists()


def test_another_number_of_dense_features_is_said(driver, data):
    assert "begins with 12, the data has 13 dense features" in driver(f"{data} --arch-mlp-bot=12-4").err


def test_an_interrupted_run_says_how_to_go_on(driver, data, monkeypatch):
    driver(f"{data} --save-model=run")
    monkeypatch.setattr(dlrm_mlet.Trainer, "fit", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    assert "interrupted; --resume=run goes on" in driver(f"{data} --resume=run --save-model=run").err
    assert driver(f"{data} --save-model=other").err.endswith("interrupted\n")


def test_use_gpu_without_one_warns_and_goes_on(driver, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    run = driver(f"{RANDOM} --use-gpu")
    assert run.code == 0 and "torch sees no CUDA device" in run.err and "Using CPU..." in run.out


# ------------------------------------------------------------------------------------------------- bad input


BAD_FLAGS = {
    "--mini-batch-size=0": "0 is below 1",
    "--mini-batch-size=x": "'x' is not a whole number",
    "--learning-rate=nan": "nan lies outside",
    "--learning-rate=-1": "-1 lies outside",
    "--round-targets=perhaps": "neither True nor False",
    "--arch-mlp-bot=13-x-4": "'x' is not a whole number",
    "--arch-mlp-bot=13-0-4": "0 is below 1",
    "--optimizer=adamax": "invalid choice: 'adamax'",
    "--data-set=criteo": "invalid choice: 'criteo'",
    "--data-randomize=week": "invalid choice: 'week'",
    "--weighted-pooling=mine": "invalid choice: 'mine'",
    "--qr-operation=max": "invalid choice: 'max'",
    "--rand-data-dist=zipf": "invalid choice: 'zipf'",
    "--loss-weights=1.0": "--loss-weights needs two numbers",
    "--loss-threshold=1": "--loss-threshold=1",
    "--mlet-init=kaiming --mlet-inner-dim=4": "--mlet-init='kaiming'",
    "--mlet-inner-dim=-1": "-1 is below 0",
    "--mlet-inner-dim=3": "--mlet-inner-dim=3 is below --arch-sparse-feature-size=4",
    "--emb-reinit=epoch --emb-precision=bf16": "--emb-reinit works without --emb-precision=bf16",
    "--quantize-emb-with-bit=8 --inference-only --qr-flag": "leave out --qr-flag",
    "--metrics-file=m.jsonl --save-onnx=m.jsonl": "m.jsonl is named twice: by --metrics-file and --save-onnx",
    "--weighted-pooling=learned --qr-flag": "leave out --qr-flag",
    "--quantize-emb-with-bit=8": "need --inference-only",
    "--quantize-emb-with-bit=12 --inference-only": "invalid choice: 12",
    "--qr-flag --md-flag": "cannot share a table",
    "--lr-num-warmup-steps=10 --lr-decay-start-step=5 --lr-num-decay-steps=3": "decay",
    "--arch-sparse-feature-size=6": "the tables' vectors are 6 wide",
    "--arch-mlp-top=8-2": "ends in width 2",
    "--unheard-of=1": "unrecognized arguments: --unheard-of=1",
    "--predict=x": "scoring needs all of",
    "--resume=a --load-model=b": "two starting points",
    "--rand-data-dist=gaussian --rand-data-max=1000 --rand-data-sigma=400": "rows",
    "--save-onnx=no/such/folder/m.onnx": "no/such/folder",
    "--metrics-file=.": "directory",
    "--save-model=file": "file",
    **{flag: "is not supported" for flag in dlrm_mlet.DROPPED_FLAGS},
    "--dist-backend=nccl": "for several GPUs build the model on TorchRec",
    "--sync-dense-params=False": "leave it out",
}


@pytest.mark.parametrize("flags", BAD_FLAGS)
def test_bad_flags_are_one_line_and_exit_code_two(driver, flags, tmp_path):
    (tmp_path / "file").write_text("mine")
    run = driver(f"{RANDOM} {flags}")
    assert run.code == 2, run.out
    assert BAD_FLAGS[flags] in run.err and run.err.count("\n") == 1 and "Traceback" not in run.err
    assert [p.name for p in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "mine"


def test_a_raw_file_that_is_not_read_is_said(driver, small_tsv):
    assert "is not read: it needs --data-generation=dataset" in driver(f"{RANDOM} --raw-data-file={small_tsv}").err


@pytest.mark.parametrize("value", ["False", "false", "0", "no"])
def test_false_is_false(value):
    assert dlrm_mlet.parse_flags([f"--round-targets={value}"]).round_targets is False
    assert dlrm_mlet.parse_flags(["--round-targets"]).round_targets is True
    assert dlrm_mlet.parse_flags(["--qr-flag=True"]).qr_flag is True


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("\t", "\tx", 1), "line 1"),
        (lambda text: text + "0\t1\n", "line 2101: 2 columns, expected 40"),
        (lambda text: "", "is empty"),
    ],
)
def test_bad_rows_are_one_line_and_exit_code_two(driver, small_tsv, tmp_path, change, message):
    bad = tmp_path / "bad.txt"
    bad.write_text(change(small_tsv.read_text()))
    run = driver(f"{DATA} --raw-data-file=bad.txt --metrics-file=run.jsonl")
    assert run.code == 2 and message in run.err and "bad.txt" in run.err and run.err.count("\n") == 1
    assert not run.events


def test_a_missing_raw_file_is_named(driver):
    for flags in ("--raw-data-file=nowhere.txt", ""):
        run = driver(f"{DATA} {flags}")
        assert run.code == 2 and ("nowhere.txt" in run.err or "--raw-data-file" in run.err) and run.err.count("\n") == 1
        assert "Errno" not in run.err


def test_a_rate_far_too_high_names_the_iteration(driver, data):
    run = driver(f"{data} --learning-rate=1e30")
    assert run.code == 2 and run.err.count("\n") == 1
    assert re.search(r"not finite at iteration \d of epoch 0; no checkpoint was saved", run.err)


def test_a_nan_in_the_weights_stops_before_the_update(driver, data, monkeypatch):
    make_model = dlrm_mlet.make_model

    def poisoned(*arguments):
        model = make_model(*arguments)
        hook = {"batches": 0}

        def poison(module, inputs, output):
            hook["batches"] += module.training
            return output * (float("nan") if hook["batches"] == 8 else 1.0)

        model.bottom.register_forward_hook(poison)
        return model

    monkeypatch.setattr(dlrm_mlet, "make_model", poisoned)
    run = driver(f"{data} --test-freq=5 --save-model=run")
    assert run.code == 2 and run.err.count("\n") == 1
    assert "not finite at iteration 8 of epoch 0; the last checkpoint is run/last" in run.err
    from mlet.checkpoint import load_checkpoint

    tensors, state = load_checkpoint(run.folder / "run" / "last")
    assert state["progress"]["iteration"] == 5 and all(torch.isfinite(t).all() for t in tensors.values())


@pytest.mark.parametrize("missing", ["m.onnx", "m.onnx.vocabulary"])
def test_predict_names_what_is_missing(driver, data, small_tsv, missing):
    run = driver(f"{data} --save-onnx=m.onnx")
    assert run.code == 0, run.err
    (run.folder / missing).rename(run.folder / "elsewhere")
    refused = driver(f"--predict={small_tsv} --load-onnx=m.onnx --predictions=out")
    assert refused.code == 2 and missing in refused.err and refused.err.count("\n") == 1
    assert not (run.folder / "out").exists()


def test_predict_refuses_the_vocabulary_of_another_model(driver, data, small_tsv):
    driver(f"{data} --save-onnx=m.onnx")
    driver(f"{data} --max-ind-range=50 --save-onnx=other.onnx")
    run = driver(f"--predict={small_tsv} --load-onnx=m.onnx --predictions=out")
    assert run.code == 0
    (run.folder / "m.onnx.vocabulary").rename(run.folder / "gone")
    (run.folder / "other.onnx.vocabulary").rename(run.folder / "m.onnx.vocabulary")
    refused = driver(f"--predict={small_tsv} --load-onnx=m.onnx --predictions=out")
    assert refused.code == 2 and "is not the vocabulary that m.onnx was trained with" in refused.err


def test_a_bad_row_while_scoring_leaves_no_half_file(driver, data, small_tsv):
    run = driver(f"{data} --save-onnx=m.onnx")
    (run.folder / "bad.txt").write_text(small_tsv.read_text() + "1\t2\n")
    (run.folder / "out").write_text("older")
    refused = driver("--predict=bad.txt --load-onnx=m.onnx --predictions=out")
    assert refused.code == 2 and "line 2101" in refused.err and (run.folder / "out").read_text() == "older"


def test_help_lists_every_flag_with_help():
    done = subprocess.run([sys.executable, dlrm_mlet.__file__, "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    for flag in (
        "--arch-mlp-bot",
        "--mlet-inner-dim",
        "--save-onnx",
        "--metrics-file",
        "criteo-synthetic",
        "rwsadagrad",
    ):
        assert flag in done.stdout


def test_metrics_lines_are_strict_json(driver, data):
    run = driver(f"{data} --metrics-file=run.jsonl")
    for line in (run.folder / "run.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


# ------------------------------------------------------------------------------------- found by a first outside user


@pytest.mark.parametrize(
    "flags",
    [
        "--metrics-file=raw.txt",
        "--save-onnx=raw.txt",
        "--save-onnx=m --save-collapsed=./m",
        "--save-onnx=m --metrics-file=m",
        "--save-model=m.onnx.vocabulary --save-onnx=m.onnx",
        "--save-model=store --processed-data-file=store",
    ],
)
def test_no_output_overwrites_an_input_or_another_output(driver, small_tsv, tmp_path, flags):
    raw = tmp_path / "raw.txt"
    raw.write_bytes(small_tsv.read_bytes())
    run = driver(f"{DATA} --raw-data-file=raw.txt {flags}")
    assert run.code == 2 and "is named twice" in run.err and run.err.count("\n") == 1
    assert raw.read_bytes() == small_tsv.read_bytes() and [p.name for p in tmp_path.iterdir()] == ["raw.txt"]


@pytest.mark.parametrize("out", ["rows.txt", "m.onnx"])
def test_predictions_do_not_overwrite_what_they_come_from(driver, data, small_tsv, tmp_path, out):
    driver(f"{data} --save-onnx=m.onnx")
    (tmp_path / "rows.txt").write_bytes(small_tsv.read_bytes())
    before = (tmp_path / out).read_bytes()
    run = driver(f"--predict=rows.txt --load-onnx=m.onnx --predictions={out}")
    assert run.code == 2 and "is named twice" in run.err and (tmp_path / out).read_bytes() == before


def test_a_checkpoint_of_other_data_is_not_loaded_even_if_the_shapes_fit(driver, data, small_tsv, tmp_path):
    driver(f"{data} --max-ind-range=2 --save-model=run")
    lines = small_tsv.read_text().splitlines()
    (tmp_path / "other.txt").write_text("\n".join(reversed(lines)) + "\n")
    run = driver(f"{data} --raw-data-file=other.txt --max-ind-range=2 --load-model=run --inference-only")
    assert run.code == 2 and "its ids do not fit" in run.err


def test_a_resumed_run_that_saves_elsewhere_takes_the_best_along(driver, data):
    run = driver(f"{data} --nepochs=2 --save-model=a")
    best = (run.folder / "a" / "best" / "tensors.safetensors").read_bytes()
    assert driver(f"{data} --nepochs=2 --resume=a --save-model=b").code == 0
    assert (run.folder / "b" / "best" / "tensors.safetensors").read_bytes() == best


def test_resuming_from_the_checkpoint_itself_saves_beside_it(driver, data):
    driver(f"{data} --nepochs=1 --save-model=a")
    run = driver(f"{data} --nepochs=2 --resume=a/last")
    assert run.code == 0 and sorted(p.name for p in (run.folder / "a").iterdir()) == ["best", "last"]
    assert "epoch 2, iteration 0" in driver(f"{data} --nepochs=2 --resume=a").out


@pytest.mark.parametrize(
    "loading", ["--nepochs=0", "--inference-only", "--inference-only --mini-batch-size=32 --numpy-rand-seed=7"]
)
@pytest.mark.parametrize("training", ["--mini-batch-size=16 --num-batches=20", "--nepochs=2"])
def test_unknown_rows_do_not_depend_on_the_run_that_loads(driver, data, training, loading):
    trained = tensors_after(driver, f"{data} {training} --save-model=run")
    loaded = tensors_after(driver, f"{data} {loading} --load-model=run/last")
    assert trained["table.C3"][-1].abs().sum() > 0
    assert all(torch.equal(trained[name], loaded[name]) for name in trained)


def test_quantised_sizes_are_reported(driver, data):
    driver(f"{data} --save-model=run")
    sizes = [
        last(driver(f"{data} --load-model=run --inference-only {flags} --metrics-file=run.jsonl"))["inference_bytes"]
        for flags in ("", "--quantize-emb-with-bit=8", "--quantize-emb-with-bit=4", "--quantize-mlp-with-bit=8")
    ]
    assert sizes[0] > sizes[1] > sizes[2] and sizes[0] > sizes[3]


def test_one_class_in_the_test_part_is_undefined_not_an_error(driver):
    run = driver(f"{DATA} --data-set=criteo-synthetic --synthetic-rows=14 --metrics-file=run.jsonl")
    assert last(run)["test"]["auc"] is None and "auc undefined" in run.out


def test_a_model_that_cannot_be_allocated_is_one_line(driver):
    run = driver(f"{RANDOM} --mlet-inner-dim=99999999999999")
    assert run.code == 2 and "this run needs about" in run.err and run.err.count("\n") == 1
    assert "--mlet-inner-dim=0 (" in run.err and "fits" in run.err


@pytest.mark.parametrize("rows", ["99999999999999999999", "5000000000000000000-5", "1125899906842625"])
def test_absurd_table_sizes_are_one_line(driver, rows):
    run = driver(f"{RANDOM} --arch-embedding-size={rows}")
    assert run.code == 2 and "above the limit of 2^50" in run.err and run.err.count("\n") == 1


def test_a_resumed_run_does_not_repeat_events(driver, data):
    def places(events):
        return [(e["event"], e.get("split"), e["epoch"], e["iteration"]) for e in events if "iteration" in e]

    options = f"{data} --test-freq=10 --metrics-file=run.jsonl"
    whole = places(driver(f"{options} --nepochs=2").events)
    first = driver(f"{options} --nepochs=1 --save-model=run")
    beyond = '{"event": "train", "epoch": 1, "iteration": 5, "loss": 0.5}\n{"event": "tr'  # a killed run's last lines
    with open(first.folder / "run.jsonl", "a") as file:
        file.write(beyond)
    again = driver(f"{options} --nepochs=2 --resume=run")
    assert places(again.events) == whole and [e["event"] for e in again.events].count("result") == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--mlet-init=foo --mlet-inner-dim=4", "--mlet-init"),
        ("--arch-mlp-bot=13-5", "the tables' vectors are 4 wide"),
        ("--arch-mlp-top=8-3", "--arch-mlp-top ends in width 3"),
        ("--qr-flag --md-flag", "cannot share"),
        ("--max-ind-range=4294967296", "--max-ind-range"),
        ("--loss-threshold=0.7", "--loss-threshold=0.7"),
        ("--resume=nowhere", "the checkpoint nowhere does not exist"),
        ("--load-model=nowhere", "the checkpoint nowhere does not exist"),
    ],
)
def test_mistakes_are_found_before_the_data_is_prepared(driver, data, flags, message):
    run = driver(f"{data} {flags}")
    assert run.code == 2 and message in run.err and not list(run.folder.iterdir())


def test_a_python_without_torch_is_told_where_one_is():
    bare = [sys.executable, "-I", "-S", dlrm_mlet.__file__, "--help"]  # -S: without the installed packages
    done = subprocess.run(bare, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "has no torch: source .venv/bin/activate" in done.stderr


def test_one_score_for_all_rows_is_said(capsys):
    scores = np.array([0.2, 0.3])
    dlrm_mlet.warn_of_one_score({"val": (scores, scores), "test": (scores, np.full(2, 0.25))})
    assert "all 2 test rows have one score, 0.25: try a smaller" in (err := capsys.readouterr().err)
    assert err.count("\n") == 1
    both = np.stack([scores, np.zeros(2)], axis=1)  # of two tasks
    dlrm_mlet.warn_of_one_score({"test": (both, both), "val": (scores[:1], scores[:1])})
    assert not capsys.readouterr().err
