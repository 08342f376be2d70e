"""The measurements of scripts/bench_train.sh, which says how to run it."""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
import shutil
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from bench_cells import CELLS, CONTESTANTS, SCALES, Cell, Scale, run_flags, step_spec
from bench_process import (
    ROOT,
    ContestantError,
    StepWorker,
    available_bytes,
    check_reference,
    describe_machine,
    draw_batches,
    run_process,
)
from bench_results import Row, compare, draw, is_finished, markdown, read_rows, replace_cell, write_rows

from datastore.provenance import commit_of

NOT_INSTALLED = "not installed: pip install fbgemm-gpu-cpu==1.8.0"
PREPARED = "kaggleAdDisplayChallenge_processed.npz"  # the name that the reference gives it


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """What stands behind -- goes to the drivers as it is."""
    split = list(arguments).index("--") if "--" in arguments else len(arguments)
    parser = argparse.ArgumentParser(prog="bench_train.py", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("reference", nargs="?", default=os.environ.get("REFERENCE", ""), help="checkout of facebookresearch/dlrm")
    add("--reference-python", default=sys.executable, help="Python with the reference's requirements")
    add("--work", type=Path, default=Path("bench_output"), help="folder for data and results")
    add("--scale", choices=SCALES, default="full")
    add("--rows", type=int, default=0, help="rows of the generated file; 0: the scale's")
    add("--repeats", type=int, default=0, help="0: the scale's")
    add("--batches", type=int, default=0, help="batches drawn beforehand for a step cell; 0: the scale's")
    add("--longer", type=int, default=1, metavar="N", help="N times as many steps between the short and the long run")
    add("--only", nargs="+", metavar="CELL", help="cells to measure; default: the scale's")
    add("--contestants", nargs="+", metavar="NAME", choices=CONTESTANTS, default=list(CONTESTANTS))
    add("--ours-flags", default="", help="flags for our driver alone, in one word")
    add("--use-gpu", action="store_true", help="both on the first CUDA device")
    add("--again", action="store_true", help="measure finished cells anew")
    add("--list", action="store_true", help="name the cells and stop")
    flags = parser.parse_args(arguments[:split])
    flags.more = list(arguments[split + 1 :])
    return flags


def scale_of(flags: argparse.Namespace) -> Scale:
    """The chosen scale with what the command line changes of it. Raises ValueError where the data is too short."""
    scale = SCALES[flags.scale]
    longer = {batch: scale.short[batch] + flags.longer * (n - scale.short[batch]) for batch, n in scale.long.items()}
    scale = replace(
        scale,
        rows=flags.rows or scale.rows,
        repeats=flags.repeats or scale.repeats,
        drawn=flags.batches or scale.drawn,
        long=longer,
    )
    if min(scale.rows, scale.repeats, scale.drawn, flags.longer) < 1:
        raise ValueError("--rows, --repeats, --batches and --longer must be positive")
    return scale


def chosen_cells(flags: argparse.Namespace, scale: Scale) -> list[Cell]:
    """In the order given, tables cut to the scale. Raises ValueError on an unknown name or too few rows."""
    cells = []
    for name in flags.only or scale.cells:
        if name not in CELLS:
            raise ValueError(f"--only={name}: there is no such cell; choose from {', '.join(CELLS)}")
        cell = CELLS[name]
        shape = cell.shape.capped(scale.table_rows) if cell.shape else None
        contestants = tuple(one for one in cell.contestants if one in flags.contestants)
        needed, training = cell.batch * scale.long[cell.batch], scale.rows * 6 // 7
        if shape is None and needed > training:
            raise ValueError(f"{name} trains on {needed} rows, the file has {training}: give a larger --rows")
        cells.append(replace(cell, shape=shape, contestants=contestants))
    return cells


def reason_to_leave_out(name: str, cell: Cell, use_gpu: bool) -> str:
    """Why a contestant cannot run in a cell, "" where it can."""
    program = CONTESTANTS[name].program
    if program == "fbgemm" and importlib.util.find_spec("fbgemm_gpu") is None:
        return NOT_INSTALLED
    if program == "reference" and use_gpu and cell.optimizer != "sgd":
        return "the reference has no Adagrad on a GPU"
    return ""


class Bench:
    """Everything that the cells share: paths, settings, results so far."""

    def __init__(self, flags: argparse.Namespace) -> None:
        self.flags, self.scale = flags, scale_of(flags)
        self.cells = chosen_cells(flags, self.scale)
        self.checkout = check_reference(flags.reference)
        self.work = flags.work.resolve()
        self.work.mkdir(parents=True, exist_ok=True)
        self.csv = self.work / "train.csv"
        self.raw = self.work / f"train-{self.scale.rows}.txt"
        self.store = self.work / f"store-{self.scale.rows}"
        self.reference_data = self.work / f"reference-{self.scale.rows}"
        about = describe_machine()
        other = describe_machine(flags.reference_python)
        names = ("cpu_name", "cores", "avx512_bf16", "amx_bf16", "gpu", "torch")
        machine = ", ".join(f"{name} {about[name]}" for name in names if about[name] != "")
        if other["torch"] != about["torch"]:
            machine += f", reference's torch {other['torch']}"
        print(f"{machine}, threads {about['threads']}", flush=True)
        self.identity: Row = {
            "machine": machine,
            "threads": about["threads"],
            "commit": commit_of(ROOT) or "unknown",
            "reference_commit": commit_of(self.checkout) or "unknown",
            "settings": f"scale {flags.scale}, {self.scale.rows} rows, {self.scale.repeats} repeats, "
            f"{self.scale.drawn} batches, {flags.longer} times longer, gpu {flags.use_gpu}, "
            f"flags {' '.join(flags.more)} / {flags.ours_flags}",
        }

    # ------------------------------------------------------------------------------------------------------- data

    def prepare(self) -> None:
        """The raw file, our store and the reference's files, each made once."""
        if not self.raw.exists():
            command = [sys.executable, "-m", "sources.synthetic", f"--rows={self.scale.rows}", "--seed=1"]
            run_process([*command, f"--out={self.raw}"], ROOT, self.work / "generate.log")
        cell = next(cell for cell in self.cells if cell.shape is None)
        run_process([*self.our_command(cell, ()), "--prepare-only"], self.work, self.work / "prepare-ours.log")
        if self.reference_data.exists():
            return
        print("the reference prepares its data: about 3 minutes a million rows, once", flush=True)
        # it takes what an interrupted run left for finished: made aside, and renamed when complete
        aside = self.reference_data.with_name(f"{self.reference_data.name}.partial")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        (aside / "train.txt").symlink_to(self.raw)
        command = [*self.reference_command(cell, aside), "--num-batches=1"]
        run_process(command, aside, self.work / "prepare-reference.log")
        aside.rename(self.reference_data)

    # ------------------------------------------------------------------------------------------- whole processes

    def our_command(self, cell: Cell, own: Sequence[str]) -> list[str]:
        """Our driver on our store."""
        data = [f"--raw-data-file={self.raw}", f"--processed-data-file={self.store}"]
        more = [*own, *self.flags.more, *self.flags.ours_flags.split()]
        return [sys.executable, str(ROOT / "dlrm_mlet.py"), *run_flags(cell), *data, *self.gpu_flag(), *more]

    def reference_command(self, cell: Cell, folder: Path) -> list[str]:
        """The reference's driver on its own files."""
        data = [f"--raw-data-file={folder}/train.txt", f"--processed-data-file={folder}/{PREPARED}"]
        program = [self.flags.reference_python, str(self.checkout / "dlrm_s_pytorch.py")]
        return [*program, *run_flags(cell), *data, *self.gpu_flag(), *self.flags.more]

    def gpu_flag(self) -> list[str]:
        return ["--use-gpu"] if self.flags.use_gpu else []

    def time_runs(self, name: str, cell: Cell) -> tuple[float, float]:
        """Seconds a step (a long run minus a short one) and the long run's peak MB."""
        contestant = CONTESTANTS[name]
        if contestant.program == "reference":
            command, folder = self.reference_command(cell, self.reference_data), self.reference_data
        else:
            command, folder = self.our_command(cell, contestant.flags), self.work
        short, long = self.scale.short[cell.batch], self.scale.long[cell.batch]
        log = self.work / f"{cell.name}-{name}.log"
        began, _ = run_process([*command, f"--num-batches={short}"], folder, log, self.flags.use_gpu)
        whole, peak = run_process([*command, f"--num-batches={long}"], folder, log, self.flags.use_gpu)
        return (whole - began) / (long - short), peak

    def measure_runs(self, cell: Cell, running: Sequence[str]) -> dict[str, Row]:
        """Contestants in turn, each repeat beginning with another one."""
        seconds: dict[str, list[float]] = {name: [] for name in running}
        peaks: dict[str, float] = dict.fromkeys(running, 0.0)
        failed: dict[str, str] = {}
        for repeat in range(self.scale.repeats):
            for name in rotated(running, repeat):
                if name in failed:
                    seconds[name].append(math.nan)
                    continue
                try:
                    value, peak = self.time_runs(name, cell)
                    seconds[name].append(value)
                    peaks[name] = max(peaks[name], peak)
                except ContestantError as error:
                    seconds[name].append(math.nan)
                    failed[name] = f"failed: {error}"
            said = ", ".join(f"{name} {1000 * seconds[name][-1]:.2f} ms" for name in running if name not in failed)
            print(f"  repeat {repeat + 1}: {said}", flush=True)
        rows = compare(seconds, cell.batch)
        for name, row in rows.items():
            row |= {"peak_mb": round(peaks[name]) or "", "note": failed.get(name, "")}
        return rows

    # ----------------------------------------------------------------------------------------------- steps alone

    def start_worker(self, name: str, cell: Cell, batches: Path) -> StepWorker:
        """Build one contestant's model in a process of its own."""
        contestant = CONTESTANTS[name]
        more = [*self.flags.more, *self.flags.ours_flags.split()]
        assert cell.shape
        spec = step_spec(contestant, cell.shape, cell.batch, cell.optimizer, str(batches), more)
        spec |= {"checkout": str(self.checkout), "root": str(ROOT), "use_gpu": self.flags.use_gpu}
        python = self.flags.reference_python if contestant.program == "reference" else sys.executable
        return StepWorker(python, spec, self.work / f"{cell.name}-{name}.log")

    def measure_steps(self, cell: Cell, running: Sequence[str]) -> dict[str, Row]:
        """All workers live side by side and step in turn, so that what slows the machine slows all of them."""
        available, needed = available_bytes(), cell.needed_bytes()
        if available is not None and needed > available:
            note = f"skipped: needs about {needed / 1e9:.1f} GB of memory, {available / 1e9:.1f} GB are free"
            return {name: {"note": note} for name in running}
        batches = self.work / f"{cell.name}.npz"
        draw_batches(batches, cell.shape, cell.batch, self.scale.drawn)
        workers: dict[str, StepWorker] = {}
        failed: dict[str, str] = {}
        seconds: dict[str, list[float]] = {name: [] for name in running}
        try:
            for name in running:
                try:
                    workers[name] = self.start_worker(name, cell, batches)
                except ContestantError as error:
                    failed[name] = f"failed: {error}"
            self.step_in_turn(workers, failed, seconds)
        finally:
            for worker in workers.values():
                worker.close()
            batches.unlink()
        rows = compare(seconds, cell.batch)
        for name, worker in workers.items():
            rows[name] |= {"peak_mb": round(worker.peak_mb), "gpu_mb": round(worker.gpu_mb)}
        return {name: row | {"note": failed.get(name, "")} for name, row in rows.items()}

    def step_in_turn(
        self, workers: Mapping[str, StepWorker], failed: dict[str, str], seconds: dict[str, list[float]]
    ) -> None:
        """Fill `seconds` with one value a repeat for each contestant, nan where it failed."""
        steps: dict[str, int] = {}
        for repeat in range(self.scale.repeats):
            for name in rotated(list(seconds), repeat):
                value = math.nan
                if name not in failed:
                    worker = workers[name]
                    try:
                        steps[name] = steps.get(name) or worker.steps_in(self.scale.block_seconds)
                        value = worker.run(steps[name]) / steps[name]
                    except ContestantError as error:
                        failed[name] = f"failed: {error}"
                seconds[name].append(value)

    # ------------------------------------------------------------------------------------------------------ cells

    def measure(self, cell: Cell) -> None:
        """One cell into the CSV, unless it is there."""
        rows = read_rows(self.csv)
        notes = {name: reason_to_leave_out(name, cell, self.flags.use_gpu) for name in cell.contestants}
        if not self.flags.again and is_finished(rows, cell.name, notes, self.identity):
            print(f"{cell.name}: measured before (--again measures it anew)", flush=True)
            return
        print(f"{cell.name} ...", flush=True)
        running = [name for name in cell.contestants if not notes[name]]
        measured = self.measure_steps(cell, running) if cell.shape else self.measure_runs(cell, running)
        new = []
        for name in cell.contestants:
            row: Row = {"cell": cell.name, "contestant": name, "batch": cell.batch, "optimizer": cell.optimizer}
            row |= {"hot": cell.hot, "inner_dim": CONTESTANTS[name].inner_dim, "note": notes[name]}
            new.append(row | measured.get(name, {}) | self.identity)
        write_rows(self.csv, replace_cell(rows, cell.name, new))
        print(markdown(new), flush=True)


def rotated(names: Sequence[str], by: int) -> list[str]:
    """Another first one in each repeat."""
    by %= max(1, len(names))
    return [*names[by:], *names[:by]]


def summary(rows: Sequence[Row]) -> str:
    """The range of our speeds over the reference's."""
    ours = [
        float(row["ratio_to_reference"]) for row in rows if row["contestant"] == "ours" and row["ratio_to_reference"]
    ]
    if not ours:
        return ""
    low, middle, high = min(ours), statistics.median(ours), max(ours)
    return f"ours over the reference in {len(ours)} cells: {low:.2f} to {high:.2f}, median {middle:.2f}"


def main(arguments: Sequence[str]) -> int:
    """Measure the cells; 1 where a contestant failed, 2 with one line where the request cannot be met."""
    flags = parse(arguments)
    if flags.list:
        print("\n".join(f"{name}: {', '.join(cell.contestants)}" for name, cell in CELLS.items()))
        return 0
    try:
        bench = Bench(flags)
        if any(cell.shape is None for cell in bench.cells):
            bench.prepare()
        for cell in bench.cells:
            bench.measure(cell)
    except (ValueError, OSError, ContestantError) as error:
        print(f"bench_train.py: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130  # the cells that are finished are in the CSV
    rows = read_rows(bench.csv)
    order = list(CELLS)
    rows.sort(key=lambda row: order.index(row["cell"]))
    picture = bench.work / "train.png"
    drawn = draw(rows, picture)
    print(f"\n{markdown(rows)}\n\n{summary(rows)}\n{bench.csv}")
    print(picture if drawn else "no picture: it needs ratios to the reference, and pip install matplotlib")
    measured = {cell.name for cell in bench.cells}
    return int(any(row["note"].startswith("failed") for row in rows if row["cell"] in measured))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
