"""The one door to data: prepare raw data once into a store on disk, open the store, read batches.

`sources` knows the raw formats, `datastore` what a store is, how it is made and read; here they are put together.
"""

from __future__ import annotations

import contextlib
import functools
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from datastore.assemble import write_store
from datastore.collect import Collected, collect
from datastore.history import check_columns, fixed_indexes, history_key, share_among, write_history
from datastore.index import TableIndex
from datastore.progress import Progress
from datastore.reader import Store
from datastore.schema import SCHEMA, StoreOptions, is_store, read_schema, source_checksum, store_key
from datastore.vocabulary import Vocabulary, save_vocabulary
from mlet.files import atomic_directory, check_writable, recover_directory
from sources import DataError, Source


def prepare(source: Source, options: StoreOptions, directory: str = "", folder: str = ".dlrm_store") -> Path:
    """Return the store of a data set, written now or found complete.

    Raw rows are read once, in parts, in memory that only the vocabularies make grow. A run that is interrupted leaves
    its parts beside the store's place, and the next one goes on from there; of two runs that prepare the same store,
    one waits for the other.

    Args:
        source: the raw data, opened.
        options: everything that changes the store.
        directory: where it shall lie; "" chooses `folder`/<key>. If a store of other data or flags lies there, the
            new one is written beside it, as `directory`-<key>.
        folder: parent of default stores and of the cache of source checksums.

    Raises:
        DataError: a raw row cannot be read. ValueError: `directory` is a file. OSError: unreadable, out of disk.
    """
    if directory and Path(directory).is_file():
        raise ValueError(
            f"--processed-data-file={directory} is a file: name a directory (an npz of the reference driver cannot "
            "be read here, prepare from the raw file again)"
        )
    if directory and not source.paths[0].exists() and is_store(Path(directory)):
        return _without_raw_data(source, options, Path(directory))
    checksum = source_checksum(source.paths, Path(folder))
    key = store_key(checksum, options, source.settings)
    target = _place(Path(directory) if directory else Path(folder) / key, key)
    if is_store(target):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    check_writable(target, directory=True, marker=SCHEMA)  # also because a lock cannot tell a bad place from a busy one
    with _alone(target):
        if not is_store(target):
            _prepare(
                source, options, target, key, lambda done, to: write_store(source, options, done, to, checksum, key)
            )
    return target


def prepare_history(source: Source, store: Path, folder: str = ".dlrm_store") -> Path:
    """Return the store of older rows in the ids of another store, written beside that one now or found complete.

    As `prepare`; values that the vocabulary of `store` lacks become the unknown id. All rows are its training part.

    Raises:
        ValueError: other columns than those of `store`; and as `prepare`.
    """
    schema = read_schema(store)
    check_columns(source.layout, schema, str(source.paths[0]))
    checksum = source_checksum(source.paths, Path(folder))
    key = history_key(checksum, schema["key"])
    target = store.with_name(f"{store.name}.history-{key}")
    with _alone(target):
        if not is_store(target):
            options, indexes = StoreOptions(**schema["options"]), fixed_indexes(store, schema)
            write = functools.partial(write_history, source, schema=schema, checksum=checksum)
            _prepare(source, options, target, key, write, indexes)
    return target


def _without_raw_data(source: Source, options: StoreOptions, directory: Path) -> Path:
    """As in the reference, raw text may be gone once it is prepared. Its checksum is then that of the store."""
    fitting = []
    for store in [directory, *directory.parent.glob(f"{directory.name}-" + "[0-9a-f]" * 16)]:
        schema = read_schema(store)
        if schema["key"] == store_key(schema["source"]["sha256"], options, source.settings):
            fitting.append(store)
    if len(fitting) == 1:
        return fitting[0]
    reason = "were prepared from different versions of it: name one" if fitting else "was prepared with other flags"
    raise ValueError(f"{source.paths[0]} is not there, and {' and '.join(map(str, fitting)) or directory} {reason}")


def _place(target: Path, key: str) -> Path:
    recover_directory(target)
    if is_store(target) and read_schema(target)["key"] != key:
        beside = target.with_name(f"{target.name}-{key}")
        print(f"{target} holds other data, or data prepared with other flags: this store is {beside}", flush=True)
        return beside
    return target


@contextlib.contextmanager
def _alone(target: Path):  # noqa: ANN202 (a context manager)
    """Hold the right to prepare `target`; the operating system takes it back from a process that dies."""
    lock = FileLock(target.with_name(f".{target.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"Another run is preparing {target}: waiting for it", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
        with contextlib.suppress(OSError):
            Path(lock.lock_file).unlink()


def _state_of(source: Source) -> list[tuple[int, int]]:
    return [(path.stat().st_size, path.stat().st_mtime_ns) for path in source.paths]


def _prepare(
    source: Source,
    options: StoreOptions,
    target: Path,
    key: str,
    write: Callable[[Collected, Path], None],
    indexes: dict[str, TableIndex] | None = None,
) -> None:
    """Collect the raw rows, with ids of `indexes` or new ones, and let `write` make the store of them."""
    work = target.with_name(f".{target.name}.parts")
    progress = Progress(source, target.parent)
    with atomic_directory(target, marker=SCHEMA) as partial:
        try:
            before = _state_of(source)
            done = collect(source, options, work, key, progress, indexes)
            progress.close()
            if _state_of(source) != before:
                raise DataError(f"{', '.join(map(str, source.paths))}: changed while being read: run again")
            write(done, partial)
        except DataError:
            shutil.rmtree(work, ignore_errors=True)  # mended data has another checksum: the parts are of no use
            raise
        except OSError as error:
            if any(work.glob("*.rows")):
                raise OSError(f"{error} (what is prepared so far is kept in {work}: run again to go on)") from error
            shutil.rmtree(work, ignore_errors=True)
            raise OSError(f"{error} (while preparing {target})") from error
        finally:
            progress.close()
    shutil.rmtree(work, ignore_errors=True)
    skipped = sum(part.skipped for part in done.parts)
    if skipped:
        first = next(part.problem for part in done.parts if part.problem)
        print(f"Left out {skipped} rows that cannot be read, the first: {first}", flush=True)


__all__ = [
    "SCHEMA",
    "DataError",
    "Store",
    "StoreOptions",
    "Vocabulary",
    "prepare",
    "prepare_history",
    "save_vocabulary",
    "share_among",
    "source_checksum",
]
