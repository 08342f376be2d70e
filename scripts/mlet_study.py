"""A study of the MLET papers: cells of a grid, run as the command line says, and what is shown of them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence

from metrics_table import result_of
from mlet_grid import (
    PRESETS,
    Cell,
    as_the_authors,
    base_of,
    cells,
    dense_of,
    method_of,
    optimizer_of,
)
from mlet_tables import Found, average_table, draw, quality_table, reduction_table, time_table, write_cells
from study import Outcome
from study_flags import count, parse
from study_report import run_study

SETS = ("criteo", "synthetic", "avazu", "movielens-1m", "frappe", "globo")
Grid = Mapping[str, Sequence[int]]  # recipe -> widths
Show = Callable[[Sequence[Cell], Found, argparse.Namespace], str]


def read_flags(
    doc: str, grids: Mapping[str, Grid], models: Sequence[str], default: Sequence[str] = (), smoke: str = "1"
) -> argparse.Namespace:
    """The command line, with the preset, the models (without --models the `default`, else all), widths and rates.

    Other arguments as `study_flags.parse` has them.
    """
    recipes = list(dict.fromkeys(recipe for grid in grids.values() for recipe in grid))
    help_of_preset = "authors: their Avazu, their choice of epoch; default fixed"
    default = list(default or models)
    help_of_models = f"of {', '.join(models)}; default {'all' if default == list(models) else ', '.join(default)}"

    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--preset", choices=PRESETS, default="fixed", help=help_of_preset)
        parser.add_argument(
            "--models", nargs="+", choices=models, default=default, metavar="MODEL", help=help_of_models
        )
        parser.add_argument("--dims", nargs="+", type=count(1), metavar="D", help="of the grid's widths, these only")
        parser.add_argument(
            "--rates", nargs="+", choices=("common", "tuned"), default=["common", "tuned"], help="default both"
        )

    return parse(doc, "1 2 3 4 5", recipes, data_sets=SETS, smoke=smoke, add=add)


def run(
    flags: argparse.Namespace,
    grid: Grid,
    models: Sequence[str],
    at: Mapping[str, Sequence[str]],
    show: Show,
    name: str = "table",
    needs: str = "",
) -> int:
    """Run the cells that the command line names, and show them all.

    Args:
        flags: see `read_flags`.
        grid: the recipes and their widths.
        models: all of the table; `flags` may name fewer to run.
        at: recipes that are not run at both rates, and at which they are.
        show: Markdown of the cells that there are.
        name: of the table; one that is not "table" writes its own numbers.
        needs: see `run_study`.
    """
    optimizer, dense = optimizer_of(flags, models), dense_of(flags)
    every = cells(models, grid, at)
    method = {cell: method_of(cell, optimizer, dense) for cell in every}
    wanted = [cell for cell in every if is_wanted(cell, flags)]
    if missing := what_is_missing(every, wanted, flags):
        print(f"error: {missing}", file=sys.stderr)
        return 2

    def render(outcomes: Sequence[Outcome]) -> str:
        of_method = {outcome.method: outcome for outcome in outcomes}
        found = {cell: of_method[made] for cell, made in method.items() if made in of_method}
        if name == "table":
            write_cells(found, flags.work / "cells.csv")
        return show(every, found, flags)

    return run_study(
        base_of(flags, optimizer),
        [method[cell] for cell in wanted],
        flags,
        render,
        also=[method[cell] for cell in every if cell not in wanted],
        read=as_the_authors if flags.preset == "authors" else result_of,
        table_name=f"{name}.md",
        needs=needs,
    )


def is_wanted(cell: Cell, flags: argparse.Namespace) -> bool:
    """Whether the command line names the cell."""
    is_width = not flags.dims or cell.dim in flags.dims
    return is_width and cell.model in flags.models and cell.recipe in flags.only and cell.how in flags.rates


def what_is_missing(every: Sequence[Cell], wanted: Sequence[Cell], flags: argparse.Namespace) -> str:
    """What the command line names and the grid has not, as a sentence; nothing if it has all."""
    dims = sorted({cell.dim for cell in every})
    if unknown := [dim for dim in flags.dims or () if dim not in dims]:
        return f"--dims {unknown[0]}: the grid of --scale={flags.scale} has {', '.join(map(str, dims))}"
    for recipe in flags.named:
        if not any(cell.recipe == recipe for cell in wanted):
            there = sorted({(cell.dim, cell.how) for cell in every if cell.recipe == recipe})
            has = ", ".join(f"d={dim} {how}" for dim, how in there) or "none"
            return f"nothing of {recipe} is left to run: its cells at --scale={flags.scale} are {has}"
    return "" if wanted else f"none of {', '.join(flags.only)} is in the grid of --scale={flags.scale}"


def place_of(found: Found, flags: argparse.Namespace) -> str:
    """The data and how many rows of it are trained on."""
    first = next(iter(next(iter(found.values())).results.values()))
    return f"{flags.dataset}, {first['data']['rows']['train']:,} rows"


def widths_report(every: Sequence[Cell], found: Found, flags: argparse.Namespace) -> str:
    """Quality against width, and what it says: the tables of both papers."""
    where = place_of(found, flags)
    several = len({cell.model for cell in found}) > 1
    parts = {
        "How much narrower at equal AUC": reduction_table(every, found, where),
        "On average over the models": average_table(found, where) if several else "",
        "Quality": quality_table(every, found),
        "Training time": time_table(found),
    }
    text = "\n\n".join(f"### {title}\n\n{body}" for title, body in parts.items() if body)
    return f"{text}\n\n{draw(found, flags.work / 'widths.png')}"
