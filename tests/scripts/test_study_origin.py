"""Where a study's figures come from."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import study  # noqa: E402
import study_flags  # noqa: E402
from study import Method, Outcome, Study  # noqa: E402
from study_origin import command_line, origin  # noqa: E402
from study_report import run_study  # noqa: E402

HERE = {"processor": "Some CPU", "cores": 2, "threads": 1, "gpu": None}


def result(commit="abc", **machine):
    about = {"test": {"auc": 0.7, "samples": 9}, "val": {"auc": 0.7}, "best": None}
    about |= {"inference_bytes": 1, "data_sha256": "d"}
    return about | {"versions": {"torch": "2.13.0", "commit": commit}, "machine": HERE | machine}


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["train.txt", "--work", "out", "--jobs", "2"], "train.txt --jobs 2"),
        (["train.txt", "--work=out", "--seeds", "1 2"], "train.txt --seeds '1 2'"),
        (["--work", "out", "--", "--work", "x"], "-- --work x"),
        ([], ""),
    ],
)
def test_the_command_is_what_a_reader_types(words, shown):
    assert command_line(["/some/where/scripts/controls.py", *words]) == f"bash scripts/controls.sh {shown}".strip()


def test_one_code_on_one_machine_is_named_once():
    text = origin(["bash a.sh", "bash a.sh --more"], [Outcome(Method("a"), "", {1: result(), 2: result()})])
    assert "```bash\nbash a.sh\nbash a.sh --more\n```" in text
    assert "Commit: abc. Machine: Some CPU, 2 cores, 1 thread a run, torch 2.13.0." in text


def test_several_codes_and_machines_are_counted_and_gaps_said():
    older = {key: value for key, value in result().items() if key != "machine"} | {"versions": {}}
    results = dict(enumerate((result(), result(), result("def", threads=2, gpu="A GPU"), older)))
    text = origin([], [Outcome(Method("a"), "", results)])
    assert "# not recorded" in text and "Commit: abc (2 runs); def (1 runs); not recorded (1 runs)." in text
    assert "Some CPU, 2 cores, 2 threads a run, A GPU, torch 2.13.0 (1 runs)" in text


def test_a_table_names_the_call_that_makes_it_or_all_that_it_shows_the_runs_of(monkeypatch, tmp_path):
    """And a restart of the same call is named once."""

    def drive(self, flags, _what):
        if "--prepare-only" not in flags:
            Path(flags.split("--metrics-file=")[1]).write_text(json.dumps({"event": "result"} | result()) + "\n")

    monkeypatch.setattr(Study, "drive", drive)

    def call(name, seeds, *also):
        monkeypatch.setattr(sys, "argv", ["x.py", "data", "--work", str(tmp_path), "--seeds", seeds, "--only", name])
        flags = study_flags.parse("", "1", ["a", "b"])
        methods = [Method(each) for each in also]
        assert run_study("--base", [Method(name)], flags, lambda outcomes: "text", also=methods) == 0
        return (tmp_path / "table.md").read_text().partition("```bash\n")[2].partition("\n```")[0].splitlines()

    calls = [f"bash scripts/x.sh data --seeds {seeds} --only {name}" for seeds, name in (("1", "a"), ("'1 2'", "a"))]
    assert [call("a", seeds) for seeds in ("1", "1 2", "1 2")] == [calls[:1], calls[1:], calls[1:]]
    assert json.loads((tmp_path / study.RECORD).read_text())["commands"] == calls
    assert call("b", "1 2", "a") == [*calls, "bash scripts/x.sh data --seeds '1 2' --only b"]
