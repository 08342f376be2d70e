"""scripts/analyse.py from end to end on small runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mlet.checkpoint import load_checkpoint, save_checkpoint

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

import analyse  # noqa: E402 (the scripts are no package)

SMALL = (
    "--arch-sparse-feature-size=4 --arch-mlp-bot=13-8-4 --arch-mlp-top=8-1 --loss-function=bce --learning-rate=0.1 "
    "--mini-batch-size=64 --test-mini-batch-size=512 --print-freq=1000 --save-model=run"
)
RANDOM = (
    "--arch-embedding-size=50-20-9 --arch-sparse-feature-size=4 --arch-mlp-bot=5-8-4 --arch-mlp-top=8-1 "
    "--mini-batch-size=16 --num-batches=3 --loss-function=bce --round-targets=True --learning-rate=0.1 --save-model=run"
)


@pytest.fixture
def no_pictures(monkeypatch):
    """As where matplotlib is not installed; also, drawing is most of the time of a small run."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)


@pytest.fixture
def trained(driver, small_tsv):
    """Train on the small file: trained("--flag ...") -> the run's folder."""

    def run(flags=""):
        done = driver(f"--data-generation=dataset --data-set=kaggle {SMALL} {flags} --raw-data-file={small_tsv}")
        assert done.code == 0, done.err
        return done.folder

    return run


def report_of(folder):
    text = (folder / "report.md").read_text()
    return json.loads((folder / "report.json").read_text(), parse_constant=pytest.fail), text


def write_spectra(path, names, events=3):
    lines = ['{"event": "train", "epoch": 0, "iteration": 1}']
    for at in range(events):
        values = dict.fromkeys(names, [1.0 + at, 0.5, 0.25, 0.1])
        lines.append(json.dumps({"event": "spectrum", "epoch": at, "iteration": 5, "tables": values}))
    path.write_text("\n".join(lines) + '\n{"event": "spec')


def test_a_run_is_analysed(trained, capsys):
    pytest.importorskip("matplotlib", reason="the pictures need pip install matplotlib")
    folder = trained("--mlet-inner-dim=8 --mlet-min-rows=20 --nepochs=2")
    write_spectra(folder / "run.jsonl", [f"C{t}" for t in range(1, 27)])
    assert analyse.main(["run", "--metrics-file=run.jsonl", "--batches=3"]) == 0
    assert capsys.readouterr().out.endswith("Report: run/analysis/report.md\n")
    numbers, text = report_of(folder / "run" / "analysis")
    assert numbers["batches"] == 3 and numbers["epoch"] == 2 and 0 < numbers["mean_loss"] < 1
    assert list(numbers["tables"]) == [f"C{t}" for t in range(1, 27)]
    for table in numbers["tables"].values():
        factorised = table["rows"] >= 20
        step = table["step"]
        assert (table["inner_dim"], table["width"], len(table["singular_values"])) == (8 * factorised, 4, 4)
        assert 1 <= table["stable_rank"] <= 4 and 1 <= table["effective_rank"] <= 4 and not table["skipped"]
        assert (step["share_outside"] > 0) == (step["outside"] > 0) == factorised
        assert 0 < step["own"] and step["batch_rows"] <= 64 and step["batch_rows"] <= step["table_rows"]
        assert (table["imbalance"] is not None) == factorised
        if factorised:
            assert table["laws"]["general"]["difference"] < 1e-4  # float32
            assert 0.01 < table["laws"]["balanced"]["difference"] < 2
    assert [event["epochs"] for event in numbers["trajectory"]] == pytest.approx(
        [5 / 29, 1 + 5 / 29, 2 + 5 / 29], rel=0.1
    )
    for picture in ("spectra.png", "outside.png", "law.png", "trajectories.png"):
        assert (folder / "run" / "analysis" / picture).stat().st_size > 5000 and f"({picture})" in text
    rows = [line for line in text.splitlines() if line.startswith("| C")]
    assert len(rows) == 26 and all(line.count("|") == len(analyse.COLUMNS) + 1 for line in rows)
    assert all(f"**{name}" in text for name in ("s_1", "out-of-batch norm", "imbalance", "general law", "balanced law"))


@pytest.mark.usefixtures("no_pictures")
def test_a_single_layer_has_no_step_out_of_the_batch(trained):
    folder = trained("--optimizer=adagrad")
    assert analyse.main(["run/last", "--batches=2", "--out=found/here"]) == 0
    numbers, text = report_of(folder / "found" / "here")
    assert all(table["step"]["share_outside"] == 0 and not table["laws"] for table in numbers["tables"].values())
    assert "trained with adagrad, whose steps differ" in text


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ("--qr-flag --qr-threshold=100 --mlet-inner-dim=8", ("C3.quotient", "C3.remainder", "C9")),
        ("--md-flag --md-threshold=100 --mlet-inner-dim=8 --emb-precision=bf16", ("C3", "C9")),
        ("--vocabulary-min-count=3 --mlet-inner-dim=8 --max-ind-range=200", ("C3", "C9")),
    ],
)
def test_every_kind_of_table_has_a_step(trained, flags, names):
    folder = trained(flags)
    assert analyse.main(["run", "--batches=2"]) == 0
    numbers, _ = report_of(folder / "run" / "analysis")
    assert set(names) <= set(numbers["tables"])
    assert all(table["laws"]["general"]["difference"] < 1e-3 for table in numbers["tables"].values())


@pytest.mark.usefixtures("no_pictures")
def test_bags_and_random_data(driver):
    run = driver(f"{RANDOM} --mlet-inner-dim=8")
    assert run.code == 0 and analyse.main(["run"]) == 0
    numbers, _ = report_of(run.folder / "run" / "analysis")
    assert numbers["batches"] == 3 and [table["rows"] for table in numbers["tables"].values()] == [50, 20, 9]
    assert all(table["laws"]["general"]["difference"] < 1e-4 for table in numbers["tables"].values())


@pytest.mark.usefixtures("no_pictures")
def test_learned_pooling_weights_leave_the_spectra(driver):
    run = driver(f"{RANDOM} --mlet-inner-dim=8 --weighted-pooling=learned")
    assert run.code == 0 and analyse.main(["run"]) == 0
    numbers, text = report_of(run.folder / "run" / "analysis")
    for table in numbers["tables"].values():
        assert table["singular_values"][0] > 0 and not table["step"] and "pooling weights" in table["skipped"]
    assert "T0 has no step: learned pooling weights" in text


@pytest.mark.usefixtures("no_pictures")
def test_controls_are_analysed_as_what_they_are(driver):
    run = driver(f"{RANDOM} --mlet-inner-dim=8 --mlet-w2-rate-multiplier=0 --emb-learning-rate-multiplier=2")
    assert run.code == 0 and analyse.main(["run"]) == 0
    numbers, text = report_of(run.folder / "run" / "analysis")
    for table in numbers["tables"].values():
        step = table["step"]
        assert step["own"] == pytest.approx(step["total"]) and step["outside"] == step["cross"] == step["second"] == 0
        assert table["laws"]["general"]["difference"] < 1e-4
    assert "Rows and W2 take 2 and 0 times that rate" in text

    run = driver(f"{RANDOM} --mlet-inner-dim=8 --mlet-cross-term=masked --save-model=masked")
    assert run.code == 0 and analyse.main(["masked"]) == 0
    numbers, text = report_of(run.folder / "masked" / "analysis")
    assert not any(table["step"] for table in numbers["tables"].values())
    assert "T0 has no step: the run masked the cross-category term" in text


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("model", ["wide-deep", "dcn-v2", "autoint"])
def test_every_model_is_analysed(driver, model):
    run = driver(f"{RANDOM} --mlet-inner-dim=8 --arch-model={model}")
    assert run.code == 0 and analyse.main(["run"]) == 0
    numbers, _ = report_of(run.folder / "run" / "analysis")
    assert all(0 < table["laws"]["general"]["difference"] < 1e-4 for table in numbers["tables"].values())


@pytest.mark.usefixtures("no_pictures")
def test_without_matplotlib_the_report_has_the_numbers(driver, capsys):
    run = driver(f"{RANDOM} --mlet-inner-dim=8")
    assert analyse.main(["run"]) == 0
    assert "No pictures: they need pip install matplotlib" in capsys.readouterr().out
    _, text = report_of(run.folder / "run" / "analysis")
    assert "| T0 | 50 | 8 | 4 |" in text and ".png" not in text and "pip install matplotlib" in text


def error_of(capsys, *arguments):
    capsys.readouterr()
    try:
        code = analyse.main(arguments)
    except SystemExit as stop:
        code = stop.code
    error = capsys.readouterr().err
    assert code == 2 and len(error.splitlines()) == 1 and error.startswith("analyse.py: error: "), error
    return error


@pytest.mark.usefixtures("no_pictures")
def test_what_is_missing_is_one_line(trained, capsys):
    assert "nowhere does not exist" in error_of(capsys, "nowhere")
    assert "0 is below 1" in error_of(capsys, "run", "--batches=0")
    trained("--mlet-inner-dim=8")
    assert "none.jsonl" in error_of(capsys, "run", "--metrics-file=none.jsonl")
    (store,) = (path for path in Path(".dlrm_store").iterdir() if path.is_dir())
    store.rename("moved")
    error = error_of(capsys, "run")
    assert f"the store {store.name} that the run was trained on is not at {store}" in error and "--store" in error
    assert analyse.main(["run", "--store=moved", "--batches=1", "--out=a"]) == 0  # without the raw data's path
    schema = json.loads(Path("moved/schema.json").read_text())
    Path("moved/schema.json").write_text(json.dumps(schema | {"key": "other"}))
    assert f"the store {store.name}" in error_of(capsys, "run", "--store=moved")
    save_checkpoint("other", {"w": torch.ones(1)}, {})
    assert "not a checkpoint of dlrm_mlet.py" in error_of(capsys, "other")


def test_a_run_that_diverged_is_named(driver, capsys):
    run = driver(f"{RANDOM} --mlet-inner-dim=8")
    tensors, state = load_checkpoint(run.folder / "run" / "last")
    first = next(name for name in tensors if name.endswith("inner_projection"))
    tensors[first] = tensors[first] * torch.inf
    save_checkpoint("bad", tensors, state)
    assert "table T0: the table is not finite" in error_of(capsys, "bad")


def test_the_shell_script_keeps_the_callers_folder(driver, shell_environment):
    run = driver(f"{RANDOM} --mlet-inner-dim=8")
    Path("without").mkdir()
    Path("without/matplotlib.py").write_text("raise ImportError")
    command = ["bash", str(SCRIPTS / "analyse.sh"), "run", "--batches=1"]
    environment = shell_environment | {"PYTHONPATH": str(run.folder / "without")}
    done = subprocess.run(command, cwd=run.folder, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert not done.stderr and (run.folder / "run" / "analysis" / "report.md").is_file()
