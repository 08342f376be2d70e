"""Cross-fitting: its cells, the mean of two models, and one small run of all of it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import cross_fit_hash as script  # noqa: E402
from study import Method, Study  # noqa: E402

from mlet.metrics import binary_metrics  # noqa: E402

LABELS = np.array([0, 1, 1, 0, 1], np.float32)
FIRST, SECOND = np.array([0.1, 0.4, 0.9, 0.5, 0.6]), np.array([0.3, 0.8, 0.2, 0.1, 0.7])


def test_learned_methods_come_in_two_halves_and_rivals_train_on_all_rows():
    methods = {each.name: each.flags for each in script.methods_of(["modulo", "learned"], [10])}
    assert list(methods) == ["modulo.10", "learned.10.first", "learned.10.second"]
    shares = [flags.split("--hash-history=")[1] for flags in methods.values()]
    assert shares == ["0", "0-0.5", "0.5-1"]


@pytest.fixture
def two_models(monkeypatch, tmp_path):
    """A study with two models whose scores are known; returns it, and the pair."""
    study, by_name = Study("", tmp_path, [1]), {"a": FIRST, "b": SECOND}
    monkeypatch.setattr(script, "collapsed", lambda study, method, seed: tmp_path / method.name / "c")
    monkeypatch.setattr(script, "scores", lambda store, path, split: (LABELS, by_name[path.parent.name]))
    for name, own in by_name.items():
        metrics = binary_metrics(LABELS, own)
        result = {"event": "result", "best": None, "test": metrics, "val": metrics, "inference_bytes": 5}
        study.file_of(Method(name), "", 1).write_text(
            json.dumps(result | {"data_sha256": "x", "versions": {}, "machine": None})
        )
    return study, [(Method("a"), 1), (Method("b"), 1)]


def test_the_mean_of_scores_is_what_is_measured(two_models):
    both = script.mean_of(*two_models)
    assert both["test"] == both["val"] == binary_metrics(LABELS, (FIRST + SECOND) / 2)
    assert both["inference_bytes"] == 10
    assert both["data_sha256"] == "x" and both["versions"] == {} and both["machine"] is None  # those of its runs


def test_a_model_that_is_not_the_run_s_is_noticed(two_models, monkeypatch):
    monkeypatch.setattr(script, "scores", lambda store, path, split: (LABELS, 1 - SECOND))
    with pytest.raises(ValueError, match="scores otherwise than its run"):
        script.mean_of(*two_models)


@pytest.mark.slow
def test_the_command_runs(small_tsv, tmp_path, shell_environment):
    command = ["bash", str(ROOT / "scripts/cross_fit_hash.sh"), str(small_tsv), "--work", "out", "--budgets", "5"]
    more = ["--seeds", "1 2", "--only", "modulo", "learned-embedding", "--", "--hash-min-rows=50"]

    def run(*words):
        return subprocess.run(words, cwd=tmp_path, env=shell_environment, capture_output=True, text=True, timeout=900)

    first = run(*command, *more)
    assert first.returncode == 0, first.stderr
    text = (tmp_path / "out" / "table.md").read_text()
    for name in (
        "modulo.5",
        "modulo.5.mean",
        "learned-embedding.5.first",
        "learned-embedding.5.second",
        "learned-embedding.5.mean",
    ):
        assert f"| {name} |" in text
    again = run(*command, *more)
    assert again.returncode == 0 and (tmp_path / "out" / "table.md").read_text() == text
    bad = run(*command, "--only", "modulo")
    assert bad.returncode == 2 and "nothing to cross-fit" in bad.stderr
