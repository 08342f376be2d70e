"""The study over row budgets: its cells, its tables, and one small run of all of it."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import reproduce_learned_hash as study  # noqa: E402
from study import Method, Outcome  # noqa: E402


def test_cells_pair_what_may_be_compared():
    cells = study.methods_of("criteo", ["full", "modulo", "learned"], [2, 10], Path("w"))
    assert [cell.name for cell in cells] == [
        *("full.later", "full.all"),
        *("modulo.2.later", "modulo.2.all", "learned.2.later"),
        *("modulo.10.later", "modulo.10.all", "learned.10.later"),
    ]
    later = [cell for cell in cells if cell.name.endswith("later")]
    assert all("--hash-history=0.5" in cell.flags or "--train-share=0.5-1" in cell.flags for cell in later)
    planted = study.methods_of("synthetic", ["planted"], [10], Path("w"))
    assert len(planted) == 1 and "--train-share=0.5-1" in planted[0].flags
    assert not study.methods_of("criteo", ["planted"], [10], Path("w"))


def outcome(name, *aucs):
    report = {"colliding_share": 0.5, "largest_share": 0.1, "map_bytes": 1e6}
    results = {
        seed: {
            "best": None, "test": {"auc": auc, "ne": 0.9}, "val": {"auc": auc}, "inference_bytes": 3e6,
            "hash": None if name.startswith("full") else {"a": report, "b": report},
        }
        for seed, auc in enumerate(aucs)
    }  # fmt: skip
    return Outcome(Method(name), "", results)


def test_tables_compare_with_modulo_of_the_same_budget_and_rows():
    cells = {
        **{"full.later": (0.8, 0.8), "full.all": (0.9, 0.9), "modulo.10.later": (0.7, 0.71)},
        **{"modulo.10.all": (0.75, 0.76), "learned.10.later": (0.72, 0.73)},
    }
    text = study.tables_of([outcome(name, *aucs) for name, aucs in cells.items()], {"learned.10.later": 0.75})
    later, every = text.split("### Rivals train on all rows, a row an id")
    assert (
        "| learned | 0.7250 ±0.0071 | 0.9000 ±0.0000 | +0.0200 [+0.0200, +0.0200] | 50% | 0.75 | 3.00 | 2.00 |" in later
    )
    assert (
        "| learned | 0.7250 ±0.0071 | 0.9000 ±0.0000 | -0.0300 [-0.0300, -0.0300] | 50% | 0.75 | 3.00 | 2.00 |" in every
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["criteo", "synthetic"])
def test_the_command_runs(name, small_tsv, tmp_path, shell_environment):
    data = [str(small_tsv)] if name == "criteo" else []
    method = "learned" if name == "criteo" else "planted"
    more = ["--seeds", "1 2", "--only", "full", "modulo", method, "--budgets", "5"]
    command = ["bash", str(ROOT / "scripts/reproduce_learned_hash.sh"), *data, f"--dataset={name}", "--work=out", *more]
    command += ["--", "--synthetic-rows=3000", "--hash-min-rows=50"]
    run = subprocess.run(command, cwd=tmp_path, env=shell_environment, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    with open(tmp_path / "out" / "cells.csv") as file:
        rows = {(row["method"], row["rows"]): row for row in csv.DictReader(file)}
    assert set(rows) == {("full", "later"), ("full", "all"), ("modulo", "later"), ("modulo", "all"), (method, "later")}
    assert float(rows[method, "later"]["map_mb"]) > float(rows["modulo", "later"]["map_mb"]) == 0
    alike = {key: float(row["alike"]) for key, row in rows.items() if key[0] != "full"}
    assert all(-1 <= value <= 1 for value in alike.values())
    if name == "synthetic":  # the ids that share rows are those of like planted vectors
        assert alike["planted", "later"] > alike["modulo", "later"] + 0.05
    assert (tmp_path / "out" / "table.md").read_text() in run.stdout + "\n"


@pytest.mark.slow
def test_learning_and_training_in_two_stages(small_tsv, tmp_path, shell_environment):
    flags = [
        "--data-generation=dataset",
        f"--raw-data-file={small_tsv}",
        "--arch-sparse-feature-size=4",
        "--print-freq=99",
    ]
    flags += ["--arch-mlp-bot=13-8-4", "--arch-mlp-top=8-1", "--mini-batch-size=64", "--hash-min-rows=50"]
    command = ["bash", str(ROOT / "scripts/learn_hash.sh"), "maps.safetensors", *flags]

    def run(*more):
        found = [*command, *more]
        return subprocess.run(found, cwd=tmp_path, env=shell_environment, capture_output=True, text=True, timeout=600)

    first, again = run("--metrics-file=a.jsonl"), run("--metrics-file=b.jsonl")
    assert first.returncode == again.returncode == 0, first.stderr
    assert "stage 1" in first.stdout and "stage 1" not in again.stdout
    losses = [[line for line in (tmp_path / name).open() if '"train"' in line] for name in ("a.jsonl", "b.jsonl")]
    assert len(losses[0]) == len(losses[1]) > 0
    bad = subprocess.run(command[:2], cwd=tmp_path, env=shell_environment, capture_output=True, text=True, timeout=60)
    assert bad.returncode == 2 and "first a file for the maps" in bad.stderr
