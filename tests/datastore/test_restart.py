"""Interrupted and concurrent preparing."""

import filecmp
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import data_utils
from data_utils import Store, StoreOptions, prepare
from sources import DataError

OPTIONS = StoreOptions("kaggle", sub_sample_rate=0.5, sub_sample_seed=2)


def same(one, other):
    """Whether two stores hold the same bytes."""
    names = sorted(str(p.relative_to(one)) for p in Path(one).rglob("*") if p.is_file())
    assert names == sorted(str(p.relative_to(other)) for p in Path(other).rglob("*") if p.is_file())
    equal, *differing = filecmp.cmpfiles(one, other, names, shallow=False)
    return equal == names or differing


@pytest.mark.parametrize("fail_at", [0, 7, 21, 100, 196])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_run_goes_on_behind_its_last_part(make_source, tmp_path, capsys, fail_at, error):
    whole = prepare(make_source(), OPTIONS, "whole")
    source = make_source()
    source.fail_at, source.error = fail_at, error
    with pytest.raises(OSError if isinstance(error, OSError) else error):
        prepare(source, OPTIONS, "store")
    assert not Path("store").exists()
    source = make_source()
    store = prepare(source, OPTIONS, "store")
    assert same(whole, store) is True
    parts = -(-fail_at // 7) // 3  # three blocks of seven rows make a part
    assert source.read[0] == 21 * parts
    assert (f"going on behind the {21 * parts} rows" in capsys.readouterr().out) == (parts > 0)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".dlrm_store", "frame.txt", "store", "whole"]


def test_interrupted_after_the_last_row_nothing_is_read_again(make_source, monkeypatch):
    whole = prepare(make_source(), OPTIONS, "whole")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(data_utils, "write_store", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        prepare(make_source(), OPTIONS, "store")
    source = make_source()
    assert same(whole, prepare(source, OPTIONS, "store")) is True and not source.read


def interrupted(make_source):
    source = make_source()
    source.fail_at = 100
    with pytest.raises(KeyboardInterrupt):
        prepare(source, OPTIONS, "store")
    return Path(".store.parts")


@pytest.mark.parametrize("suffix", ["rows", "new.arrow"])
def test_a_damaged_part_and_those_behind_it_are_read_again(make_source, suffix):
    whole = prepare(make_source(), OPTIONS, "whole")
    damaged = interrupted(make_source) / f"00002.{suffix}"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    source = make_source()
    assert same(whole, prepare(source, OPTIONS, "store")) is True and source.read[0] == 42


def test_half_a_manifest_line_is_not_believed(make_source):
    whole = prepare(make_source(), OPTIONS, "whole")
    manifest = interrupted(make_source) / "parts.jsonl"
    manifest.write_text(manifest.read_text()[:-10])
    source = make_source()
    assert same(whole, prepare(source, OPTIONS, "store")) is True and source.read[0] == 84


def test_parts_of_other_data_or_flags_are_not_taken(make_source):
    interrupted(make_source)
    source = make_source(seed=9)
    assert len(Store(prepare(source, StoreOptions("kaggle"), "store"))) == 200
    assert source.read[0] == 0


def test_bad_data_leaves_no_parts(make_source, tmp_path):
    source = make_source()
    source.fail_at, source.error = 100, DataError("line 101 is bad")
    with pytest.raises(DataError, match="line 101"):
        prepare(source, OPTIONS, "store")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".dlrm_store", "frame.txt"]


def test_raw_data_that_changes_while_it_is_read_is_refused(make_source, tmp_path):
    source = make_source()
    blocks = source.blocks

    def changing(start=None):
        for block in blocks(start):
            source.paths[0].write_text(f"{source.paths[0].read_text()} ")
            yield block

    source.blocks = changing
    with pytest.raises(DataError, match="frame.txt: changed while being read: run again"):
        prepare(source, OPTIONS, "store")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".dlrm_store", "frame.txt"]


def prepare_command(raw, store="store", code=""):
    script = (
        f"import datastore.collect, sources.text; {code}\n"
        "datastore.collect.PART_ROWS, sources.text.BLOCK_BYTES = 100, 25_000\n"
        "import sys, dlrm_mlet\n"
        f"sys.exit(dlrm_mlet.main(['--data-generation=dataset', '--raw-data-file={raw}', '--prepare-only',"
        f"'--processed-data-file={store}', '--arch-mlp-bot=13-2']))"
    )
    return [sys.executable, "-c", script]


ROOT = Path(data_utils.__file__).resolve().parent
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}


@pytest.mark.slow
def test_a_killed_process_leaves_no_store_and_the_next_one_goes_on(small_tsv, tmp_path):
    slow = "import time, datastore.collect as c; w = c.write_part; c.write_part = lambda *a: (time.sleep(0.2), w(*a))"
    process = subprocess.Popen(prepare_command(small_tsv, code=slow), cwd=tmp_path, env=ENVIRONMENT)
    manifest = tmp_path / ".store.parts" / "parts.jsonl"
    deadline = time.monotonic() + 60
    while not (manifest.exists() and manifest.read_text().count("\n") > 3):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "store").exists()
    rows = sum(json.loads(line)["rows"] for line in manifest.read_text().splitlines()[1:])
    again = subprocess.run(
        prepare_command(small_tsv), cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=120
    )
    assert again.returncode == 0, again.stderr
    assert f"going on behind the {rows} rows" in again.stdout
    fresh = subprocess.run(prepare_command(small_tsv, "fresh"), cwd=tmp_path, env=ENVIRONMENT, timeout=120)
    assert fresh.returncode == 0 and same(tmp_path / "store", tmp_path / "fresh") is True
    shutil.rmtree(tmp_path / ".dlrm_store")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fresh", "store"]


@pytest.mark.slow
def test_two_processes_preparing_one_store_do_it_once(small_tsv, tmp_path):
    held = (  # the first is in the middle of it until the second has met its lock
        "import os, time, datastore.collect as c; w = c.write_part\n"
        "def held(*a):\n    while not os.path.exists('go'): time.sleep(0.01)\n    w(*a)\n"
        "c.write_part = held"
    )

    def start(code: str) -> subprocess.Popen:
        command = prepare_command(small_tsv, code=code)
        return subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)

    first = start(held)
    try:
        assert any("Preparing data:" in line for line in first.stdout)
        second = start("")
        assert any("waiting for it" in line for line in second.stdout)
    finally:
        (tmp_path / "go").touch()
    outputs = [process.communicate(timeout=120)[0] for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0]
    assert not any("Preparing data:" in out for out in outputs)
    assert len(Store(tmp_path / "store")) == 2100
    assert sorted(p.name for p in tmp_path.iterdir()) == [".dlrm_store", "go", "store"]
