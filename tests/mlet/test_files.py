"""Nothing half-written under a final name: exceptions, a full disk, death between two renames."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlet import files
from mlet.files import atomic_directory, atomic_file, check_writable

MARKER = "checkpoint.json"


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


def test_file_appears_only_at_the_end(tmp_path):
    path = tmp_path / "model.bin"
    with atomic_file(path) as file:
        file.write(b"new")
        assert not path.exists()
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["model.bin"]


def test_text_is_utf8_and_a_closed_handle_is_fine(tmp_path):
    with atomic_file(tmp_path / "a.txt", "w") as file:
        file.write("größe\n")
        file.close()
    assert (tmp_path / "a.txt").read_bytes() == "größe\n".encode()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_interrupted_file_leaves_the_old_one(tmp_path, error):
    path = tmp_path / "model.bin"
    path.write_bytes(b"old")
    with pytest.raises(error), atomic_file(path) as file:
        file.write(b"new")
        raise error
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["model.bin"]


def test_failed_rename_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "model.bin"
    path.write_bytes(b"old")

    def refuse(*_):
        raise OSError(errno.EIO, "broken disk")

    monkeypatch.setattr(files.os, "replace", refuse)
    with pytest.raises(OSError, match="broken disk"), atomic_file(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["model.bin"]


def test_content_is_on_disk_before_the_rename(tmp_path, monkeypatch):
    calls = []
    real_fsync, real_replace = os.fsync, os.replace
    monkeypatch.setattr(files.os, "fsync", lambda fd: (calls.append("fsync"), real_fsync(fd)))
    monkeypatch.setattr(files.os, "replace", lambda a, b: (calls.append("rename"), real_replace(a, b)))
    with atomic_file(tmp_path / "a") as file:
        file.write(b"x")
    assert calls == ["fsync", "rename", "fsync"]  # file, name, folder


def test_full_disk_leaves_the_old_file(tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(b"old")
    code = f"""{LOAD_FILES}
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    with files.atomic_file(sys.argv[1]) as file:
        file.write(bytes(50_000))
except OSError as error:
    print("refused:", error.strerror)
"""
    assert run_python(code, path).stdout == "refused: File too large\n"
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["model.bin"]


def test_symbolic_link_is_followed(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a").write_bytes(b"old")
    (tmp_path / "link").symlink_to(tmp_path / "real" / "a")
    with atomic_file(tmp_path / "link") as file:
        file.write(b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "a").read_bytes() == b"new"


def test_what_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    missing, under_file = tmp_path / "no" / "a", tmp_path / "file" / "a"
    writers = [atomic_file, atomic_directory]
    checks = [check_writable, lambda path: check_writable(path, directory=True)]
    for enter in [lambda path, writer=writer: writer(path).__enter__() for writer in writers] + checks:
        with pytest.raises(FileNotFoundError, match=f"the folder {tmp_path}/no does not exist"):
            enter(missing)
        with pytest.raises(NotADirectoryError, match=f"{tmp_path}/file is not a folder"):
            enter(under_file)
    for enter in (lambda path: atomic_file(path).__enter__(), check_writable):
        with pytest.raises(ValueError, match=f"{tmp_path}/folder: it is a directory"):
            enter(tmp_path / "folder")
        with pytest.raises(ValueError, match="/dev/null: it is not a regular file"):
            enter("/dev/null")
    for enter in (lambda path: atomic_directory(path).__enter__(), checks[1]):
        with pytest.raises(ValueError, match=f"{tmp_path}/file: it is a file"):
            enter(tmp_path / "file")
    with pytest.raises(ValueError, match="mode must be 'wb' or 'w', not 'a'"):
        atomic_file(tmp_path / "a", "a").__enter__()
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_check_writable_leaves_nothing(tmp_path):
    (tmp_path / "old").write_text("old")
    check_writable(tmp_path / "new")
    check_writable(tmp_path / "old")
    check_writable(tmp_path / "new", directory=True, marker=MARKER)
    assert os.listdir(tmp_path) == ["old"]
    assert (tmp_path / "old").read_text() == "old"


def test_check_writable_says_why_the_folder_refuses(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "touch", refuse)  # chmod does not stop root, who may run the tests
    with pytest.raises(PermissionError, match=f"{tmp_path}/a: no new files in its folder: Permission denied"):
        check_writable(tmp_path / "a")
    (tmp_path / "b").write_text("x")
    monkeypatch.setattr(files.os, "access", lambda *_: False)
    with pytest.raises(PermissionError, match=f"{tmp_path}/b: it is read-only"):
        check_writable(tmp_path / "b")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_folder(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match="Permission denied"):
        check_writable(tmp_path / "a")


def test_only_temporaries_of_dead_processes_go(tmp_path):
    dead = run_python("print(os.getpid())").stdout.strip()
    host, token = files._HOST, files._TOKEN
    doomed = [f".a.{host}-{dead}-01234567-0.tmp", f".a.{host}-{os.getpid()}-01234567-0.tmp"]
    kept = [
        f".a.{host}-{os.getpid()}-{token}-999999.tmp",  # ours
        f".a.{host}-{os.getppid()}-01234567-0.tmp",  # alive
        f".a.00000000-{dead}-01234567-0.tmp",  # another host
        f".ab.{host}-{dead}-01234567-0.tmp",  # another target
        "a.tmp",
    ]
    for name in doomed + kept:
        (tmp_path / name).write_text("x")
    folder = tmp_path / f".a.{host}-{dead}-89abcdef-1.tmp"
    folder.mkdir()
    (folder / "x").write_text("x")
    with atomic_file(tmp_path / "a") as file:
        file.write(b"x")
    assert sorted(os.listdir(tmp_path)) == sorted(["a", *kept])
