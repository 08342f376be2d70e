"""The study of scripts/reproduce_learned_hash.sh, which says how to run it."""

from __future__ import annotations

import argparse
import csv
import math
import shlex
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from collisions import likeness
from study import AUTHORS_BASE, ROOT, Method, Outcome, Study
from study_flags import count, data_flags, parse
from study_pictures import picture
from study_report import difference, run_study, spread

LATER, ALL = "--hash-history=0.5", "--hash-history=0"
# name -> flags; those that need no embedding can be fitted to all rows, too
RIVALS = ("modulo", "double", "frequency", "frequency-double", "quotient-remainder", "graph", "learned-frequency")
LEARNED = ("learned-embedding", "learned", "learned-weighted", "learned-coordinate")
BUDGETS = (2, 10, 100, 1000)
GIVE_UP_HISTORY = (*LEARNED, "planted")
PLANTED = "planted.safetensors"
COLLISIONS = ("colliding_share", "largest_share")
BASE = (
    f"{AUTHORS_BASE} --optimizer=adam --learning-rate=0.001 --emb-learning-rate-multiplier=10 --mini-batch-size=512 "
    "--hash-report"
)
SETS = ("criteo", "synthetic", "movielens-1m", "globo")


def methods_of(name: str, only: Sequence[str], budgets: Sequence[int], work: Path, more: str = "") -> list[Method]:
    """Every cell: a method, a budget, and the rows trained on; `more` flags for all but the uncompressed models."""
    wanted = [*RIVALS, *LEARNED, *(["planted"] if name == "synthetic" else [])]
    cells = [Method("full.later", "--train-share=0.5-1"), Method("full.all")] if "full" in only else []
    for budget in budgets:
        for method in (method for method in wanted if method in only):
            flags = f"--hash-method={method} --hash-compression={budget} {more}".rstrip()
            if method == "planted":
                given = f"--hash-embeddings={shlex.quote(str(work / PLANTED))} --train-share=0.5-1"
                flags = f"--hash-method=learned-embedding --hash-compression={budget} {given} {more}".rstrip()
                cells.append(Method(f"planted.{budget}.later", flags))
                continue
            cells.append(Method(f"{method}.{budget}.later", f"{flags} {LATER}"))
            if method in RIVALS:
                cells.append(Method(f"{method}.{budget}.all", f"{flags} {ALL}"))
    return cells


def write_planted(study: Study) -> None:
    """What the planted teacher knows of each id, as an embedding for --hash-embeddings."""
    import polars as pl
    from safetensors.numpy import save_file

    sys.path.insert(0, str(ROOT))
    from data_utils import Store
    from sources.synthetic import planted_points

    store, points = Store(study.work / "store"), {}
    given = [word for word in shlex.split(study.base) if word.startswith("--synthetic-seed=")]
    seed = int(given[-1].partition("=")[2]) if given else 0
    for number, table in enumerate(store.tables):
        tokens = pl.read_parquet(store.directory / "vocabulary" / f"{table}.parquet")["value"].to_numpy()
        points[table] = planted_points(seed, number, tokens.astype(np.uint32))
    save_file(points, study.work / PLANTED)


def name_of(outcome: Outcome) -> tuple[str, str, str]:
    """Method, budget ("1" for the uncompressed model), rows trained on."""
    parts = outcome.method.name.split(".")
    return (parts[0], "1", parts[1]) if len(parts) == 2 else (parts[0], parts[1], parts[2])


def numbers(outcome: Outcome, alike: float = math.nan) -> dict[str, float | str | int]:
    """One line of cells.csv; collisions are means over the tables that have a map, weighted by nothing."""
    method, budget, rows = name_of(outcome)
    results = list(outcome.results.values())
    report = [each for result in results for each in (result["hash"] or {}).values()]
    mean = {key: statistics.mean(each[key] for each in report) if report else 0.0 for key in COLLISIONS}
    auc, ne = outcome.values("auc"), outcome.values("ne")
    return {
        "method": method, "compression": budget, "rows": rows, "seeds": len(results),
        "auc": statistics.mean(auc), "auc_std": statistics.stdev(auc) if len(auc) > 1 else 0.0,
        "ne": statistics.mean(ne), "ne_std": statistics.stdev(ne) if len(ne) > 1 else 0.0,
        "inference_mb": results[0]["inference_bytes"] / 1e6,
        "map_mb": sum(each["map_bytes"] for each in (results[0]["hash"] or {}).values()) / 1e6, **mean, "alike": alike,
    }  # fmt: skip


def tables_of(outcomes: Sequence[Outcome], alike: Mapping[str, float]) -> str:
    """One Markdown table a comparison and budget, each method against modulo of the same; `alike`: see `collisions`."""
    text = []
    for rows, title in (("later", "All train on the later half"), ("all", "Rivals train on all rows")):
        for budget in dict.fromkeys(name_of(each)[1] for each in outcomes):
            of_budget = [each for each in outcomes if name_of(each)[1] == budget]
            inside = [each for each in of_budget if rows == name_of(each)[2] or name_of(each)[0] in GIVE_UP_HISTORY]
            if not inside:
                continue
            first = next((each for each in inside if name_of(each)[0] == "modulo"), inside[0])
            text += [f"### {title}, " + (f"1/{budget} of the rows" if budget != "1" else "a row an id"), ""]
            text += [
                f"| method | test AUC | NE | AUC - {name_of(first)[0]} (95 %) | collide | alike | MB | of it map |"
            ]
            text += ["|---|---|---|---|---|---|---|---|"]
            for each in inside:
                cell = numbers(each)
                likeness_text = f"{alike.get(each.method.name, math.nan):.2f}".replace("nan", "")
                text.append(
                    f"| {name_of(each)[0]} | {spread(each.values('auc'))} | {spread(each.values('ne'))} | "
                    f"{difference(first, each)} | {cell['colliding_share']:.0%} | {likeness_text} | "
                    f"{cell['inference_mb']:.2f} | "
                    f"{cell['map_mb']:.2f} |"
                )
            text.append("")
    return "\n".join(text)


def draw(cells: Sequence[dict], path: Path) -> str:
    """AUC against rows and against bytes; returns what was drawn, or why not."""

    def on(axes: Any) -> None:
        by_rows, by_bytes = axes[0]
        for number, method in enumerate(dict.fromkeys(cell["method"] for cell in cells)):
            line = [cell for cell in cells if cell["method"] == method and cell["rows"] == "later"]
            aucs, style = [cell["auc"] for cell in line], "--" if method in RIVALS else "-"
            for axis, place in (
                (by_rows, [1 / float(cell["compression"]) for cell in line]),
                (by_bytes, [cell["inference_mb"] for cell in line]),
            ):
                marker, color = "os"[number // 10 % 2], f"C{number % 10}"
                axis.plot(place, aucs, marker=marker, label=method, linestyle=style, color=color)
        by_rows.set(xscale="log", xlabel="rows / ids", ylabel="test AUC", title="equal rows")
        by_bytes.set(xscale="log", xlabel="inference MB, maps included", title="equal bytes")
        by_bytes.legend(fontsize=7)

    return picture(path, on, columns=2, figsize=(11, 4.5), sharey=True)


def main() -> int:
    """Run the study on the command line's data."""
    choices = ["full", *RIVALS, *LEARNED, "planted"]
    flags = parse(__doc__, "1 2 3 4 5", choices, data_sets=SETS, add=add_budgets(BUDGETS))
    if flags.scale == "smoke":
        flags.budgets = flags.budgets[:1]
    hashed = take_hash_flags(flags)
    alike: dict[str, float] = {}  # what the maps let share rows

    def render(outcomes: Sequence[Outcome]) -> str:
        cells = [numbers(each, alike.get(each.method.name, math.nan)) for each in outcomes]
        with open(flags.work / "cells.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, cells[0].keys())
            writer.writeheader()
            writer.writerows(cells)
        return f"{tables_of(outcomes, alike)}\n{draw(cells, flags.work / 'budgets.png')}"

    def compare_collisions(study: Study, outcomes: Sequence[Outcome]) -> list[Outcome]:
        alike.update(likeness(study, outcomes, flags.work / PLANTED if flags.dataset == "synthetic" else None))
        return []

    def cells(only: Sequence[str], budgets: Sequence[int]) -> list[Method]:
        return methods_of(flags.dataset, only, budgets, flags.work, hashed)

    wanted = cells(flags.only, flags.budgets)
    return run_study(
        f"{BASE} {data_flags(flags)}",
        wanted,
        flags,
        render,
        compare_collisions,
        prepare=write_planted if flags.dataset == "synthetic" else None,
        also=[cell for cell in cells(choices, sorted({*BUDGETS, *flags.budgets})) if cell not in wanted],
        needs="hash",
    )


def take_hash_flags(flags: argparse.Namespace) -> str:
    """The --hash- flags behind --, taken off those of all runs: preparing, and models with a row an id, refuse them."""
    more = shlex.split(flags.more)
    flags.more = shlex.join(word for word in more if not word.startswith("--hash-"))
    return shlex.join(word for word in more if word.startswith("--hash-"))


def add_budgets(default: Sequence[int]) -> Callable[[argparse.ArgumentParser], None]:
    """Adds --budgets to a command line."""

    def add(parser: argparse.ArgumentParser) -> None:
        what = "compressions: a table of n ids gets n/C rows"
        parser.add_argument("--budgets", nargs="+", type=count(2), default=list(default), metavar="C", help=what)

    return add


if __name__ == "__main__":
    sys.exit(main())
