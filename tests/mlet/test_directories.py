"""A directory replaced as a whole: exceptions, death between the two renames, readers at the same time."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlet import files
from mlet.files import atomic_directory, check_writable, recover_directory

MARKER = "checkpoint.json"


def write_directory(path: Path, content: str) -> None:
    with atomic_directory(path, marker=MARKER) as folder:
        (folder / MARKER).write_text(content)


def run_python(code: str, *arguments: object) -> subprocess.CompletedProcess:
    command = [
        sys.executable,
        "-c",
        f"import os, sys\nfrom pathlib import Path\n{code}",
        *map(str, arguments),
    ]
    root = Path(__file__).parents[2]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60)


# without mlet/__init__, which imports torch and takes seconds
LOAD_FILES = """
import importlib.util
spec = importlib.util.spec_from_file_location("files", "mlet/files.py")
files = importlib.util.module_from_spec(spec)
spec.loader.exec_module(files)
"""


def test_directory_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "ckpt"
    write_directory(path, "old")
    (path / "left over").write_text("x")
    with atomic_directory(path, marker=MARKER) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a").write_text("a")
        (folder / MARKER).write_text("new")
        assert (path / MARKER).read_text() == "old"
    assert (path / MARKER).read_text() == "new"
    assert sorted(os.listdir(path)) == [MARKER, "sub"]
    assert os.listdir(tmp_path) == ["ckpt"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_interrupted_directory_leaves_the_old_one(tmp_path, error):
    path = tmp_path / "ckpt"
    write_directory(path, "old")
    with pytest.raises(error), atomic_directory(path, marker=MARKER) as folder:
        (folder / MARKER).write_text("new")
        raise error
    assert (path / MARKER).read_text() == "old"
    assert os.listdir(tmp_path) == ["ckpt"]


def test_foreign_directories_are_not_wiped(tmp_path):
    path = tmp_path / "thesis"
    path.mkdir()
    write_directory(path, "an empty one may be taken")
    (path / MARKER).unlink()
    (path / "chapter.tex").write_text("x")
    for refused in (
        lambda: write_directory(path, "new"),
        lambda: check_writable(path, directory=True, marker=MARKER),
    ):
        with pytest.raises(ValueError, match=f"{path}: it has no {MARKER}"):
            refused()
    assert os.listdir(path) == ["chapter.tex"]
    assert os.listdir(tmp_path) == ["thesis"]


def test_a_directory_without_its_marker_is_not_kept(tmp_path):
    with pytest.raises(ValueError, match=f"marker file {MARKER} was not written"):
        with atomic_directory(tmp_path / "ckpt", marker=MARKER) as folder:
            (folder / "other").write_text("x")
    assert os.listdir(tmp_path) == []


def test_current_folder_and_mount_points_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in (".", "..", "/"):
        with pytest.raises(ValueError, match="the current folder lies in it"):
            check_writable(path, directory=True)
    with pytest.raises(ValueError, match="mount point"):
        check_writable("/proc", directory=True)


DIE_BETWEEN_RENAMES = f"""{LOAD_FILES}
rename = os.rename
def die(source, target):
    if str(source).endswith(".tmp"):
        os._exit(9)
    rename(source, target)
os.rename = die
with files.atomic_directory(sys.argv[1], marker="{MARKER}") as folder:
    (folder / "{MARKER}").write_text("new")
"""


def test_death_between_the_renames_loses_nothing(tmp_path):
    path = tmp_path / "ckpt"
    write_directory(path, "old")
    assert run_python(DIE_BETWEEN_RENAMES, path).returncode == 9
    assert not path.exists()
    assert len(os.listdir(tmp_path)) == 2  # the old one aside, the dead process's temporary

    recover_directory(path)
    assert (path / MARKER).read_text() == "old"
    recover_directory(path)  # nothing more to do
    write_directory(path, "newer")
    assert (path / MARKER).read_text() == "newer"
    assert os.listdir(tmp_path) == ["ckpt"]


def test_the_next_write_recovers_first(tmp_path):
    path = tmp_path / "ckpt"
    write_directory(path, "old")
    assert run_python(DIE_BETWEEN_RENAMES, path).returncode == 9
    with pytest.raises(RuntimeError), atomic_directory(path, marker=MARKER):
        assert (path / MARKER).read_text() == "old"
        raise RuntimeError
    assert (path / MARKER).read_text() == "old"
    assert os.listdir(tmp_path) == ["ckpt"]


def test_failed_second_rename_puts_the_old_one_back(tmp_path, monkeypatch):
    path = tmp_path / "ckpt"
    write_directory(path, "old")
    rename = os.rename

    def fail(source, target):
        if Path(source).suffix == ".tmp":
            raise OSError(errno.EIO, "broken disk")
        rename(source, target)

    monkeypatch.setattr(files.os, "rename", fail)
    with pytest.raises(OSError, match="broken disk"):
        write_directory(path, "new")
    assert (path / MARKER).read_text() == "old"
    assert os.listdir(tmp_path) == ["ckpt"]


def test_a_reader_may_recover_while_we_write(tmp_path, monkeypatch):
    path = tmp_path / "ckpt"
    write_directory(path, "old")
    rename, seen = os.rename, []

    def interfere(source, target):
        if Path(source).suffix == ".tmp" and not seen:
            recover_directory(path)
            seen.append((path / MARKER).read_text())
        rename(source, target)

    monkeypatch.setattr(files.os, "rename", interfere)
    write_directory(path, "new")
    assert seen == ["old"]
    assert (path / MARKER).read_text() == "new"
    assert os.listdir(tmp_path) == ["ckpt"]
