"""Runs that are forked: they say and write what a run of its own process does."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from warm_driver import WarmDriver  # noqa: E402

FLAGS = ["--num-batches=20", "--mini-batch-size=8", "--arch-embedding-size=50-60", "--data-size=160", "--test-freq=10"]


@pytest.fixture
def driver():
    found = WarmDriver(threads=1)
    yield found
    found.stop()


def metrics_of(path):
    events = [json.loads(line) for line in path.read_text().splitlines()]
    return [event["auc"] for event in events if event["event"] == "eval"]


def test_runs_are_those_of_a_process_of_their_own_and_bad_flags_are_told(driver, tmp_path):
    assert driver.run([*FLAGS, f"--metrics-file={tmp_path / 'a'}"]) == (0, "")
    code, said = driver.run(["--no-such-flag"])
    assert code == 2 and "--no-such-flag" in said
    assert driver.run([*FLAGS, f"--metrics-file={tmp_path / 'b'}"]) == (0, "")
    command = [sys.executable, str(ROOT / "dlrm_mlet.py"), *FLAGS, f"--metrics-file={tmp_path / 'c'}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=tmp_path)
    first, second, alone = (metrics_of(tmp_path / name) for name in "abc")
    assert first == second == alone and len(first) > 0


def test_a_driver_that_is_stopped_ends_its_run(driver):
    endless = [*FLAGS, "--num-batches=100000000", "--data-size=800000000", "--print-freq=1000000"]
    threading.Timer(4, driver.stop).start()
    with pytest.raises(RuntimeError, match="was ended"):
        driver.run(endless)
    with pytest.raises(RuntimeError, match="was ended"):
        driver.run(FLAGS)


def test_runs_end_with_the_study_that_started_them(tmp_path):
    """Also where it was killed and could say nothing: its end of the pipe is closed."""
    flags = [*FLAGS, "--num-batches=100000000", "--data-size=800000000", f"--metrics-file={tmp_path / 'm'}"]
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'scripts')!r}); from warm_driver import WarmDriver; "
    code += f"driver = WarmDriver(1); print(driver._server.pid, flush=True); driver.run({flags!r})"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as study:
        group = int(study.stdout.readline())
        wait_until((tmp_path / "m").exists)  # the run is under way
        study.kill()
    wait_until(lambda: not is_alive(group))


def is_alive(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until(is_so):
    end = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.1)
