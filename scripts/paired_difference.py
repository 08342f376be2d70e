"""Test metrics of runs against other runs of the same seeds: mean paired difference and its 95 % interval.

python scripts/paired_difference.py runs/fp32-*.jsonl --against runs/bf16-*.jsonl    # bf16 minus fp32

Each file is a --metrics-file that ends in a result; files are paired by the seed in it. The interval is Student's.
"""

import argparse
import statistics
import sys
from pathlib import Path

from scipy import stats

sys.path.insert(0, str(Path(__file__).resolve().parent))

from metrics_table import result_of  # noqa: E402


def by_seed(paths: list[Path]) -> dict[int, dict]:
    """Seed -> test metrics."""
    found: dict[int, dict] = {}
    for path in paths:
        result = result_of(path)
        if result["seed"] in found:
            raise ValueError(f"{path}: seed {result['seed']} is there twice")
        found[result["seed"]] = result["test"]
    return found


def interval(differences: list[float]) -> tuple[float, float, float]:
    """Mean, and the ends of its 95 % interval."""
    mean = statistics.mean(differences)
    half = stats.t.ppf(0.975, len(differences) - 1) * statistics.stdev(differences) / len(differences) ** 0.5
    return mean, mean - half, mean + half


def main() -> int:
    """Read the files named on the command line, print a line a metric."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", nargs="+", type=Path)
    parser.add_argument("--against", nargs="+", type=Path, required=True)
    flags = parser.parse_args()
    try:
        base, other = by_seed(flags.base), by_seed(flags.against)
        if base.keys() != other.keys() or len(base) < 2:
            raise ValueError(f"seeds {sorted(base)} against {sorted(other)}: give the same seeds, at least two")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{len(base)} seeds, {next(iter(base.values()))['samples']} test rows")
    for metric in ("auc", "logloss", "ne"):
        pairs = [(base[seed][metric], other[seed][metric]) for seed in base]
        if None in [value for pair in pairs for value in pair]:
            print(f"{metric}: undefined")
            continue
        mean, low, high = interval([second - first for first, second in pairs])
        means = (statistics.mean(values) for values in zip(*pairs, strict=True))
        print("{}: {:.5f} -> {:.5f}, difference {:+.5f} [{:+.5f}, {:+.5f}]".format(metric, *means, mean, low, high))
    return 0


if __name__ == "__main__":
    sys.exit(main())
