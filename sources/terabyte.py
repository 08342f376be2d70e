"""Criteo 1TB click logs: 24 daily files in the Kaggle format, `day_0` ... `day_23`, each plain or gzip.

Days 0 to 22 are the training part; of the last day the first half is test, the second half validation, as in the DLRM
reference driver. `--data-option days=N` takes the first N files only (the last of them is split).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sources import Block, DataError, Groups, Layout, Position, SourceOptions, Split, take_settings
from sources.kaggle import CRITEO_LAYOUT, KaggleSource, criteo_blocks, split_last_day


class TerabyteSource:
    """`--data-set=terabyte`. `--raw-data-file` is the files' common prefix: `/data/day` for `/data/day_0.gz` ..."""

    layout = Layout(CRITEO_LAYOUT.labels, CRITEO_LAYOUT.dense, CRITEO_LAYOUT.tables, grouped=True)
    scoring_blocks = staticmethod(KaggleSource.scoring_blocks)

    def __init__(self, raw_data_file: str, options: SourceOptions) -> None:
        if not raw_data_file:
            raise ValueError("--raw-data-file is empty: --data-set=terabyte needs the prefix of day_0 ... day_23")
        self.settings: dict[str, Any] = take_settings(options.settings, {"days": 24})
        days = self.settings["days"]
        if not 2 <= days <= 24:
            raise ValueError(f"--data-option=days={days}: give a number from 2 to 24")
        self.paths = tuple(_day_file(raw_data_file, day) for day in range(days))
        self._bad_rows = options.bad_rows

    def blocks(self, start: Position | None = None) -> Iterator[Block]:
        """Labelled rows, day after day."""
        return criteo_blocks(self.paths, start, self._bad_rows, labelled=True, group_by_file=True)

    def split(self, rows: int, groups: Groups) -> Split:
        """One day a file."""
        sizes = [int(groups.lengths[groups.values == day].sum()) for day in range(len(self.paths))]
        if min(sizes) == 0 or sizes[-1] < 2:
            day = min(range(len(sizes)), key=sizes.__getitem__)
            raise DataError(f"{self.paths[day]}: {sizes[day]} rows are too few for a day")
        last = len(sizes) - 1
        return split_last_day(
            sizes, f"one day a file; train: days 0-{last - 1}, test: first half of day {last}, val: second half"
        )


def _day_file(prefix: str, day: int) -> Path:
    """day_<number>, or day_<number>.gz where only that exists."""
    plain, packed = Path(f"{prefix}_{day}"), Path(f"{prefix}_{day}.gz")
    return packed if packed.exists() and not plain.exists() else plain
