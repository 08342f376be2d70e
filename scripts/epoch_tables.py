"""Tables and the picture of studies over several epochs, from `epoch_curves`. Rows are methods, the first is plain."""

from __future__ import annotations

import csv
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from epoch_curves import Curve, Row, after_epochs, collapse_of, of_task, with_interval  # noqa: E402
from study_pictures import picture  # noqa: E402
from study_report import spread  # noqa: E402

NOT_RUN = "not run"


def verdict(rows_by_task: Mapping[str, Sequence[Row]]) -> str:
    """First of all: is there anything to cure here? One line."""
    parts = []
    for task, rows in rows_by_task.items():
        of = f" of {task}" if task else ""
        if not rows[0].curves:
            parts.append(f"plain was {NOT_RUN}: whether it collapses{of} is not known, and cures prove nothing")
            continue
        answer, text = collapse_of(rows[0])
        after = {"yes": "", "no": "; cures measured here prove nothing"}.get(answer, "; run more seeds")
        parts.append(f"Does plain collapse here{of}? {answer}: {text}{after}")
    return ". ".join(parts) + "."


def quality_table(rows: Sequence[Row], published: Mapping[str, str]) -> str:
    """Test AUC after each epoch; at the epoch that validation chooses and at the last one, against plain's."""
    plain, epochs = rows[0].curves, max((len(curve.test) for row in rows for curve in row.curves), default=1)
    heads = [f"epoch {number + 1}" for number in range(epochs)]
    heads += ["best by validation", "best - plain's best (95 %)", "last - plain's last (95 %)"]
    lines = header(["method", "setting", *heads, "gain over one plain epoch, %", "published"])
    for row in rows:
        known = published.get(row.name, "-")
        if not row.curves:
            lines.append(line([row.name, NOT_RUN, *["-"] * (len(heads) + 1), known]))
            continue
        after = [spread(values) for values in after_epochs(row.curves, lambda curve: curve.test)]
        after += ["-"] * (epochs - len(after))
        chosen = sorted({curve.best + 1 for curve in row.curves})
        best = f"{spread([curve.at_best for curve in row.curves])} (epoch {', '.join(map(str, chosen))})"
        differences = against(row, plain) if row is not rows[0] else ("-", "-")
        cells = [row.name, f"`{row.setting}`" if row.setting else "-", *after, best, *differences]
        lines.append(line([*cells, gain_text(row, plain), known]))
    return "\n".join(lines)


def settings_table(rows: Sequence[Row]) -> str:
    """What each setting does: a setting that is best after one epoch need not be the one that bears five."""
    lines = header(
        ["method", "setting", "validation AUC, best epoch", "last epoch", "test AUC, best epoch", "last epoch"]
    )
    for row in rows:
        of_val = [[curve.val[curve.best] for curve in row.curves], [curve.val[-1] for curve in row.curves]]
        of_test = [[curve.at_best for curve in row.curves], [curve.test[-1] for curve in row.curves]]
        lines.append(line([row.name, f"`{row.setting}`", *map(spread, [*of_val, *of_test])]))
    return "\n".join(lines)


def against(row: Row, plain: Sequence[Curve]) -> tuple[str, str]:
    """Paired differences of the best and of the last epochs."""
    if not plain:
        return "-", "-"
    pairs = list(zip(row.curves, plain, strict=True))
    best = [curve.at_best - other.at_best for curve, other in pairs]
    last = [curve.test[-1] - other.test[-1] for curve, other in pairs]
    return with_interval(best), with_interval(last)


def gains(row: Row, plain: Sequence[Curve]) -> list[float]:
    """What the epochs bring in all: the best one against plain's first, in percent of it, seed by seed."""
    pairs = zip(row.curves, plain, strict=True)
    return [100 * (curve.at_best / other.test[0] - 1) for curve, other in pairs]


def gain_text(row: Row, plain: Sequence[Curve]) -> str:
    """The gains, or - without plain."""
    return with_interval(gains(row, plain), 2) if plain else "-"


def jump_table(rows: Sequence[Row], published: Mapping[str, str]) -> str:
    """Jumps of the training loss at the boundaries, and of the validation logloss from epoch to epoch."""
    boundaries = max((len(curve.jumps) for row in rows for curve in row.curves), default=0)
    steps = [f"{number} to {number + 1}" for number in range(1, boundaries + 1)]
    heads = [f"training loss, {step}" for step in steps] + [f"validation logloss, {step}" for step in steps]
    lines = header(["method", *heads, "published (which loss is not said)"])
    for row in rows:
        cells = []
        for of_run in (lambda curve: curve.jumps, lambda curve: curve.val_jumps):
            after = [percent(values) for values in after_epochs(row.curves, of_run)]
            cells += after + ["-"] * (boundaries - len(after))
        if not row.curves:
            cells[:1] = [NOT_RUN] * bool(cells)
        lines.append(line([row.name, *cells, published.get(row.name, "-")]))
    return "\n".join(lines)


def percent(values: Sequence[float]) -> str:
    """Mean and standard deviation of percentages."""
    deviation = f" ±{statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):+.1f}{deviation} %"


def severity_table(rows_by_task: Mapping[str, Sequence[Row]], densities: Mapping[str, float]) -> str:
    """Of each label: how dense it is, and how far plain's AUC falls from its best epoch to the last."""
    lines = header(["label", "positives, % of its training rows", "plain's AUC, best epoch to last", "collapse"])
    for task in sorted(rows_by_task, key=lambda task: -densities.get(task, 0)):
        plain = rows_by_task[task][0]
        answer, text = collapse_of(plain) if plain.curves else ("-", NOT_RUN)
        lines.append(line([task, f"{100 * densities[task]:.2f}" if task in densities else "-", text, answer]))
    return "\n".join(lines)


def convergence_table(runs: Mapping[str, Sequence[Sequence[dict]]], task: str = "") -> str:
    """Test AUC early in the first epoch by table rate.

    Args:
        runs: multiplier -> the events of its runs (none: not run), each evaluated all along the first epoch.
        task: a label of theirs.
    """
    shares = (0.1, 0.5, 1.0)
    lines = header(["table rate / dense rate", *(f"after {share:.0%} of epoch 1" for share in shares)])
    for multiplier, of_seeds in runs.items():
        if not of_seeds:
            lines.append(line([multiplier, NOT_RUN, *["-"] * (len(shares) - 1)]))
            continue
        values = [[early(events, share, task) for events in of_seeds] for share in shares]
        lines.append(line([multiplier, *map(spread, values)]))
    return "\n".join(lines)


def early(events: Sequence[dict], share: float, task: str) -> float:
    """Test AUC at the evaluation nearest to a share of the first epoch."""
    found = [event for event in events if event["event"] == "eval" and event["split"] == "test" and not event["epoch"]]
    wanted = share * max(event["iteration"] for event in found)
    return of_task(min(found, key=lambda event: abs(event["iteration"] - wanted)), task)["auc"]


def header(names: Sequence[str]) -> list[str]:
    """The first two lines of a table."""
    return [line(names), "|" + "---|" * len(names)]


def line(cells: Sequence[str]) -> str:
    """One line of a table."""
    return f"| {' | '.join(cells)} |"


def cells_of(rows_by_task: Mapping[str, Sequence[Row]]) -> list[dict[str, str | int | float]]:
    """Every method and label, one value a seed and epoch: for cells.csv."""
    cells = []
    for task, rows in rows_by_task.items():
        for row in rows:
            for seed, curve in zip(row.seeds, row.curves, strict=True):
                for epoch, auc in enumerate(curve.test):
                    jump = curve.jumps[epoch - 1] if 0 < epoch <= len(curve.jumps) else ""
                    cells.append(
                        {
                            "task": task, "method": row.name, "setting": row.setting, "seed": seed, "epoch": epoch + 1,
                            "test_auc": auc, "val_auc": curve.val[epoch], "val_logloss": curve.val_logloss[epoch],
                            "jump_percent": jump, "is_best": int(epoch == curve.best),
                        }
                    )  # fmt: skip
            if not row.curves:
                cells.append({"task": task, "method": row.name, "setting": NOT_RUN})
    return cells


def write_cells(cells: Sequence[dict], path: Path) -> None:
    """As CSV; what a cell lacks stays empty."""
    names = dict.fromkeys(name for cell in cells for name in cell)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(cells)


def draw(rows_by_task: Mapping[str, Sequence[Row]], path: Path) -> str:
    """Test AUC by epoch, a line a method and a panel a label; returns what was drawn, or why not."""

    def on(axes: Any) -> None:
        for axis, (task, rows) in zip(axes[0], rows_by_task.items(), strict=True):
            for number, row in enumerate(row for row in rows if row.curves):
                after = [statistics.mean(values) for values in after_epochs(row.curves, lambda curve: curve.test)]
                style = {"linestyle": "-" if number < 10 else "--", "linewidth": 1.2 if number else 2.5}
                axis.plot(range(1, len(after) + 1), after, marker="o", markersize=3, label=row.name, **style)
            axis.set(xlabel="epochs", ylabel="test AUC, mean over seeds", title=task)
            if any(row.curves for row in rows):
                axis.legend(fontsize=7)

    return picture(path, on, columns=len(rows_by_task), figsize=(6.5 * len(rows_by_task), 4.8))
