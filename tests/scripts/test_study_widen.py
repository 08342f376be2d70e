"""Grids that are widened: the best rate ends between two that are worse. The driver is replaced."""

import json
import math
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import study_flags  # noqa: E402
import study_kept  # noqa: E402
from mlet_tables import chosen_rate  # noqa: E402
from study import Method, Study  # noqa: E402
from study_report import run_study  # noqa: E402
from study_widen import RATE, beyond_the_end, candidates, parts_of  # noqa: E402

GRID = tuple(f"{RATE}={rate}" for rate in (1, 3, 8, 25, 50))
METHOD = Method("m", "", GRID)


class Fake(Study):
    """Validation is best at the rate `peak`; runs above the rate `limit` fail."""

    peak, limit = 8.0, math.inf

    def drive(self, flags, what):
        self.calls = [*getattr(self, "calls", ()), flags]
        rate = float(flags.split(f"{RATE}=")[1].split()[0])
        if rate > self.limit:
            raise RuntimeError(f"{what}: loss is nan")
        metrics = {"auc": 1 / (1 + abs(math.log(rate / self.peak))), "samples": 9}
        result = {"event": "result", "test": metrics, "val": metrics, "best": None, "data_sha256": "d"}
        Path(flags.split("--metrics-file=")[1]).write_text(json.dumps(result) + "\n")


def study_of(work, peak, widen, limit=math.inf, seeds=(1, 2, 3)):
    made = Fake("--base", Path(work), list(seeds), tuning=2, widen=widen)
    made.peak, made.limit = peak, limit
    return made


@given(st.floats(0.01, 5000))
def test_a_grid_that_is_widened_often_enough_has_its_best_inside(peak):
    with tempfile.TemporaryDirectory() as work:
        outcome = study_of(work, peak, widen=20).run_all([METHOD])[0]
    rates = sorted(parts_of(setting)[0] for setting in outcome.tried)
    assert rates[0] < parts_of(outcome.setting)[0] < rates[-1] and list(outcome.tried)[:5] == list(GRID)
    assert set(outcome.tried) <= {*GRID, *candidates(GRID, 20)} and "end" not in chosen_rate(outcome)


def test_it_is_widened_no_more_than_asked_and_a_restart_knows_what_was_tried(tmp_path):
    first = study_of(tmp_path, 0.01, widen=2)
    outcome = first.run_all([METHOD])[0]
    assert list(outcome.tried)[5:] == [f"{RATE}=0.333", f"{RATE}=0.111"] == candidates(GRID, 2)[:2]
    assert outcome.setting == f"{RATE}=0.111" and chosen_rate(outcome) == "0.111 (grid's end)"
    assert len(first.calls) == 7 * 2 + 1  # the third seed at the chosen rate alone
    again = study_of(tmp_path, 0.01, widen=2)
    assert again.is_complete(METHOD) and again.run_all([METHOD])[0].setting == outcome.setting
    assert not hasattr(again, "calls")
    assert study_of(tmp_path, 0.01, widen=0).run_all([METHOD])[0].setting == f"{RATE}=1"


def test_a_rate_beyond_the_grid_that_fails_costs_the_method_nothing(tmp_path):
    made = study_of(tmp_path, 1000, widen=3, limit=60)
    outcome = made.run_all([METHOD])[0]
    assert outcome.setting == f"{RATE}=50" and len(outcome.results) == 3
    assert {(setting, seed) for _, setting, seed in made.failed} == {(f"{RATE}=100", 1), (f"{RATE}=100", 2)}


def test_runs_beyond_the_grid_are_among_those_that_are_there(tmp_path):
    study_of(tmp_path, 0.01, widen=2).run_all([METHOD])
    there = study_of(tmp_path, 0.01, widen=2).results_there([METHOD])
    assert len(there) == 7 * 2 + 1  # what a table needs is looked for in these


@pytest.mark.parametrize(
    ("grid", "widen", "says"),
    [
        (("",), "1", "--widen=1: no table rate is tuned here"),
        (GRID, "10", "'10' is not a whole number from 0 to 9"),
        (GRID, "-1", "'-1' is not a whole number from 0 to 9"),
    ],
)
def test_what_cannot_be_widened_is_one_line(grid, widen, says, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["x.py", "data", "--work", str(tmp_path / "w"), f"--widen={widen}"])
    try:
        code = run_study("--base", [Method("m", "", grid)], study_flags.parse("", "1", ["m"]), str)
    except SystemExit as end:
        code = end.code
    error = capsys.readouterr().err
    assert code == 2 and says in error and error.count("\n") == 1 and not (tmp_path / "w").exists()


def test_kept_runs_beyond_the_grid_are_taken_up_too(tmp_path, monkeypatch):
    kept = {f"m--emb-learning-rate-multiplier={rate}-1": {"config": {}} for rate in ("1", "0.333", "0.111")}
    monkeypatch.setattr(study_kept, "read_kept", lambda _folder: kept)
    monkeypatch.setattr(study_kept, "driver_defaults", dict)
    monkeypatch.setattr(study_kept, "config_of", lambda _flags, _defaults: {})
    for widen in (0, 1, 2):
        found = study_kept.kept_of(study_of(tmp_path, 8, widen), [METHOD], Path("results"))
        assert [path.stem for path in found] == list(kept)[: 1 + widen]


@pytest.mark.parametrize(
    "grid", [("",), (f"{RATE}=2",), ("--fal=log", "--fal=root"), (f"{RATE}=1 --emb-l2=0", f"{RATE}=2 --emb-l2=1")]
)
def test_grids_that_are_no_rates_stay(grid):
    assert beyond_the_end(grid, grid[0]) is None and candidates(grid, 3) == []


def test_a_best_that_is_inside_stays_and_steps_are_those_of_the_grid():
    assert beyond_the_end(GRID, GRID[2]) is None
    assert (beyond_the_end(GRID, GRID[0]), beyond_the_end(GRID, GRID[-1])) == (f"{RATE}=0.333", f"{RATE}=100")


def test_a_rate_is_at_the_end_of_those_that_share_its_other_flags():
    grid = (f"{RATE}=1 --counts=a", f"{RATE}=10 --counts=a", f"{RATE}=10 --counts=b", f"{RATE}=50 --counts=b")
    assert beyond_the_end(grid, grid[1]) == f"{RATE}=100 --counts=a"
    assert beyond_the_end(grid, grid[2]) == f"{RATE}=2 --counts=b"
    ends = ("0.1 --counts=a", "100 --counts=a", "2 --counts=b", "250 --counts=b")
    assert candidates(grid, 1) == [f"{RATE}={end}" for end in ends]
