"""Runs of several epochs, read from their metrics files: quality after each epoch, loss across each boundary."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from paired_difference import interval  # noqa: E402
from study import Outcome  # noqa: E402


@dataclass(frozen=True)
class Curve:
    """One run, one task: values after each epoch, which validation (of all tasks) finds best, jumps between epochs.

    Args:
        test, val: AUC after each epoch. val_logloss: the same of the logloss.
        jumps: of the training loss across each boundary in percent, see `mlet.boundary`.
        best: number of the epoch with the best validation AUC, from 0.
    """

    test: tuple[float, ...]
    val: tuple[float, ...]
    val_logloss: tuple[float, ...]
    jumps: tuple[float, ...]
    best: int

    @property
    def at_best(self) -> float:
        """Test AUC where an early stop would have kept the model."""
        return self.test[self.best]

    @property
    def val_jumps(self) -> tuple[float, ...]:
        """Change of the validation logloss from each epoch's end to the next one's, in percent."""
        pairs = zip(self.val_logloss, self.val_logloss[1:], strict=False)
        return tuple(100 * (after - before) / before for before, after in pairs)


@dataclass(frozen=True)
class Row:
    """A method at its setting, seed by seed; without curves it was not run."""

    name: str
    setting: str = ""
    curves: tuple[Curve, ...] = ()
    seeds: tuple[int, ...] = ()


def events_of(path: Path) -> list[dict]:
    """All events of a metrics file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def of_task(event: dict, task: str) -> dict:
    """Metrics of an evaluation; "" is the only label of a run that has one. ValueError where there is no AUC."""
    metrics = event["tasks"][task] if task else event
    if metrics["auc"] is None:
        label = f"the label {task}" if task else "the label"
        raise ValueError(f"{label} has one class on the {event['split']} split, and so no AUC: more rows are needed")
    return metrics


def tasks_of(outcome: Outcome) -> list[str]:
    """The labels that a method's runs were evaluated on."""
    first = next(iter(outcome.results.values()))["test"]
    return list(first.get("tasks") or [""])


def curve_of(events: Sequence[dict], task: str = "") -> Curve:
    """A run's curve: the last evaluation of each epoch is the one at its end."""
    ends = {
        split: {event["epoch"]: event for event in events if event["event"] == "eval" and event["split"] == split}
        for split in ("test", "val")
    }
    if not ends["test"] or ends["test"].keys() != ends["val"].keys():
        raise ValueError("a run was not evaluated on validation and test after each epoch")
    chosen_by = [event["auc"] for event in ends["val"].values()]
    test, val = ([of_task(event, task) for event in ends[split].values()] for split in ("test", "val"))
    return Curve(
        tuple(event["auc"] for event in test),
        tuple(event["auc"] for event in val),
        tuple(event["logloss"] for event in val),
        tuple(event["jump_percent"] for event in events if event["event"] == "boundary"),
        chosen_by.index(max(chosen_by)),
    )


def rows_of(names: Sequence[str], outcomes: Sequence[Outcome], task: str) -> list[Row]:
    """One row a name; those without an outcome were not run."""
    by_name = {outcome.method.name: outcome for outcome in outcomes}
    rows = []
    for name in names:
        outcome = by_name.get(name)
        if outcome is None:
            rows.append(Row(name))
            continue
        curves = [curve_of(events_of(path), task) for path in outcome.files.values()]
        rows.append(Row(name, outcome.setting, tuple(curves), tuple(outcome.files)))
    return rows


def settings_of(outcomes: Sequence[Outcome], task: str) -> list[Row]:
    """One row for every setting that was tried of every method with several, with the seeds that tune."""
    return [
        Row(outcome.method.name, setting, tuple(curve_of(events_of(path), task) for path in files.values()))
        for outcome in outcomes
        for setting, files in outcome.tried.items()
        if len(outcome.tried) > 1
    ]


def after_epochs(curves: Sequence[Curve], of_run: Callable[[Curve], Sequence[float]]) -> list[list[float]]:
    """For each epoch (or boundary) that all runs reached, one value a run."""
    return [list(values) for values in zip(*map(of_run, curves), strict=False)]


def with_interval(differences: Sequence[float], digits: int = 4) -> str:
    """Mean of paired differences and its 95 % interval (Student's), where there are several."""
    if len(differences) < 2:
        return f"{statistics.mean(differences):+.{digits}f} (one seed)"
    return "{:+.{d}f} [{:+.{d}f}, {:+.{d}f}]".format(*interval(list(differences)), d=digits)


def collapse_of(row: Row) -> tuple[str, str]:
    """Whether the test AUC falls from the epoch that validation chooses to the last one, and how far.

    "yes" where the interval lies below 0, "no" where the mean does not fall, "not shown" between, "one seed only".
    """
    drops = [curve.test[-1] - curve.at_best for curve in row.curves]
    epochs = sorted({curve.best + 1 for curve in row.curves})
    length = min(len(curve.test) for curve in row.curves)
    where = f"from epoch {', '.join(map(str, epochs))} (best on validation) to epoch {length}"
    text = f"test AUC {with_interval(drops)} {where}, {len(drops)} seed{'s' * (len(drops) > 1)}"
    if statistics.mean(drops) >= 0:
        return "no", text
    if len(drops) < 2:
        return "one seed only", text
    return ("yes" if interval(drops)[2] < 0 else "not shown"), text
