"""Studies: what is run, what is chosen, what is refused. The driver is replaced but in the last test."""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import composition  # noqa: E402
import controls  # noqa: E402
import model_quality  # noqa: E402
import study  # noqa: E402
import study_flags  # noqa: E402
import study_report  # noqa: E402
from study import Method, Study  # noqa: E402
from study_report import check_one_data, report, run_study, shared_flags  # noqa: E402

PLAIN, TUNED = Method("plain"), Method("tuned", "--mlet-inner-dim=64", ("--rate=1", "--rate=2"))


def event(seed, auc, val, sha="d"):
    test = {"auc": auc, "logloss": 0.5, "samples": 100}
    return {
        "event": "result", "seed": seed, "test": test, "val": {"auc": val}, "data_sha256": sha, "inference_bytes": 2e6,
        "best": {"test": test, "val": {"auc": val}},
    }  # fmt: skip


@pytest.fixture
def driven(monkeypatch):
    """The flags of every run; each writes a result: rate 2 is best on validation, rate 1 on test."""
    calls = []

    def drive(self, flags, _what):
        calls.append(flags)
        if "--prepare-only" in flags:
            return
        path = Path(flags.split("--metrics-file=")[1])
        seed = int(flags.split("--numpy-rand-seed=")[1].split()[0])
        auc, val = (0.9, 0.6) if "--rate=1" in flags else (0.8, 0.7) if "--rate=2" in flags else (0.75, 0.65)
        path.write_text(json.dumps({"event": "train"}) + "\n" + json.dumps(event(seed, auc + seed / 1000, val)) + "\n")

    monkeypatch.setattr(Study, "drive", drive)
    return calls


def flags_of(monkeypatch, tmp_path, *words):
    monkeypatch.setattr(sys, "argv", ["x", "data.txt", "--work", str(tmp_path / "out"), *words])
    monkeypatch.setenv("CALLER", str(tmp_path))
    return study_flags.parse("", "1 2", ["plain", "tuned"])


def test_the_setting_is_chosen_on_validation_and_differences_are_paired(driven, monkeypatch, tmp_path, capsys):
    flags = flags_of(monkeypatch, tmp_path)
    assert report("--base", [PLAIN, TUNED], flags) == 0
    assert len(driven) == 1 + 2 * 3  # prepared once; three settings, two seeds
    out = capsys.readouterr().out
    assert "| tuned | `--rate=2` | 0.8015 ±0.0007 |" in out and "+0.0500 [+0.0500, +0.0500]" in out
    assert (tmp_path / "out" / "table.md").read_text().strip() in out


def test_a_restart_runs_what_is_missing_or_torn(driven, monkeypatch, tmp_path):
    flags = flags_of(monkeypatch, tmp_path)
    report("--base", [PLAIN, TUNED], flags)
    (tmp_path / "out" / "store").mkdir()
    torn = tmp_path / "out" / "plain-2.jsonl"
    torn.write_text(torn.read_text()[:-9])
    (tmp_path / "out" / "tuned--rate=1-1.jsonl").unlink()
    driven.clear()
    assert report("--base", [PLAIN, TUNED], flags) == 0
    assert len(driven) == 2


@pytest.mark.parametrize(
    ("base", "method", "differs"),
    [
        ("--base --other=2", PLAIN, "--other=1 --other=2"),
        ("--base --other=1", Method("plain", "--mlet-inner-dim=8"), "--mlet-inner-dim=8"),
    ],
    ids=["flags", "method"],
)
def test_a_folder_with_other_runs_is_refused(driven, monkeypatch, tmp_path, capsys, base, method, differs):
    flags = flags_of(monkeypatch, tmp_path)
    report("--base --other=1", [PLAIN], flags)
    driven.clear()
    assert report(base, [method], flags) == 2
    error = capsys.readouterr().err
    assert f"has runs with other flags or data ({differs}): name" in error and error.count("\n") == 1 and not driven


def test_shared_flags_are_those_that_act():
    base = "--rate=0.2 --emb-size=8 --data-option a=1 --data-option b=2 --batch=128 --rate=0.001 --loud"
    wide, narrow = Method("wide", "--emb-size=64"), Method("narrow", "--emb-size=4", ("--batch=2", "--batch=3"))
    assert shared_flags(base, [wide, narrow]) == "--data-option a=1 --data-option b=2 --batch=128 --rate=0.001 --loud"
    assert "--batch" not in shared_flags(base, [narrow])


def test_runs_on_different_data_are_no_table():
    results = [study.Outcome(PLAIN, "", {seed: event(seed, 0.7, 0.7, sha)}) for seed, sha in ((1, "a"), (2, "b"))]
    with pytest.raises(ValueError, match="different data"):
        check_one_data(results)


def test_a_study_whose_data_changed_ends_in_one_line(driven, monkeypatch, tmp_path, capsys):
    """Whatever renders its tables."""
    flags = flags_of(monkeypatch, tmp_path)
    read = {"read": lambda path: event(1, 0.7, 0.7, str(path))}
    assert run_study("--base", [PLAIN, TUNED], flags, lambda outcomes: "a table", **read) == 2
    error = capsys.readouterr().err
    assert "different data" in error and error.count("\n") == 1


def test_a_call_that_came_to_no_run_binds_nobody(driven, monkeypatch, tmp_path, capsys):
    """As with a mistake in the name of the data."""
    flags = flags_of(monkeypatch, tmp_path)
    monkeypatch.setattr(Study, "prepare", lambda *_: (_ for _ in ()).throw(RuntimeError("no such file")))
    assert report("--raw=typo", [PLAIN], flags) == 2
    monkeypatch.undo()
    assert "no such file" in capsys.readouterr().err and not list(flags.work.glob("*.jsonl"))
    other = Study("--raw=right", flags.work, [1])
    other.check_record([PLAIN])


def test_a_failing_run_is_tried_again_and_named_beside_the_others(driven, monkeypatch, tmp_path, capsys):
    good = Study.drive

    def fail(self, flags, what):
        if "--rate=2" in flags:
            raise RuntimeError(f"{what}: no memory")
        good(self, flags, what)

    monkeypatch.setattr(Study, "drive", fail)
    flags = flags_of(monkeypatch, tmp_path)
    assert report("--base", [PLAIN, TUNED], flags) == 2
    names = ["tuned--rate=2-1.jsonl", "tuned--rate=2-2.jsonl"]
    said = capsys.readouterr().err.splitlines()
    assert said == [f"{how}: {name}: no memory" for how in ("once more", "error") for name in names]
    text = (flags.work / "table.md").read_text()
    assert "| plain |" in text and "| tuned |" not in text and "Failed: tuned." in text


def test_a_run_that_fails_once_is_good(driven, monkeypatch, tmp_path):
    good, tries = Study.drive, []

    def fail_once(self, flags, what):
        if "--rate=2" in flags and what not in tries:
            tries.append(what)
            raise RuntimeError(f"{what}: no memory")
        good(self, flags, what)

    monkeypatch.setattr(Study, "drive", fail_once)
    flags = flags_of(monkeypatch, tmp_path)
    assert report("--base", [PLAIN, TUNED], flags) == 0 and len(tries) == 2
    assert "Failed" not in (flags.work / "table.md").read_text()


def test_a_mistake_that_all_runs_share_ends_the_study_at_once(driven, monkeypatch, tmp_path, capsys):
    def fail(self, flags, what):
        driven.append(flags)
        if "--prepare-only" not in flags:
            raise RuntimeError(f"{what}: no such flag")

    monkeypatch.setattr(Study, "drive", fail)
    assert report("--base", [PLAIN, TUNED], flags_of(monkeypatch, tmp_path)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and len(driven) == 1 + study.HOPELESS


def test_what_was_not_run_is_named(driven, monkeypatch, tmp_path):
    flags = flags_of(monkeypatch, tmp_path, "--only", "plain")
    assert report("--base", [PLAIN, TUNED], flags) == 0
    assert "Not run: tuned." in (flags.work / "table.md").read_text()


def test_a_file_in_the_way_of_the_folder_is_one_line(driven, monkeypatch, tmp_path, capsys):
    flags = flags_of(monkeypatch, tmp_path)
    flags.work.write_text("")
    assert report("--base", [PLAIN], flags) == 2
    assert capsys.readouterr().err == f"error: --work={flags.work}: there is a file of this name\n"


@pytest.mark.parametrize("text", ['{"event": "result"}', None])
def test_a_run_file_that_holds_no_run_is_one_line(driven, monkeypatch, tmp_path, capsys, text):
    flags = flags_of(monkeypatch, tmp_path)
    assert report("--base", [PLAIN], flags) == 0
    file = flags.work / "plain-1.jsonl"
    file.unlink()
    if text:
        file.write_text(text)
    else:
        file.mkdir()
        monkeypatch.setattr(Study, "drive", lambda *_: (_ for _ in ()).throw(RuntimeError(f"{file} is a folder")))
    capsys.readouterr()
    assert report("--base", [PLAIN], flags) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and "plain-1.jsonl" in error


def test_models_of_which_nothing_was_run_are_named_once():
    absent = ["nfm.single.2", "nfm.mlet-64.2", "dcn.mlet-64.2", "tuned"]
    assert study_report.in_short(absent, ["dcn.single.2"]) == ["nfm (all 2)", "dcn.mlet-64.2", "tuned"]


def test_time_left_is_that_of_the_runs_to_come(monkeypatch):
    now = iter([0.0, 60.0, 120.0, 130.0])
    monkeypatch.setattr(study.time, "monotonic", lambda: next(now))
    clock = study.Clock(3)
    assert clock.tick() == "  (1/3, about 2 min left)"
    clock.expect(4)
    assert clock.tick() == "  (2/5, about 3 min left)"
    monkeypatch.undo()
    assert study.Clock().tick() == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--seeds", "a b"], "'a b'"), (["--seeds", ""], "''"), (["--seeds", "1 1"], "different whole numbers"),
     (["--jobs", "0"], "at least 1"), (["--only", "foo"], "foo"), (["--dataset", "synthetic"], "give no data"),
     (["--dataset", "globo"], "invalid choice"), (["--scale", "huge"], "huge")],
)  # fmt: skip
def test_bad_arguments_are_one_line(monkeypatch, tmp_path, capsys, words, message):
    with pytest.raises(SystemExit) as stop:
        flags_of(monkeypatch, tmp_path, *words)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and error.count("\n") == 1


def test_paths_with_blanks_and_flags_behind_the_dashes_reach_the_driver(monkeypatch, tmp_path):
    flags = flags_of(monkeypatch, tmp_path / "a folder", "--", "--data-option", "a=b c")
    monkeypatch.setattr(study.WarmDriver, "run", lambda self, command: (2, f"error: {command!r}"))
    with pytest.raises(RuntimeError, match=r"a folder/data.txt', '--data-option', 'a=b c', .*'--prepare-only'"):
        Study(f"--raw-data-file={flags.data} {flags.more}", flags.work, [1]).prepare()


def test_every_method_of_the_studies_is_a_command_line_of_the_driver():
    import dlrm_mlet

    for module in (controls, composition, model_quality):
        for method in module.METHODS:
            for setting in method.grid:
                flags = f"{module.BASE} {method.flags} {setting} --metrics-file=x --data-set=criteo-synthetic"
                dlrm_mlet.parse_flags(flags.split())
        assert len({method.name for method in module.METHODS}) == len(module.METHODS)


@pytest.mark.parametrize(("scale", "epochs"), (("smoke", 1), ("small", 30)))
def test_a_smoke_run_of_the_benchmarks_is_one_epoch(scale, epochs):
    import dlrm_mlet

    flags = model_quality.base_of(argparse.Namespace(scale=scale, dataset="frappe"))
    assert dlrm_mlet.parse_flags(f"{flags} --data-set=frappe".split()).nepochs == epochs


@pytest.mark.slow
def test_composition_from_raw_rows_to_the_table(small_tsv, tmp_path, shell_environment):
    script, work = str(ROOT / "scripts/composition.sh"), str(tmp_path / "w")
    command = ["bash", script, small_tsv.name, "--only", "d4-mlet", "--seeds", "1", "--work", work]
    options = {"cwd": small_tsv.parent, "capture_output": True, "text": True, "env": shell_environment}
    done = subprocess.run(command, **options, check=False)
    assert done.returncode == 0, done.stderr
    rows = [line for line in (tmp_path / "w" / "table.md").read_text().splitlines() if line.startswith("| d4")]
    assert [row.split(" | ")[0][2:] for row in rows] == ["d4-mlet", "d4-mlet-16bit", "d4-mlet-8bit", "d4-mlet-4bit"]
    aucs = [float(row.split(" | ")[2]) for row in rows]
    assert max(aucs) - min(aucs) < 0.1 and statistics.mean(aucs) > 0.4


def test_changed_data_is_noticed_by_the_first_run_and_spoils_nothing(driven, monkeypatch, tmp_path, capsys):
    flags = flags_of(monkeypatch, tmp_path)
    report("--base", [PLAIN], flags)
    good = Study.drive

    def other_data(self, line, what):
        good(self, line, what)
        if "--metrics-file=" in line and "--prepare-only" not in line:
            path = Path(line.split("--metrics-file=")[1])
            path.write_text(path.read_text().replace('"data_sha256": "d"', '"data_sha256": "e"'))

    monkeypatch.setattr(Study, "drive", other_data)
    driven.clear()
    capsys.readouterr()
    assert report("--base", [PLAIN, TUNED], flags) == 2
    error = capsys.readouterr().err
    assert "the raw data has changed" in error and error.count("\n") == 1 and len(driven) <= 2
    assert not list(flags.work.glob("tuned*"))
    monkeypatch.setattr(Study, "drive", good)
    assert report("--base", [PLAIN, TUNED], flags) == 0


def test_a_second_study_in_the_same_folder_is_refused(driven, monkeypatch, tmp_path, capsys):
    flags = flags_of(monkeypatch, tmp_path)
    flags.work.mkdir()
    with study_report.lock_folder(flags.work):
        assert report("--base", [PLAIN], flags) == 2
    assert "another study is at work" in capsys.readouterr().err and not driven
    assert report("--base", [PLAIN], flags) == 0


@pytest.mark.parametrize("damage", ["record", "gone", "bytes"])
def test_damaged_files_are_named_or_made_again(driven, monkeypatch, tmp_path, capsys, damage):
    flags = flags_of(monkeypatch, tmp_path)
    report("--base", [PLAIN], flags)
    record, run = flags.work / study.RECORD, flags.work / "plain-1.jsonl"
    driven.clear()
    if damage == "bytes":
        run.write_bytes(b"\xff" + run.read_bytes())
        assert report("--base", [PLAIN], flags) == 0 and any("plain-1" in line for line in driven)
        return
    record.write_text("{") if damage == "record" else record.unlink()
    assert report("--base", [PLAIN], flags) == 2
    assert f"{record}, the record" in capsys.readouterr().err and not driven


def test_a_table_that_cannot_be_written_is_printed(driven, monkeypatch, tmp_path, capsys):
    flags = flags_of(monkeypatch, tmp_path)
    (flags.work / "table.md").mkdir(parents=True)
    assert report("--base", [PLAIN], flags) == 2
    said = capsys.readouterr()
    assert "| plain |" in said.out and "the table was not written" in said.err and said.err.count("\n") == 1


def test_a_gpu_that_is_not_there_is_refused(monkeypatch, tmp_path, capsys):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stop:
        flags_of(monkeypatch, tmp_path, "--device", "cuda")
    assert stop.value.code == 2 and "no CUDA device" in capsys.readouterr().err
