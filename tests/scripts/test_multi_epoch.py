"""The study over several epochs: its cells, its tables on made-up runs, and one small run of all of it."""

import csv
import json
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import epoch_curves  # noqa: E402
import epoch_tables  # noqa: E402
import reproduce_multi_epoch as study  # noqa: E402
import study_flags  # noqa: E402
from epoch_curves import Curve, Row, collapse_of, curve_of  # noqa: E402
from study import Method, Study  # noqa: E402
from study_report import run_study  # noqa: E402


def evaluation(split, epoch, iteration, auc, tasks=None):
    metrics = {"auc": auc, "logloss": 1 - auc}
    more = {"tasks": {name: {"auc": value, "logloss": 1 - value} for name, value in tasks.items()}} if tasks else {}
    return {"event": "eval", "split": split, "epoch": epoch, "iteration": iteration} | metrics | more


def run_of(test, val, tasks=None):
    """Events of a run: two evaluations an epoch, of which the first must not count, and a jump between epochs."""
    events = []
    for epoch, (of_test, of_val) in enumerate(zip(test, val, strict=True)):
        events += [{"event": "boundary", "epoch": epoch, "jump_percent": 10.0 * epoch}] if epoch else []
        for iteration, shift in ((5, 0.01), (10, 0.0)):
            named = {name: values[epoch] for name, values in (tasks or {}).items()}
            events.append(evaluation("val", epoch, iteration, of_val + shift, named))
            events.append(evaluation("test", epoch, iteration, of_test + shift, named))
    return [*events, {"event": "result"}]


FALLING = ((0.78, 0.75, 0.70), (0.76, 0.74, 0.68))


def row(name, *pairs):
    return Row(name, "--x=1", tuple(curve_of(run_of(*pair)) for pair in pairs), tuple(range(len(pairs))))


def test_a_curve_is_read_at_each_epochs_end_and_chosen_on_validation():
    curve = curve_of(run_of((0.7, 0.8, 0.9), (0.6, 0.65, 0.62)))
    assert curve == Curve((0.7, 0.8, 0.9), (0.6, 0.65, 0.62), (0.4, 0.35, 0.38), (10.0, 20.0), 1)
    assert curve.at_best == 0.8 and curve.val_jumps == pytest.approx((-12.5, 100 * 0.03 / 0.35))
    of_task = curve_of(run_of((0.7, 0.8), (0.6, 0.65), {"cart": (0.55, 0.5)}), "cart")
    assert of_task.test == (0.55, 0.5) and of_task.best == 1  # one model for all labels: their mean chooses
    undefined = run_of((0.7,), (0.6,), {"cart": (0.5,)})
    undefined[-2]["tasks"]["cart"]["auc"] = None
    with pytest.raises(ValueError, match="label cart has one class on the test split"):
        curve_of(undefined, "cart")
    with pytest.raises(ValueError, match="not evaluated on validation and test"):
        curve_of([event for event in run_of(*FALLING) if event.get("split") != "val"])


@pytest.mark.parametrize(
    ("pairs", "answer", "text"),
    [
        ((FALLING, ((0.78, 0.75, 0.72), FALLING[1])), "not shown", "test AUC -0.0700 [-0.1971, +0.0571]"),
        ((FALLING, ((0.78, 0.75, 0.701), FALLING[1])), "yes", "test AUC -0.0795 [-0.0859, -0.0731] from epoch 1 (best"),
        (
            (FALLING,),
            "one seed only",
            "test AUC -0.0800 (one seed) from epoch 1 (best on validation) to epoch 3, 1 seed",
        ),
        ((((0.7, 0.8), (0.6, 0.7)),), "no", "+0.0000 (one seed) from epoch 2"),
    ],
)
def test_whether_plain_collapses(pairs, answer, text):
    found = collapse_of(row("plain", *pairs))
    assert found[0] == answer and text in found[1]
    said = epoch_tables.verdict({"": [row("plain", *pairs)]})
    assert f"Does plain collapse here? {answer}:" in said and "\n" not in said
    assert ("cures measured here prove nothing" in said) == (answer == "no")


def test_without_plain_nothing_is_known():
    text = epoch_tables.verdict({"click": [Row("plain")], "cart": [row("plain", FALLING)]})
    assert text.startswith("plain was not run: whether it collapses of click is not known")
    assert "Does plain collapse here of cart? one seed only" in text


def test_the_table_of_quality_compares_best_with_best_and_last_with_last():
    better = ((0.77, 0.79, 0.78), (0.75, 0.77, 0.76))
    rows = [row("plain", FALLING, FALLING), row("cure", better, better), Row("other")]
    lines = epoch_tables.quality_table(rows, {"cure": "+0.07 %"}).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| plain", "| cure", "| other"]
    assert "| 0.7700 ±0.0000 | 0.7900 ±0.0000 | 0.7800 ±0.0000 | 0.7900 ±0.0000 (epoch 2) |" in lines[3]
    assert "| +0.0100 [+0.0100, +0.0100] | +0.0800 [+0.0800, +0.0800] | +1.28 [+1.28, +1.28] | +0.07 % |" in lines[3]
    assert "| other | not run | - |" in lines[4] and {line.count("|") for line in lines} == {lines[0].count("|")}
    alone = epoch_tables.quality_table([Row("plain"), rows[1]], {}).splitlines()
    assert "(epoch 2) | - | - | - | - |" in alone[3]


def test_every_setting_is_shown_at_its_best_and_last_epoch():
    lines = epoch_tables.settings_table([row("plain", FALLING, ((0.7, 0.8, 0.9), (0.6, 0.65, 0.62)))]).splitlines()
    assert lines[2] == (
        "| plain | `--x=1` | 0.7050 ±0.0778 | 0.6500 ±0.0424 | 0.7900 ±0.0141 | 0.8000 ±0.1414 |"
    )  # 0.76 and 0.65; 0.68 and 0.62; 0.78 and 0.80; 0.70 and 0.90


def test_jumps_of_both_losses():
    lines = epoch_tables.jump_table([row("plain", FALLING, FALLING), Row("cure")], {"plain": "+1.19 %"}).splitlines()
    val = [100 * (0.26 / 0.24 - 1), 100 * (0.32 / 0.26 - 1)]
    shown = " | ".join(f"{value:+.1f} ±0.0 %" for value in (10, 20, *val))
    assert lines[2] == f"| plain | {shown} | +1.19 % |" and lines[3] == "| cure | not run | - | - | - | - |"


def test_convergence_takes_the_evaluations_nearest_to_the_shares():
    runs = [[evaluation("test", 0, at, (at + seed) / 1000) for at in (13, 26, 65, 78, 130, 134)] for seed in (0, 2)]
    lines = epoch_tables.convergence_table({"1": runs, "50": []}).splitlines()
    assert (
        lines[2] == "| 1 | 0.0140 ±0.0014 | 0.0660 ±0.0014 | 0.1350 ±0.0014 |" and "| 50 | not run | - | - |" in lines
    )


def test_severity_is_ordered_by_density():
    rows = {"checkout": [row("plain", FALLING, FALLING)], "click": [Row("plain")]}
    lines = epoch_tables.severity_table(rows, {"click": 0.2, "checkout": 0.004}).splitlines()
    assert lines[2] == "| click | 20.00 | not run | - |" and lines[3].startswith(
        "| checkout | 0.40 | test AUC -0.0800 ["
    )


def test_cells_keep_every_seed_and_mark_what_was_not_run(tmp_path):
    epoch_tables.write_cells(epoch_tables.cells_of({"": [row("plain", FALLING), Row("cure")]}), tmp_path / "c.csv")
    cells = list(csv.DictReader(open(tmp_path / "c.csv")))
    assert [(cell["method"], cell["epoch"], cell["jump_percent"], cell["is_best"]) for cell in cells] == [
        ("plain", "1", "", "1"), ("plain", "2", "10.0", "0"), ("plain", "3", "20.0", "0"), ("cure", "", "", ""),
    ]  # fmt: skip
    assert cells[-1]["setting"] == "not run"


# ------------------------------------------------------------------------------------------------------- the cells


def test_every_method_has_as_many_settings_and_is_a_command_line_of_the_driver():
    import dlrm_mlet

    every = (*study.METHODS, *study.FURTHER)
    assert len({method.name for method in every}) == len(every) and {len(set(m.grid)) for m in every} == {6}
    for method in every:
        for setting in method.grid:
            dlrm_mlet.parse_flags(f"{study.BASE} {method.flags} {setting} --data-set=criteo-synthetic".split())
    for cell in study.convergence_cells(134):
        assert "--test-freq=13" in cell.flags
        dlrm_mlet.parse_flags(f"{study.BASE} {cell.flags} --data-set=criteo-synthetic".split())


@pytest.fixture
def driven(monkeypatch):
    """The flags of every run; rate 2 is best on validation with seeds 1 and 2, rate 1 with all others."""
    calls = []

    def drive(self, flags, _what):
        calls.append(flags)
        if "--prepare-only" in flags:
            Path([word for word in flags.split() if word.startswith("--processed-data-file=")][-1][22:]).mkdir()
            return
        seed = int(flags.split("--numpy-rand-seed=")[1].split()[0])
        auc = 0.7 + (0.1 if ("--rate=2" in flags) == (seed <= 2) else 0) + seed / 1000
        metrics = {"auc": auc, "samples": 9, "logloss": 0.5}
        result = {"event": "result", "seed": seed, "test": metrics, "val": metrics, "best": None, "data_sha256": "d"}
        Path(flags.split("--metrics-file=")[1]).write_text(json.dumps(result | {"inference_bytes": 1}) + "\n")

    monkeypatch.setattr(Study, "drive", drive)
    return calls


def test_the_first_seeds_tune_and_the_chosen_setting_alone_is_run_with_the_others(driven, tmp_path):
    method = Method("m", "", ("--rate=1", "--rate=2", "--rate=3"))
    outcome = Study("--base", tmp_path, [1, 2, 3, 4], tuning=2).run_all([method])[0]
    assert outcome.setting == "--rate=2" and list(outcome.files) == [1, 2, 3, 4]
    assert sum("--rate=2" in flags for flags in driven) == 4 and len(driven) == 3 * 2 + 2
    assert Study("--base", tmp_path, [1, 2, 3, 4], tuning=2).is_complete(method)
    assert not Study("--base", tmp_path, [1, 2, 3, 5], tuning=2).is_complete(method)
    assert Study("--base", tmp_path, [3, 4, 5]).run_all([method])[0].setting != "--rate=2"


def test_a_method_that_changes_the_vocabulary_has_a_store_of_its_own(driven, tmp_path):
    plain, counted = Method("plain"), Method("c", "", ("--vocabulary-min-count=2 --rate=1", "--vocabulary-min-count=5"))
    found = Study("--base", tmp_path, [1])
    found.prepare([plain, counted])
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"store", "store--vocabulary-min-count=2", "store--vocabulary-min-count=5"}
    prepared = len(driven)
    assert prepared == 3 and "--vocabulary" not in driven[0] and "--rate" not in driven[1]
    found.prepare([plain, counted])
    found.run_all([plain, counted])
    assert len(driven) == 3 + 3
    stores = [flags.rpartition("--processed-data-file=")[2].split()[0] for flags in driven[3:]]
    assert stores == [str(tmp_path / f"store{own}") for own in ("", *(f"--vocabulary-min-count={n}" for n in (2, 5)))]


def test_what_an_earlier_call_has_run_is_shown_and_not_run_again(driven, tmp_path, monkeypatch):
    a, b, c = Method("a"), Method("b"), Method("c")
    monkeypatch.setattr(sys, "argv", ["x", "data", "--work", str(tmp_path)])
    flags = study_flags.parse("", "1 2", ["a", "b", "c"])
    shown = []

    def render(outcomes):
        shown.append([outcome.method.name for outcome in outcomes])
        return "text"

    assert run_study("--base", [b], flags, render) == 0
    driven.clear()
    assert run_study("--base", [a], flags, render, also=[b, c], headline=lambda outcomes: "First of all.") == 0
    assert shown == [["b"], ["a", "b"]] and all("a-" in each.split("=")[-1] for each in driven)
    assert (tmp_path / "table.md").read_text().startswith("First of all.\n\nSeeds 1, 2; 9 test rows, --base")
    changed = [Method("b", "--other")]
    assert run_study("--base", [a], flags, render, also=changed) == 2


def test_what_is_derived_covers_what_an_earlier_call_has_run(driven, tmp_path, monkeypatch):
    """Fewer bits of one recipe are no table without those of the others."""
    a, b = Method("a"), Method("b")
    monkeypatch.setattr(sys, "argv", ["x", "data", "--work", str(tmp_path)])
    flags = study_flags.parse("", "1 2", ["a", "b"])
    shown = []

    def render(outcomes):
        shown.append([outcome.method.name for outcome in outcomes])
        return "text"

    def derive(_study, outcomes):
        return [replace(each, method=Method(f"{each.method.name}-8bit")) for each in outcomes]

    for wanted, also in (([b], [a]), ([a], [b])):
        assert run_study("--base", wanted, flags, render, derive, also=also) == 0
    assert shown == [["b", "b-8bit"], ["a", "b", "a-8bit", "b-8bit"]]


@pytest.mark.parametrize(
    "words", [[], ["--dataset=movielens"], ["--dataset=synthetic", "data.txt"], ["--dataset=globo"]]
)
def test_bad_arguments_are_one_line(words):
    command = [sys.executable, str(ROOT / "scripts/reproduce_multi_epoch.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "error: " in done.stderr


def test_without_matplotlib_nothing_is_drawn(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    said = epoch_tables.draw({"": [row("plain", FALLING)]}, tmp_path / "p.png")
    assert said == "No picture: it needs pip install matplotlib." and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_command_runs(small_tsv, tmp_path, shell_environment):
    script = ["bash", str(ROOT / "scripts/reproduce_multi_epoch.sh"), str(small_tsv), "--work", "out"]
    more = ["--", "--nepochs=3", "--mini-batch-size=16", "--num-batches=60"]

    def run(*only):
        command = [*script, "--seeds", "1", "--only", *only, *more]
        return subprocess.run(command, cwd=tmp_path, env=shell_environment, capture_output=True, text=True, timeout=900)

    first, second = run("plain"), run("min-count", "convergence")
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    text = (tmp_path / "out" / "table.md").read_text()
    assert text.startswith("Does plain collapse here? ") and text in second.stdout + "\n"
    assert text.count("\n| plain | `--emb-learning-rate-multiplier=") == 1 + 6
    assert "| re-init | not run |" in text and "| min-count | `--emb-learning-rate-multiplier=" in text
    assert first.stdout.count("\n| 1 | not run") == 1 and second.stdout.count("\n| 50 | 0.") == 1
    with open(tmp_path / "out" / "cells.csv") as file:
        cells = [cell for cell in csv.DictReader(file) if cell["method"] in ("plain", "min-count")]
    assert len(cells) == 6 and all(0 < float(cell["test_auc"]) < 1 for cell in cells)
    # every number once more, straight from the events
    for cell in cells:
        names = (tmp_path / "out").glob(f"{cell['method']}{cell['setting'].replace(' ', '_')}-1.jsonl")
        events = epoch_curves.events_of(next(names))
        auc = [e["auc"] for e in events if e.get("split") == "test" and e["epoch"] == int(cell["epoch"]) - 1]
        assert float(cell["test_auc"]) == statistics.mean(auc)
