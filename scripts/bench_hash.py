"""The measurements of scripts/bench_hash.sh, which says how to run it.

Legend: n ids, m rows, d dimensions.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
CELLS = ("1e5/1e4", "1e6/1e5", "1e7/1e6")
METHODS = ("learned", "learned-weighted", "modulo")
DIM, RANK = 8, 4
ACCESSES = 10  # an id, on average


def cell(text: str) -> tuple[int, int]:
    """`1e7/1e6` -> (n, m)."""
    ids, rows = (int(float(part)) for part in text.split("/"))
    return ids, rows


def history(ids: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Embedding float32 [n, d] of low rank with some noise, and Zipf counts int64 [n] of at least 1, in no order."""
    generator = np.random.default_rng(seed)
    vectors = generator.standard_normal((ids, DIM), np.float32)
    vectors *= np.float32(0.1)
    factor = generator.standard_normal((RANK, DIM), np.float32)
    for row in factor:
        vectors += generator.standard_normal((ids, 1), np.float32) * row
    rates = 1 / np.arange(1, ids + 1)
    counts = np.maximum(1, generator.poisson(ACCESSES * ids / rates.sum() * rates))
    return vectors, generator.permutation(counts)


def measure(ids: int, rows: int, method: str) -> dict[str, float]:
    """Seconds of one map, and peak GB of this process."""
    sys.path.insert(0, str(ROOT))
    from hashing import Request, fit_map

    vectors, counts = history(ids)
    request = Request("bench", ids, rows, counts, vectors)
    began = time.perf_counter()
    fit_map(method, request)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9}


def main() -> int:
    """Every cell and method in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="+", default=CELLS, metavar="IDS/ROWS", help="default: %(default)s")
    parser.add_argument("--methods", nargs="+", default=METHODS, help="names of --hash-method; default: %(default)s")
    parser.add_argument("--one", action="store_true", help="measure the first cell and method here, and print JSON")
    flags = parser.parse_args()
    if flags.one:
        print(json.dumps(measure(*cell(flags.cells[0]), flags.methods[0])))
        return 0
    print(f"{os.cpu_count()} cores, NumPy {np.__version__}, d = {DIM}\n")
    print("| ids | rows | method | seconds | peak GB |\n|---|---|---|---|---|")
    failed = 0
    for text in flags.cells:
        ids, rows = cell(text)
        for method in flags.methods:
            command = [sys.executable, __file__, "--one", "--cells", text, "--methods", method]
            result = subprocess.run(command, capture_output=True, text=True)
            if result.returncode:
                failed = 1
                reason = (result.stderr.strip().splitlines() or [f"ended with {result.returncode}"])[-1]
                print(f"| {ids:,} | {rows:,} | {method} | {reason} | |", flush=True)
                continue
            found = json.loads(result.stdout)
            print(f"| {ids:,} | {rows:,} | {method} | {found['seconds']:.1f} | {found['peak']:.2f} |", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
