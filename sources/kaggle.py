"""Criteo Kaggle display-advertising challenge (`train.txt`): label, 13 integers, 26 hexadecimal categoricals.

Tab-separated, no header, an empty field is a missing value and reads as 0, as in the DLRM reference driver; so do
negative integers. The file is in time order and covers seven days without marking them: seven equal parts stand for
the days. Days one to six are the training part; the first half of day seven is test, the second half validation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from sources import Block, DataError, Groups, Layout, Position, SourceOptions, Split, take_settings
from sources.text import Column, TextFormat, text_blocks

DENSE_NAMES = tuple(f"I{i}" for i in range(1, 14))
TABLE_NAMES = tuple(f"C{i}" for i in range(1, 27))
DAYS = 7

CRITEO_LAYOUT = Layout(labels=("click",), dense=dict.fromkeys(DENSE_NAMES, "log1p"), tables=TABLE_NAMES)
CRITEO_FORMAT = TextFormat(
    columns=(
        Column("click", "label"),
        *(Column(name, "int32") for name in DENSE_NAMES),
        *(Column(name, "hex32") for name in TABLE_NAMES),
    ),
    separator="\t",
    optional=("click",),
)


class KaggleSource:
    """`--data-set=kaggle`. `--raw-data-file` is train.txt, or any file in its format, gzip or not."""

    layout = CRITEO_LAYOUT

    def __init__(self, raw_data_file: str, options: SourceOptions | None = None) -> None:
        if not raw_data_file:
            raise ValueError("--raw-data-file is empty: --data-set=kaggle needs the path of train.txt")
        options = options or SourceOptions()
        self.paths: tuple[Path, ...] = (Path(raw_data_file),)
        self.settings = take_settings(options.settings, {})
        self._bad_rows = options.bad_rows

    def blocks(self, start: Position | None = None) -> Iterator[Block]:
        """Labelled rows in file order."""
        return criteo_blocks(self.paths, start, self._bad_rows, labelled=True)

    def split(self, rows: int, groups: Groups | None = None) -> Split:
        """Seven days as equal as possible, the first ones longer by one row where `rows` is no multiple of 7."""
        if rows < 2 * DAYS:
            raise DataError(f"{self.paths[0]}: {rows} rows are too few for {DAYS} days of at least two rows")
        sizes = [rows // DAYS + (day < rows % DAYS) for day in range(DAYS)]
        return split_last_day(
            sizes, "7 equal days in file order; train: days 1-6, test: first half of day 7, val: second half"
        )

    @staticmethod
    def scoring_blocks(path: Path, settings: dict[str, Any]) -> Iterator[Block]:
        """Rows with or without a label, decided by the first line."""
        return criteo_blocks((path,), None, "fail", labelled=False)


def split_last_day(sizes: Sequence[int], description: str) -> Split:
    """All days but the last for training; of the last day the first half is test, the second half validation."""
    bounds = np.cumsum([0, *sizes]).tolist()
    days = tuple(zip(bounds[:-1], bounds[1:], strict=True))
    start, stop = days[-1]
    middle = start + (stop - start + 1) // 2
    return Split(train_days=days[:-1], test=(start, middle), val=(middle, stop), description=description)


def criteo_blocks(
    paths: Sequence[Path], start: Position | None, bad_rows: str, *, labelled: bool, group_by_file: bool = False
) -> Iterator[Block]:
    """Parse Criteo text files; `labelled`: refuse rows without a label rather than look for it."""
    text_format = CRITEO_FORMAT
    if labelled:
        text_format = TextFormat(CRITEO_FORMAT.columns, CRITEO_FORMAT.separator)
    for block in text_blocks(paths, text_format, start, bad_rows, group_by_file):
        yield block._replace(frame=block.frame.with_columns(pl.col(DENSE_NAMES).clip(lower_bound=0)))
