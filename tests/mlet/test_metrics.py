"""Metrics against hand-made numbers and scikit-learn; the metrics file against killed and refused runs."""

import json
import math
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from mlet.metrics import MetricsFile, binary_metrics, reference_metrics

LABELS = np.array([0, 0, 1, 1, 1], dtype=np.float32)
SCORES = np.array([0.25, 0.5, 0.5, 0.75, 0.125], dtype=np.float32)


def test_by_hand():
    result = binary_metrics(LABELS, SCORES)
    loss = -(math.log(0.75) + math.log(0.5) + math.log(0.5) + math.log(0.75) + math.log(0.125)) / 5
    entropy = -(0.6 * math.log(0.6) + 0.4 * math.log(0.4))
    assert result["auc"] == pytest.approx(3.5 / 6)  # of 6 pairs 3 are in order and 1 is tied
    assert result["logloss"] == pytest.approx(loss, rel=1e-14)
    assert result["ne"] == pytest.approx(loss / entropy, rel=1e-14)
    assert result["accuracy"] == 60.0  # 0.5 counts as 0
    assert result["samples"] == 5
    assert list(result) == ["auc", "logloss", "ne", "accuracy", "samples"]


def test_a_constant_prediction_of_the_mean_has_ne_one():
    labels = np.array([1] * 3 + [0] * 13)
    assert binary_metrics(labels, np.full(16, 3 / 16))["ne"] == pytest.approx(1.0, rel=1e-14)


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1, width=32)), min_size=1, max_size=40))
@settings(max_examples=100, deadline=None)
def test_values_are_plain_json_and_those_of_sklearn(rows):
    labels, scores = np.array([row[0] for row in rows]), np.array([row[1] for row in rows], dtype=np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result, reference = binary_metrics(labels, scores), reference_metrics(labels, scores)
    for value in [*result.values(), *reference.values()]:
        assert value is None or type(value) in (float, int)
    assert json.loads(json.dumps([result, reference], allow_nan=False)) == [result, reference]
    loss = sklearn.metrics.log_loss(labels, scores.astype(np.float64), labels=[0, 1])
    assert result["logloss"] == pytest.approx(loss, rel=1e-12, abs=1e-15)
    both = 0 < labels.sum() < len(labels)
    auc = sklearn.metrics.roc_auc_score(labels, scores) if both else None
    assert reference["roc_auc"] == auc and result["auc"] == (auc if auc is None else pytest.approx(auc, abs=1e-12))
    assert (result["ne"] is not None) == both
    assert result["accuracy"] == reference["accuracy"]


def test_shapes_of_the_driver_are_taken():
    assert binary_metrics(LABELS[:, None], SCORES[:, None]) == binary_metrics(LABELS, SCORES)


@pytest.mark.parametrize("label", [0, 1])
def test_one_class(label):
    result = binary_metrics(np.full(4, label), np.array([0.25, 0.25, 0.75, 0.75]))
    expected = -(math.log(0.25) + math.log(0.75)) / 2
    assert result == {
        "auc": None,
        "logloss": pytest.approx(expected),
        "ne": None,
        "accuracy": 50.0,
        "samples": 4,
    }


def test_soft_targets_have_an_accuracy_only():
    labels, scores = np.array([0.3, 1.0, 0.0, 1.0]), np.array([0.3, 0.9, 0.2, 0.1])
    result = binary_metrics(labels, scores)
    assert result == {"auc": None, "logloss": None, "ne": None, "accuracy": 50.0, "samples": 4}
    reference = reference_metrics(labels, scores)
    assert reference.pop("accuracy") == 50.0
    assert set(reference.values()) == {None}


def test_saturated_scores_stay_finite():
    result = binary_metrics([0, 1], [1.0, 0.0])
    assert result["logloss"] == pytest.approx(-math.log(np.finfo(np.float64).eps))
    assert binary_metrics([0, 1], [0.0, 1.0])["auc"] == 1.0


def test_auc_does_not_lose_close_scores():
    scores = np.array([0.5, 0.5 + 2**-40])  # one value in float32
    assert binary_metrics([0, 1], scores)["auc"] == 1.0


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([0, 1, 1], [0.5, math.nan, math.inf], "2 of 3 scores are not finite, the first in row 1"),
        ([0, math.nan], [0.5, 0.5], "1 of 2 labels are not finite, the first in row 1"),
        ([0, 1], [0.5, 1.5], r"1 of 2 scores are no probabilities \(outside 0 to 1\), the first in row 1"),
        ([0, 1], [-0.5, 0.5], "1 of 2 scores are no probabilities"),
        ([0, 1], [0.5], "1 scores for 2 labels"),
        ([], [], "no rows to evaluate"),
    ],
)
def test_refused(labels, scores, message):
    for function in (binary_metrics, reference_metrics):
        with pytest.raises(ValueError, match=message):
            function(np.array(labels), np.array(scores))


def test_reference_metrics_are_those_of_the_reference():
    rng = np.random.RandomState(0)
    labels, scores = rng.randint(0, 2, 200).astype(np.float32), rng.rand(200).astype(np.float32)
    scores[:20] = 0.5
    rounded = np.round(scores)
    assert reference_metrics(labels, scores) == {  # as in `inference` of dlrm_s_pytorch.py
        "recall": sklearn.metrics.recall_score(y_true=labels, y_pred=rounded),
        "precision": sklearn.metrics.precision_score(y_true=labels, y_pred=rounded),
        "f1": sklearn.metrics.f1_score(y_true=labels, y_pred=rounded),
        "ap": sklearn.metrics.average_precision_score(labels, scores),
        "roc_auc": sklearn.metrics.roc_auc_score(labels, scores),
        "accuracy": 100 * sklearn.metrics.accuracy_score(y_true=labels, y_pred=rounded),
    }
    nothing_found = reference_metrics(np.array([1, 0]), np.array([0.2, 0.1]))
    assert [nothing_found[name] for name in ("recall", "precision", "f1")] == [0.0, 0.0, 0.0]
    assert reference_metrics(np.array([0, 0]), np.array([0.2, 0.1]))["ap"] == 0.0


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_events_are_on_disk_at_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsFile(path) as file:
        file.write("train", epoch=0, loss=0.5)
        assert lines_of(path) == [{"event": "train", "epoch": 0, "loss": 0.5}]
        file.write("eval", split="test")
    assert lines_of(path) == [{"event": "train", "epoch": 0, "loss": 0.5}, {"event": "eval", "split": "test"}]


def test_a_killed_run_keeps_its_events(tmp_path):
    path = tmp_path / "metrics.jsonl"
    # without mlet/__init__, which imports torch and takes seconds
    code = """import importlib.util, os, sys
spec = importlib.util.spec_from_file_location("metrics", "mlet/metrics.py")
metrics = importlib.util.module_from_spec(spec)
spec.loader.exec_module(metrics)
metrics.MetricsFile(sys.argv[1]).write("train", loss=1.0)
os._exit(9)"""
    run = subprocess.run([sys.executable, "-c", code, str(path)], cwd=Path(__file__).parents[2], timeout=120)
    assert run.returncode == 9
    assert lines_of(path) == [{"event": "train", "loss": 1.0}]


def test_values_become_strict_json(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsFile(path) as file:
        file.write(
            "result",
            loss=math.nan,
            nested={"inf": [math.inf, np.float32("-inf"), (1, 2.5)]},
            numpy=[np.float64(0.25), np.int64(2**60), np.bool_(True), np.arange(2)],
        )
        with pytest.raises(TypeError):
            file.write("result", value=object())
    expected = {"loss": None, "nested": {"inf": [None, None, [1, 2.5]]}, "numpy": [0.25, 2**60, True, [0, 1]]}
    assert lines_of(path) == [{"event": "result", **expected}]


def test_the_old_file_goes_with_the_first_event_only(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"event": "old"}\n')
    MetricsFile(path).close()
    assert lines_of(path) == [{"event": "old"}]
    with MetricsFile(path) as file:
        assert lines_of(path) == [{"event": "old"}]
        file.write("new")
    assert lines_of(path) == [{"event": "new"}]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_named():
    with pytest.raises(OSError, match="No space left.*/dev/full"):
        MetricsFile("/dev/full").write("train", loss=1.0)


def test_append_goes_on_after_the_last_complete_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for content, kept in (
        ('{"event": "old"}\n', ["old"]),
        ('{"event": "old"}\n{"eve', ["old"]),
        ("", []),
        ("{", []),
    ):
        path.write_text(content)
        with MetricsFile(path, append=True) as file:
            file.write("new")
        assert [line["event"] for line in lines_of(path)] == [*kept, "new"]
    path.unlink()
    with MetricsFile(path, append=True) as file:
        file.write("new")
    assert lines_of(path) == [{"event": "new"}]


def test_closed_missing_and_none(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.write("train")
    file.close()
    file.close()
    with pytest.raises(ValueError, match="metrics.jsonl is closed"):
        file.write("train")
    with pytest.raises(FileNotFoundError):
        MetricsFile(tmp_path / "no" / "metrics.jsonl").write("train")
    with MetricsFile(None) as nothing:
        nothing.write("train", value=object())
