import re
import shutil
import threading
from types import SimpleNamespace

import pytest

from data_utils import StoreOptions, prepare
from datastore.progress import Progress
from sources import Block
from sources.kaggle import KaggleSource


def test_too_little_disk_is_refused_before_the_work(small_tsv, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100_000))
    with pytest.raises(OSError, match="not enough disk in .*: preparing takes about .*, 0 MB are free") as error:
        prepare(KaggleSource(str(small_tsv)), StoreOptions("kaggle"), "data/store")
    assert "--processed-data-file" in str(error.value)
    # the readers have ended, and not only when memory is collected
    assert not [thread.name for thread in threading.enumerate() if "ThreadPool" in thread.name]
    assert list((tmp_path / "data").iterdir()) == []
    assert "about 2100 rows; about" in capsys.readouterr().out


def test_rows_are_estimated_from_the_bytes_read(small_tsv, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sources.text.BLOCK_BYTES", 50_000)
    source = KaggleSource(str(small_tsv))
    progress = Progress(source, tmp_path)
    progress.resume(None, 0, 0)
    blocks = source.blocks()
    progress.add(next(blocks))
    assert abs(progress._bar.total - 2100) < 0.05 * 2100
    for block in blocks:
        progress.add(block)
    assert progress._bar.total == 2100
    assert capsys.readouterr().out.count("Preparing data:") == 1


def test_the_estimate_is_of_the_size_of_what_is_written(small_tsv, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datastore.progress._size", lambda count: f"<{count:.0f}>")
    store = prepare(KaggleSource(str(small_tsv)), StoreOptions("kaggle"), "store")
    written = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
    estimated = int(re.search(r"rows; about <(\d+)> of disk", capsys.readouterr().out)[1])
    assert written < estimated < 8 * written


def test_skipped_rows_and_unknown_totals_do_no_harm(tmp_path, small_tsv):
    source = KaggleSource(str(small_tsv))
    progress = Progress(source, tmp_path)
    progress.resume({"row": 5}, 5, 1)
    frame = next(source.blocks()).frame.head(10)
    progress.add(Block(frame, {"row": 15}))
    assert progress._bar.total is None
    progress.close()
