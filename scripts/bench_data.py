"""The measurements of scripts/bench_data.sh, which says how to run it."""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from data_utils import Store  # noqa: E402 (the checkout is not installed)
from sources.synthetic import write_criteo_tsv  # noqa: E402

BATCH = 2048


def main() -> None:
    """Measure each size, print a table, write work/data.csv."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--reference", default="", help="checkout of facebookresearch/dlrm")
    parser.add_argument("--reference-python", default=sys.executable)
    parser.add_argument("--reference-rows", type=int, default=1_000_000, help="largest size it is run on")
    parser.add_argument("--repeats", type=int, default=3)
    flags = parser.parse_args()
    flags.work.mkdir(parents=True, exist_ok=True)
    results = [measure(rows, flags) for rows in flags.rows]
    with open(flags.work / "data.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(results[0]))
        writer.writeheader()
        writer.writerows(results)
    print(f"\nBatches of {BATCH}; medians of {flags.repeats} runs. Also in {flags.work / 'data.csv'}")


def measure(rows: int, flags: argparse.Namespace) -> dict[str, float | int | str]:
    """One size: generate, prepare with both in turn, read back."""
    raw = flags.work / f"rows-{rows}.txt"
    if not raw.exists():
        write_criteo_tsv(raw, rows, 1)
    raw_bytes = raw.stat().st_size
    with_reference = bool(flags.reference) and rows <= flags.reference_rows
    ours, theirs = [], []
    for repeat in range(flags.repeats):
        ours.append(prepare_ours(raw, flags.work / "store"))
        if with_reference and repeat < max(1, flags.repeats - 1):
            theirs.append(prepare_reference(raw, flags))
    seconds, peak = (statistics.median(values) for values in zip(*ours, strict=True))
    store = Store(flags.work / "store")
    size = sum(path.stat().st_size for path in store.directory.rglob("*") if path.is_file())
    result = {
        "rows": rows,
        "raw_gb": round(raw_bytes / 1e9, 3),
        "seconds": round(seconds, 2),
        "rows_per_second": round(rows / seconds),
        "peak_gb": round(peak / 1e6, 2),
        "ids": sum(store.tables.values()),
        "store_share_of_raw": round(size / raw_bytes, 3),
        "sequential_rows_per_second": round(read_back(store, shuffled=False, repeats=flags.repeats)),
        "shuffled_rows_per_second": round(read_back(store, shuffled=True, repeats=flags.repeats)),
        "reference_seconds": "",
        "reference_peak_gb": "",
        "times_the_reference": "",
    }
    if theirs:
        slow, slow_peak = (statistics.median(values) for values in zip(*theirs, strict=True))
        result["reference_seconds"] = round(slow, 1)
        result["reference_peak_gb"] = round(slow_peak / 1e6, 2)
        result["times_the_reference"] = round(slow / seconds, 1)
    shutil.rmtree(flags.work / "store")
    print("  ".join(f"{name}={value}" for name, value in result.items() if value != ""), flush=True)
    return result


def prepare_ours(raw: Path, store: Path) -> tuple[float, float]:
    """Seconds (cold minus warm) and peak memory in KiB of the cold run."""
    shutil.rmtree(store, ignore_errors=True)
    shutil.rmtree(store.parent / ".dlrm_store", ignore_errors=True)  # checksums
    command = [sys.executable, str(ROOT / "dlrm_mlet.py"), "--data-generation=dataset", "--data-set=kaggle"]
    command += [f"--raw-data-file={raw.resolve()}", f"--processed-data-file={store.resolve()}", "--arch-mlp-bot=13-2"]
    cold, peak = run([*command, "--prepare-only"], store.parent)
    warm, _ = run([*command, "--prepare-only"], store.parent)
    return cold - warm, peak


def prepare_reference(raw: Path, flags: argparse.Namespace) -> tuple[float, float]:
    """The same of dlrm_s_pytorch.py, which writes its files beside the raw one: a link in a folder of its own."""
    folder = flags.work / "reference"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "train.txt").symlink_to(raw.resolve())
    command = [flags.reference_python, str(Path(flags.reference).resolve() / "dlrm_s_pytorch.py")]
    command += ["--data-generation=dataset", "--data-set=kaggle", f"--raw-data-file={folder.resolve()}/train.txt"]
    command += [f"--processed-data-file={folder.resolve()}/train.npz", "--arch-sparse-feature-size=2"]
    command += ["--arch-mlp-bot=13-2", "--arch-mlp-top=2-1", "--loss-function=bce", "--mini-batch-size=2048"]
    command += ["--num-batches=1"]
    cold, peak = run(command, folder)
    warm, _ = run(command, folder)
    shutil.rmtree(folder)
    return cold - warm, peak


def run(command: Sequence[str], folder: Path) -> tuple[float, float]:
    """Wall seconds and peak memory in KiB of a process and what it waited for."""
    began = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    if status:
        sys.exit(f"{' '.join(command)}\nfailed:\n{errors.decode(errors='replace')[-2000:]}")
    return seconds, usage.ru_maxrss


def read_back(store: Store, *, shuffled: bool, repeats: int) -> float:
    """Rows a second through `Store.batches`, the first pass not counted."""
    rows = np.random.RandomState(0).permutation(len(store)) if shuffled else range(len(store))
    speeds = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        for _batch in store.batches(rows, BATCH):
            pass
        speeds.append(len(rows) / (time.perf_counter() - began))
    return statistics.median(speeds[1:])


if __name__ == "__main__":
    main()
