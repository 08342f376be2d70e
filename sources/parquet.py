"""Parquet files with the columns of a table, read batch by batch and as strict about every row as `sources.text`.

Memory does not depend on the size of the file, only on that of its row groups.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from sources import Block, DataError, Position
from sources.text_kinds import FLOAT_MAX, KINDS, PART_NAMES, Column, iso_microseconds

BATCH_ROWS = 1 << 18

_CATEGORICAL = "an integer, text, boolean or dictionary column (a number as an id: cast it to integer or text)"
_ALLOWED = {
    "label": "an integer, boolean or number column of 0 and 1",
    "optional-label": "an integer, boolean or number column of 0 and 1",
    "float": "a number column",
    "nonnegative-float": "a number column",
    "text": _CATEGORICAL,
    "multi": f"a list of values, or text with a separator inside the cell; a value is {_CATEGORICAL}",
    "time": "an integer, date, timestamp or ISO text column",
    "part": "a text column",
}


def parquet_blocks(
    paths: Sequence[Path],
    columns: Sequence[Column],
    cells: dict[str, str],
    start: Position | None = None,
    bad_rows: str = "fail",
    optional: Sequence[str] = (),
) -> Iterator[Block]:
    """Read Parquet files one after another.

    Args:
        paths: the files.
        columns: those wanted, with their kinds: keys of `sources.text_kinds.KINDS`, or "time" (integers as they are,
            else microseconds since 1970).
        cells: the "text" columns of several values -> the separator inside a cell ("" for a list column).
        start: a block's `end`, to go on from there.
        bad_rows: "fail", or "skip" to leave bad rows out and count them.
        optional: columns that a file may lack.

    Raises:
        DataError: a value, a column type or a file that cannot be read. OSError: unreadable path.
    """
    start = start or {"file": 0}
    for number in range(start["file"], len(paths)):
        row = start.get("row", 0) if number == start["file"] else 0
        path = paths[number]
        with open(path, "rb") as stream:
            try:
                file = pq.ParquetFile(stream)
                wanted = _check_columns(file.schema_arrow, path, columns, cells, optional)
                total = file.metadata.num_rows
                if not total:
                    raise DataError(f"{path}: there are no rows")
                for batch in _batches(file, row, [column.name for column in wanted]):
                    block = _block(pl.DataFrame(pl.from_arrow(batch)), path, row, wanted, cells, bad_rows)
                    row += batch.num_rows
                    end = {"file": number, "row": row} if row < total else {"file": number + 1}
                    yield block._replace(end=end)
            except (pa.ArrowException, OSError) as error:
                reason = str(error).split("\n")[0]
                raise DataError(f"{path}, row {row + 1} or after: cannot be read as Parquet: {reason}") from None


def _batches(file: pq.ParquetFile, row: int, names: list[str]) -> Iterator[pa.RecordBatch]:
    """Batches from `row` on; the row groups before it are not read."""
    groups, skip = list(range(file.num_row_groups)), row
    while groups and skip >= file.metadata.row_group(groups[0]).num_rows:
        skip -= file.metadata.row_group(groups.pop(0)).num_rows
    for batch in file.iter_batches(BATCH_ROWS, row_groups=groups, columns=names):
        left_out = min(skip, batch.num_rows)
        skip -= left_out
        if left_out < batch.num_rows:
            yield batch.slice(left_out)


def _check_columns(
    schema: pa.Schema, path: Path, columns: Sequence[Column], cells: dict[str, str], optional: Sequence[str]
) -> list[Column]:
    """The columns that the file has; raises where one is missing, there twice or of an unsuitable type."""
    wanted = []
    for column in columns:
        count = schema.names.count(column.name)
        if count == 1:
            wanted.append(column)
            kind = "multi" if column.name in cells else column.kind
            dtype = schema.field(column.name).type
            if not _suits(dtype, kind, cells.get(column.name, "")):
                raise DataError(f"{path}, column {column.name}: is of type {dtype}, expected {_ALLOWED[kind]}")
        elif count:
            raise DataError(f"{path}: there are two columns {column.name!r}")
        elif column.name not in optional:
            shown = ", ".join(schema.names[:12]) + (", ..." if len(schema.names) > 12 else "")
            raise DataError(f"{path}: there is no column {column.name!r} (there are: {shown})")
    return wanted


def _suits(dtype: pa.DataType, kind: str, separator: str) -> bool:
    is_type = pa.types
    if is_type.is_dictionary(dtype):
        dtype = dtype.value_type
    text = is_type.is_string(dtype) or is_type.is_large_string(dtype) or is_type.is_string_view(dtype)
    whole = is_type.is_integer(dtype)
    number = whole or is_type.is_floating(dtype) or is_type.is_decimal(dtype)
    if kind in ("label", "optional-label"):
        return number or is_type.is_boolean(dtype)
    if kind == "multi" and (is_type.is_list(dtype) or is_type.is_large_list(dtype)):
        return _suits(dtype.value_type, "text", "")
    return {
        "float": number or is_type.is_boolean(dtype),
        "nonnegative-float": number or is_type.is_boolean(dtype),
        "text": whole or text or is_type.is_boolean(dtype),
        "multi": text and separator != "",
        "time": whole or text or is_type.is_date(dtype) or is_type.is_timestamp(dtype),
        "part": text,
    }[kind]


def _block(
    frame: pl.DataFrame, path: Path, first: int, columns: Sequence[Column], cells: dict[str, str], bad_rows: str
) -> Block:
    """Convert a batch: what cannot be converted comes out null, and is bad where it was not null or must not be."""
    out = pl.DataFrame([_convert(frame[c.name], c.kind, cells.get(c.name)) for c in columns])
    bad = pl.repeat(False, frame.height, dtype=pl.Boolean, eager=True)
    problem = (frame.height, "")
    for name, kind in columns:
        if name in cells or kind == "text":
            continue  # every value is one
        wrong = out[name].is_null()
        if kind in KINDS and KINDS[kind].empty:
            wrong &= frame[name].is_not_null()
        if wrong.any():
            bad, row = bad | wrong, wrong.arg_max()
            if row < problem[0]:
                value = frame[name][row]
                shown = "empty" if value is None else repr(str(value)[:40])
                problem = row, f"{path}, row {first + row + 1}, column {name}: {shown} {_reason(kind)}"
    if not problem[1]:
        return Block(out, {})
    if bad_rows == "fail":
        raise DataError(problem[1])
    return Block(out.filter(~bad), {}, int(bad.sum()), problem[1])


def _reason(kind: str) -> str:
    return {
        "float": "is not a finite number of 32 bits",
        "nonnegative-float": "is not a finite number of at least 0 (in 32 bits; log1p takes none below)",
        "time": "is not an integer below 2^63, a date or a date and time",
    }.get(kind) or f"is not a {KINDS[kind].what}"


def _convert(values: pl.Series, kind: str, separator: str | None) -> pl.Series:
    """A column in the types of `sources.Block`; null where a value is none of its kind."""
    if separator is not None:
        return split_cells(values, separator)
    if kind == "text":
        return values.cast(pl.String)
    if kind == "part":
        return values.cast(pl.String).replace_strict(PART_NAMES, default=None, return_dtype=pl.Int64)
    if kind == "time":
        return _time(values)
    numbers = values.cast(pl.Float64)
    if kind in ("label", "optional-label"):
        return numbers.cast(pl.Int8, strict=False).set(~numbers.is_in([0.0, 1.0]), None)
    wrong = ~numbers.is_between(0 if kind == "nonnegative-float" else -FLOAT_MAX, FLOAT_MAX)
    return numbers.set(wrong.fill_null(False), None)


def _time(values: pl.Series) -> pl.Series:
    if values.dtype.is_integer():
        return values.cast(pl.Int64, strict=False)
    if values.dtype in (pl.Date, pl.Datetime):
        return values.cast(pl.Datetime("us", getattr(values.dtype, "time_zone", None))).to_physical()
    return iso_microseconds(values.cast(pl.String))


def split_cells(values: pl.Series, separator: str) -> pl.Series:
    """Cells as lists of text, without empty values; null for an empty cell. A list column is taken as it is."""
    if isinstance(values.dtype, pl.List):
        lists = values.cast(pl.List(pl.String))
    else:
        lists = values.cast(pl.String).str.split(separator)
    kept = pl.element().filter(pl.element().is_not_null() & (pl.element() != ""))
    name = values.name
    lists = lists.to_frame().select(pl.col(name).list.eval(kept))
    return lists.select(pl.when(pl.col(name).list.len() > 0).then(pl.col(name))).to_series()


__all__ = ["parquet_blocks", "split_cells"]
