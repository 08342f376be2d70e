import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "paired_difference.py"


def write(folder, name, seed, auc):
    test = {"auc": auc, "logloss": None, "ne": 0.9, "samples": 10}
    path = folder / f"{name}-{seed}.jsonl"
    path.write_text(json.dumps({"event": "result", "test": test, "seed": seed}) + "\n")
    return path


def compare(base, other):
    command = [sys.executable, SCRIPT, *base, "--against", *other]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True)


def test_differences_are_paired_by_seed(tmp_path):
    base = [write(tmp_path, "a", seed, auc) for seed, auc in ((1, 0.70), (2, 0.60), (3, 0.80))]
    other = [write(tmp_path, "b", seed, auc) for seed, auc in ((3, 0.83), (1, 0.71), (2, 0.62))]
    lines = compare(base, other).stdout.splitlines()
    # differences 0.01, 0.02, 0.03: mean 0.02, standard error 0.01 / sqrt(3), t(0.975, 2) = 4.3027
    assert lines[1] == "auc: 0.70000 -> 0.72000, difference +0.02000 [-0.00484, +0.04484]"
    assert lines[2] == "logloss: undefined"


@pytest.mark.parametrize("seeds", [[1, 2], [1, 2, 4]])
def test_seeds_must_be_the_same(tmp_path, seeds):
    base = [write(tmp_path, "a", seed, 0.7) for seed in (1, 2, 3)]
    run = compare(base, [write(tmp_path, "b", seed, 0.7) for seed in seeds])
    assert run.returncode == 2 and "give the same seeds" in run.stderr
