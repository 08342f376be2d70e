"""Fewer bits, hashing beside MLET, the smallest model of equal AUC: cells, tables, verdict, one small run of each."""

import dataclasses
import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import equal_bytes  # noqa: E402
import reproduce_mlet_hash_quant as hash_quant  # noqa: E402
from mlet_grid import COMMON, SGD, TUNED, base_of  # noqa: E402
from mlet_tables import chosen_rate  # noqa: E402
from quantized_runs import bits_of, quantized  # noqa: E402
from study import Method, Outcome, Study  # noqa: E402


def outcome(name, size, *aucs):
    results = {
        seed: {"best": None, "test": {"auc": auc, "logloss": 0.5}, "val": {"auc": auc}, "inference_bytes": size}
        for seed, auc in enumerate(aucs)
    }
    return Outcome(Method(name), "--rate=2", results)


def test_every_cell_is_a_command_line_of_the_driver():
    import dlrm_mlet

    data = "--data-set=kaggle --raw-data-file=x --metrics-file=x"
    for scale in ("smoke", "small", "paper"):
        flags = Namespace(dataset="criteo", preset="fixed", scale=scale, data="x")
        studies = (
            (f"{equal_bytes.BASE} {data}", equal_bytes.methods_of(scale, list(equal_bytes.RECIPES), 13)),
            (f"{base_of(flags, SGD)} --metrics-file=x", hash_quant.methods_of(*hash_quant.GRIDS[scale], SGD, 13)),
        )
        for base, methods in studies:
            assert len({method.name for method in methods}) == len(methods)
            for method in methods:
                for setting in method.grid:
                    dlrm_mlet.parse_flags(f"{base} {method.flags} {setting}".split())


def test_the_reference_is_always_run():
    assert [method.name for method in equal_bytes.methods_of("small", ["modulo"], 13)] == ["single.64", "modulo.4"]
    narrow = equal_bytes.methods_of("small", ["reinit", "mlet+reinit"], 13, [4])
    assert [method.name for method in narrow] == ["single.64", "reinit.4", "mlet+reinit.4"]


def test_the_smallest_model_of_equal_auc_is_named():
    outcomes = [
        outcome("single.64", 64_000_000, 0.78, 0.78), outcome("single.64-8bit", 20_000_000, 0.781, 0.781),
        outcome("reinit.4", 4_000_000, 0.785, 0.785), outcome("reinit.4-8bit", 2_000_000, 0.7795, 0.7795),
        outcome("modulo.4", 1_000_000, 0.76, 0.80),
    ]  # fmt: skip
    said = equal_bytes.verdict(outcomes)
    assert "(64.00 MB)" in said and "no lower mean: modulo.4 in 32 bits, 1.00 MB, 64.0 times smaller." in said
    assert "excludes a loss of 0.001: reinit.4 in 8 bits, 2.00 MB, 32.0 times smaller." in said
    assert said.endswith("bits alone: single.64 in 8 bits, 3.2 times smaller.")
    assert "| reinit.4 | 8 | 2 | 0.7795 ±0.0000 | -0.0005 [-0.0005, -0.0005] | 2.00 | 32.0 |" in equal_bytes.tables_of(
        outcomes
    )
    assert "One seed says nothing" in equal_bytes.verdict([outcome("single.64", 1, 0.7)])


def test_without_its_reference_a_table_has_no_differences(tmp_path):
    outcomes = [outcome("reinit.4", 4_000_000, 0.78, 0.79)]  # as where the runs of single.64 lack memory
    assert "| reinit.4 | 32 | 2 | 0.7850 ±0.0071 |  | 4.00 |  |" in equal_bytes.tables_of(outcomes)
    assert "single.64, which says what is equal, was not trained" in equal_bytes.verdict(outcomes)
    assert "icture" in equal_bytes.draw(outcomes, tmp_path / "bytes.png")


@pytest.mark.parametrize(
    ("script", "words", "message"),
    [
        (equal_bytes, ["--only", "reinit"], "error: reinit: --scale=smoke has single, reinit+modulo"),
        (hash_quant, ["--hashes", "modulo-4", "none"], "error: none: --scale=smoke has modulo-4"),
        (hash_quant, ["--only", "fixed-w2-64"], "error: fixed-w2-64: --scale=smoke has single, mlet-64"),
    ],
)
def test_what_the_scale_lacks_is_one_line(monkeypatch, capsys, script, words, message):
    monkeypatch.setattr(sys, "argv", ["x", "--dataset=synthetic", "--scale=smoke", *words])
    assert script.main() == 2
    assert capsys.readouterr().err == f"{message}\n"


def test_what_mlet_adds_is_against_the_same_recipe_without_it():
    """In 32 bits; recipes whose twin was not run are left out."""
    aucs = {
        "single.4": 0.75,
        "mlet.4": 0.76,
        "linear+reinit.2": 0.78,
        "linear+mlet+reinit.2": 0.77,
        "mlet+reinit.2": 0.7,
        "linear+fixed+reinit.2": 0.79,
        "matched.4": 0.74,
    }
    outcomes = [
        outcome(name, 1e6, auc, auc)
        for name, auc in (aucs | dict.fromkeys(("single.4-8bit", "mlet.4-8bit"), 0.7)).items()
    ]
    more, less = "+0.0100 [+0.0100, +0.0100]", "-0.0100 [-0.0100, -0.0100]"
    assert equal_bytes.mlet_table(outcomes).splitlines()[4:] == [
        f"| single.4 | 0.7500 ±0.0000 | 0.7600 ±0.0000 | {more} |  | {less} |",
        f"| linear+reinit.2 | 0.7800 ±0.0000 | 0.7700 ±0.0000 | {less} | {more} |  |",
    ]
    assert equal_bytes.mlet_table(outcomes[:1]) == ""


def test_a_recipe_is_set_against_the_single_layer_of_its_hash_and_bits():
    def made(how):
        return {each.name: each for each in hash_quant.methods_of(("none", "modulo-4"), ("single", "mlet-64"), how, 13)}

    def with_method(one, method):
        return dataclasses.replace(one, method=method, setting=method.grid[-1])

    aucs = {"single.none": 0.78, "mlet-64.none": 0.79, "single.none-8bit": 0.77, "mlet-64.none-8bit": 0.79}
    outcomes = [outcome(name, 1e6 if "8bit" in name else 4e6, auc, auc) for name, auc in aucs.items()]
    outcomes[:2] = [with_method(each, made(TUNED)[each.method.name]) for each in outcomes[:2]]
    every = list(made(TUNED).values())
    common, tuned = hash_quant.tables_of(outcomes, every).split("### Tuned")
    assert [part.count("| modulo-4 |") for part in (common, tuned)] == [2, 2 * 4]
    assert "| modulo-4 | 32 | mlet-64 | not run |" in tuned and "| none | 32 | mlet-64 | not run |" in common
    assert "| none | 32 | mlet-64 | 64 (grid's end) | 0.7900" in tuned
    assert "| none | 8 | mlet-64 | 2 | 0.7900 ±0.0000 | 0.5000 ±0.0000 | +0.0200 [+0.0200, +0.0200] | 1.00 |" in tuned
    at_common = with_method(outcomes[1], made(COMMON)["mlet-64.none"])
    common, again = hash_quant.tables_of([*outcomes, at_common], every).split("### Tuned")
    assert "| none | 32 | mlet-64 | 1 | 0.7900" in common and again == tuned


def test_models_are_trained_once_more_evaluated_and_removed(tmp_path, monkeypatch):
    made = []

    def run(self, method, setting, seed, more=""):
        made.append(method.name)
        if method.name.endswith("saved"):
            self.model_of(method, setting, seed).mkdir()
            self.file_of(method, setting, seed).write_text("{}\n")
            return
        assert str(self.model_of(Method("plain-saved"), setting, seed)) in more
        assert self.model_of(Method("plain-saved"), setting, seed).is_dir()
        self.file_of(method, setting, seed).write_text('{"event": "result", "test": {"auc": 0.5}}\n')

    monkeypatch.setattr(Study, "run", run)
    study = Study("--base", tmp_path, [1])
    plain = Outcome(Method("plain"), "--rate=2", {})
    more = quantized(study, [plain])
    assert made == ["plain-saved", "plain-16bit", "plain-8bit", "plain-4bit"]
    assert [each.method.name for each in more] == made[1:] and more[0].results[1]["test"] == {"auc": 0.5}
    assert not any(path.is_dir() or "saved" in path.name for path in tmp_path.iterdir())
    made.clear()
    quantized(study, [plain])
    assert not made
    assert bits_of(Method("x", "--qr-flag --qr-collisions=4")) == (16,)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "words", "name", "count"),
    [
        ("equal_bytes", ["--only", "learned"], "learned.4", 4),
        ("reproduce_mlet_hash_quant", ["--hashes", "modulo-4"], "mlet-64", 1 + 4),  # at the common rate too
    ],
)
def test_the_commands_run(script, words, name, count, tmp_path, shell_environment):
    scale = "small" if script == "equal_bytes" else "smoke"
    command = [
        "bash",
        str(ROOT / f"scripts/{script}.sh"),
        "--dataset=synthetic",
        f"--scale={scale}",
        "--seeds=1",
        *words,
    ]
    command += ["--work=out", "--", "--synthetic-rows=3000", "--num-batches=8"]
    run = subprocess.run(command, cwd=tmp_path, env=shell_environment, capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stderr
    text = (tmp_path / "out" / "table.md").read_text()
    lines = [line for line in text.splitlines() if f"| {name} |" in line]
    assert len(lines) == count and all(
        0.3 < float(line.split("|")[4 if script == "equal_bytes" else 5]) < 0.8 for line in lines
    )


def test_a_rate_at_the_end_of_its_grid_is_marked_in_every_number_of_bits(monkeypatch, tmp_path):
    """The best may lie beyond it."""

    def drive(self, flags, _what):
        path = Path(flags.split("--metrics-file=")[1].split()[0])
        numbers = {"auc": 0.7, "logloss": 0.5}
        event = {"event": "result", "best": None, "test": numbers, "inference_bytes": 1e6}
        path.write_text(json.dumps(event | {"data_sha256": "d"}) + "\n")

    monkeypatch.setattr(Study, "drive", drive)
    grid = ("--rate=1", "--rate=2", "--rate=3")
    ends, within = Outcome(Method("a.4", "", grid), "--rate=3", {}), Outcome(Method("b.4", "", grid), "--rate=2", {})
    more = quantized(Study("", tmp_path, [1]), [ends, within])
    rates = {each.method.name: each for each in more}
    assert [chosen_rate(rates[f"a.4-{bits}bit"]) for bits in (16, 8, 4)] == ["3 (grid's end)"] * 3
    assert chosen_rate(rates["b.4-4bit"]) == "2"
