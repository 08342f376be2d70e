"""What a store is made of: its options, its key, its schema file, and the checksum of the raw data."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlet.files import atomic_file

FORMAT_VERSION = 2
SCHEMA = "schema.json"
CHECKSUM_CACHE = "checksums.json"
ID_ORDERS = ("appearance", "frequency")
FITS = ("all", "train")


@dataclass(frozen=True)
class StoreOptions:
    """The choices that change what a store holds, beside the raw data and the source's own settings.

    Args:
        data_set: registered name of the source.
        max_ind_range: > 0: a raw value counts modulo this before it gets an id; text by its CRC-32.
        sub_sample_rate: share of negatives (of the first label) that is dropped.
        sub_sample_seed: of those draws; matters only where rows are dropped.
        min_count: ids seen less often share the unknown id.
        fit: rows that the vocabulary and the counts for `min_count` come from, "all" or "train".
        id_order: ids numbered by first "appearance", or by "frequency" in the rows of the fit, most frequent first.
        bad_rows: "fail", or "skip" to leave out rows that cannot be read.
    """

    data_set: str
    max_ind_range: int = -1
    sub_sample_rate: float = 0.0
    sub_sample_seed: int = 0
    min_count: int = 1
    fit: str = "all"
    id_order: str = "appearance"
    bad_rows: str = "fail"

    def __post_init__(self) -> None:
        if not 0.0 <= self.sub_sample_rate < 1.0:
            raise ValueError(f"--data-sub-sample-rate={self.sub_sample_rate} lies outside [0, 1)")
        if self.max_ind_range == 0 or not -1 <= self.max_ind_range < 2**32:
            raise ValueError(f"--max-ind-range={self.max_ind_range}: give a limit from 1 to 4294967295, or -1 for none")
        if self.min_count < 1:
            raise ValueError(f"--vocabulary-min-count={self.min_count}: give a number from 1 on")
        for flag, value, choices in (
            ("--vocabulary-fit", self.fit, FITS),
            ("--vocabulary-order", self.id_order, ID_ORDERS),
            ("--bad-rows", self.bad_rows, ("fail", "skip")),
        ):
            if value not in choices:
                raise ValueError(f"{flag}={value}: choose from {', '.join(choices)}")


def store_key(checksum: str, options: StoreOptions, settings: dict[str, Any]) -> str:
    """Sixteen hexadecimal digits that name a store's content."""
    fields = asdict(options) | {"source": checksum, "settings": settings, "format": FORMAT_VERSION}
    if not options.sub_sample_rate:
        fields.pop("sub_sample_seed")
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]


def source_checksum(paths: Sequence[Path], folder: Path) -> str:
    """SHA-256 of a file; of several files, SHA-256 over the names and checksums of all.

    Remembered in `folder` by path, size and time of change, since raw files are large.
    """
    sums = [_file_checksum(path, folder) for path in paths]
    if len(sums) == 1:
        return sums[0]
    lines = "".join(f"{digest}  {path.name}\n" for digest, path in zip(sums, paths, strict=True))
    return hashlib.sha256(lines.encode()).hexdigest()


def _file_checksum(path: Path, folder: Path) -> str:
    stat = path.stat()
    entry = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
    cache_file = folder / CHECKSUM_CACHE
    try:
        cache = json.loads(cache_file.read_text())
    except (OSError, ValueError):
        cache = {}
    if entry not in cache:
        with open(path, "rb", buffering=0) as file:
            cache[entry] = hashlib.file_digest(file, "sha256").hexdigest()
        with contextlib.suppress(OSError):  # a read-only folder costs a second reading, not the run
            folder.mkdir(parents=True, exist_ok=True)
            with atomic_file(cache_file, "w") as file:
                json.dump(cache, file, indent=1)
    return cache[entry]


def is_store(directory: Path) -> bool:
    """Whether a complete store lies here."""
    return (directory / SCHEMA).is_file()


def read_schema(directory: Path) -> dict[str, Any]:
    """The schema of a store or of a saved vocabulary. Raises ValueError where it is missing, damaged or older."""
    try:
        schema = json.loads((directory / SCHEMA).read_text())
    except FileNotFoundError:
        raise ValueError(f"{directory} is not a prepared store: it has no {SCHEMA}") from None
    except ValueError as error:
        raise ValueError(f"{directory / SCHEMA} is damaged: {error}") from None
    if not isinstance(schema, dict):
        raise ValueError(f"{directory / SCHEMA} is damaged: it holds no JSON object")
    if schema.get("format") != FORMAT_VERSION:
        raise ValueError(f"{directory} has store format {schema.get('format')}, this version reads {FORMAT_VERSION}")
    return schema
