"""The driver on several labels: --tasks, --task-weights, --task-heads, from data to predictions."""

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score
from test_driver_data import write_clicks

import dlrm_mlet
from mlet import export
from mlet.models import model_names

BASE = (
    "--data-generation=dataset --arch-sparse-feature-size=4 --arch-mlp-top=8-4-1 --loss-function=bce --print-freq=10 "
    "--mini-batch-size=64 --metrics-file=run.jsonl"
)
CLICKS = f"{BASE} --data-set=schema --raw-data-file=clicks.json --arch-mlp-bot=1-8-4 --tasks=click,buy"
ADAM = "--optimizer=adam --learning-rate=0.01"
FUNNEL = (
    f"{BASE} --data-set=multitask-synthetic --synthetic-rows=4000 --arch-mlp-bot=13-8-4 --tasks=click,cart,checkout "
    f"--mini-batch-size=256 {ADAM}"
)
METRICS = {"auc", "logloss", "ne", "accuracy", "samples"}


@pytest.fixture
def clicks(tmp_path):
    """1500 rows; buy is empty where there is no click. Returns click and buy of the test rows, NaN where missing."""
    write_clicks(tmp_path)
    rows = [line.split(",") for line in (tmp_path / "clicks.csv").read_text().splitlines()[1351:]]
    return np.array([[float(row[1]), float(row[2] or "nan")] for row in rows])


def last(run):
    assert run.code == 0, run.err
    return run.events[-1]


def losses(run):
    assert run.code == 0, run.err
    return [float(line.split("loss ")[1]) for line in run.out.splitlines() if line.startswith("Finished training")]


# ------------------------------------------------------------------------------------------ data to predictions


@pytest.mark.parametrize("heads", [pytest.param("towers", marks=pytest.mark.slow), "mmoe"])
def test_metrics_of_each_task_are_those_of_its_column_of_the_predictions(driver, tmp_path, clicks, heads):
    """Missing labels, bags, MLET, ONNX: everything on the way."""
    flags = f"{CLICKS} {ADAM} --task-heads={heads} --mlet-inner-dim=8 --task-weights=1,0.5 --nepochs=2"
    run = driver(f"{flags} --save-onnx=m.onnx --mlperf-logging")
    result = last(run)
    header, *rows = (tmp_path / "clicks.csv").read_text().splitlines()
    (tmp_path / "new.csv").write_text("\n".join([header, *rows[1350:]]) + "\n")
    scored = driver("--predict=new.csv --load-onnx=m.onnx --predictions=scores.tsv")
    assert scored.code == 0 and "150 rows of click, buy, tab-separated" in scored.out, scored.err
    scores = np.loadtxt(tmp_path / "scores.tsv", delimiter="\t")
    assert scores.shape == (150, 2)
    test = result["test"]
    for column, (name, values) in enumerate(test["tasks"].items()):
        known = ~np.isnan(clicks[:, column])
        assert (
            name == ("click", "buy")[column] and values["samples"] == known.sum() == (150, clicks[:, 0].sum())[column]
        )
        assert values["auc"] == pytest.approx(roc_auc_score(clicks[known, column], scores[known, column]), abs=1e-4)
        assert values["logloss"] == pytest.approx(log_loss(clicks[known, column], scores[known, column]), rel=1e-4)
    for quality in ("auc", "logloss", "ne", "accuracy"):
        click, buy = (values[quality] for values in test["tasks"].values())
        assert test[quality] == pytest.approx((click + 0.5 * buy) / 1.5)
    assert test["samples"] == 150 and set(test) == METRICS | {"tasks"}
    assert export.metadata_of(export.open_session(tmp_path / "m.onnx"))["tasks"] == ["click", "buy"]
    evaluated = [event for event in run.events if event["event"] == "eval"]
    assert [event["split"] for event in evaluated] == ["val", "test"] * 2
    assert all(set(event["tasks"]) == {"click", "buy"} for event in evaluated)
    best = max(evaluated[::2], key=lambda event: event["auc"])
    assert result["best"]["val"]["auc"] == best["auc"] and set(result["best"]["test"]["tasks"]) == {"click", "buy"}
    assert f"test, buy: auc {test['tasks']['buy']['auc']:.5f}" in run.out and "labels click, buy" in run.out
    assert f"auc {test['tasks']['click']['auc']:.4f}, best auc" in run.out  # the first task's in the reference's line


def test_the_funnel_has_a_teacher_for_each_task(driver):
    run = driver(f"{FUNNEL} --frequency-report")
    result = last(run)
    assert list(result["teacher"]["tasks"]) == ["click", "cart", "checkout"]
    assert all(values["auc"] > 0.7 for values in result["teacher"]["tasks"].values() if values["auc"] is not None)
    assert result["teacher"]["tasks"]["cart"]["logloss"] < result["test"]["tasks"]["cart"]["logloss"]
    assert "The planted teacher itself on test, checkout: auc" in run.out
    for name, report in result["by_frequency"]["tasks"].items():
        assert (
            report["all"]["auc"] == pytest.approx(result["test"]["tasks"][name]["auc"]) and len(report["tables"]) == 26
        )


@pytest.mark.slow
def test_rows_of_the_funnel_are_scored_without_their_labels(driver, tmp_path):
    result = last(driver(f"{FUNNEL} --save-onnx=m.onnx"))
    lines = (tmp_path / ".dlrm_store" / "multitask-synthetic-v1-4000-0-0.5.txt").read_text().splitlines(keepends=True)
    (tmp_path / "new.txt").write_text("".join(line.split("\t", 3)[3] for line in lines[3600:]))  # without labels
    scored = driver("--predict=new.txt --load-onnx=m.onnx --predictions=scores.tsv")
    assert scored.code == 0, scored.err
    labels = np.array([int(line[0]) for line in lines[3600:]])
    click = np.loadtxt(tmp_path / "scores.tsv", delimiter="\t")[:, 0]
    assert roc_auc_score(labels, click) == pytest.approx(result["test"]["tasks"]["click"]["auc"], abs=1e-4)


def test_two_labels_of_adult(driver, real_data):
    flags = f"{BASE} {ADAM} --data-set=adult --raw-data-file={real_data('adult')} --arch-mlp-bot=5-8-4"
    flags += " --arch-mlp-top=32-16-1 --mini-batch-size=256 --test-mini-batch-size=4096 --nepochs=2"
    for heads in ("towers", "mmoe"):
        test = last(driver(f"{flags} --tasks=income,never_married --task-heads={heads}"))["test"]
        assert test["tasks"]["income"]["samples"] == test["tasks"]["never_married"]["samples"] == 16_281
        assert min(values["auc"] for values in test["tasks"].values()) > 0.83
        assert max(values["ne"] for values in test["tasks"].values()) < 0.75


# ------------------------------------------------------------------------------------------ training


@pytest.mark.parametrize("loss", ["mse", "bce", "wbce"])
def test_accumulated_micro_batches_equal_one_large_batch(driver, clicks, loss):
    """With missing labels, of which a micro-batch may have few: they weigh as they would in the large one."""
    flags = f"{CLICKS} --loss-function={loss} --loss-weights=1-3 --learning-rate=0.5 --loss-threshold=0.01 --nepochs=2"
    small = driver(f"{flags} --mini-batch-size=10 --mlperf-grad-accum-iter=5 --print-freq=5")
    large = driver(f"{flags} --mini-batch-size=50 --print-freq=1")
    assert len(losses(large)) == 48 and losses(large)[-1] < losses(large)[0]
    assert losses(small) == pytest.approx(losses(large), abs=2e-5)
    for name, values in last(large)["test"]["tasks"].items():
        assert last(small)["test"]["tasks"][name]["logloss"] == pytest.approx(values["logloss"], rel=1e-4)


def test_the_printed_loss_is_the_weighted_sum_over_tasks(driver, clicks):
    flags = f"{CLICKS} --learning-rate=0 --mini-batch-size=1200 --print-freq=1"
    both, click, buy = (losses(driver(f"{flags} --task-weights={w}"))[0] for w in ("1,1", "1,0", "0,1"))
    assert 0 < buy < click and both == pytest.approx(click + buy, abs=2e-6)
    assert losses(driver(f"{flags} --task-weights=2,0.5"))[0] == pytest.approx(2 * click + 0.5 * buy, abs=2e-6)


def test_a_task_of_weight_zero_is_not_trained_and_not_in_the_mean(driver, clicks):
    drawn = driver(f"{CLICKS} --task-weights=1,0 --learning-rate=0 --save-model=drawn")
    run = driver(f"{CLICKS} --task-weights=1,0 --learning-rate=0.5 --save-model=run")
    before, after = (dlrm_mlet.checkpoint.load_checkpoint(drawn.folder / n / "last")[0] for n in ("drawn", "run"))
    assert torch.equal(before["top.0.towers.1.0.weight"], after["top.0.towers.1.0.weight"])
    assert not torch.equal(before["top.0.towers.0.0.weight"], after["top.0.towers.0.0.weight"])
    test = last(run)["test"]
    assert test["auc"] == test["tasks"]["click"]["auc"] != test["tasks"]["buy"]["auc"]


@pytest.mark.parametrize("name", model_names())
def test_an_interrupted_run_equals_a_whole_one_bit_for_bit(driver, clicks, name):
    heads = "mmoe" if name in ("dlrm", "dcn", "deepfm") else "towers"
    options = f"{CLICKS} {ADAM} --arch-model={name} --task-heads={heads} --batch-norm --dropout=0.2"
    options += " --mlperf-grad-accum-iter=2"
    whole = driver(f"{options} --nepochs=2 --save-collapsed=whole")
    driver(f"{options} --nepochs=1 --save-model=run")
    rest = driver(f"{options} --nepochs=2 --resume=run --save-collapsed=rest")
    assert last(rest)["test"] == last(whole)["test"]
    assert (whole.folder / "whole").read_bytes() == (whole.folder / "rest").read_bytes()


def test_one_task_that_is_named_is_the_default(driver, tmp_path, clicks):
    flags = CLICKS.replace("--tasks=click,buy", "")
    default, named = (driver(f"{flags} {more}") for more in ("--save-collapsed=a", "--tasks=click --save-collapsed=b"))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() and losses(default) == losses(named)
    assert set(last(named)["test"]) == METRICS and last(default)["test"] == last(named)["test"]


def test_a_task_of_one_class_has_no_auc_and_is_left_out_of_the_mean(driver, tmp_path, clicks):
    """Nobody buys in the validation and the test part."""
    header, *rows = (tmp_path / "clicks.csv").read_text().splitlines()
    rows = [row.split(",") for row in rows]
    for number, row in enumerate(rows):
        row[2] = "0" if row[2] and number >= 1200 else row[2]
    (tmp_path / "clicks.csv").write_text("\n".join([header, *map(",".join, rows)]) + "\n")
    run = driver(f"{CLICKS} --early-stop-patience=2 --nepochs=2")
    test = last(run)["test"]
    assert test["tasks"]["buy"]["auc"] is None and test["tasks"]["buy"]["logloss"] > 0
    assert test["auc"] == test["tasks"]["click"]["auc"] and "test, buy: auc undefined" in run.out


def test_a_task_without_a_label_in_the_test_part_is_undefined_there(driver, tmp_path, clicks):
    header, *rows = (tmp_path / "clicks.csv").read_text().splitlines()
    rows = [row.split(",") for row in rows]
    for row in rows[1200:]:
        row[2] = ""
    (tmp_path / "clicks.csv").write_text("\n".join([header, *map(",".join, rows)]) + "\n")
    run = driver(f"{CLICKS} --frequency-report")
    result = last(run)
    assert result["test"]["tasks"]["buy"] == {**dict.fromkeys(METRICS), "samples": 0}
    assert "buy: auc undefined, logloss undefined, ne undefined, accuracy undefined, 0 samples" in run.out
    assert list(result["by_frequency"]["tasks"]) == ["click"]


@pytest.mark.parametrize("flags", ["--hash-method=learned --hash-compression=2 --hash-min-rows=5", "--emb-reinit=epoch",
                                   "--qr-flag --qr-threshold=5", "--md-flag --md-threshold=5",
                                   "--emb-precision=bf16", "--emb-lr-frequency=log --emb-l2=0.01"])  # fmt: skip
@pytest.mark.parametrize("name", ["dlrm", "deepfm"])
def test_tables_of_every_kind_have_several_tasks(driver, clicks, name, flags):
    run = driver(f"{CLICKS} {ADAM} --arch-model={name} {flags} --nepochs=2")
    assert losses(run)[-1] < losses(run)[0] and set(last(run)["test"]["tasks"]) == {"click", "buy"}


def test_bf16_arithmetic_follows_fp32(driver, clicks, monkeypatch):
    monkeypatch.setattr(dlrm_mlet, "computes_in_bf16", lambda _device: True)
    flags = f"{CLICKS} {ADAM} --task-heads=mmoe"
    exact, rough = losses(driver(flags)), losses(driver(f"{flags} --precision=bf16"))
    assert rough == pytest.approx(exact, abs=0.02) and rough != exact


@pytest.mark.slow
@pytest.mark.parametrize("heads", ["towers", "mmoe"])
def test_a_compiled_run_follows_a_plain_one(driver, clicks, heads):
    flags = f"{CLICKS} --learning-rate=0.5 --task-heads={heads}"
    assert losses(driver(f"{flags} --compile")) == pytest.approx(losses(driver(flags)), abs=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [8, 4])
def test_an_exported_file_with_quantised_tables_is_scored_by_task(driver, clicks, bits):
    exact = last(driver(f"{CLICKS} {ADAM} --save-model=run"))
    run = driver(
        f"{CLICKS} {ADAM} --load-model=run/last --inference-only --quantize-emb-with-bit={bits} --save-onnx=q.onnx"
    )
    onnx = last(run)["onnx"]
    assert set(onnx["tasks"]) == {"click", "buy"} and onnx["table_bits"] == bits
    for name, values in onnx["tasks"].items():
        assert values["logloss"] == pytest.approx(exact["test"]["tasks"][name]["logloss"], abs=0.05)
        assert values["samples"] == exact["test"]["tasks"][name]["samples"]


def test_tensorboard_has_a_curve_a_task(driver, clicks, monkeypatch):
    written = []

    class Board:
        def add_scalar(self, name, value, step):
            written.append((name, value))

    monkeypatch.setattr(dlrm_mlet, "open_board", lambda directory: Board() if directory else None)
    tasks = last(driver(f"{CLICKS} --tensor-board-filename=board"))["test"]["tasks"]
    assert {("Test/AUC/click", tasks["click"]["auc"]), ("Test/AUC/buy", tasks["buy"]["auc"])} <= set(written)


# ------------------------------------------------------------------------------------------ refusals

BAD = {
    "--tasks=click,": "a name is empty",
    "--tasks=click,,buy": "a name is empty",
    "--tasks=click,buy,click": "label click is named twice",
    "--tasks=click,sold": "schema has no label column sold (it has: click, buy)",
    "--task-weights=1": "--task-weights has 1 weights for 2 tasks (click, buy)",
    "--task-weights=1,1,1": "--task-weights has 3 weights for 2 tasks",
    "--task-weights=0,0": "--task-weights are all 0",
    "--task-weights=1,-1": "-1 lies outside 0",
    "--task-weights=1,x": "'x' is not a number",
    "--task-heads=ple": "invalid choice: 'ple'",
    "--task-heads=mmoe --mmoe-experts=0": "0 is below 1",
    "--mmoe-experts=8": "--mmoe-experts needs --task-heads=mmoe",
    "--task-heads=mmoe --arch-mlp-top=1": "mmoe heads need hidden layers",
    "--tasks=click --task-heads=mmoe": "--task-heads is for several tasks",
    "--tasks=click --task-weights=2": "--task-weights is for several tasks",
    "--data-generation=random": "--tasks=click,buy needs --data-generation=dataset",
}


@pytest.mark.parametrize("flags", BAD)
def test_bad_flags_are_one_line_before_any_data_is_prepared(driver, clicks, flags):
    run = driver(f"{CLICKS} {flags}")
    assert run.code == 2 and BAD[flags] in run.err and run.err.count("\n") == 1, run.err
    assert not (run.folder / ".dlrm_store").exists()


@pytest.mark.parametrize("start", ["--resume=run --nepochs=2", "--load-model=run"])
def test_a_checkpoint_of_other_tasks_is_refused(driver, clicks, start):
    assert driver(f"{CLICKS} --save-model=run").code == 0
    changed = {
        "--tasks=buy,click": "was trained with --tasks=click,buy, this run has buy,click",
        "--tasks=buy": "was trained with --tasks=click,buy, this run has buy",
        "--task-weights=1,0.5": "was trained with --task-weights=",
        "--task-heads=mmoe": "towers",
    }
    for flags, message in changed.items():
        run = driver(f"{CLICKS} {flags} {start}")
        assert run.code == 2 and message in run.err and run.err.count("\n") == 1, run.err
    assert driver(f"{CLICKS} {start}").code == 0


def test_a_checkpoint_that_does_not_say_its_task_has_one(driver, tmp_path, clicks):
    """As older versions wrote them."""
    flags = CLICKS.replace("--tasks=click,buy", "")
    assert driver(f"{flags} --save-model=run").code == 0
    path = tmp_path / "run" / "best" / "checkpoint.json"
    content = json.loads(path.read_text())
    assert content["state"].pop("tasks")
    path.write_text(json.dumps(content))
    assert driver(f"{flags} --load-model=run --inference-only").code == 0
    refused = driver(f"{flags} --tasks=buy --load-model=run --inference-only")
    assert refused.code == 2 and "was trained with --tasks=click, this run has buy" in refused.err
