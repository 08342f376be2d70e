"""Cells of the MLET studies: every one a command line of the driver, rates that mirror k/16, tables with all cells."""

import json
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import mlet_grid  # noqa: E402
import mlet_study  # noqa: E402
import mlet_tables  # noqa: E402
import reproduce_mlet_dlrm  # noqa: E402
import reproduce_mlet_models  # noqa: E402
import reproduce_mlet_rare_items as rare  # noqa: E402
from mlet_grid import ADAGRAD, ADAM, BENCHMARKS, COMMON, SGD, TUNED, Cell, cells, method_of, rates_of  # noqa: E402
from study import Outcome  # noqa: E402

SCRIPTS = {reproduce_mlet_dlrm: ["dlrm"], reproduce_mlet_models: mlet_grid.MODELS, rare: ["dlrm"]}


@pytest.mark.parametrize("dataset", mlet_study.SETS)
@pytest.mark.parametrize("preset", mlet_grid.PRESETS)
def test_every_cell_is_a_command_line_of_the_driver(dataset, preset):
    import dlrm_mlet

    for scale in ("smoke", "small", "paper"):
        flags = Namespace(dataset=dataset, preset=preset, scale=scale, data="x")
        for script, models in SCRIPTS.items():
            optimizer = mlet_grid.optimizer_of(flags, models)
            for cell in cells(models, script.GRIDS[scale], reproduce_mlet_dlrm.AT):
                method = method_of(cell, optimizer, mlet_grid.dense_of(flags))
                line = f"{mlet_grid.base_of(flags, optimizer)} {method.flags} {method.grid[-1]} --metrics-file=x"
                parsed = dlrm_mlet.parse_flags(line.split())
                assert parsed.arch_sparse_feature_size == cell.dim
                assert parsed.mlet_inner_dim == (0 if cell.kind in ("single", "matched") else cell.inner)


def test_rates_follow_the_factor_that_w2_brings():
    def rates(recipe, how=TUNED, optimizer=SGD):
        return rates_of(Cell("dlrm", recipe, 8, how), optimizer)

    assert rates("single") == rates("scaled-64") == (1, 32, 64, 128, 256)
    assert rates("mlet-64") == rates("fixed-w2-64") == (1, 8, 16, 32, 64)
    assert rates("mlet-64", COMMON) == rates("single", COMMON) == (1,) and rates("matched-64", COMMON) == (4,)
    assert rates("single", optimizer=BENCHMARKS)[0] == rates("mlet-64", COMMON, BENCHMARKS)[0] == 5


@pytest.mark.parametrize(("optimizer", "rule"), [(SGD, "sgd"), (ADAM, "adam"), (ADAGRAD, "adagrad")])
def test_a_step_of_w1_moves_the_collapsed_row_by_the_lift(optimizer, rule):
    """One row, one step, a gradient of equal entries: against a single layer's step at the same rate."""
    torch.manual_seed(1)
    inner, dim, rate = 1024, 64, 0.001
    make = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adagrad": torch.optim.Adagrad}[rule]
    w2 = 0.25 * torch.randn(inner, dim)
    moved = []
    for projected in (True, False):
        row = torch.zeros(inner if projected else dim, requires_grad=True)
        # a gradient into one coordinate: what the own coordinate gets back is the sum of |w2| or of w2^2
        (row @ w2 if projected else row)[0].backward()
        make([row], lr=rate).step()
        moved.append(abs(((row @ w2) if projected else row)[0].item()))
    assert moved[0] / moved[1] == pytest.approx(inner * optimizer.lift, rel=0.1)


def test_cells_at_both_rates_share_their_runs():
    one, other = (method_of(Cell("dlrm", "mlet-64", 8, how), SGD, 13) for how in (COMMON, TUNED))
    assert one.name == other.name and one.flags == other.flags and set(one.grid) < set(other.grid)


def outcome(cell, *aucs):
    results = {
        seed: {
            "best": None, "test": {"auc": auc, "logloss": 0.5, "ne": 0.9, "accuracy": 75.0}, "val": {"auc": auc},
            "train_seconds": 2.0 if cell.inner else 1.0, "train_bytes": 9, "inference_bytes": 3,
        }
        for seed, auc in enumerate(aucs)
    }  # fmt: skip
    method = method_of(cell, SGD, 13)
    return Outcome(method, method.grid[-1], results)


def test_tables_show_every_cell_and_both_comparisons(tmp_path):
    every = cells(["dlrm", "nfm"], {"single": (4, 8, 16), "mlet-64": (4, 8)}, {})  # nothing of nfm was run
    aucs = {("single", 4): 0.70, ("single", 8): 0.71, ("single", 16): 0.72, ("mlet-64", 4): 0.71}
    found = {
        cell: outcome(cell, *(aucs[cell.recipe, cell.dim] + shift + (0.05 if cell.how == TUNED else 0)
                              for shift in (0.0, 0.002)))
        for cell in every
        if cell.model == "dlrm" and (cell.recipe, cell.dim) in aucs and (cell.how == COMMON or cell.recipe == "single")
    }  # fmt: skip
    table = mlet_tables.reduction_table(every, found, "here")
    assert "| dlrm | mlet-64 | 4 | 4x to 8x | 2 [2, 2] | lower | not run | here |" in table
    assert "| dlrm | mlet-64 | 8 | 4x to 8x | not run |  | not run | here |" in table
    quality = mlet_tables.quality_table(every, found)
    assert quality.count("\n") == 1 + 5 and "| dlrm | single | 4 | 0.7010 ±0.0014 |" in quality
    assert "| 256 (grid's end) | 0.7510" in quality and "| dlrm | mlet-64 | 8 | not run |" in quality
    assert "| dlrm | mlet-64 | 4 | +25 % | 2.00 (2.00 to 2.00) |" in mlet_tables.time_table(found)
    mlet_tables.write_cells(found, tmp_path / "cells.csv")
    assert (tmp_path / "cells.csv").read_text().count("\n") == 1 + len(found)


def test_the_authors_choose_on_what_they_report(tmp_path):
    path = tmp_path / "run.jsonl"
    events = [
        {"event": "eval", "split": split, "iteration": at, "accuracy": accuracy, "auc": accuracy / 100}
        for at, of_test, of_val in ((10, 76.0, 70.0), (20, 75.0, 80.0))
        for split, accuracy in (("val", of_val), ("test", of_test))
    ]
    last = {"event": "result", "test": {"auc": 0.75}, "best": {"test": {"auc": 0.75}}}
    path.write_text("\n".join(map(json.dumps, [*events, last])))
    best = mlet_grid.as_the_authors(path)["best"]
    assert best["test"]["auc"] == 0.76 and best["val"]["auc"] == 0.70


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dims", "3"], "--dims 3: the grid of --scale=small has 2, 4, 8, 16, 32, 64"),
        (["--only", "single", "masked-64", "--dims", "16"], "nothing of masked-64 is left"),
        (["--only", "mlet-32"], "nothing of mlet-32 is left to run: its cells at --scale=small are none"),
    ],
)
def test_a_choice_that_leaves_nothing_is_one_line(monkeypatch, capsys, words, message):
    monkeypatch.setattr(sys, "argv", ["x", "data", *words])
    assert reproduce_mlet_dlrm.main() == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
