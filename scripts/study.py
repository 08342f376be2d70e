"""Studies: methods that are tuned alike, run over seeds and compared in pairs. Shared by the scripts that make tables.

A method is a set of driver flags and a grid of settings. Every setting is run with every seed, or with the first few
that tune; the setting with the best mean validation AUC is the method's, and only its test metrics are shown. Runs that
are done are not run again: a study goes on where it was interrupted. Each run is one process; `jobs` of them run side
by side, sharing the cores. Runs share one prepared store; where a method changes the vocabulary it has its own. A run
that fails is tried once more, alone, when the others are done; what cannot be finished is named beside the tables.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from metrics_table import result_of  # noqa: E402
from study_widen import beyond_the_end, candidates  # noqa: E402
from warm_driver import WarmDriver  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
RECORD = "study.json"  # in WORK: the flags that its runs were made with
HOPELESS = 3  # runs that fail before any has ended well: the study ends
OWN_STORE = "--vocabulary-"  # flags of a method or setting that begin so make another store
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
    """A method's best setting and, seed by seed, the results of its runs and the metrics files that hold them.

    `tried` has the files of every setting with the seeds that tune.
    """

    method: Method
    setting: str
    results: dict[int, dict]
    files: dict[int, Path] = field(default_factory=dict)
    tried: dict[str, dict[int, Path]] = field(default_factory=dict)

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
        tuning: how many of the seeds, from the first, a method's settings are compared over; 0: all.
        read: a run's result from its metrics file; by default its last line.
        widen: how many rates beyond a grid's end are tried, while the best is there.
    """

    def __init__(
        self,
        base: str,
        work: Path,
        seeds: Sequence[int],
        jobs: int = 1,
        keep_models: bool = False,
        tuning: int = 0,
        read: Callable[[Path], dict] = result_of,
        widen: int = 0,
    ) -> None:
        self.read, self.widen = read, widen
        self.work, self.seeds, self.jobs, self.keep_models = work, seeds, jobs, keep_models
        self.tuning = seeds[:tuning] if tuning else seeds
        self.base = f"{base} --processed-data-file={shlex.quote(str(work / 'store'))}"
        self.commands: list[str] = []  # of all calls that ran something in the folder
        self.failed: dict[tuple[Method, str, int], str] = {}  # run -> what it said last
        self._too_far: set[tuple[Method, str]] = set()  # settings beyond a grid with which a run failed
        self._drivers: list[WarmDriver] = []  # all that were started
        self._idle: list[WarmDriver] = []
        self._stopping = False
        self._clock = Clock()
        self.note_data()

    def note_data(self) -> None:
        """Take the data of the runs that lie in the folder for that of all."""
        older = next(filter(is_done, self.work.glob("*.jsonl")), None)
        self._data: str | None = result_of(older)["data_sha256"] if older else None

    def file_of(self, method: Method, setting: str, seed: int) -> Path:
        """Where a run writes its metrics."""
        return self.work / f"{method.name}{as_name(setting)}-{seed}.jsonl"

    def flags_of(self, method: Method, setting: str, seed: int) -> str:
        """A run's flags, less those that say where it writes."""
        return f"{self.base} {method.flags} {setting} --numpy-rand-seed={seed}"

    def store_of(self, method: Method, setting: str) -> tuple[Path, str]:
        """Where a run's data is prepared, and the flags of the run that change what lies there."""
        own = [word for word in shlex.split(f"{method.flags} {setting}") if word.startswith(OWN_STORE)]
        return self.work / as_name("".join(["store", *own])), shlex.join(own)

    def model_of(self, method: Method, setting: str, seed: int) -> Path:
        """Where a run saves its model."""
        return self.file_of(method, setting, seed).with_suffix("")

    def run(self, method: Method, setting: str, seed: int, more: str = "") -> None:
        """One run, unless it is done. Raises RuntimeError with the driver's last line if it fails."""
        path = self.file_of(method, setting, seed)
        if is_done(path) or self._stopping:
            return
        flags = f"{self.flags_of(method, setting, seed)} {more}"
        store, is_own = self.store_of(method, setting)
        if is_own:
            flags += f" --processed-data-file={shlex.quote(str(store))}"
        shutil.rmtree(self.model_of(method, setting, seed), ignore_errors=True)  # of a run that was cut short
        if self.keep_models and not more:
            flags += f" --save-model={shlex.quote(str(self.model_of(method, setting, seed)))}"
        self.drive(f"{flags} --metrics-file={shlex.quote(str(path))}", path.name)
        self._check_data(path)
        print(f"{path.name}{self._clock.tick()}", flush=True)

    def drive(self, flags: str, what: str) -> None:
        """The driver, once. Raises RuntimeError with its last line if it fails."""
        if self._idle:
            driver = self._idle.pop()
        else:
            driver = WarmDriver(max(1, (os.cpu_count() or 1) // self.jobs))
            self._drivers.append(driver)
        try:
            code, said = driver.run(shlex.split(flags))
        except RuntimeError as error:
            raise RuntimeError(f"{what}: {error}") from None
        self._idle.append(driver)
        if code:
            nothing = f"killed by signal {-code}" if code < 0 else "no message"
            reason = (said.strip().splitlines() or [nothing])[-1].partition("error: ")
            raise RuntimeError(f"{what}: {reason[2] or reason[0]}")

    def _check_data(self, path: Path) -> None:
        """Raises ValueError, and forgets a new run, if its data is not that of the runs before it."""
        data = result_of(path)["data_sha256"]
        self._data = self._data or data
        if data != self._data:
            self._stopping = True
            path.unlink()
            raise ValueError(f"the raw data has changed since the runs in {self.work} were made: name another --work")

    def close(self) -> None:
        """End what runs; a study that is closed runs nothing more."""
        self._stopping = True
        for driver in self._drivers:
            driver.stop()

    def prepare(self, methods: Sequence[Method] = ()) -> None:
        """Prepare the data, and that of methods with a store of their own, before runs that would all wait for it."""
        stores = [self.store_of(method, setting) for method in methods for setting in method.grid]
        unused = shlex.quote(str(self.work / "unused"))
        for store, own in dict.fromkeys([(self.work / "store", ""), *stores]):
            if not store.exists():
                flags = f"{self.base} {own} --processed-data-file={shlex.quote(str(store))}" if own else self.base
                self.drive(f"{flags} --prepare-only --metrics-file={unused}", "preparing the data")

    def prepared_data(self) -> str:
        """The checksum of the raw data as it is prepared in the folder; nothing where it is not."""
        schema = self.work / "store" / "schema.json"
        return json.loads(schema.read_text())["source"]["sha256"] if schema.exists() else ""

    def run_all(self, methods: Sequence[Method]) -> list[Outcome]:
        """Run what is missing, and pick each method's setting; those with a run in `failed` are left out."""
        tuning = [(method, setting, seed) for seed in self.tuning for method in methods for setting in method.grid]
        others = [seed for seed in self.seeds if seed not in self.tuning]
        self._clock = Clock(self._missing(tuning) + len(others) * len(methods))
        self._run_side_by_side(tuning)
        while further := [(each, beyond) for each in self._whole(methods) if (beyond := self.further_setting(each))]:
            wider = [(*each, seed) for seed in self.tuning for each in further]
            self._clock.expect(self._missing([*wider, *self._rest(methods, others)]))
            self._run_side_by_side(wider, may_give_up=False)
            self._too_far |= {run[:2] for run in wider if run in self.failed}
        if others:
            rest = self._rest(methods, others)
            self._clock.expect(self._missing(rest))
            self._run_side_by_side(rest)
        return [self.outcome(method) for method in self._whole(methods)]

    def runs_of(self, methods: Sequence[Method]) -> list[tuple[Method, str, int]]:
        """All that the methods may come to, beyond the ends of their grids too."""
        settings = [(each, setting) for each in methods for setting in (*each.grid, *candidates(each.grid, self.widen))]
        return [(*each, seed) for each in settings for seed in self.seeds]

    def results_there(self, methods: Sequence[Method]) -> list[dict]:
        """Of the methods' runs that are done."""
        return [result_of(path) for path in {self.file_of(*run) for run in self.runs_of(methods)} if is_done(path)]

    def _rest(self, methods: Sequence[Method], seeds: Sequence[int]) -> list[tuple[Method, str, int]]:
        """Runs of the seeds that do not tune."""
        tuned = [(method, self.setting_of(method)) for method in self._whole(methods)]
        return [(*each, seed) for seed in seeds for each in tuned]

    def _missing(self, runs: Sequence[tuple[Method, str, int]]) -> int:
        return sum(not is_done(path) for path in {self.file_of(*run) for run in runs})

    def _whole(self, methods: Sequence[Method]) -> list[Method]:
        broken = {method for method, setting, _ in self.failed if (method, setting) not in self._too_far}
        return [method for method in methods if method not in broken]

    def _run_side_by_side(self, runs: Sequence[tuple[Method, str, int]], may_give_up: bool = True) -> None:
        """All of them; then those that failed once more, one at a time: most often it was memory that they lacked.

        Raises RuntimeError if the first few fail, if it may: the mistake is in what they share.
        """
        good, runs = 0, list({self.file_of(*run): run for run in runs}.values())  # methods may share runs

        def attempt(run: tuple[Method, str, int]) -> None:
            nonlocal good
            try:
                self.run(*run)
                good += 1
            except RuntimeError as error:
                if self._stopping:
                    return
                self.failed[run] = str(error)
                if may_give_up and not good and len(self.failed) >= min(HOPELESS, len(runs)):
                    self._stopping = True
                    raise

        try:
            with ThreadPoolExecutor(self.jobs) as pool:
                waiting = [pool.submit(attempt, run) for run in runs]
                try:
                    for future in waiting:
                        future.result()
                except BaseException:
                    self.close()  # those that wait do nothing
                    raise
            for run in [run for run in runs if run in self.failed]:
                print(f"once more: {self.failed.pop(run)}", file=sys.stderr)
                attempt(run)
        except BaseException:
            self.close()
            raise

    def setting_of(self, method: Method) -> str:
        """The setting with the best mean validation AUC over the seeds that tune."""
        return self._best(method, self.settings_of(method))

    def settings_of(self, method: Method) -> list[str]:
        """The method's grid, and what was tried beyond its ends."""
        settings = list(method.grid)
        while (further := self._further(method, settings)) and self._is_tried(method, further):
            settings.append(further)
        return settings

    def further_setting(self, method: Method) -> str | None:
        """What is to be tried beyond the end of what was."""
        further = self._further(method, self.settings_of(method))
        return None if (method, further) in self._too_far else further

    def _further(self, method: Method, settings: list[str]) -> str | None:
        may_grow = len(settings) - len(method.grid) < self.widen
        return beyond_the_end(settings, self._best(method, settings)) if may_grow else None

    def _is_tried(self, method: Method, setting: str) -> bool:
        return all(is_done(self.file_of(method, setting, seed)) for seed in self.tuning)

    def _best(self, method: Method, settings: Sequence[str]) -> str:
        def quality(setting: str) -> float:
            results = [self.read(self.file_of(method, setting, seed)) for seed in self.tuning]
            values = [chosen(result)["val"]["auc"] for result in results]
            if None in values:
                raise ValueError(f"{method.name} has no AUC on validation: it needs rows of both classes")
            return statistics.mean(values)

        return max(settings, key=quality)

    def outcome(self, method: Method) -> Outcome:
        """The method at its best setting."""
        settings = self.settings_of(method)
        setting = self._best(method, settings)
        files = {seed: self.file_of(method, setting, seed) for seed in self.seeds}
        results = {seed: self.read(path) for seed, path in files.items()}
        tried = {each: {seed: self.file_of(method, each, seed) for seed in self.tuning} for each in settings}
        return Outcome(method, setting, results, files, tried)

    def is_complete(self, method: Method) -> bool:
        """Whether an earlier call has run all that the method's outcome needs."""
        if not all(self._is_tried(method, setting) for setting in method.grid):
            return False
        setting = self.setting_of(method)
        return all(is_done(self.file_of(method, setting, seed)) for seed in self.seeds)

    def check_record(self, methods: Sequence[Method]) -> None:
        """Note the flags of this study's runs and its command, and read those of earlier calls.

        Raises ValueError where the folder has runs with other flags.
        """
        path = self.work / RECORD
        old = {"base": self.base, "methods": {}}
        if any(self.work.glob("*.jsonl")):  # a call that came to no run binds nobody
            try:
                old = json.loads(path.read_text())
            except (OSError, ValueError):
                raise ValueError(f"{path}, the record of the runs in its folder, is lost or damaged") from None
        new = {method.name: method.flags for method in methods}
        apart = [(old["base"], self.base), *((old["methods"].get(name, flags), flags) for name, flags in new.items())]
        for theirs, ours in apart:
            if theirs != ours:
                other = set(theirs.split()) ^ set(ours.split())
                differs = " ".join(word for word in dict.fromkeys(f"{theirs} {ours}".split()) if word in other)
                raise ValueError(f"{self.work} has runs with other flags or data ({differs}): name another --work")
        self.commands = list(dict.fromkeys([*old.get("commands", ()), *self.commands]))
        aside = path.with_suffix(".part")
        aside.write_text(json.dumps({"base": self.base, "methods": old["methods"] | new, "commands": self.commands}))
        aside.replace(path)


class Clock:
    """How many runs are done, and how long the others will take at the pace of those.

    Args:
        total: runs to come; 0: unknown.
    """

    def __init__(self, total: int = 0) -> None:
        self._total, self._done, self._start = total, 0, time.monotonic()

    def expect(self, more: int) -> None:
        """So many are still to come."""
        self._total = self._done + more

    def tick(self) -> str:
        """One more is done: what to print behind its name."""
        self._done += 1
        if self._total < self._done:
            return ""
        left = (time.monotonic() - self._start) / self._done * (self._total - self._done)
        return f"  ({self._done}/{self._total}, about {left / 60:.0f} min left)"


def as_name(flags: str) -> str:
    """Flags as a part of a file's name."""
    return "".join(character if character.isalnum() or character in ".=-" else "_" for character in flags)


def is_done(path: Path) -> bool:
    """Whether the file ends in a result; a torn one does not."""
    try:
        lines = path.read_text().splitlines() if path.exists() else []
        return bool(lines) and json.loads(lines[-1]).get("event") == "result"
    except (ValueError, AttributeError, OSError):
        return False
