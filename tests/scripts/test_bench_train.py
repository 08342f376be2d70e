"""The parts of scripts/bench_train.py and scripts/bench_growth.py that measure nothing."""

import math
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

import bench_cells as cells  # noqa: E402 (the scripts are no package)
import bench_growth as growth  # noqa: E402
import bench_process as process  # noqa: E402
import bench_results as results  # noqa: E402
import bench_train as train  # noqa: E402

IDENTITY = {"settings": "full", "commit": "abc", "reference_commit": "090956e", "machine": "one"}


@pytest.fixture
def checkout(tmp_path):
    folder = tmp_path / "dlrm"
    folder.mkdir()
    (folder / "dlrm_s_pytorch.py").write_text("import sys\nprint('started')\nsys.exit('broken reference')\n")
    return folder


def test_ratios_are_taken_within_a_repeat():
    # in the second repeat the machine is half as fast for both: the ratio stays
    rows = results.compare({"reference": [0.2, 0.4, 0.2], "ours": [0.1, 0.2, 0.05]}, batch=100)
    ours = rows["ours"]
    assert ours["seconds_per_step"] == 0.1 and ours["samples_per_second"] == 1000 and ours["repeats"] == 3
    assert [ours[f"ratio_to_reference{s}"] for s in ("", "_low", "_high")] == [2.0, 2.0, 4.0]
    assert rows["reference"]["ratio_to_ours"] == 0.5 and rows["reference"]["ratio_to_reference"] == 1.0


def test_repeats_without_a_measurement_do_not_count():
    rows = results.compare({"reference": [0.2, math.nan, 0.2], "ours": [0.1, 0.1, -0.01], "bad": [math.nan] * 3}, 10)
    assert rows["ours"]["repeats"] == 2 and rows["ours"]["ratio_to_reference"] == 2.0
    assert rows["bad"] == {"repeats": 0}
    assert results.median_ratio([1.0], [0.0]) is None


def test_a_finished_cell_is_known_again(tmp_path):
    path = tmp_path / "train.csv"
    row = {"cell": "a", "contestant": "ours", "note": "", "peak_mb": 12} | IDENTITY
    other = row | {"contestant": "fbgemm", "note": train.NOT_INSTALLED}
    results.write_rows(path, [row, other])
    rows = results.read_rows(path)
    notes = {"ours": "", "fbgemm": train.NOT_INSTALLED}
    assert results.is_finished(rows, "a", notes, IDENTITY)
    assert not results.is_finished(rows, "b", notes, IDENTITY)
    assert not results.is_finished(rows, "a", notes | {"fbgemm": ""}, IDENTITY)  # installed since
    assert not results.is_finished(rows, "a", notes | {"ours-k64": ""}, IDENTITY)
    assert not results.is_finished(rows, "a", notes, IDENTITY | {"commit": "def"})
    failed = [row | {"note": "failed: no memory"}, other]
    assert not results.is_finished(failed, "a", notes, IDENTITY)
    kept = results.replace_cell([row, row | {"cell": "b"}], "a", [other])
    assert [(one["cell"], one["contestant"]) for one in kept] == [("b", "ours"), ("a", "fbgemm")]


def test_the_table_shows_spread_and_notes(tmp_path):
    measured = results.compare({"reference": [0.2], "ours": [0.1]}, 100)
    rows = [{"cell": "a", "contestant": name, "peak_mb": 5} | row for name, row in measured.items()]
    rows.append({"cell": "a", "contestant": "fbgemm", "note": train.NOT_INSTALLED})
    results.write_rows(tmp_path / "t.csv", rows)
    text = results.markdown(results.read_rows(tmp_path / "t.csv")).splitlines()
    assert text[3] == "| a | ours | 100.00 | 1000 | 2.00 (2.00-2.00) | 1.00 (1.00-1.00) | 5 |  |"
    assert text[4].endswith(f"| {train.NOT_INSTALLED} |")
    assert train.summary(results.read_rows(tmp_path / "t.csv")).endswith("2.00 to 2.00, median 2.00")


def test_every_cell_fits_its_data():
    flags = train.parse(["--work", "w", "../dlrm"])
    scale = train.scale_of(flags)
    chosen = train.chosen_cells(flags, scale)
    assert {cell.batch for cell in chosen} == {128, 2048, 8192} and {cell.hot for cell in chosen} == {1, 10, 100}
    assert {cell.optimizer for cell in chosen} == {"sgd", "rwsadagrad"}
    assert all("reference" in cell.contestants and "ours" in cell.contestants for cell in chosen)
    with pytest.raises(ValueError, match="trains on 245760 rows, the file has 8571"):
        train.chosen_cells(train.parse(["--rows=10000", "--only", "run-8192-sgd"]), train.scale_of(
            train.parse(["--rows=10000"])))  # fmt: skip
    with pytest.raises(ValueError, match="no such cell"):
        train.chosen_cells(train.parse(["--only", "nonsense"]), scale)


def test_flags_behind_two_dashes_go_to_the_drivers():
    flags = train.parse(["--use-gpu", "--", "--num-workers=1"])
    assert flags.use_gpu and flags.more == ["--num-workers=1"]
    cell = cells.CELLS["step-128-rwsadagrad"]
    assert train.reason_to_leave_out("reference", cell, use_gpu=True)
    assert not train.reason_to_leave_out("reference", cell, use_gpu=False)


@pytest.mark.parametrize("given", [[], ["."]])
def test_a_wrong_checkout_is_refused_in_one_line(tmp_path, given):
    done = subprocess.run(
        [sys.executable, SCRIPTS / "bench_train.py", *given], cwd=tmp_path, capture_output=True, text=True,
        env={"PATH": ""},
    )  # fmt: skip
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "git clone https://github.com/facebookresearch/dlrm" in done.stderr and "090956e" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_failing_process_says_why(checkout, tmp_path):
    assert process.check_reference(str(checkout)) == checkout.resolve()
    with pytest.raises(process.ContestantError, match="broken reference"):
        process.run_process([sys.executable, str(checkout / "dlrm_s_pytorch.py")], tmp_path, tmp_path / "log")
    seconds, peak = process.run_process([sys.executable, "-c", "pass"], tmp_path, tmp_path / "log")
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6  # counted until the child's exec
    assert 0 < seconds < 60 and 1 < peak < 1000 + own


def test_a_worker_that_does_not_start_says_why(tmp_path, monkeypatch):
    worker = tmp_path / "worker.py"
    worker.write_text("import sys\nsys.exit('no such module')\n")
    monkeypatch.setattr(process, "WORKER", worker)
    with pytest.raises(process.ContestantError, match="no such module"):
        process.StepWorker(sys.executable, {"use_gpu": False}, tmp_path / "log")
    answer = """print('{"seconds": 2, "gpu_mb": 0}', flush=True)"""
    worker.write_text(f"import sys\n{answer}\nfor line in sys.stdin:\n    {answer}\n")
    started = process.StepWorker(sys.executable, {"use_gpu": False}, tmp_path / "log")
    assert started.run(3) == 2 and started.steps_in(4.0) == 4
    assert started.close() > 1 and started.close() > 1


def test_batches_are_drawn_once_for_all(tmp_path):
    shape = cells.Shape((5, 1000), 4, "3-4", "2-1", hot=2)
    process.draw_batches(tmp_path / "b.npz", shape, batch=500, count=2)
    with np.load(tmp_path / "b.npz") as data:
        assert data["dense"].shape == (2, 500, 3) and data["labels"].shape == (2, 500, 1)
        ids = data["ids"]
    assert ids.shape == (2, 2, 500, 2) and ids.min() == 0 and ids[:, 0].max() == 4 and 500 < ids[:, 1].max() < 1000
    assert (ids[:, 1] == 0).mean() > 3 * (ids[:, 1] == 9).mean()  # the first ids are the frequent ones


def test_growth_points_and_slopes():
    points = list(growth.points(growth.SERIES, rows_tables=4))
    assert len({point.name for point in points}) == len(points)
    assert {point.tables for point in points if point.factor == "rows"} == {4}
    assert all(point.inner_dim == 0 or point.inner_dim > point.dim for point in points)
    assert max(point.rows for point in points) == 30_000_000 and max(point.tables for point in points) == 200
    values, costs = [1, 2, 4, 8], [1.0, 1.0, 2.0, 8.0]
    assert growth.slopes(values, costs) == pytest.approx([0, 1, 2])
    assert growth.stretches(values, costs) == "flat 1 to 2, linear 2 to 4, above linear 4 to 8"


def test_growth_report_names_what_was_skipped():
    base = {"factor": "rows", "inner_dim": 0, "peak_mb": 7, "note": ""}
    rows = [base | {"value": value, "seconds_per_step": seconds} for value, seconds in ((10, 1), (10, 3), (20, 4))]
    rows.append(base | {"value": 30, "note": "skipped: too large", "seconds_per_step": "", "peak_mb": ""})
    (curve,) = growth.curves(rows)
    assert curve.seconds == [2, 4] and (curve.low[0], curve.high[0]) == (1, 3) and curve.skipped == [30]
    text = growth.report([curve])
    assert "| rows per table, k=0 | 30 | not measured | |" in text
    assert "time linear 10 to 20; memory flat 10 to 20" in text


def test_the_parent_of_what_is_measured_loads_no_torch():
    """Linux counts the parent's memory into the peak of a child that it starts."""
    code = "import sys, bench_train, bench_growth; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=SCRIPTS, timeout=60).returncode == 0
