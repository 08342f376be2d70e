"""Studies: methods that are tuned alike, run over seeds and compared in pairs. Shared by the scripts that make tables.

A method is a set of driver flags and a grid of settings. Every setting is run with every seed; the setting with the
best mean validation AUC is the method's, and only its test metrics are shown. Runs that are done are not run again: a
study goes on where it was interrupted. Each run is one process; `jobs` of them run side by side, with as many threads
each.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from metrics_table import result_of  # noqa: E402
from paired_difference import interval  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Method:
    """A name, the driver flags of it, and the settings (each a string of flags) that it is tuned over."""

    name: str
    flags: str = ""
    grid: tuple[str, ...] = ("",)


@dataclass(frozen=True)
class Outcome:
    """A method's best setting and, seed by seed, the results of its runs (the evaluation that validation chose)."""

    method: Method
    setting: str
    results: dict[int, dict]

    def values(self, metric: str, split: str = "test") -> list[float]:
        """One value a seed."""
        return [chosen(result)[split][metric] for result in self.results.values()]


Derive = Callable[[str, Sequence[Outcome], argparse.Namespace], list[Outcome]]


def chosen(result: dict) -> dict:
    """Metrics by split at the evaluation with the best validation AUC; the last one where there is no validation."""
    return result["best"] or {"test": result["test"], "val": result["val"]}


def run_file(work: Path, method: Method, setting: str, seed: int) -> Path:
    """Where a run writes its metrics: the name says all of it."""
    words = "".join(character if character.isalnum() or character in ".=-" else "_" for character in setting)
    return work / f"{method.name}{words}-{seed}.jsonl"


def is_done(path: Path) -> bool:
    """Whether the file ends in a result."""
    lines = path.read_text().splitlines() if path.exists() else []
    return bool(lines) and json.loads(lines[-1])["event"] == "result"


def run_one(path: Path, flags: str, threads: int) -> None:
    """One process of the driver. Raises RuntimeError with its last line if it fails."""
    if is_done(path):
        return
    command = [sys.executable, str(ROOT / "dlrm_mlet.py"), *flags.split(), f"--metrics-file={path}"]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode or not is_done(path):
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        path.unlink(missing_ok=True)
        raise RuntimeError(f"{path.name}: {reason}")
    print(path.name, flush=True)


def model_folder(path: Path) -> Path:
    """Where the run of a metrics file saves its model, if the study keeps models."""
    return path.with_suffix("")


def run_study(
    base: str, methods: Sequence[Method], seeds: Sequence[int], work: Path, jobs: int = 1, keep_models: bool = False
) -> list[Outcome]:
    """Run what is missing, and pick each method's setting.

    Args:
        base: flags of all runs; blanks separate them, none may hold one.
        methods: what is compared; the first is the rival that differences are taken against.
        seeds: values of --numpy-rand-seed.
        work: folder of the metrics files and the prepared data.
        jobs: processes at a time.
        keep_models: save each run's model, see `model_folder`.

    Raises:
        RuntimeError: a run failed; those that are done stay.
    """
    work.mkdir(parents=True, exist_ok=True)
    threads = max(1, (os.cpu_count() or 1) // jobs)
    runs = [(method, setting, seed) for seed in seeds for method in methods for setting in method.grid]
    with ThreadPoolExecutor(jobs) as pool:
        waiting = []
        for method, setting, seed in runs:
            path = run_file(work, method, setting, seed)
            flags = f"{base} {method.flags} {setting} --numpy-rand-seed={seed}"
            flags += f" --save-model={model_folder(path)}" if keep_models else ""
            waiting.append(pool.submit(run_one, path, flags, threads))
        try:
            for future in waiting:
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return [outcome(work, method, seeds) for method in methods]


def outcome(work: Path, method: Method, seeds: Sequence[int]) -> Outcome:
    """The setting with the best mean validation AUC."""
    found = []
    for setting in method.grid:
        results = {seed: result_of(run_file(work, method, setting, seed)) for seed in seeds}
        found.append(Outcome(method, setting, results))
    return max(found, key=lambda each: statistics.mean(each.values("auc", "val")))


def table(outcomes: Sequence[Outcome]) -> str:
    """Markdown: a row a method, with its paired difference to the first."""
    first = outcomes[0]
    lines = [
        f"| method | setting | test AUC | logloss | AUC - {first.method.name} (95 %) | inference MB |",
        "|---|---|---|---|---|---|",
    ]
    for each in sorted(outcomes, key=lambda each: each is not first):
        size = next(iter(each.results.values()))["inference_bytes"] / 1e6
        cells = [each.method.name, f"`{each.setting}`" if each.setting else "-"]
        cells += [spread(each.values("auc")), spread(each.values("logloss")), difference(first, each), f"{size:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation over seeds."""
    deviation = f" ±{statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{deviation}"


def difference(first: Outcome, other: Outcome) -> str:
    """Mean over seeds of the paired differences in test AUC, with Student's interval."""
    if other is first or len(first.results) < 2:
        return "-"
    pairs = zip(first.values("auc"), other.values("auc"), strict=True)
    mean, low, high = interval([second - before for before, second in pairs])
    return f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]"


def parse(description: str, seeds: str, methods: Sequence[str]) -> argparse.Namespace:
    """The command line that studies share; what stands behind -- goes to all runs of the driver."""
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", default="", help="raw data, as the driver's --raw-data-file")
    parser.add_argument("--work", type=Path, default=Path("study_output"), help="folder of runs and prepared data")
    parser.add_argument("--seeds", default=seeds, help="blanks between them")
    parser.add_argument("--only", nargs="+", choices=methods, default=list(methods), metavar="METHOD")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    flags = parser.parse_args(sys.argv[1:split])
    flags.seeds = [int(word) for word in flags.seeds.split()]
    caller = Path(os.environ.get("CALLER", "."))  # where the shell script was called from, before it changed folder
    flags.work = (caller / flags.work).resolve()
    flags.data = str((caller / flags.data).resolve()) if flags.data else ""
    flags.more = " ".join(sys.argv[split + 1 :])
    return flags


def report(base: str, methods: Sequence[Method], flags: argparse.Namespace, derive: Derive | None = None) -> int:
    """Run a study and print its table, which is also written to WORK/table.md.

    Args:
        base, methods: see `run_study`.
        flags: see `parse`.
        derive: (flags of all runs, outcomes, command line) -> further outcomes, made of the saved models.
    """
    methods = [method for method in methods if method.name in flags.only]
    store = f"--processed-data-file={flags.work / 'store'}"
    every = f"{base} {flags.more} {store}"
    try:
        flags.work.mkdir(parents=True, exist_ok=True)
        if not (flags.work / "store").exists():  # once, before runs that would all wait for it
            run_driver(f"{every} --prepare-only --metrics-file={flags.work / 'unused'}")
        outcomes = run_study(every, methods, flags.seeds, flags.work, flags.jobs, keep_models=derive is not None)
        outcomes += derive(every, outcomes, flags) if derive else []
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    first = next(iter(outcomes[0].results.values()))
    head = f"{len(flags.seeds)} seeds, {first['test']['samples']} test rows, {base} {flags.more}".strip()
    text = f"{head}\n\n{table(outcomes)}\n"
    (flags.work / "table.md").write_text(text)
    print(text)
    return 0


def run_driver(flags: str) -> None:
    """Run the driver for its effect. Raises RuntimeError with its last line if it fails."""
    command = [sys.executable, str(ROOT / "dlrm_mlet.py"), *flags.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no output"])[-1])
