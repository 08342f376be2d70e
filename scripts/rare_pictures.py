"""The picture of the study of rare items: gains over the single layer by how rare a row's ids are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlet_grid import Cell
from paired_difference import interval
from rare_items import GROUPS, Row, counts_text, with_intervals
from study_pictures import picture


def points_of(rows: Sequence[Row]) -> dict[str, tuple[float, float, float]]:
    """Bin -> gain in AUC and its 95 % interval: of one model over its seeds, of several (with equal bins) over them."""
    bins: dict[str, list[Row]] = {}
    for row in rows:
        if row["auc_difference"] is not None:
            bins.setdefault(counts_text(row) or row["bin"], []).append(row)
    return {
        name: interval([row["auc_difference"] for row in found])
        if len(found) > 1
        else tuple(found[0][f"auc_difference{end}"] for end in ("", "_low", "_high"))
        for name, found in bins.items()
    }


def draw(rows: Sequence[tuple[Cell, Row]], path: Path) -> str:
    """A row of panels a width and rate, recipes side by side; returns what was drawn, or why not."""
    panels = list(dict.fromkeys((cell.dim, cell.how) for cell, _ in rows))
    recipes = list(dict.fromkeys(cell.recipe for cell, _ in rows))
    models = len({cell.model for cell, _ in rows})

    def on(axes: Any) -> None:
        for (dim, how), pair in zip(panels, axes, strict=True):
            for group, axis in zip(GROUPS, pair, strict=True):
                for number, recipe in enumerate(recipes):
                    which = (recipe, dim, how, group)
                    own = [row for c, row in rows if (c.recipe, c.dim, c.how, row["table"]) == which]
                    draw_recipe(axis, points_of(own), (number + 0.5) / len(recipes) - 0.5, f"C{number}", recipe)
                axis.axhline(0, color="gray", linewidth=1)
                axis.set(title=f"d = {dim}, {how} table rate", xlabel=GROUPS[group])
                axis.grid(axis="y", alpha=0.3)
            pair[0].set_ylabel("AUC minus single" if models == 1 else f"AUC minus single, mean of {models} models")
        fullest = max(axes[:, 0], key=lambda axis: len(axis.get_legend_handles_labels()[1]))  # not all are run tuned
        fullest.legend(fontsize=8)

    return picture(path, on, len(panels), len(GROUPS), figsize=(11, 1 + 3.2 * len(panels)), sharey="row")


def draw_recipe(
    axis: Any, points: dict[str, tuple[float, float, float]], aside: float, color: str, recipe: str
) -> None:
    """A recipe's gains, set `aside` so that the recipes of a bin stand side by side; nothing if it was not run."""
    if not points:
        return
    places = [number + 0.6 * aside for number in range(len(points))]
    style = {"markersize": 4, "capsize": 2, "elinewidth": 0.8, "color": color, "label": recipe}
    with_intervals(axis, places, list(points.values()), **style)
    axis.set_xticks(range(len(points)), list(points), rotation=45, ha="right", fontsize=8)
