"""The study of scripts/reproduce_multi_epoch.sh, which says how to run it.

Every method has six settings: a method without a parameter of its own has six table rates, one with a parameter fewer
rates for each of its values. A setting is chosen on the mean validation AUC, at its best epoch, of the first seeds.
"""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from epoch_curves import Row, events_of, rows_of, settings_of, tasks_of
from epoch_tables import (
    cells_of,
    convergence_table,
    draw,
    jump_table,
    quality_table,
    settings_table,
    severity_table,
    verdict,
    write_cells,
)
from study import AUTHORS_BASE, ROOT, Method, Outcome, Study
from study_flags import data_flags, parse
from study_report import run_study
from study_widen import RATE

TUNING_SEEDS = 2
BASE = f"{AUTHORS_BASE} --optimizer=adam --learning-rate=0.001 {RATE}=10 --mini-batch-size=512 --nepochs=5"
SETS = ("criteo", "synthetic", "multitask-synthetic", "globo")
TASKS = {"multitask-synthetic": "--tasks=click,cart,checkout", "globo": "--tasks=click,long_dwell"}


def grid(rates: Sequence[int], own: str = "", values: Sequence[str] = ("",)) -> tuple[str, ...]:
    """Every table rate with every value of the method's own flag."""
    return tuple(f"{RATE}={rate}" + (f" {own}={value}" if own else "") for value in values for rate in rates)


SIX, TWO, THREE = (1, 2, 5, 10, 20, 50), (1, 10), (1, 10, 50)
COUNTS = ("--emb-lr-counts", ("online", "data"))
METHODS = (
    Method("plain", "", grid(SIX)),
    Method("hash-4", "--hash-method=modulo --hash-compression=4", grid(SIX)),
    Method("min-count", "", grid(TWO, "--vocabulary-min-count", ("2", "5", "10"))),
    Method("l2", "", grid(TWO, "--emb-l2", ("1e-5", "1e-4", "1e-3"))),
    Method("re-init", "--emb-reinit=epoch", grid(SIX)),
    Method("fal-log", "--emb-lr-frequency=log", grid(THREE, *COUNTS)),
    Method("fal-linear", "--emb-lr-frequency=linear", grid(THREE, *COUNTS)),
    Method("tail-increase", "--emb-lr-frequency=tail-increase", grid(TWO, "--emb-lr-power", ("0.1", "0.3", "0.5"))),
    Method("adam-ar", "", grid(TWO, "--emb-idle-decay", ("1e-2", "1e-1", "1"))),
    # decays before the row is read
    Method("adam-ar-lookup", "--emb-idle-decay-at=lookup", grid(TWO, "--emb-idle-decay", ("3e-2", "1e-1", "3e-1"))),
    Method("cow-clip", "", grid(TWO, "--emb-clip", ("1e-2", "1e-4", "1e-5"))),
)
FURTHER = (  # run where --only names them
    Method("weight-decay", "", grid(TWO, "--emb-weight-decay", ("1e-1", "1", "10"))),
    Method("id-dropout", "", grid(TWO, "--emb-id-dropout", ("0.1", "0.3", "0.5"))),
    Method("re-init-rare", "--emb-reinit=epoch", grid(TWO, "--emb-reinit-max-count", ("100", "300", "1000"))),
)
CONVERGENCE = "convergence"  # --only's name of the cells of the table of that name
MULTIPLIERS = ("1", "10", "50")
CHEAP = ("plain", "re-init", "fal-log")  # all that is run on Globo unless --only says otherwise
# arXiv 2505.05605 and 2511.06374 as notes say, 2407.01607 as its abstract says; on other data
PUBLISHED_AUC = {
    "fal-log": "+0.07 to +0.20 %",
    "re-init": "MEDA: +0.8 to +4.6 % over one epoch",
    "adam-ar": "Avazu, epochs 1 and 4: .7617 .7629 (Adam .7461 .6883)",
}
PUBLISHED_JUMP = {"plain": "+1.19 %", "fal-log": "+0.23 %"}


def convergence_cells(batches: int) -> list[Method]:
    """One epoch at three table rates, evaluated ten times."""
    often = max(1, round(batches / 10))
    return [Method(f"{CONVERGENCE}.{rate}", f"--nepochs=1 {RATE}={rate} --test-freq={often}") for rate in MULTIPLIERS]


def open_store(work: Path, *task: tuple[str]):  # noqa: ANN201 (the type comes from the checkout)
    """The prepared data, of one label."""
    sys.path.insert(0, str(ROOT))
    from data_utils import Store

    return Store(work / "store", *task)


def batches_of(study: Study) -> int:
    """Training batches of an epoch; of several labels those of the rows that have the first."""
    given = [word.partition("=")[2] for word in shlex.split(study.base) if word.startswith("--mini-batch-size=")]
    return math.ceil(len(open_store(study.work).rows_of("train")) / int(given[-1]))


def densities_of(work: Path, tasks: Sequence[str]) -> dict[str, float]:
    """Share of positives among the training rows that have the label."""
    return {task: float(open_store(work, (task,)).labels_of("train").mean()) for task in tasks}


def report(outcomes: Sequence[Outcome], rows_by_task: Mapping[str, Sequence[Row]], work: Path) -> str:
    """All tables; writes cells.csv and the picture."""
    text, by_name = [], {outcome.method.name: outcome for outcome in outcomes}
    early = {rate: by_name.get(f"{CONVERGENCE}.{rate}") for rate in MULTIPLIERS}
    early = {rate: [events_of(path) for path in run.files.values()] if run else [] for rate, run in early.items()}
    for task, rows in rows_by_task.items():
        of = f" ({task})" if task else ""
        text += [f"### Test AUC by epoch{of}", "", quality_table(rows, PUBLISHED_AUC), ""]
        text += [f"### Speed of convergence{of}: one table rate for all, and higher ones", ""]
        text += [convergence_table(early, task), ""]
    text += ["### Loss at the boundaries (training: all tasks, rows that were trained an epoch before)", ""]
    for task, rows in rows_by_task.items():
        text += [*([f"Validation of {task}:", ""] if task else []), jump_table(rows, PUBLISHED_JUMP), ""]
    if "" not in rows_by_task:
        densities = densities_of(work, list(rows_by_task))
        text += ["### Severity against label density", "", severity_table(rows_by_task, densities), ""]
    for task in rows_by_task:
        text += ["### All settings, over the seeds that tune" + (f" ({task})" if task else ""), ""]
        text += [settings_table(settings_of(outcomes, task)), ""]
    write_cells(cells_of(rows_by_task), work / "cells.csv")
    return "\n".join([*text, draw(rows_by_task, work / "epochs.png")])


def main() -> int:
    """Run the study on the command line's data."""
    every = (*METHODS, *FURTHER)
    choices = [*(method.name for method in every), CONVERGENCE]
    flags = parse(__doc__, "1 2 3 4 5", choices, [], data_sets=SETS, tuning=TUNING_SEEDS)
    if not flags.only:
        by_scale = [*(method.name for method in METHODS), CONVERGENCE]
        flags.only = CHEAP if flags.dataset == "globo" or flags.scale == "smoke" else by_scale
    base = f"{BASE} {data_flags(flags)} {TASKS.get(flags.dataset, '')}".strip()

    def rows_by_task(outcomes: Sequence[Outcome]) -> dict[str, list[Row]]:
        tasks = tasks_of(outcomes[0])
        return {task: rows_of([method.name for method in every], outcomes, task) for task in tasks}

    def cells_of_convergence(study: Study) -> list[Method]:
        cells = convergence_cells(batches_of(study))
        return [cell for cell in cells if CONVERGENCE in flags.only or study.is_complete(cell)]

    return run_study(
        base,
        [method for method in every if method.name in flags.only],
        flags,
        lambda outcomes: report(outcomes, rows_by_task(outcomes), flags.work),
        prepare=cells_of_convergence,
        also=[method for method in every if method.name not in flags.only],
        headline=lambda outcomes: verdict(rows_by_task(outcomes)),
    )


if __name__ == "__main__":
    sys.exit(main())
