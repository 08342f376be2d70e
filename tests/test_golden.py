"""Loss traces and accuracies of Meta's driver (see golden/reference_traces.json for how they were recorded)."""

import json
import re
from pathlib import Path

import pytest

GOLDEN = json.loads((Path(__file__).parent / "golden" / "reference_traces.json").read_text())
LINE = re.compile(r"^Finished training it (\d+)/(\d+) of epoch (\d+), .* loss (\S+)$", re.M)


def tolerance(iteration):
    return 3e-6 if iteration <= 50 else 2e-5 if iteration <= 100 else 1e-3


def check(result, entry, rows=None):
    assert result.code == 0, result.err
    trace = [[int(j), int(n), int(k), float(loss)] for j, n, k, loss in LINE.findall(result.out)][:rows]
    assert [row[:3] for row in trace] == [row[:3] for row in entry["trace"]]
    for (j, n, k, loss), (*_, expected) in zip(trace, entry["trace"], strict=True):
        assert abs(loss - expected) <= tolerance(k * n + j), f"iteration {j} of epoch {k}: {loss}, reference {expected}"
    if entry.get("accuracy"):
        accuracy = [float(a) for a in re.findall(r"^ accuracy (\S+) %", result.out, re.M)]
        assert accuracy == pytest.approx(entry["accuracy"], abs=0.05)


@pytest.mark.parametrize("entry", GOLDEN["random"], ids=lambda e: e["flags"])
def test_random_data(driver, entry):
    asked = re.search(r"--test-freq=(\d+)", entry["flags"])
    if asked:  # an evaluation re-seeds the reference's training data; here it does not, so only what lies before counts
        before = [row for row in entry["trace"] if row[2] == 0 and row[0] <= int(asked[1])]
        check(driver(entry["flags"]), {"trace": before}, len(before))
    else:
        check(driver(entry["flags"]), entry)


@pytest.mark.parametrize("entry", GOLDEN["kaggle_10k"], ids=lambda e: e["flags"])
def test_kaggle(driver, real_data, entry):
    raw = real_data("criteo/criteo_kaggle_10k.tsv")
    check(driver(entry["flags"], f"--raw-data-file={raw}"), entry)
