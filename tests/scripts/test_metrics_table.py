import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "metrics_table.py"


def table(*paths):
    return subprocess.run([sys.executable, SCRIPT, *map(str, paths)], capture_output=True, text=True)


def write(folder, name, auc, event="result"):
    test = {"auc": auc, "logloss": 0.5, "ne": 0.9, "samples": 10}
    result = {"event": event, "test": test, "train_bytes": 2e6, "inference_bytes": 1e6, "train_seconds": 3.0}
    path = folder / name
    path.write_text('{"event": "train"}\n' + json.dumps(result) + "\n")
    return path


def test_seeds_are_averaged(tmp_path):
    files = [write(tmp_path, f"mlet-{seed}.jsonl", auc) for seed, auc in ((1, 0.70), (2, 0.74))]
    out = table(*files, write(tmp_path, "plain.jsonl", 0.6)).stdout.splitlines()
    assert out[3].split() == ["mlet", "2", "0.7200", "±0.0283", *["0.5000", "±0.0000", "0.9000", "±0.0000"],
                              "2.0", "1.0", "3", "±0"]  # fmt: skip
    assert out[4].split() == ["plain", "1", "0.6000", "0.5000", "0.9000", "2.0", "1.0", "3"]


def test_an_unfinished_run_is_named(tmp_path):
    done = table(write(tmp_path, "half.jsonl", 0.6, event="train"))
    assert (
        done.returncode == 2
        and done.stderr.count("\n") == 1
        and "half.jsonl" in done.stderr
        and "did not finish" in done.stderr
    )
