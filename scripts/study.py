"""Studies: methods that are tuned alike, run over seeds and compared in pairs. Shared by the scripts that make tables.

A method is a set of driver flags and a grid of settings. Every setting is run with every seed; the setting with the
best mean validation AUC is the method's, and only its test metrics are shown. Runs that are done are not run again: a
study goes on where it was interrupted. Each run is one process; `jobs` of them run side by side, sharing the cores.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
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
RECORD = "study.json"  # in WORK: the flags that its runs were made with
# the MLET authors' model and rate on rows in the Criteo format; flags behind -- come later and win
AUTHORS_BASE = (
    "--data-generation=dataset --arch-sparse-feature-size=8 --arch-mlp-bot=13-256-64-8 --arch-mlp-top=512-256-1 "
    "--loss-function=bce --learning-rate=0.2 --mini-batch-size=128 --test-mini-batch-size=4096 --print-freq=1000000"
)


@dataclass(frozen=True)
class Method:
    """A name, the driver flags of it, and the settings (each a string of flags) that it is tuned over."""

    name: str
    flags: str = ""
    grid: tuple[str, ...] = ("",)


@dataclass(frozen=True)
class Outcome:
    """A method's best setting and, seed by seed, the results of its runs."""

    method: Method
    setting: str
    results: dict[int, dict]

    def values(self, metric: str, split: str = "test") -> list[float]:
        """One value a seed, at the evaluation that validation chose."""
        return [chosen(result)[split][metric] for result in self.results.values()]


def chosen(result: dict) -> dict:
    """Metrics by split at the evaluation with the best validation AUC; the last one where there is no validation."""
    return result["best"] or {"test": result["test"], "val": result["val"]}


class Study:
    """Runs of the driver in one folder.

    Args:
        base: flags of all runs, quoted as for a shell.
        work: folder of the metrics files, the models and the prepared data.
        seeds: values of --numpy-rand-seed.
        jobs: processes at a time.
        keep_models: save each run's model, see `model_of`.
    """

    def __init__(self, base: str, work: Path, seeds: Sequence[int], jobs: int = 1, keep_models: bool = False) -> None:
        self.work, self.seeds, self.jobs, self.keep_models = work, seeds, jobs, keep_models
        self.base = f"{base} --processed-data-file={shlex.quote(str(work / 'store'))}"
        self._running: set[subprocess.Popen] = set()
        self._stopping = False

    def file_of(self, method: Method, setting: str, seed: int) -> Path:
        """Where a run writes its metrics."""
        words = "".join(character if character.isalnum() or character in ".=-" else "_" for character in setting)
        return self.work / f"{method.name}{words}-{seed}.jsonl"

    def model_of(self, method: Method, setting: str, seed: int) -> Path:
        """Where a run saves its model."""
        return self.file_of(method, setting, seed).with_suffix("")

    def run(self, method: Method, setting: str, seed: int, more: str = "") -> None:
        """One run, unless it is done. Raises RuntimeError with the driver's last line if it fails."""
        path = self.file_of(method, setting, seed)
        if is_done(path) or self._stopping:
            return
        flags = f"{self.base} {method.flags} {setting} --numpy-rand-seed={seed} {more}"
        if self.keep_models and not more:
            flags += f" --save-model={shlex.quote(str(self.model_of(method, setting, seed)))}"
        self.drive(f"{flags} --metrics-file={shlex.quote(str(path))}", path.name)
        print(path.name, flush=True)

    def drive(self, flags: str, what: str) -> None:
        """The driver, once. Raises RuntimeError with its last line if it fails."""
        command = [sys.executable, str(ROOT / "dlrm_mlet.py"), *shlex.split(flags)]
        threads = max(1, (os.cpu_count() or 1) // self.jobs)
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, env=environment, **pipes) as process:
            self._running.add(process)
            _, said = process.communicate()
            self._running.discard(process)
        if process.returncode:
            reason = (said.strip().splitlines() or ["no message"])[-1].removeprefix("dlrm_mlet.py: error: ")
            raise RuntimeError(f"{what}: {reason}")

    def prepare(self) -> None:
        """Prepare the data once, before runs that would all wait for it."""
        if not (self.work / "store").exists():
            unused = shlex.quote(str(self.work / "unused"))
            self.drive(f"{self.base} --prepare-only --metrics-file={unused}", "preparing the data")

    def run_all(self, methods: Sequence[Method]) -> list[Outcome]:
        """Run what is missing, and pick each method's setting. Raises RuntimeError if a run failed; the others stay."""
        runs = [(method, setting, seed) for seed in self.seeds for method in methods for setting in method.grid]
        with ThreadPoolExecutor(self.jobs) as pool:
            waiting = [pool.submit(self.run, *each) for each in runs]
            try:
                for future in waiting:
                    future.result()
            except BaseException:
                self._stopping = True  # those that wait do nothing, those that run are ended
                for process in list(self._running):
                    process.terminate()
                raise
        return [self.outcome(method) for method in methods]

    def outcome(self, method: Method) -> Outcome:
        """The setting with the best mean validation AUC."""
        found = []
        for setting in method.grid:
            results = {seed: result_of(self.file_of(method, setting, seed)) for seed in self.seeds}
            found.append(Outcome(method, setting, results))
        return max(found, key=lambda each: statistics.mean(each.values("auc", "val")))

    def check_record(self, methods: Sequence[Method]) -> None:
        """Note the flags of this study's runs. Raises ValueError where the folder has runs with others."""
        path = self.work / RECORD
        old = json.loads(path.read_text()) if path.exists() else {"base": self.base, "methods": {}}
        new = {method.name: method.flags for method in methods}
        if old["base"] != self.base or any(old["methods"].get(name, flags) != flags for name, flags in new.items()):
            raise ValueError(f"{self.work} has runs with other flags or data ({old['base']}): name another --work")
        path.write_text(json.dumps({"base": self.base, "methods": old["methods"] | new}))


def is_done(path: Path) -> bool:
    """Whether the file ends in a result; a torn one does not."""
    lines = path.read_text().splitlines() if path.exists() else []
    try:
        return bool(lines) and json.loads(lines[-1])["event"] == "result"
    except ValueError:
        return False


def table(outcomes: Sequence[Outcome]) -> str:
    """Markdown: a row a method, with its paired difference to the first. ValueError where the data differs."""
    first = outcomes[0]
    if len({result["data_sha256"] for each in outcomes for result in each.results.values()}) > 1:
        raise ValueError("the runs were made on different data: the raw file has changed; name another --work")
    lines = [
        f"| method | setting | test AUC | logloss | AUC - {first.method.name} (95 %) | inference MB |",
        "|---|---|---|---|---|---|",
    ]
    for each in outcomes:
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


class OneLineParser(argparse.ArgumentParser):
    """A bad value is one line and exit code 2."""

    def error(self, message: str) -> None:
        self.exit(2, f"{self.prog}: error: {message}\n")


def seed_list(text: str) -> list[int]:
    """Whole numbers with blanks between them, each once."""
    try:
        seeds = [int(word) for word in text.split()]
    except ValueError:
        seeds = []
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise argparse.ArgumentTypeError(f"{text!r}: give different whole numbers with blanks between them")
    return seeds


def job_count(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def parse(description: str, seeds: str, methods: Sequence[str], only: Sequence[str] = ()) -> argparse.Namespace:
    """The command line that studies share; what stands behind -- goes to all runs of the driver.

    Args:
        description: for --help. seeds: the default of --seeds.
        methods: what --only takes. only: its default; none: all.
    """
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    parser = OneLineParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", default="", help="raw data, as the driver's --raw-data-file")
    parser.add_argument("--work", type=Path, default=Path("study_output"), help="folder of runs and prepared data")
    parser.add_argument("--seeds", type=seed_list, default=seed_list(seeds), help="blanks between them")
    parser.add_argument("--only", nargs="+", choices=methods, default=list(only or methods), metavar="METHOD")
    parser.add_argument("--jobs", type=job_count, default=1, help="runs at a time")
    flags = parser.parse_args(sys.argv[1:split])
    caller = Path(os.environ.get("CALLER", "."))  # where the shell script was called from, before it changed folder
    flags.work = (caller / flags.work).resolve()
    flags.data = shlex.quote(str((caller / flags.data).resolve())) if flags.data else ""
    flags.more = shlex.join(sys.argv[split + 1 :])
    return flags


def criteo_flags(data: str) -> str:
    """Flags for a raw file in the Criteo format, already quoted, or for the built-in planted data."""
    return f"--data-set=kaggle --raw-data-file={data}" if data else "--data-set=criteo-synthetic"


Derive = Callable[[Study, Sequence[Outcome]], list[Outcome]]


def report(base: str, methods: Sequence[Method], flags: argparse.Namespace, derive: Derive | None = None) -> int:
    """Run a study of the methods that --only names, see `run_study`; differences are taken against the first."""
    return run_study(base, [method for method in methods if method.name in flags.only], flags, table, derive)


def run_study(
    base: str,
    methods: Sequence[Method],
    flags: argparse.Namespace,
    render: Callable[[Sequence[Outcome]], str],
    derive: Derive | None = None,
    prepare: Callable[[Study], None] | None = None,
) -> int:
    """Run a study and print what comes of it, which is also written to WORK/table.md. Returns the exit code.

    Args:
        base: flags of all runs, before those behind --.
        methods: what is compared.
        flags: see `parse`.
        render: Markdown of the outcomes, see `table`.
        derive: makes further outcomes of the saved models.
        prepare: called once the data is prepared.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as an exception, so that the runs are ended too
    base = f"{base} {flags.more}".strip()
    study = Study(base, flags.work, flags.seeds, flags.jobs, keep_models=derive is not None)
    try:
        flags.work.mkdir(parents=True, exist_ok=True)
        study.check_record(methods)
        study.prepare()
        if prepare:
            prepare(study)
        outcomes = study.run_all(methods)
        outcomes += derive(study, outcomes) if derive else []
        text = render(outcomes)
    except (RuntimeError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    first = next(iter(outcomes[0].results.values()))
    text = f"{len(flags.seeds)} seeds, {first['test']['samples']} test rows, {base}\n\n{text}\n"
    (flags.work / "table.md").write_text(text)
    print(text)
    return 0
