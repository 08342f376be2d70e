"""The driver on data sets of every shape: people's own columns, no dense features, bags, several labels."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import dlrm_mlet

ROOT = Path(dlrm_mlet.__file__).resolve().parent
TRAIN = (
    "--data-generation=dataset --arch-sparse-feature-size=4 --arch-mlp-top=16-1 --loss-function=bce "
    "--optimizer=adagrad --learning-rate=0.05 --mini-batch-size=32 --print-freq=50 --metrics-file=run.jsonl"
)


def write_clicks(folder, rows=1500, dense=True, seed=0):
    """clicks.csv and clicks.json; the click depends on user and tags, the purchase (empty without a click) too."""
    rng = np.random.default_rng(seed)
    lines = ["ts,click,buy,price,user,city,tags"]
    liking = rng.normal(size=40)
    for row in range(rows):
        user, tags = int(rng.integers(0, 40)), rng.integers(0, 6, rng.integers(0, 4))
        click = int(rng.random() < 1 / (1 + np.exp(-2 * liking[user] - (tags == 2).sum() + 0.5)))
        buy = int(rng.random() < 0.5 + 0.4 * np.sign(liking[user])) if click else ""
        shown = "|".join(f"t{t}" for t in tags)
        lines.append(f"{row // 2},{click},{buy},{rng.integers(0, 500)},u{user},c{row % 7},{shown}")
    (folder / "clicks.csv").write_text("\n".join(lines) + "\n")
    schema = {
        "files": "clicks.csv",
        "labels": ["click", "buy"],
        "optional_labels": ["buy"],
        "dense": {"price": "log1p"} if dense else {},
        "categorical": ["user", "city"],
        "multi_hot": {"tags": "|"},
        "split": {"by": "time", "column": "ts"},
    }
    (folder / "clicks.json").write_text(json.dumps(schema))


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("model", ["", "--mlet-inner-dim=8", "--arch-interaction-op=cat --mlet-inner-dim=8"])
def test_own_data_from_csv_to_predictions(driver, tmp_path, dense, model):
    write_clicks(tmp_path, dense=dense)
    bottom = "--arch-mlp-bot=1-8-4" if dense else ""
    run = driver(
        f"{TRAIN} {bottom} {model} --nepochs=4 --data-set=schema --raw-data-file=clicks.json --save-onnx=m.onnx"
    )
    assert run.code == 0, run.err
    result = run.events[-1]
    assert result["test"]["auc"] > 0.65
    assert result["data"]["rows"] == {"train": 1200, "val": 150, "test": 150}
    assert result["data"]["split"] in run.out and run.out.count(result["data"]["split"]) == 2
    header, *rows = (tmp_path / "clicks.csv").read_text().splitlines()
    test = rows[1350:]
    unlabelled = [line.split(",", 3)[3] for line in (header, *test)]
    (tmp_path / "new.csv").write_text("\n".join(unlabelled) + "\n")
    scored = driver("--predict=new.csv --load-onnx=m.onnx --predictions=scores.txt")
    assert scored.code == 0, scored.err
    scores = np.loadtxt(tmp_path / "scores.txt")
    labels = [int(line.split(",")[1]) for line in test]
    assert roc_auc_score(labels, scores) == pytest.approx(result["test"]["auc"], abs=1e-6)


def test_a_second_label_is_trained_on_the_rows_that_have_it(driver, tmp_path):
    write_clicks(tmp_path)
    flags = f"{TRAIN} --arch-mlp-bot=1-8-4 --data-set=schema --raw-data-file=clicks.json --tasks=buy"
    run = driver(flags)
    assert run.code == 0, run.err
    rows = [line.split(",") for line in (tmp_path / "clicks.csv").read_text().splitlines()[1:]]
    clicked = [sum(row[1] == "1" for row in part) for part in (rows[:1200], rows[1200:1350], rows[1350:])]
    data = run.events[-1]["data"]
    assert data["label"] == "buy" and list(data["rows"].values()) == clicked
    assert run.events[-1]["test"]["samples"] == clicked[2]
    assert re.search(r"it (\d+)/\1 of epoch 0", run.out)[1] == str(-(-clicked[0] // 32))


def test_rare_ids_share_a_trained_unknown_row(driver, tmp_path, small_tsv):
    flags = f"{TRAIN} --arch-mlp-bot=13-8-4 --raw-data-file={small_tsv} --vocabulary-min-count=3"
    run = driver(f"{flags} --save-onnx=m.onnx")
    assert run.code == 0, run.err
    lines = small_tsv.read_text().splitlines()[1800:1950]
    (tmp_path / "test.txt").write_text("\n".join(lines) + "\n")
    assert driver("--predict=test.txt --load-onnx=m.onnx --predictions=scores.txt").code == 0
    scores, labels = np.loadtxt(tmp_path / "scores.txt"), [int(line[0]) for line in lines]
    assert roc_auc_score(labels, scores) == pytest.approx(run.events[-1]["test"]["auc"], abs=1e-6)
    schema = json.loads((tmp_path / "m.onnx.vocabulary" / "schema.json").read_text())
    assert len(schema["trained_unknown"]) > 10


def test_bad_rows_are_skipped_and_counted(driver, tmp_path, small_tsv):
    lines = small_tsv.read_text().splitlines()
    lines[4] = lines[4].replace("\t", ",")
    lines[9] = "2" + lines[9][1:]
    (tmp_path / "train.txt").write_text("\n".join(lines) + "\n")
    flags = f"{TRAIN} --arch-mlp-bot=13-8-4 --raw-data-file=train.txt --prepare-only"
    refused = driver(flags)
    assert refused.code == 2 and "train.txt, line 5: 1 columns, expected 40" in refused.err
    run = driver(f"{flags} --bad-rows=skip")
    assert run.code == 0, run.err
    assert "Left out 2 rows that cannot be read, the first: train.txt, line 5: 1 columns" in run.out
    assert "2098 rows of kaggle" in run.out


BAD_CELLS = {  # (line from 0 on, field, value) -> what the one line says
    (5, 3, "1e39"): "clicks.csv, line 6, column price: '1e39' is not a finite number of 32 bits",
    (1, 0, "xx"): "clicks.csv, line 2, column ts: 'xx' is not an integer",
    (7, 1, "2"): "clicks.csv, line 8, column click: '2' is not a label",
}


@pytest.mark.parametrize("place", BAD_CELLS)
def test_a_bad_cell_is_named_or_skipped(driver, tmp_path, place):
    write_clicks(tmp_path, rows=100)
    line, field, value = place
    rows = [row.split(",") for row in (tmp_path / "clicks.csv").read_text().splitlines()]
    rows[line][field] = value
    (tmp_path / "clicks.csv").write_text("\n".join(map(",".join, rows)) + "\n")
    flags = f"{TRAIN} --arch-mlp-bot=1-8-4 --data-set=schema --raw-data-file=clicks.json --prepare-only"
    refused = driver(flags)
    assert refused.code == 2 and BAD_CELLS[place] in refused.err and len(refused.err.splitlines()) == 1
    skipped = driver(f"{flags} --bad-rows=skip")
    assert skipped.code == 0 and "Left out 1 rows" in skipped.out and "99 rows of schema" in skipped.out


def test_where_every_row_is_bad_the_first_reason_is_said(driver, tmp_path):
    (tmp_path / "train.txt").write_text("nonsense\n" * 9)
    run = driver(f"{TRAIN} --arch-mlp-bot=13-8-4 --raw-data-file=train.txt --bad-rows=skip")
    assert run.code == 2
    assert "no rows but 9 that cannot be read, the first: train.txt, line 1: 1 columns, expected 40" in run.err


REFUSED = {
    "--tasks=sold": "schema has no label column sold (it has: click, buy)",
    "--tasks=click,sold": "schema has no label column sold (it has: click, buy)",
    "--data-option=split=day": "this data set has no such option (it has: none)",
    "--data-option=day": "not of the form NAME=VALUE",
    "--vocabulary-min-count=0": "0 is below 1",
    "--arch-mlp-bot=1-8-5": "--arch-mlp-bot ends in width 5, but the tables' vectors are 4 wide",
}


@pytest.mark.parametrize("flag", REFUSED)
def test_bad_flags_are_refused_before_the_data_is_read(driver, tmp_path, flag):
    write_clicks(tmp_path, rows=20)
    run = driver(f"{TRAIN} --arch-mlp-bot=1-8-4 --data-set=schema --raw-data-file=clicks.json", flag)
    assert run.code == 2 and REFUSED[flag] in run.err and len(run.err.splitlines()) == 1
    assert not (tmp_path / ".dlrm_store").exists()


def test_prepare_only_needs_data(driver):
    run = driver("--prepare-only")
    assert run.code == 2 and "--prepare-only needs --data-generation=dataset" in run.err


def test_resuming_with_bags_and_no_dense_features(driver, tmp_path):
    write_clicks(tmp_path, dense=False)
    flags = f"{TRAIN} --data-set=schema --raw-data-file=clicks.json --mlet-inner-dim=8 --nepochs=2"
    whole = driver(f"{flags} --save-collapsed=whole.safetensors").events[-1]["test"]
    assert driver(f"{flags.replace('--nepochs=2', '--nepochs=1')} --save-model=run").code == 0
    assert driver(f"{flags} --resume=run").events[-1]["test"] == whole


@pytest.mark.slow
def test_the_readmes_own_data_example_runs(tmp_path):
    text = (ROOT / "README.md").read_text()
    example = text[text.index("### Your own columns") : text.index("## Flags you will want")]
    (python, _), (schema, _), (shell, _) = re.findall(r"```(?:python|yaml|bash)\n(.*?)(```)", example, flags=re.S)[:3]
    (tmp_path / "make_clicks.py").write_text(python)
    (tmp_path / "clicks.yaml").write_text(schema)
    subprocess.run([sys.executable, "make_clicks.py"], cwd=tmp_path, check=True)
    command = shell.replace("python dlrm_mlet.py", f"{sys.executable} {ROOT / 'dlrm_mlet.py'}")
    done = subprocess.run(["bash", "-euc", command], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "scores.txt").read_text().splitlines()) == 20_000


REAL = {
    "frappe": ("frappe", "", {"train": 202_009, "val": 57_722, "test": 28_860}),
    "movielens-1m": ("movielens1m", "", {"train": 591_052, "val": 73_882, "test": 73_882}),
    "adult": ("adult", "--arch-mlp-bot=5-8-4 --tasks=never_married", {"train": 29_305, "val": 3_256, "test": 16_281}),
    "avazu": ("avazu/avazu_10k.csv", "", {"train": 7_999, "val": 1_000, "test": 1_000}),
    "kaggle": ("criteo/criteo_kaggle_10k.tsv", "--arch-mlp-bot=13-8-4", {"train": 8_572, "val": 714, "test": 714}),
}


@pytest.mark.parametrize("data_set", REAL)
def test_real_data_sets_train_and_export(driver, real_data, data_set):
    name, flags, rows = REAL[data_set]
    run = driver(
        f"{TRAIN} {flags} --data-set={data_set} --num-batches=20 --test-mini-batch-size=8192 --save-onnx=m.onnx",
        f"--raw-data-file={real_data(name)}",
    )
    assert run.code == 0, run.err
    assert run.events[-1]["data"]["rows"] == rows
    assert "onnxruntime differs" in run.out


@pytest.mark.slow
def test_globo_trains_and_exports(driver, real_data):
    run = driver(
        f"{TRAIN} --arch-mlp-bot=1-4 --data-set=globo --num-batches=20 --test-mini-batch-size=65536 --save-onnx=m.onnx",
        f"--raw-data-file={real_data('globo')}",
        "--tasks=long_dwell",
    )
    assert run.code == 0, run.err
    assert sum(run.events[-1]["data"]["rows"].values()) == 5_976_039 - 1_048_594


@pytest.mark.parametrize("tasks", ["buy", "click,buy"])
def test_a_label_that_no_row_has_is_refused(driver, tmp_path, tasks):
    """It would be served by a head that nothing has trained."""
    write_clicks(tmp_path)
    header, *rows = (tmp_path / "clicks.csv").read_text().splitlines()
    cells = [line.split(",") for line in rows]
    (tmp_path / "clicks.csv").write_text("\n".join([header, *(",".join([*c[:2], "", *c[3:]]) for c in cells)]) + "\n")
    flags = f"{TRAIN} --arch-mlp-bot=1-8-4 --data-set=schema --raw-data-file=clicks.json --tasks={tasks}"
    run = driver(f"{flags} --save-onnx=m.onnx")
    assert run.code == 2 and "the label buy is unknown in all 1500 rows" in run.err and run.err.count("\n") == 1
    assert not (tmp_path / "m.onnx").exists()
