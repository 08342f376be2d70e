"""The study of scripts/reproduce_mlet_dlrm.sh, which says how to run it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from metrics_table import result_of
from mlet_grid import (
    COMMON,
    MODELS,
    PRESETS,
    TUNING_SEEDS,
    as_the_authors,
    base_of,
    cells,
    dense_of,
    method_of,
    optimizer_of,
)
from mlet_tables import average_table, draw, quality_table, reduction_table, time_table, write_cells
from study import Outcome
from study_flags import count, parse
from study_report import run_study

SETS = ("criteo", "synthetic", "avazu", "movielens-1m", "frappe", "globo")
# recipe -> widths, by scale
GRIDS = {
    "smoke": {"single": (2, 4, 8), "mlet-64": (2,)},
    "small": {
        "single": (2, 4, 8, 16, 32, 64),
        "mlet-64": (2, 4, 8, 16),
        "mlet-128": (2, 4, 8, 16),
        "fixed-w2-64": (2, 4, 8, 16),
        "matched-64": (2, 4, 8, 16),
        "masked-64": (8,),
    },
    "paper": {
        "single": (4, 8, 16, 32, 64, 128),
        "mlet-32": (4, 8, 16),
        "mlet-64": (4, 8, 16, 32),
        "mlet-128": (4, 8, 16, 32, 64),
        "fixed-w2-64": (4, 8, 16, 32),
        "matched-64": (4, 8, 16, 32),
        "masked-64": (8,),
    },
}
# over all models
MODEL_GRIDS = {
    "smoke": {"single": (2, 4, 8), "mlet-64": (2,)},
    "small": {"single": (2, 4, 16, 64), "mlet-64": (2, 4), "fixed-w2-64": (2, 4)},
    "paper": {
        "single": (4, 8, 16, 32, 64, 128),
        "mlet-32": (4, 8, 16),
        "mlet-64": (4, 8, 16),
        "mlet-128": (4, 8, 16),
        "fixed-w2-64": (4, 8, 16),
    },
}
AT = {"matched-64": (COMMON,), "masked-64": (COMMON,)}  # controls of the common rate


def read_flags(doc: str, grids: dict, models: Sequence[str]) -> argparse.Namespace:
    """The command line, with the preset, the models and the widths."""
    recipes = list(dict.fromkeys(recipe for grid in grids.values() for recipe in grid))

    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--preset", choices=PRESETS, default="fixed", help="authors: their Avazu, their choice of epoch"
        )
        parser.add_argument("--models", nargs="+", choices=MODELS, default=list(models), metavar="MODEL")
        parser.add_argument("--dims", nargs="+", type=count(1), metavar="D", help="of these widths only")
        parser.add_argument("--rates", nargs="+", choices=("common", "tuned"), default=["common", "tuned"])

    return parse(doc, "1 2 3 4 5", recipes, data_sets=SETS, add=add)


def study(flags: argparse.Namespace, grid: dict[str, Sequence[int]], models: Sequence[str]) -> int:
    """Run the cells that the command line names, and show them all."""
    optimizer, dense = optimizer_of(flags.dataset, models), dense_of(flags)
    every = cells(models, grid, AT)
    method = {cell: method_of(cell, optimizer, dense) for cell in every}
    rates = [f"{rate} rate" for rate in flags.rates]
    wanted = [
        cell
        for cell in every
        if cell.model in flags.models and cell.recipe in flags.only and cell.how in rates
        and (not flags.dims or cell.dim in flags.dims)
    ]  # fmt: skip

    def render(outcomes: Sequence[Outcome]) -> str:
        of_method = {outcome.method: outcome for outcome in outcomes}
        found = {cell: of_method[made] for cell, made in method.items() if made in of_method}
        first = outcomes[0].results
        where = f"{flags.dataset}, {next(iter(first.values()))['data']['rows']['train']:,} rows"
        write_cells(found, flags.work / "cells.csv")
        parts = {
            "How much narrower at equal AUC": reduction_table(every, found, where),
            "On average over the models": average_table(found, where) if len(models) > 1 else "",
            "Quality": quality_table(every, found),
            "Training time": time_table(found),
        }
        text = "\n\n".join(f"### {title}\n\n{body}" for title, body in parts.items() if body)
        return f"{text}\n\n{draw(found, flags.work / 'widths.png')}"

    return run_study(
        base_of(flags, optimizer),
        [method[cell] for cell in wanted],
        flags,
        render,
        tuning=TUNING_SEEDS,
        also=[method[cell] for cell in every if cell not in wanted],
        read=as_the_authors if flags.preset == "authors" else result_of,
    )


def main() -> int:
    """DLRM alone."""
    flags = read_flags(__doc__, GRIDS, ["dlrm"])
    return study(flags, GRIDS[flags.scale], ["dlrm"])


if __name__ == "__main__":
    sys.exit(main())
