"""Writing files and directories so that nothing half-written is ever left under a final name.

Everything is written under a temporary name beside the final one, flushed to the disk and then renamed. A
process that dies leaves at most a temporary, `.<name>.<host>-<pid>-<token>-<count>.tmp`, which the next write
to the same path removes. To replace a directory takes two renames: the old one is first moved aside to
`.<name>.old`, and `recover_directory` puts it back where a process died before the new one took its place.
"""

import errno
import itertools
import os
import re
import secrets
import shutil
import socket
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

_HOST = f"{zlib.crc32(socket.gethostname().encode()):08x}"
_TOKEN = secrets.token_hex(4)  # in a container every run may get the same pid: tells us from a dead process
_COUNT = itertools.count()


@contextmanager
def atomic_file(path: str | os.PathLike, mode: str = "wb") -> Iterator[IO]:
    """Yields an open file; its content appears under `path` when the block ends, and not at all if it raises.

    An existing file at `path` stays as it was until then. A symbolic link is followed.

    Arguments:
        path: the final name; its folder must exist
        mode: "wb", or "w" for UTF-8 text

    Raises:
        ValueError: `path` is a directory or a device, or `mode` is neither of the two
        OSError: the folder is missing or not a folder, or the disk refuses (full, not writable)
    """
    if mode not in ("wb", "w"):
        raise ValueError(f"atomic_file writes whole files: mode must be 'wb' or 'w', not {mode!r}")
    target = _resolve(path)
    _check_file(target)
    _remove_stale(target)
    temporary = _temporary_name(target)
    handle = open(temporary, mode.replace("w", "x"), encoding=None if "b" in mode else "utf-8")
    try:
        yield handle
        handle.close()
        _sync(temporary)
        os.replace(temporary, target)
    except BaseException:
        with suppress(OSError):  # the bytes still buffered may fail to be written once more
            handle.close()
        _remove(temporary)
        raise
    _sync_folder(target.parent)


@contextmanager
def atomic_directory(path: str | os.PathLike, marker: str | None = None) -> Iterator[Path]:
    """Yields a fresh directory that becomes `path` when the block ends, and is removed if it raises.

    An existing directory at `path` is replaced as a whole and stays as it was until then.

    Arguments:
        path: the final name; the folder it lies in must exist
        marker: name of a file that tells our directories from others; the block has to write it. An existing
            directory that is not empty and lacks it is refused. Without a marker any directory is replaced.

    Raises:
        ValueError: `path` is no directory, lacks the marker, is a mount point or holds the current folder, or
            the block has not written the marker
        OSError: the folder is missing or not a folder, or the disk refuses (full, not writable)
    """
    target = _resolve(path)
    recover_directory(target)
    _check_directory(target, marker)
    _remove_stale(target)
    temporary = _temporary_name(target)
    temporary.mkdir()
    try:
        yield temporary
        if marker is not None and not (temporary / marker).is_file():
            raise ValueError(f"cannot keep {target}: its marker file {marker} was not written")
        _sync_tree(temporary)
        _swap_in(temporary, target)
        _sync_folder(target.parent)
    except BaseException:
        _remove(temporary)
        recover_directory(target)
        raise
    _discard_aside(target)


@contextmanager
def scratch_directory(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a fresh directory beside `path` for drafts of it; removed in the end, and those of dead runs too.

    Raises:
        OSError: the folder of `path` is missing or not a folder, or the disk refuses
    """
    target = _resolve(path)
    _remove_stale(target)
    temporary = _temporary_name(target)
    temporary.mkdir()
    try:
        yield temporary
    finally:
        _remove(temporary)


def recover_directory(path: str | os.PathLike) -> None:
    """Puts the old directory back where a process died while replacing it; readers call this before opening.

    Does nothing if there is nothing to put back; raises OSError if it cannot be renamed (read-only disk).
    """
    target = Path(os.path.realpath(path))
    aside = _aside_name(target)
    if target.exists() or not aside.exists():
        return
    try:
        os.rename(aside, target)
    except OSError:
        if not target.exists():  # otherwise another process was faster
            raise


def check_writable(path: str | os.PathLike, directory: bool = False, marker: str | None = None) -> None:
    """Fails now, in one sentence, where `atomic_file` or `atomic_directory` would fail after a long run.

    Arguments:
        path: the name to be written later
        directory: whether it is to be a directory rather than a file
        marker: for a directory, as in `atomic_directory`

    Raises:
        ValueError: something of another kind, or not ours, is in the way
        OSError: the folder is missing, not a folder or not writable, or the existing file is read-only
    """
    target = _resolve(path)
    if directory:
        _check_directory(target, marker)
    else:
        _check_file(target)
        if target.exists() and not os.access(target, os.W_OK):
            raise PermissionError(f"cannot write {target}: it is read-only")
    probe = _temporary_name(target)
    try:
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        raise type(error)(f"cannot write {target}: no new files in its folder: {error.strerror}") from error


def _resolve(path: str | os.PathLike) -> Path:
    """The absolute path, symbolic links followed; raises OSError if its parent is not an existing folder."""
    target = Path(os.path.realpath(path))
    if not target.parent.exists():
        raise FileNotFoundError(f"cannot write {target}: the folder {target.parent} does not exist")
    if not target.parent.is_dir():
        raise NotADirectoryError(f"cannot write {target}: {target.parent} is not a folder")
    return target


def _check_file(target: Path) -> None:
    """Raises ValueError if something other than a regular file is at `target`."""
    if target.exists() and not target.is_file():
        kind = "a directory" if target.is_dir() else "not a regular file"
        raise ValueError(f"cannot write the file {target}: it is {kind}")


def _check_directory(target: Path, marker: str | None) -> None:
    """Raises ValueError if `target` cannot be replaced by a directory of ours, see `atomic_directory`."""
    if target.exists() and not target.is_dir():
        raise ValueError(f"cannot write the directory {target}: it is a file")
    if Path.cwd().is_relative_to(target):
        raise ValueError(f"cannot replace the directory {target}: the current folder lies in it")
    if os.path.ismount(target):
        raise ValueError(f"cannot replace {target}: it is a mount point; name a folder inside it")
    foreign = marker is not None and target.is_dir() and not (target / marker).is_file()
    if foreign and any(target.iterdir()):
        raise ValueError(f"cannot replace the directory {target}: it has no {marker}, so it is not ours")


def _swap_in(temporary: Path, target: Path) -> None:
    """Renames `temporary` to `target`; an existing directory there is moved aside first."""
    while True:
        if target.exists():
            _discard_aside(target)
            os.rename(target, _aside_name(target))
        try:
            return os.rename(temporary, target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # a reader has put the old one back
                raise


def _discard_aside(target: Path) -> None:
    """Removes the directory moved aside; renamed first, so that what is called `.old` is always complete."""
    garbage = _temporary_name(target)
    with suppress(OSError):
        os.rename(_aside_name(target), garbage)
        _remove(garbage)


def _aside_name(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def _temporary_name(target: Path) -> Path:
    return target.with_name(f".{target.name}.{_HOST}-{os.getpid()}-{_TOKEN}-{next(_COUNT)}.tmp")


def _remove_stale(target: Path) -> None:
    """Removes the temporaries for `target` of this host's dead processes; other hosts' may be in use."""
    pattern = re.compile(re.escape(f".{target.name}.{_HOST}-") + r"(\d+)-([0-9a-f]{8})-\d+\.tmp")
    for entry in list(target.parent.iterdir()):
        match = pattern.fullmatch(entry.name)
        if match is not None and not _is_alive(int(match[1]), match[2]):
            _remove(entry)


def _remove(path: Path) -> None:
    """Removes a file or a directory as far as that is possible: a temporary may be another user's."""
    with suppress(OSError):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def _is_alive(pid: int, token: str) -> bool:
    if pid == os.getpid():
        return token == _TOKEN
    if os.name != "posix":  # there signal 0 is not a question but an interrupt
        return True
    try:
        os.kill(pid, 0)
    except OSError as error:
        return error.errno == errno.EPERM  # it lives, and is another user's
    return True


def _sync_tree(directory: Path) -> None:
    for folder, _, names in os.walk(directory):
        for name in names:
            _sync(Path(folder, name))
        _sync_folder(Path(folder))


def _sync(path: Path) -> None:
    """Waits until the content of `path` is on the disk, so that the rename cannot get there first."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):  # not every file system can flush a folder
        _sync(folder)
