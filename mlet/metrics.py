"""Exact metrics of binary predictions, and the JSON-lines file that a run writes them to.

N: rows. Normalized entropy (NE): He et al., "Practical Lessons from Predicting Clicks on Ads at Facebook",
ADKDD 2014, eq. 1. Accuracy and `reference_metrics` follow `inference` of Meta's dlrm_s_pytorch.py.
"""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np

from mlet.files import atomic_file


def binary_metrics(labels: np.ndarray, scores: np.ndarray) -> dict[str, float | int | None]:
    """AUC, logloss, NE and accuracy over all rows, in float64.

    Arguments:
        labels: [N] or [N, 1], 0 or 1; soft targets leave auc, logloss and ne None
        scores: of as many elements, predicted probabilities

    Returns:
        auc: area under the ROC curve; None if only one class is present
        logloss: mean binary cross-entropy in nats; scores of exactly 0 or 1 are clipped as scikit-learn does
        ne: logloss / entropy of the mean label of the same rows; None if only one class is present
        accuracy: percent of the rows whose rounded score equals the label (half to even: 0.5 counts as 0)
        samples: N

    Raises:
        ValueError: no rows, sizes differ, or values that are not finite or no probabilities (how many, and
            the first row, counted from 0)
    """
    labels, scores = _checked(labels, scores)
    result = {"auc": None, "logloss": None, "ne": None, "accuracy": _accuracy(labels, scores)}
    if _is_binary(labels):
        result["logloss"] = _logloss(labels, scores)
        positive = float(labels.mean())
        if 0.0 < positive < 1.0:
            entropy = -positive * math.log(positive) - (1.0 - positive) * math.log1p(-positive)
            result["auc"] = _auc(labels, scores)
            result["ne"] = result["logloss"] / entropy
    return {**result, "samples": labels.size}


def reference_metrics(labels: np.ndarray, scores: np.ndarray) -> dict[str, float | None]:
    """What Meta's DLRM prints under --mlperf-logging: recall, precision, f1, ap, roc_auc, accuracy (percent).

    recall, precision and f1 are those of the rounded scores, 0 where undefined; ap, the average precision, is
    0 without a positive label; roc_auc is None if only one class is present. Soft targets, at which the
    reference stops, leave all but the accuracy None. Arguments and errors as in `binary_metrics`.
    """
    from sklearn import metrics as sk  # a second of every start otherwise, with the SciPy and pandas that it brings

    labels, scores = _checked(labels, scores)
    result = dict.fromkeys(("recall", "precision", "f1", "ap", "roc_auc"))
    if _is_binary(labels):
        predicted = np.round(scores)
        result["recall"] = float(sk.recall_score(labels, predicted, zero_division=0))
        result["precision"] = float(sk.precision_score(labels, predicted, zero_division=0))
        result["f1"] = float(sk.f1_score(labels, predicted, zero_division=0))
        result["ap"] = float(sk.average_precision_score(labels, scores)) if labels.any() else 0.0
        result["roc_auc"] = float(sk.roc_auc_score(labels, scores)) if np.ptp(labels) > 0 else None
    return {**result, "accuracy": _accuracy(labels, scores)}


def _checked(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64 [N]; raises ValueError as `binary_metrics` says."""
    labels, scores = (np.asarray(values, dtype=np.float64).reshape(-1) for values in (labels, scores))
    if labels.size != scores.size:
        raise ValueError(f"{scores.size} scores for {labels.size} labels")
    if labels.size == 0:
        raise ValueError("no rows to evaluate")
    for name, values in (("labels", labels), ("scores", scores)):
        _refuse(~np.isfinite(values), f"{name} are not finite")
    _refuse((scores < 0.0) | (scores > 1.0), "scores are no probabilities (outside 0 to 1)")
    return labels, scores


def _logloss(labels: np.ndarray, scores: np.ndarray) -> float:
    margin = np.finfo(np.float64).eps
    return float(-np.log(np.clip(np.where(labels == 1.0, scores, 1.0 - scores), margin, 1.0 - margin)).mean())


def _auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Mann and Whitney's U over the number of pairs: of equal scores each counts half."""
    _, place = np.unique(scores, return_inverse=True)
    positives = np.bincount(place, weights=labels)  # at each score, from the lowest up
    negatives = np.bincount(place) - positives
    below = negatives.cumsum() - negatives
    return float(positives @ (below + negatives / 2) / (positives.sum() * negatives.sum()))


def _refuse(bad: np.ndarray, what: str) -> None:
    if bad.any():
        raise ValueError(f"{np.count_nonzero(bad)} of {bad.size} {what}, the first in row {bad.argmax()}")


def _is_binary(labels: np.ndarray) -> bool:
    return bool(np.isin(labels, (0.0, 1.0)).all())


def _accuracy(labels: np.ndarray, scores: np.ndarray) -> float:
    return 100.0 * float(np.mean(np.round(scores) == labels))


class MetricsFile:
    """Events of a run, one JSON object a line, on the disk as soon as they are written.

    The file is opened at the first event, so that a run refused before it leaves an older file as it was.

    Arguments:
        path: of the file, whose folder must exist; None writes nothing
        append: continue an existing file, less a last line that a killed run left incomplete; else replace it
    """

    def __init__(self, path: str | os.PathLike | None, append: bool = False) -> None:
        self._path = None if path is None else Path(path)
        self._append = append
        self._file: IO[str] | None = None
        self._closed = False

    def write(self, event: str, /, **fields: Any) -> None:
        """Appends `{"event": event, **fields}`; numbers that are not finite become null.

        Raises:
            ValueError: the file is closed
            TypeError: a field is no JSON value; nothing is written
            OSError: the folder is missing, the disk is full, ...
        """
        if self._closed:
            raise ValueError(f"the metrics file {self._path} is closed")
        if self._path is None:
            return
        line = json.dumps(_plain({"event": event, **fields}), allow_nan=False)
        if self._file is None:
            if self._append:
                _drop_incomplete_line(self._path)
            self._file = open(self._path, "a" if self._append else "w", encoding="utf-8")
        try:
            self._file.write(line + "\n")
            self._file.flush()
        except OSError as error:
            error.filename = str(self._path)  # of a full disk nobody would learn which
            raise

    def cut(self, keep: Callable[[dict], bool]) -> None:
        """With append: drop the events of an existing file that `keep` refuses, such as those a resumed run repeats."""
        if self._path is None or not self._append or not self._path.is_file():
            return
        kept = []
        for line in self._path.read_text(encoding="utf-8").splitlines():
            try:
                if keep(json.loads(line)):
                    kept.append(line + "\n")
            except ValueError:  # half a line of a killed run
                continue
        with atomic_file(self._path, "w") as file:
            file.writelines(kept)

    def close(self) -> None:
        self._closed = True
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> "MetricsFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _plain(value: Any) -> Any:
    """The value with NumPy scalars and arrays as Python values, and NaN and infinities as None."""
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _drop_incomplete_line(path: Path) -> None:
    """Cuts an existing file after its last newline."""
    if not path.is_file():
        return
    with open(path, "r+b") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)
