"""Runs that were kept in results/ are taken up by a later study, if they are its own. The driver is replaced."""

import filecmp
import json
import shlex
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
sys.path.insert(0, str(ROOT))

import keep_results  # noqa: E402
import reproduce_mlet_models  # noqa: E402
import study_flags  # noqa: E402
import study_kept  # noqa: E402
from study import Method, Study  # noqa: E402
from study_report import report, run_study  # noqa: E402

from dlrm_mlet import parse_flags  # noqa: E402

BASE = "--data-generation=dataset --raw-data-file=/data/train.txt"
PLAIN = Method("plain", "--mini-batch-size=64")
TUNED = Method("tuned", "--mlet-inner-dim=64", ("--learning-rate=0.2", "--learning-rate=0.4"))


@pytest.fixture
def driven(monkeypatch):
    """The flags of every run; each writes what the driver would, as far as studies and keep_results read it."""
    calls = []

    def drive(self, flags, _what):
        if "--prepare-only" in flags:
            return
        calls.append(flags)
        config = vars(parse_flags(shlex.split(flags)))
        seed, auc = config["numpy_rand_seed"], 0.7 + config["learning_rate"] / 10 + config["numpy_rand_seed"] / 1000
        test = {"auc": auc, "logloss": 0.5, "samples": 100}
        evaluation = {"event": "eval", "split": "val", "epoch": 0, "iteration": 3, **test}
        event = {
            "event": "result", "config": config, "seed": seed, "test": test, "val": test, "data_sha256": "d",
            "inference_bytes": 2e6, "best": {"test": test, "val": test}, "hash": {}, "by_frequency": {},
            "versions": {"commit": "abc", "torch": "2"},
        }  # fmt: skip
        Path(config["metrics_file"]).write_text(json.dumps(evaluation) + "\n" + json.dumps(event) + "\n")

    monkeypatch.setattr(Study, "drive", drive)
    return calls


@pytest.fixture
def call(driven, monkeypatch, tmp_path):
    """Run the study of both methods, or of those named; returns its exit code."""

    def call(work, *words, base=BASE, **arguments):
        monkeypatch.setattr(sys, "argv", ["x.py", "train.txt", "--work", str(tmp_path / work), *words])
        monkeypatch.setenv("CALLER", str(tmp_path))
        flags = study_flags.parse("", "1 2", ["plain", "tuned"])
        driven.clear()
        return report(base, [PLAIN, TUNED], flags, **arguments)

    return call


@pytest.fixture
def kept(call, monkeypatch, tmp_path):
    """What is kept of a study of two seeds."""
    assert call("first") == 0
    monkeypatch.setattr(sys, "argv", ["keep_results.py", str(tmp_path / "first"), "--to", str(tmp_path / "kept")])
    assert keep_results.main() == 0
    return tmp_path / "kept"


def test_kept_runs_are_not_made_anew(call, kept, driven, tmp_path, capsys):
    assert call("again", "--kept", "kept") == 0
    assert not driven and f"6 runs taken up from {kept}" in capsys.readouterr().out
    assert filecmp.cmp(tmp_path / "first" / "table.md", tmp_path / "again" / "table.md", shallow=False)


def test_further_seeds_are_run_beside_them_and_a_restart_needs_no_kept_ones(call, kept, driven, tmp_path):
    assert call("more", "--kept", "kept", "--seeds", "1 2 3") == 0
    assert len(driven) == 3 and all("--numpy-rand-seed=3" in flags for flags in driven)
    table = (tmp_path / "more" / "table.md").read_text()
    assert "```bash\nbash scripts/x.sh train.txt --seeds '1 2 3'\n```" in table
    assert call("more", "--seeds", "1 2 3") == 0 and not driven


def test_methods_that_this_call_does_not_run_are_shown_from_kept_runs(call, kept, driven, tmp_path):
    assert call("part", "--kept", "kept", "--only", "plain") == 0
    table = (tmp_path / "part" / "table.md").read_text()
    assert not driven and "| tuned |" in table
    assert "bash scripts/x.sh train.txt\nbash scripts/x.sh train.txt --only plain\n" in table


def test_runs_with_other_flags_are_refused(call, kept, driven, tmp_path, capsys):
    assert call("other", "--kept", "kept", base=f"{BASE} --loss-function=bce --nepochs=2") == 2
    error = capsys.readouterr().err
    says = "plain-1 was run with other flags (--loss-function mse, here bce; --nepochs 1, here 2)"
    assert says in error and error.count("\n") == 1
    assert not driven and not list((tmp_path / "other").glob("*.jsonl"))
    assert call("other") == 0  # what was refused binds nobody


def test_runs_on_other_data_are_refused_even_if_none_is_made_anew(call, kept, driven, tmp_path, capsys):
    schema = tmp_path / "other" / "store" / "schema.json"
    schema.parent.mkdir(parents=True)
    schema.write_text(json.dumps({"source": {"sha256": "e"}}))
    assert call("other", "--kept", "kept") == 2
    error = capsys.readouterr().err
    assert "its runs were made on other data than this study's" in error and error.count("\n") == 1
    assert not driven and not [path for path in (tmp_path / "other").iterdir() if path.name.startswith("plain")]


def test_a_command_is_named_once_wherever_its_data_lies(call, kept, driven, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["x.py", "/data/train.txt", "--work", str(tmp_path / "w"), "--kept", str(kept)])
    flags = study_flags.parse("", "1 2", ["plain", "tuned"])
    driven.clear()
    assert report(BASE, [PLAIN, TUNED], flags) == 0 and not driven
    assert (tmp_path / "w" / "table.md").read_text().count("bash scripts/x.sh") == 1


NOT_A_RUN = "runs.jsonl, line 2: not a run"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda line: b"{torn", NOT_A_RUN),
        (lambda line: b"[]", NOT_A_RUN),
        (lambda line: b'{"run": "\xff"}', NOT_A_RUN),
        (lambda line: b'{"run": "plain-2"}', NOT_A_RUN),
        (lambda line: line.replace(b'"plain-2"', b"5"), NOT_A_RUN),
        (lambda line: line.replace(b'"test": {', b'"test": null, "old": {', 1), NOT_A_RUN),
        (lambda line: line.replace(b'"evaluations": [', b'"evaluations": null, "old": ['), NOT_A_RUN),
        (lambda line: line.replace(b'"evaluations": [', b'"evaluations": [null, '), NOT_A_RUN),
        (
            lambda line: line.replace(b'"data_sha256": "d"', b'"data_sha256": "e"'),
            "line 2: plain-2 was made on other data",
        ),
    ],
    ids=["torn", "list", "no-text", "lacking", "name", "no-test", "no-evaluations", "no-evaluation", "data"],
)
def test_a_damaged_line_is_named_and_nothing_is_taken_up(call, kept, driven, tmp_path, capsys, change, says):
    path = kept / "runs.jsonl"
    lines = path.read_bytes().splitlines()
    assert change(lines[1]) != lines[1]
    path.write_bytes(b"\n".join([lines[0], change(lines[1]), *lines[2:]]) + b"\n\n")
    assert call("out", "--kept", "kept") == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1 and not driven
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]


def test_the_folder_of_another_study_is_refused(kept, driven, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["x.py", "train.txt", "--work", str(tmp_path / "w"), "--kept", str(kept)])
    flags = study_flags.parse("", "1 2", ["other"])
    driven.clear()
    assert report(BASE, [Method("other")], flags) == 2 and not driven
    assert f"--kept={kept}: none of its 6 runs is one of this study's" in capsys.readouterr().err


def test_of_many_flags_that_differ_the_data_and_few_others_are_named():
    theirs, ours = {"a": 1, "b": 2, "c": 3, "data_set": "frappe"}, {"data_set": "kaggle", "d": 4}
    defaults = {"a": 0, "b": None}
    says = "--data-set frappe, here kaggle; --a 1, here 0; --b 2, here None; and 2 more"
    assert study_kept.differences(theirs, ours, defaults) == says
    assert study_kept.differences(ours, ours, defaults) == ""


@pytest.mark.parametrize(
    ("lines", "says"), [(None, "cannot be read: No such file"), ("\n", "has no run")], ids=["none", "empty"]
)
def test_a_folder_without_kept_runs_is_refused(call, driven, tmp_path, capsys, lines, says):
    (tmp_path / "bad").mkdir()
    if lines:
        (tmp_path / "bad" / "runs.jsonl").write_text(lines)
    assert call("out", "--kept", "bad") == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1 and not driven


def test_runs_that_the_study_lacks_stay_where_they_are_added_to(call, kept, monkeypatch, tmp_path):
    assert call("part", "--only", "plain", "--seeds", "3") == 0
    monkeypatch.setattr(sys, "argv", ["keep_results.py", str(tmp_path / "part"), "--to", str(kept), "--add"])
    assert keep_results.main() == 0
    runs = [json.loads(line)["run"] for line in (kept / "runs.jsonl").read_text().splitlines()]
    assert runs[:3] == ["plain-1", "plain-2", "plain-3"] and len(runs) == 7


def test_studies_that_need_more_than_is_kept_say_so(call, kept, driven, monkeypatch, tmp_path, capsys):
    """Models, metrics of single evaluations, or what keep_results leaves out for its size."""
    monkeypatch.setattr(sys, "argv", ["x.py", "train.txt", "--work", str(tmp_path / "w"), "--kept", str(kept)])
    flags = study_flags.parse("", "1 2", ["plain"])
    assert run_study(BASE, [PLAIN], flags, str, keep_models=True) == 2
    assert "needs its runs' models" in capsys.readouterr().err

    def lacking(path):
        return json.loads(path.read_text().splitlines()[0])["accuracy"]

    assert run_study(BASE, [PLAIN], flags, str, read=lacking) == 2
    assert "plain-1 was kept without 'accuracy'" in capsys.readouterr().err
    assert not [path for path in (tmp_path / "w").iterdir() if path.name.startswith("plain")]


def test_what_tables_need_and_is_not_kept_is_said_before_the_other_runs_are_made(
    call, kept, driven, monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(sys, "argv", ["x.py", "train.txt", "--work", str(tmp_path / "w"), "--kept", str(kept)])
    flags = study_flags.parse("", "1 2 3", ["plain"])
    driven.clear()
    for _ in "runs of results/", "runs that an earlier call took up from there":
        assert run_study(BASE, [PLAIN], flags, str, needs="by_frequency") == 2 and not driven
        assert "quality by frequency is not kept in results/" in capsys.readouterr().err
        call("w", "--only", "plain", "--kept", str(kept))
        flags.kept = None


def test_the_kept_tables_come_from_the_kept_runs(driven, monkeypatch, tmp_path):
    """Cells of the models' study on Frappe, as they lie in results/, by this code from the raw lines."""
    kept = ROOT / "results" / "reproduce_mlet_models" / "frappe"
    seeds = sorted({json.loads(line)["seed"] for line in (kept / "runs.jsonl").read_text().splitlines()})
    words = ["frappe", "--dataset=frappe", "--models", "deepfm", "--dims", "4", "16", "--tuning-seeds", "1"]
    words += ["--seeds", " ".join(map(str, seeds)), "--only", "single", "mlet-64", "fixed-w2-64"]
    words += ["--work", str(tmp_path / "work"), "--kept", str(kept), "--", "--precision=bf16"]
    monkeypatch.setattr(sys, "argv", ["reproduce_mlet_models.py", *words])
    assert reproduce_mlet_models.main() == 0 and not driven
    assert (tmp_path / "work" / "cells.csv").read_text() == (kept / "cells.csv").read_text()


def test_models_in_fewer_bits_are_taken_up_without_their_models(tmp_path):
    import equal_bytes

    base = f"{equal_bytes.BASE} --data-set=criteo-synthetic --synthetic-rows=200000"
    methods = equal_bytes.methods_of("small", ["single"], 13, [4])
    found = study_kept.kept_of(Study(base, tmp_path, [1, 2]), methods, ROOT / "results/equal_bytes/synthetic")
    names = {path.name.partition("--")[0] for path in found}
    assert {"single.4", "single.4-16bit", "single.4-8bit", "single.4-4bit", "single.64-4bit"} <= names
