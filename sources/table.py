"""Tables whose columns have names: CSV or TSV text with a header (plain or gzip), or Parquet.

`sources.schema` reads people's own data with it. It is also how rows to be scored are read for the data sets that have
no row format of their own: `table_blocks`.

A cell of text may stand in double quotes. Categorical values come out as text whatever the file, so that a table has
the same ids as CSV and as Parquet. Of text, the file's suffix tells the separator.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from sources import GROUP, Block, DataError, Layout, Position
from sources.parquet import parquet_blocks, split_cells
from sources.text import TextFormat, text_blocks
from sources.text_kinds import Column, iso_microseconds

SUFFIXES = {".csv": ",", ".tsv": "\t", ".parquet": None}
ALLOWED = ".csv, .csv.gz, .tsv, .tsv.gz, .parquet"
CELL_SEPARATOR = "|"  # between the values of a multi-hot cell, where no schema says otherwise


@dataclass(frozen=True)
class TableFormat:
    """Which columns are read.

    Args:
        columns: names and kinds: "label", "optional-label", "float", "nonnegative-float", "text", "time" or "part".
        cells: the "text" columns that hold several values a cell -> the separator between them.
        separator: of the fields of text; "" for the one that belongs to the suffix.
        optional: columns that a file may lack as a whole.
        group: the column that comes out as GROUP.
    """

    columns: tuple[Column, ...]
    cells: dict[str, str] = field(default_factory=dict)
    separator: str = ""
    optional: tuple[str, ...] = ()
    group: str = ""


def table_kind(path: Path) -> str:
    """The suffix that tells how a file is read, a key of SUFFIXES. Raises DataError for any other."""
    name = path.name.lower()
    suffix = Path(name.removesuffix(".gz")).suffix
    if suffix not in SUFFIXES or name.endswith(".parquet.gz"):
        raise DataError(f"{path}: the name ends in none of {ALLOWED}")
    return suffix


def dense_kind(transform: str) -> str:
    """The kind of a dense column: log1p takes no negative numbers."""
    return "nonnegative-float" if transform == "log1p" else "float"


def table_blocks(path: Path, layout: Layout) -> Iterator[Block]:
    """Rows to be scored: the layout's dense and categorical columns by name, "|" between the values of a cell."""
    dense = (Column(name, dense_kind(transform)) for name, transform in layout.dense.items())
    columns = (*dense, *(Column(name, "text") for name in layout.tables))
    return read_tables([path], TableFormat(columns, dict.fromkeys(layout.multi_hot, CELL_SEPARATOR)))


def read_tables(
    paths: Sequence[Path], table_format: TableFormat, start: Position | None = None, bad_rows: str = "fail"
) -> Iterator[Block]:
    """Read files of one kind, one after another; `start` and `bad_rows` as in `sources.text.text_blocks`.

    Raises:
        DataError: files of different kinds, a row or a file that cannot be read. OSError: unreadable path.
    """
    kinds = {table_kind(path): path for path in paths}
    if len(kinds) > 1:
        raise DataError(f"{' and '.join(str(path) for path in kinds.values())}: give files of one kind")
    if ".parquet" in kinds:
        f = table_format
        blocks = parquet_blocks(paths, f.columns, f.cells, start, bad_rows, f.optional)
    else:
        blocks = _text_tables(
            paths, table_format, table_format.separator or SUFFIXES[kinds.popitem()[0]], start, bad_rows
        )
    for block in blocks:
        if table_format.group:
            block = block._replace(frame=block.frame.rename({table_format.group: GROUP}))
        yield block


def _text_tables(
    paths: Sequence[Path], table_format: TableFormat, separator: str, start: Position | None, bad_rows: str
) -> Iterator[Block]:
    columns = tuple(
        Column(name, _time_kind(paths, name, separator, bad_rows)) if kind == "time" else Column(name, kind)
        for name, kind in table_format.columns
    )
    text_format = TextFormat(columns, separator, header=True, optional=table_format.optional, quoted=True)
    for block in text_blocks(paths, text_format, start, bad_rows):
        lists = [split_cells(block.frame[name], cell) for name, cell in table_format.cells.items()]
        yield block._replace(frame=block.frame.with_columns(lists))


def _time_kind(paths: Sequence[Path], name: str, separator: str, bad_rows: str) -> str:
    """Whether times are integers or ISO text, told by the first that is either: a mixture would sort wrongly."""
    text_format = TextFormat((Column(name, "text"),), separator, header=True, quoted=True)
    blocks = text_blocks(paths[:1], text_format, None, bad_rows)
    values = next(blocks).frame[name].drop_nulls()
    blocks.close()
    is_integer = values.cast(pl.Int64, strict=False).is_not_null()
    is_date = iso_microseconds(values.head(1000)).is_not_null()
    first_integer, first_date = is_integer.arg_max(), is_date.arg_max()
    if not is_date.any() or (is_integer.any() and first_integer < first_date):
        return "time-integer"
    return "time-iso"
