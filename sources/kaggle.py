"""Criteo Kaggle display-advertising challenge (`train.txt`): label, 13 integers, 26 hexadecimal categoricals.

Tab-separated, no header, an empty field is a missing value and reads as 0, as in the DLRM reference driver. The file
is in time order and covers seven days without marking them: seven equal parts stand for the days. Days one to six are
the training part; the first half of day seven is test, the second half validation.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl

from sources import DataError, RawBlock, SourceOptions, Split

DENSE_NAMES = tuple(f"I{i}" for i in range(1, 14))
TABLE_NAMES = tuple(f"C{i}" for i in range(1, 27))
DAYS = 7
BLOCK_BYTES = 32 << 20
INT32_MIN, INT32_MAX, UINT32_MAX = -(2**31), 2**31 - 1, 2**32 - 1

_FEATURE_SCHEMA = {name: pl.Int32 for name in DENSE_NAMES} | {name: pl.String for name in TABLE_NAMES}


class KaggleSource:
    """`--data-set=kaggle`. `--raw-data-file` is train.txt, or any file in its format."""

    label_names = ("click",)
    dense_names = DENSE_NAMES
    table_names = TABLE_NAMES
    dense_transform = "log1p"

    def __init__(self, raw_data_file: str, options: SourceOptions | None = None) -> None:
        if not raw_data_file:
            raise ValueError("--raw-data-file is empty: --data-set=kaggle needs the path of train.txt")
        self.path = Path(raw_data_file)

    def blocks(self) -> Iterator[RawBlock]:
        """Yield labelled rows in file order."""
        return criteo_blocks(self.path, labelled=True)

    def split(self, rows: int) -> Split:
        """Seven days as equal as possible, the first ones longer by one row where `rows` is no multiple of 7."""
        if rows < 2 * DAYS:
            raise DataError(f"{self.path}: {rows} rows are too few for {DAYS} days of at least two rows")
        bounds = np.cumsum([0] + [len(part) for part in np.array_split(np.arange(rows), DAYS)]).tolist()
        days = list(zip(bounds[:-1], bounds[1:], strict=True))
        start, stop = days[-1]
        middle = start + (stop - start + 1) // 2
        return Split(
            train_days=tuple(days[:-1]),
            test=(start, middle),
            val=(middle, stop),
            description="7 equal days in file order; train: days 1-6, test: first half of day 7, val: second half",
        )

    def best_auc_scores(self) -> np.ndarray | None:
        """Real clicks: nobody knows."""
        return None


def criteo_blocks(path: Path, *, labelled: bool | None) -> Iterator[RawBlock]:
    """Parse a Criteo text file block by block.

    Args:
        path: the text file; LF or CRLF line ends.
        labelled: True: 40 fields; False: 39 fields, no label; None: decided by the first line (for scoring).

    Raises:
        DataError: empty file, wrong number of fields, a field that is no integer or no hexadecimal number.
        OSError: unreadable path.
    """
    first_line = 1
    with open(path, "rb") as file:
        for text in _whole_lines(file):
            if labelled is None:
                labelled = text[: text.index(b"\n")].count(b"\t") == len(_FEATURE_SCHEMA)
            yield _parse(text, path, first_line, labelled)
            first_line += text.count(b"\n")
    if first_line == 1:
        raise DataError(f"{path}: the file is empty")


def _whole_lines(file: io.BufferedReader) -> Iterator[bytes]:
    """Cut a file into blocks that end with a line end."""
    rest = b""
    while chunk := file.read(BLOCK_BYTES):
        end = chunk.rfind(b"\n") + 1
        if end == 0:
            rest += chunk
            continue
        yield (rest + chunk[:end]).replace(b"\r\n", b"\n")
        rest = chunk[end:]
    if rest:
        yield rest.rstrip(b"\r") + b"\n"


def _parse(text: bytes, path: Path, first_line: int, labelled: bool) -> RawBlock:
    schema = ({"label": pl.Int8} if labelled else {}) | _FEATURE_SCHEMA
    try:
        # polars skips blank lines and is strict about the rest only line by line, hence the count of tabs
        if text.count(b"\t") != text.count(b"\n") * (len(schema) - 1):
            raise DataError("wrong number of columns")
        frame = pl.read_csv(io.BytesIO(text), separator="\t", has_header=False, schema=schema, quote_char=None)
        block = _block_from_frame(frame, labelled)
        if labelled and not np.isin(block.labels, (0, 1)).all():
            raise DataError("label is neither 0 nor 1")
        return block
    except (pl.exceptions.PolarsError, DataError) as error:
        _raise_first_bad_line(text, path, first_line, labelled)
        raise DataError(f"{path}: lines from {first_line} on cannot be read: {error}") from error


def _block_from_frame(frame: pl.DataFrame, labelled: bool) -> RawBlock:
    rows = frame.height
    labels = np.empty((rows, 0), np.int8)
    if labelled:
        labels = frame["label"].fill_null(-1).to_numpy().reshape(rows, 1)
    dense = frame.select(pl.col(DENSE_NAMES).fill_null(0).clip(lower_bound=0)).to_numpy(order="c")
    values = frame.select(
        pl.col(TABLE_NAMES).str.to_integer(base=16, dtype=pl.UInt32, strict=True).fill_null(0)
    ).to_numpy(order="fortran")
    return RawBlock(labels, dense, values)


def _raise_first_bad_line(text: bytes, path: Path, first_line: int, labelled: bool) -> None:
    """Find the offending field by hand: slow, precise, and only run when the fast reader has refused the block."""
    names = (("label",) if labelled else ()) + DENSE_NAMES + TABLE_NAMES
    for number, line in enumerate(text[:-1].split(b"\n"), start=first_line):
        fields = line.split(b"\t")
        if len(fields) != len(names):
            raise DataError(f"{path}, line {number}: {len(fields)} columns, expected {len(names)}")
        for name, field in zip(names, fields, strict=True):
            problem = _problem(name, field)
            if problem:
                shown = field[:40].decode("utf-8", "backslashreplace")
                raise DataError(f"{path}, line {number}, column {name}: {shown!r} {problem}")


def _problem(name: str, field: bytes) -> str | None:
    if name == "label":
        return None if field in (b"0", b"1") else "is not a label, expected 0 or 1"
    if not field:
        return None
    integer = name in DENSE_NAMES
    if not re.fullmatch(rb"[+-]?[0-9]+" if integer else rb"[+-]?[0-9a-fA-F]+", field):
        return "is not an integer" if integer else "is not a hexadecimal number"
    value = int(field, 10 if integer else 16)
    low, high = (INT32_MIN, INT32_MAX) if integer else (0, UINT32_MAX)
    return None if low <= value <= high else f"lies outside {low} to {high}"
