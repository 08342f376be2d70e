"""Tables and pictures of the MLET studies, from the outcomes of `mlet_grid`'s cells."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from iso_quality import Reduction, average, reduction
from mlet_grid import COMMON, TUNED, Cell
from paired_difference import interval
from study import Outcome
from study_pictures import picture
from study_report import difference, gap_text, spread

NOT_RUN = "not run"
Found = Mapping[Cell, Outcome]
PUBLISHED_RANGE = (4, 8)  # of arXiv 2006.05623
PUBLISHED = {"reduction": "4x to 8x", "average": "5.8x, at most 16x", "time": "+25 %"}


def quality_table(cells: Sequence[Cell], found: Found) -> str:
    """A row a model, recipe and width: at the common rate, tuned, and against the single layer of that width, tuned."""
    lines = [
        "| model | recipe | d | AUC, common rate | logloss | accuracy % | minus single (95 %) | table rate x | "
        "AUC, tuned | logloss | accuracy % | minus tuned single (95 %) |",
        "|" + "---|" * 12,
    ]
    for model, recipe, dim in places_of(cells, found):
        row = [model, recipe, str(dim)]
        common, tuned = (found.get(Cell(model, recipe, dim, how)) for how in (COMMON, TUNED))
        for how, outcome in ((COMMON, common), (TUNED, tuned)):
            single = found.get(Cell(model, "single", dim, how))
            row += [chosen_rate(tuned)] if how == TUNED else []
            row += [*qualities(outcome), difference(single, outcome) if single and outcome else ""]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def places_of(cells: Sequence[Cell], found: Found) -> list[tuple[str, str, int]]:
    """Model, recipe and width of the rows of a table: all of the models of which anything was run.

    Of the others the remark below the tables says that they were not.
    """
    models = {cell.model for cell in found}
    return list(dict.fromkeys((cell.model, cell.recipe, cell.dim) for cell in cells if cell.model in models))


def chosen_rate(outcome: Outcome | None) -> str:
    """The table rate; one at the end of its grid may not be the best there is."""
    if outcome is None:
        return ""
    if len(outcome.method.grid) == 1:
        return outcome.setting.rpartition("=")[2]
    tried = outcome.tried or outcome.method.grid
    rate, *rates = (float(each.rpartition("=")[2]) for each in (outcome.setting, *tried))
    return f"{rate:g} (grid's end)" if rate in (min(rates), max(rates)) else f"{rate:g}"


def qualities(outcome: Outcome | None) -> list[str]:
    """AUC, logloss and accuracy."""
    if outcome is None:
        return [NOT_RUN, "", ""]
    accuracy = statistics.mean(outcome.values("accuracy"))
    return [spread(outcome.values("auc")), spread(outcome.values("logloss")), f"{accuracy:.2f}"]


def curve_of(found: Found, model: str, how: str) -> dict[int, list[float]]:
    """Single layers: width -> AUC by seed."""
    return {
        cell.dim: outcome.values("auc")
        for cell, outcome in found.items()
        if (cell.model, cell.recipe, cell.how) == (model, "single", how)
    }


def reductions(found: Found) -> dict[Cell, Reduction]:
    """Each recipe but the single layer against single layers at the same kind of rate."""
    out = {}
    for cell, outcome in found.items():
        curve = curve_of(found, cell.model, cell.how)
        if cell.recipe != "single" and len(curve) > 1:
            out[cell] = reduction(curve, cell.dim, outcome.values("auc"))
    return out


def reduction_table(cells: Sequence[Cell], found: Found, where: str) -> str:
    """How much narrower at equal AUC: published, against single layers at the common rate, and both tuned."""
    made = reductions(found)
    lines = [
        "| model | recipe | d | published (other data) | at the common rate | against the published | both tuned | "
        "measured on |",
        "|" + "---|" * 8,
    ]
    for model, recipe, dim in places_of(cells, found):
        if recipe != "single":
            common, tuned = (made.get(Cell(model, recipe, dim, how)) for how in (COMMON, TUNED))
            is_published = recipe.startswith("mlet") and model == "dlrm"
            cells = [PUBLISHED["reduction"] if is_published else "", str(common or NOT_RUN)]
            cells += [against_published(common) if is_published and common else "", str(tuned or NOT_RUN)]
            lines.append(f"| {' | '.join([model, recipe, str(dim), *cells, where])} |")
    return "\n".join(lines)


def against_published(ours: Reduction) -> str:
    """Whether our interval has something in common with the published range."""
    if ours.low is None:
        return "(one seed)"
    low, high, (first, last) = ours.low, ours.high, PUBLISHED_RANGE
    return "lower" if high < first else "higher" if low > last else "not contradicted"


def average_table(found: Found, where: str) -> str:
    """Over the models, a row a recipe and width: geometric mean of the reductions, and mean gain at equal width."""
    made = reductions(found)
    lines = [
        "| recipe | d | models | published | at the common rate | both tuned | AUC minus single of the same d, common "
        "rate (95 % over models) | both tuned | measured on |",
        "|" + "---|" * 9,
    ]
    for recipe, dim in dict.fromkeys((cell.recipe, cell.dim) for cell in made):
        of_rate = {how: [each for cell, each in made.items() if (cell.recipe, cell.dim, cell.how) == (recipe, dim, how)]
                   for how in (COMMON, TUNED)}  # fmt: skip
        ours = [average(of_rate[how]) if of_rate[how] else NOT_RUN for how in (COMMON, TUNED)]
        ours += [gain_over_models(found, recipe, dim, how) for how in (COMMON, TUNED)]
        count = str(max(map(len, of_rate.values())))
        published = PUBLISHED["average"] if recipe.startswith("mlet") else ""
        lines.append(f"| {' | '.join([recipe, str(dim), count, published, *ours, where])} |")
    return "\n".join(lines)


def gain_over_models(found: Found, recipe: str, dim: int, how: str) -> str:
    """Mean over the models of each one's difference in mean AUC to its single layer of that width."""
    gains = []
    for cell, outcome in found.items():
        single = found.get(Cell(cell.model, "single", dim, how))
        if (cell.recipe, cell.dim, cell.how) == (recipe, dim, how) and single:
            gains.append(statistics.mean(outcome.values("auc")) - statistics.mean(single.values("auc")))
    return gap_text(*interval(gains)) if len(gains) > 1 else NOT_RUN


def time_table(found: Found) -> str:
    """Training time over that of the single layer of the same width, paired by seed, at the common rate."""
    lines = ["| model | recipe | d | published | time over single |", "|" + "---|" * 5]
    for cell, outcome in found.items():
        single = found.get(Cell(cell.model, "single", cell.dim, COMMON))
        if cell.how == COMMON and cell.recipe.startswith("mlet") and single:
            ratios = [
                outcome.results[seed]["train_seconds"] / result["train_seconds"]
                for seed, result in single.results.items()
            ]
            middle = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            lines.append(f"| {cell.model} | {cell.recipe} | {cell.dim} | {PUBLISHED['time']} | {middle} |")
    return "\n".join(lines)


def write_cells(found: Found, path: Path) -> None:
    """All numbers, a line a cell."""
    rows = []
    for cell, outcome in found.items():
        first = next(iter(outcome.results.values()))
        row = {
            "model": cell.model,
            "recipe": cell.recipe,
            "dim": cell.dim,
            "rate": cell.how,
            "setting": outcome.setting,
        }
        for metric in ("auc", "logloss", "ne", "accuracy"):
            values = outcome.values(metric)
            row[metric] = statistics.mean(values)
            row[f"{metric}_std"] = statistics.stdev(values) if len(values) > 1 else ""
        row |= {
            "seeds": len(outcome.results),
            "train_bytes": first["train_bytes"],
            "inference_bytes": first["inference_bytes"],
        }
        rows.append(row)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def draw(found: Found, path: Path) -> str:
    """AUC against d, a line a recipe, a row of panels a model; returns what was drawn, or why not."""
    models = list(dict.fromkeys(cell.model for cell in found))
    recipes = list(dict.fromkeys(cell.recipe for cell in found))

    def on(axes: Any) -> None:
        for model, pair in zip(models, axes, strict=True):
            for how, axis in zip((COMMON, TUNED), pair, strict=True):
                for number, recipe in enumerate(recipes):
                    draw_line(axis, found, (model, recipe, how), f"C{number}")
                axis.set_xscale("log", base=2)
                axis.set(title=f"{model}, {how} table rate", xlabel="width after collapse, d")
                axis.grid(alpha=0.3)
            pair[0].set_ylabel("test AUC")
        axes[0, 0].legend(fontsize=8)

    return picture(path, on, len(models), 2, figsize=(11, 1 + 3.4 * len(models)), sharey="row")


def draw_line(axis: Any, found: Found, which: tuple[str, str, str], color: str) -> None:
    """One model, recipe and kind of rate over its widths, with standard deviations; nothing if it was not run."""
    points = {c.dim: o.values("auc") for c, o in found.items() if (c.model, c.recipe, c.how) == which}
    if not points:
        return
    dims, recipe = sorted(points), which[1]
    middle = [statistics.mean(points[dim]) for dim in dims]
    reach = [statistics.stdev(points[dim]) if len(points[dim]) > 1 else 0 for dim in dims]
    style = "-" if recipe == "single" or recipe.startswith("mlet") else ":"
    axis.errorbar(dims, middle, reach, label=recipe, color=color, marker="o", capsize=2, linestyle=style)
