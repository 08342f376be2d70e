"""scripts/rare_items.py on made-up runs: figures by hand, and what it refuses."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

import rare_items  # noqa: E402 (the scripts are no package)


def quality(samples, auc, logloss):
    return {"samples": samples, "positives": samples // 2, "auc": auc, "logloss": logloss}


def event_of(seed, gain):
    """A run whose rare half is better by `gain`."""
    rare = {"low": 0, "high": 3, **quality(60, 0.6 + 0.01 * seed + gain, 0.5)}
    often = {"low": 4, "high": 4, **quality(40, None, 0.4 - gain)}
    groups = {"bins": [rare, often], "empty": None}
    report = {
        "all": quality(110, 0.7, 0.45),
        "rarest": groups | {"empty": quality(10, 0.5, 0.6)},
        "rare_ids": groups | {"below": 10},
        "tables": {"C1": groups},
    }
    test = {"auc": 0.7, "logloss": 0.45, "ne": 0.9, "samples": 110}
    data = {"data_set": "kaggle", "label": "label", "split": "by day"}
    return {"event": "result", "seed": seed, "test": test, "data_sha256": "ab", "data": data, "by_frequency": report}


def write(folder, name, event):
    path = folder / f"{name}-{event['seed']}.jsonl"
    path.write_text(json.dumps({"event": "train"}) + "\n" + json.dumps(event) + "\n")
    return path


@pytest.fixture
def runs(tmp_path):
    """Files of three seeds of both models, whose gains are 0.01, 0.02, 0.03; the second model's in another order."""
    single = [write(tmp_path, "single", event_of(seed, 0.0)) for seed in (1, 2, 3)]
    return single, [write(tmp_path, "mlet", event_of(seed, 0.01 * seed)) for seed in (3, 1, 2)]


def call(capsys, single, mlet, *more):
    code = rare_items.main([*map(str, single), "--against", *map(str, mlet), *map(str, more)])
    output = capsys.readouterr()
    return code, output.out, output.err


def test_differences_by_hand(runs, capsys):
    code, out, err = call(capsys, *runs)
    lines = out.splitlines()
    assert (code, err) == (0, "") and lines[0].startswith("3 seeds, 110 test rows")
    assert lines[2] == "By how often the rarest id of a row occurs in training:"
    # as in test_paired_difference: standard error 0.01 / sqrt(3), t(0.975, 2) = 4.3027
    interval = ["+0.02000", "[-0.00484,", "+0.04484]"]
    assert lines[5].split() == [
        "1", "0-3", "60", "30", "0.62000", "0.64000", *interval, "0.50000", "0.50000", "+0.00000", "[+0.00000,",
        "+0.00000]",
    ]  # fmt: skip
    assert lines[6].split() == [
        "2", "4", "40", "20", "undefined", "undefined", "0.40000", "0.38000", "-0.02000", "[-0.04484,", "+0.00484]",
    ]  # fmt: skip
    assert lines[4].split()[:4] == ["all", "110", "55", "0.70000"] and lines[7].split()[:4] == ["no", "id", "10", "5"]
    assert lines[9] == "By how many ids of a row occur fewer than 10 times in training:"
    assert len(lines) == 13 and len({len(line) for line in lines[3:8]}) == 1


def test_tables_and_the_csv_file(runs, capsys, tmp_path):
    code, out, _ = call(capsys, *runs, "--tables", "--csv", tmp_path / "rare.csv")
    assert code == 0 and "By how often the id of table C1 occurs in training:" in out
    with open(tmp_path / "rare.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    places = [(row["table"], row["bin"]) for row in rows]
    assert places == [
        ("(rarest)", "all"), ("(rarest)", "1"), ("(rarest)", "2"), ("(rarest)", "no id"),
        ("(rare ids)", "1"), ("(rare ids)", "2"), ("C1", "1"), ("C1", "2"),
    ]  # fmt: skip
    assert rows[1] | {"seeds": "3", "count_low": "0", "count_high": "3", "samples": "60", "positives": "30"} == rows[1]
    values = {name: float(rows[1][f"auc_{name}"]) for name in rare_items.FIGURES}
    assert values == pytest.approx(
        {"base": 0.62, "against": 0.64, "difference": 0.02, "difference_low": -0.00484, "difference_high": 0.04484},
        abs=1e-5,
    )
    assert rows[2]["auc_base"] == rows[2]["auc_difference"] == rows[0]["count_low"] == ""


def test_the_picture(runs, capsys, tmp_path):
    pytest.importorskip("matplotlib")
    assert call(capsys, *runs, "--png", tmp_path / "rare.png")[0] == 0
    assert (tmp_path / "rare.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_line_says_how_to_install_it(runs, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, out, err = call(capsys, *runs, "--png", tmp_path / "rare.png")
    assert (code, out, err) == (2, "", "error: --png needs matplotlib: pip install matplotlib\n")


def change_rows(event):
    event["by_frequency"]["tables"]["C1"]["bins"][0]["high"] = 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda event: event.update(data_sha256="cd"), "have other raw data"),
        (lambda event: event["data"].update(split="by user"), "have another data set, label or split"),
        (change_rows, "have other bins"),
        (lambda event: event["by_frequency"]["rare_ids"].update(below=5), "have other bins"),
        (lambda event: event.update(by_frequency=None), "run it with --frequency-report"),
        (lambda event: event.pop("by_frequency"), "run it with --frequency-report"),
        (lambda event: event.update(seed=2), "seed 2 is there twice"),
        (lambda event: event.update(seed=4), "seeds [1, 2, 3] against [1, 2, 4]"),
        (lambda event: event.update(event="train"), "the run did not finish"),
    ],
)
def test_runs_that_cannot_be_compared_are_one_line(runs, capsys, change, message):
    single, mlet = runs
    event = event_of(3, 0.03)
    change(event)
    mlet[0].write_text(json.dumps(event) + "\n")
    code, out, err = call(capsys, single, mlet)
    assert code == 2 and out == "" and len(err.splitlines()) == 1
    assert err.startswith("error: ") and message in err and (str(mlet[0]) in err or "seeds" in message)


def test_one_seed_has_no_interval(runs, capsys):
    code, _, err = call(capsys, runs[0][:1], runs[1][1:2])
    assert code == 2 and "at least two" in err


def test_the_command(runs, tmp_path, shell_environment):
    """From another folder, with relative names."""
    names = [[path.name for path in files] for files in runs]
    command = ["bash", SCRIPTS / "rare_items.sh", *names[0], "--against", *names[1], "--csv", "rare.csv"]
    options = {"cwd": tmp_path, "capture_output": True, "text": True, "env": shell_environment}
    done = subprocess.run(command, **options)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("3 seeds")
    assert (tmp_path / "rare.csv").exists()
    done = subprocess.run([*command[:-2], "--csv", "no/rare.csv"], **options)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1
