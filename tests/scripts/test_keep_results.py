"""What is kept of a study: every finished run in a line, tables without folders."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import keep_results  # noqa: E402


def events(seed, last=True):
    config = {"raw_data_file": "/some/where/train.txt", "nepochs": 3, "optimizer": "sgd", "numpy_rand_seed": seed}
    yield {"event": "eval", "split": "val", "epoch": 0, "iteration": 5, "auc": 0.7, "logloss": 0.5, "ne": 0.9}
    yield {"event": "boundary", "epoch": 1, "iteration": 1, "last": 0.5, "first": 0.6, "jump_percent": 20.0}
    if last:
        yield {"event": "result", "config": config, "seed": seed, "test": {"auc": 0.7}, "hash": {"C1": {}}}


@pytest.fixture
def work(tmp_path):
    folder = tmp_path / "work"
    folder.mkdir()
    for name, seed, last in (("plain-1", 1, True), ("plain-2", 2, True), ("torn-1", 1, False)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in events(seed, last)))
    (folder / "table.md").write_text(
        "Seeds 1; --raw-data-file=/some/where/train.txt --x=1/2\nPicture: /some/where/epochs.png\n"
    )
    return folder


def run(monkeypatch, work, to):
    monkeypatch.setattr(sys, "argv", ["keep_results.py", str(work), "--to", str(to)])
    return keep_results.main()


def test_finished_runs_are_kept_without_folders(work, tmp_path, monkeypatch):
    assert run(monkeypatch, work, tmp_path / "kept") == 0
    lines = [json.loads(line) for line in (tmp_path / "kept" / "runs.jsonl").read_text().splitlines()]
    assert [line["run"] for line in lines] == ["plain-1", "plain-2"]
    assert lines[1]["config"] == {"nepochs": 3, "numpy_rand_seed": 2} and "hash" not in lines[1]
    assert lines[0]["evaluations"][0]["auc"] == 0.7 and lines[0]["boundaries"][0]["jump_percent"] == 20.0
    assert (tmp_path / "kept" / "table.md").read_text() == (
        "Seeds 1; --raw-data-file=train.txt --x=1/2\nPicture: epochs.png\n"
    )


def test_a_folder_without_runs_is_refused(tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, tmp_path, tmp_path / "kept") == 2
    assert "holds no finished run" in capsys.readouterr().err and not (tmp_path / "kept").exists()


def test_what_was_kept_before_survives_a_run_that_cannot_be_read(work, tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, work, tmp_path / "kept") == 0
    before = (tmp_path / "kept" / "runs.jsonl").read_text()
    (work / "odd-1.jsonl").write_text('{"event": "result"}\n')
    assert run(monkeypatch, work, tmp_path / "kept") == 2
    (tmp_path / "file").write_text("mine")
    assert run(monkeypatch, work, tmp_path / "file") == 2 and run(monkeypatch, work, work) == 2
    assert capsys.readouterr().err.count("\n") == 3
    assert (tmp_path / "kept" / "runs.jsonl").read_text() == before and (tmp_path / "file").read_text() == "mine"


def test_folders_are_left_out_also_where_they_have_blanks():
    text = "--raw-data-file='/tmp/my data/train file.tsv' --x=/a/b/c.tsv\nPicture: /tmp/my work/widths.png"
    assert keep_results.FOLDERS.sub("", text) == "--raw-data-file='train file.tsv' --x=c.tsv\nPicture: widths.png"
