"""The study of rare items on made-up runs: bins, their differences, and by how much more the rare ones gain."""

import csv
import json
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import rare_pictures  # noqa: E402
import reproduce_mlet_rare_items as study  # noqa: E402
from mlet_grid import COMMON, SGD, TUNED, Cell, method_of  # noqa: E402
from study import Outcome  # noqa: E402

SINGLE, MLET = (Cell("dlrm", recipe, 8, COMMON) for recipe in ("single", "mlet-64"))
EVERY = [SINGLE, MLET, *(Cell("dlrm", recipe, 8, TUNED) for recipe in ("single", "mlet-64"))]


def outcome(cell, folder, gains):
    """Two seeds; `gains` of the bins, rarest first, over an AUC of 0.7."""
    bins = [{"low": 10**n, "high": 10 ** (n + 1) - 1, "samples": 50, "positives": 9, "auc": 0.7 + gain, "logloss": 0.5}
            for n, gain in enumerate(gains)]  # fmt: skip
    every = {"samples": 200, "positives": 36, "auc": 0.7, "logloss": 0.5, "ne": 0.9, "accuracy": 75.0}
    parts = {"bins": bins, "empty": None}
    results = {
        seed: {
            "event": "result", "seed": seed, "best": None, "test": every, "val": every, "data_sha256": "d",
            "data": {"rows": {"train": 1000}}, "train_bytes": 1, "inference_bytes": 1, "train_seconds": 1.0,
            "by_frequency": {"all": every, "rarest": parts, "rare_ids": parts | {"below": 10}, "tables": {}},
        }
        for seed in (1, 2)
    }  # fmt: skip
    files = {seed: folder / f"{cell.recipe}-{seed}.jsonl" for seed in results}
    for seed, path in files.items():
        path.write_text(json.dumps(results[seed]) + "\n")
    method = method_of(cell, SGD, 13)
    return Outcome(method, method.grid[0], results, files)


@pytest.fixture
def found(tmp_path):
    return {SINGLE: outcome(SINGLE, tmp_path, (0, 0, 0, 0)), MLET: outcome(MLET, tmp_path, (0.04, 0.02, 0.01, 0.01))}


def test_each_bin_has_its_difference_and_the_rare_half_is_set_against_the_other(found, tmp_path):
    text = study.rare_report(EVERY, found, Namespace(seeds=[1, 2], dataset="criteo", work=tmp_path))
    assert "Measured on criteo, 1,000 rows." in text
    assert "| 1-9 | 50 | 0.7000 | +0.0400 [+0.0400, +0.0400] |" in text
    assert "minus gain of the other half: mlet-64 +0.0200 [+0.0200, +0.0200]." in text
    with open(tmp_path / "rare_items.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["table"] == "(rarest)" and row["bin"] == "1"]
    assert [row["recipe"] for row in rows] == ["mlet-64"] and float(rows[0]["auc_difference"]) == pytest.approx(0.04)
    assert text.count("###") == 2 and text.count("not run") == 2  # the tuned rate has no section, both recipes a blank
    assert text.count("| rare ids |") == 1 and text.count("| occurrences |") == 1
    assert "ids are rare (fewer than 10 occurrences in training):" in text and "On average" not in text


def test_several_models_have_an_average(found, tmp_path):
    """Over models, each the mean of its seeds."""
    (tmp_path / "nfm").mkdir()
    more = {replace(cell, model="nfm"): each for cell, each in found.items()}
    more[replace(MLET, model="nfm")] = outcome(MLET, tmp_path / "nfm", (0.02, 0.02, 0.03, 0.03))
    every = [*EVERY, *(replace(cell, model="nfm") for cell in EVERY)]
    text = study.rare_report(every, found | more, Namespace(seeds=[1, 2], dataset="criteo", work=tmp_path))
    line = next(line for line in text.splitlines() if line.startswith("| mlet-64 | 8 | common | 2 |"))
    rare, common, apart = (float(part.split()[0]) for part in line.split(" | ")[4:])
    assert (rare, common, apart) == pytest.approx((0.025, 0.02, 0.005))


def test_the_picture_has_the_seeds_interval_of_one_model_and_the_models_of_several():
    def row(gain, low, high):
        figures = {"auc_difference": gain, "auc_difference_low": low, "auc_difference_high": high}
        return {"bin": "1", "count_low": 1, "count_high": 9} | figures

    undefined = row(None, None, None) | {"count_low": 10, "count_high": 99}
    assert rare_pictures.points_of([row(0.1, 0.0, 0.2), undefined]) == {"1-9": (0.1, 0.0, 0.2)}
    middle, low, high = rare_pictures.points_of([row(0.1, 0.0, 0.2), row(0.3, 0.0, 0.2)])["1-9"]
    assert middle == pytest.approx(0.2) and low == pytest.approx(0.2 - 12.706 * 0.1, abs=1e-3)


def test_the_picture_is_drawn_where_matplotlib_is(found, tmp_path):
    pytest.importorskip("matplotlib")
    text = study.rare_report(EVERY, found, Namespace(seeds=[1, 2], dataset="criteo", work=tmp_path))
    assert f"Picture: {tmp_path / 'rare_items.png'}" in text and (tmp_path / "rare_items.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("words", "lacks"),
    [
        (["--seeds", "1"], "two seeds"),
        (["--only", "single"], "another recipe than the single layer"),
        (["--only", "mlet-64"], "the single layer"),
    ],
)
def test_what_a_difference_needs_is_said_before_anything_is_run(monkeypatch, capsys, words, lacks):
    monkeypatch.setattr(sys, "argv", ["x", "--dataset=synthetic", "--scale=smoke", *words])
    assert study.main() == 2
    assert capsys.readouterr().err == f"error: differences need {lacks}\n"


def test_one_bin_says_nothing(tmp_path):
    pair = {cell: outcome(cell, tmp_path, (0.01,)) for cell in (SINGLE, MLET)}
    assert study.rarity_gain(SINGLE, MLET, pair) == "undefined (one bin)"
