"""Processes that are measured from outside: whole runs, workers of scripts/bench_step.py, the machine itself.

The parent must stay small, so it imports no torch: Linux counts the memory that the parent had when it started a child
into the child's peak.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from bench_cells import Shape

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from datastore.provenance import cpu_name  # noqa: E402

WORKER = Path(__file__).resolve().parent / "bench_step.py"
CLONE = "git clone https://github.com/facebookresearch/dlrm && git -C dlrm checkout 090956e"

ABOUT_MACHINE = """
import json, torch
can = getattr(torch.cpu, "get_capabilities", dict)()
about = {name: can.get(name, "unknown") for name in ("cpu_name", "avx512_bf16", "amx_bf16")}
about |= {"threads": torch.get_num_threads(), "torch": torch.__version__}
about |= {"gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else ""}
print(json.dumps(about))
"""


class ContestantError(RuntimeError):
    """A program that is measured has failed; the message is the last line of what it said."""


def environment(use_gpu: bool, side_by_side: bool = False) -> dict[str, str]:
    """The same for every contestant. Of processes side by side, waiting threads must not spin: they would take the core
    that another needs. A process alone runs as its users run it."""
    own = {"OMP_WAIT_POLICY": "PASSIVE"} if side_by_side else {}
    if use_gpu:
        own["CUDA_VISIBLE_DEVICES"] = "0"  # the reference takes every device that it sees, ours one
    return own | os.environ | {"PYTHONUNBUFFERED": "1"}


def last_line(log: Path) -> str:
    """Of a log, what is most likely the reason of a failure."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no message"


def run_process(command: Sequence[str], folder: Path, log: Path, use_gpu: bool = False) -> tuple[float, float]:
    """Wall seconds and peak MB of a whole process. Raises ContestantError where it fails."""
    with open(log, "wb") as output:
        began = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment(use_gpu)
        )
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            process.wait()
            raise
    seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if status:
        raise ContestantError(last_line(log))
    return seconds, usage.ru_maxrss * 1024 / 1e6


class StepWorker:
    """A process of scripts/bench_step.py: built and warmed up when the constructor returns.

    Raises:
        ContestantError: it does not start, or stops.
    """

    def __init__(self, python: str, spec: dict, log: Path) -> None:
        self.log, self.peak_mb, self.gpu_mb = log, 0.0, 0.0
        with open(log, "wb") as errors:
            self.process = subprocess.Popen(
                [python, str(WORKER), json.dumps(spec)],
                cwd=log.parent,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment(spec["use_gpu"], side_by_side=True),
            )
        self.about = self._answer()

    def _answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            self.close()
            raise ContestantError(last_line(self.log))
        return json.loads(line)

    def run(self, steps: int) -> float:
        """Seconds of a block of steps."""
        try:
            self.process.stdin.write(f"{steps}\n")
            self.process.stdin.flush()
        except OSError:
            pass  # it is gone: _answer says why
        answer = self._answer()
        self.gpu_mb = answer["gpu_mb"]
        return answer["seconds"]

    def steps_in(self, seconds: float, most: int = 10_000) -> int:
        """How many steps take about so long, 2 at least."""
        once = max(self.run(2) / 2, 1e-6)
        return int(min(most, max(2, round(seconds / once))))

    def close(self) -> float:
        """Let it end; its peak MB. May be called again."""
        if self.process.returncode is None:
            try:
                self.process.stdin.close()
            except OSError:
                pass
            _, status, usage = os.wait4(self.process.pid, 0)
            self.process.returncode = os.waitstatus_to_exitcode(status)
            self.process.stdout.close()
            self.peak_mb = usage.ru_maxrss * 1024 / 1e6
        return self.peak_mb


def draw_batches(path: Path, shape: Shape, batch: int, count: int, seed: int = 1) -> None:
    """Write random batches for all contestants: dense [N, B, M], ids int32 [N, T, B, H], labels [N, B, 1]."""
    rng = np.random.default_rng(seed)
    dense = rng.random((count, batch, int(shape.bottom.split("-")[0])), np.float32)
    ids = np.empty((count, len(shape.tables), batch, shape.hot), np.int32)
    for table, rows in enumerate(shape.tables):
        for number in range(count):
            ids[number, table] = draw_ids(rng, rows, (batch, shape.hot), shape.zipf)
    labels = (rng.random((count, batch, 1)) < 0.25).astype(np.float32)
    np.savez(path, dense=dense, ids=ids, labels=labels)


def draw_ids(rng: np.random.Generator, rows: int, size: tuple[int, ...], zipf: bool) -> np.ndarray:
    """Ids below `rows`: uniform, or id i with a probability of about 1 / (i + 1) ** 1.05, as clicks have them."""
    if not zipf:
        return rng.integers(0, rows, size)
    power = 1 - 1.05
    drawn = (1 + rng.random(size) * ((rows + 1) ** power - 1)) ** (1 / power)
    return np.clip(drawn.astype(np.int64) - 1, 0, rows - 1)


def available_bytes() -> int | None:
    """Memory that can be had without swapping; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), None)


def describe_machine(python: str = sys.executable) -> dict:
    """CPU, what it has for bf16, torch and its threads, GPU."""
    done = subprocess.run([python, "-c", ABOUT_MACHINE], capture_output=True, text=True, env=environment(False))
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ValueError(f"{python} cannot run torch: {last}")
    about = json.loads(done.stdout)
    return about | {"cpu_name": cpu_name() or about["cpu_name"], "cores": os.cpu_count()}


def check_reference(checkout: str) -> Path:
    """The checkout's folder. Raises ValueError, with how to get one, where it is none."""
    if not checkout:
        raise ValueError(f"name a checkout of the reference: {CLONE}")
    folder = Path(checkout).resolve()
    if not (folder / "dlrm_s_pytorch.py").is_file():
        raise ValueError(f"{checkout} has no dlrm_s_pytorch.py, it is no checkout of the reference: {CLONE}")
    return folder
