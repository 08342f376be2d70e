"""How far preparing is: the estimate before it, one bar while it runs."""

from __future__ import annotations

import math
import shutil
import sys
from pathlib import Path

from tqdm import tqdm

from sources import Block, Layout, Position, Source
from sources.text import is_gzip

GZIP_RATIO = 3.0  # of click logs, roughly: gzip does not say how long its text is
BASE_MEMORY = 900e6  # the libraries, the blocks and the part in work
BYTES_PER_ID = {"integer": 12, "text": 150}


class Progress:
    """One bar with rows, rows a second and the time left (on a terminal only), and the estimates it rests on."""

    def __init__(self, source: Source, folder: Path) -> None:
        self._paths = source.paths
        self._layout: Layout = source.layout
        self._folder = folder
        self._bytes = [_text_bytes(path) for path in source.paths]
        self._bar: tqdm | None = None
        self._rows = self._skipped = 0
        self._checked = False

    def resume(self, at: Position | None, rows: int, skipped: int) -> None:
        """Begin, or go on behind `rows` rows."""
        self._rows, self._skipped = rows, skipped
        if rows:
            print(f"Preparing data: going on behind the {rows} rows that an interrupted run has read", flush=True)
        self._bar = tqdm(initial=rows, unit="rows", unit_scale=True, disable=None, file=sys.stderr, mininterval=0.5)

    def add(self, block: Block) -> None:
        """One more block is read. Raises OSError where the first one shows that the disk is too small."""
        self._rows += block.frame.height
        self._skipped += block.skipped
        total = self._estimated_rows(block.end)
        if not self._checked and block.frame.height:
            self._checked = True
            self._check_disk(block, max(total or 0, self._rows))
        self._bar.total = total
        self._bar.update(block.frame.height)

    def close(self) -> None:
        """End the bar."""
        if self._bar is not None:
            self._bar.close()

    def _estimated_rows(self, end: Position) -> int | None:
        """Rows in all, by the share of the bytes read so far; None for sources that are not read as text."""
        if "file" not in end:
            return None
        read = sum(self._bytes[: end["file"]]) + end.get("offset", 0)
        return int(self._rows * sum(self._bytes) / read) if read else None

    def _check_disk(self, block: Block, rows: int) -> None:
        layout, frame = self._layout, block.frame
        row_bytes = len(layout.labels) + 3 * len(layout.dense) + 4 * len(layout.tables)
        for table in layout.multi_hot:
            row_bytes += 8 + 4 * (frame[table].list.len().sum() or 0) / frame.height
        ids = {table: _ids_expected(block, table, layout, rows) for table in layout.tables}
        kinds = {table: "text" if "String" in str(frame[table].dtype) else "integer" for table in layout.tables}
        vocabulary = sum(BYTES_PER_ID[kinds[table]] * count for table, count in ids.items())
        need = 2 * rows * row_bytes + vocabulary  # the parts, and the store made of them
        folder = next(parent for parent in [self._folder, *self._folder.parents] if parent.exists())
        free = shutil.disk_usage(folder).free
        raw = sum(path.stat().st_size for path in self._paths)
        print(
            f"Preparing data: {_size(raw)} raw, about {_rows(rows)} rows; about {_size(need)} of disk in "
            f"{folder} ({_size(free)} free) and {_size(BASE_MEMORY + vocabulary)} of memory",
            flush=True,
        )
        if need > free:
            raise OSError(
                f"not enough disk in {folder}: preparing takes about {_size(need)}, {_size(free)} are free; name "
                "another place with --processed-data-file"
            )


def _ids_expected(block: Block, table: str, layout: Layout, rows: int) -> float:
    """Distinct values in `rows` rows by Heaps' law, its exponent taken from the block's halves."""
    column = block.frame[table]
    if table in layout.multi_hot:
        column = column.explode()
    count, half = column.n_unique(), column.head(len(column) // 2).n_unique()
    growth = min(1.0, max(0.0, math.log2(count / half))) if half else 1.0
    return min(count * (rows / block.frame.height) ** growth, 2**31)


def _text_bytes(path: Path) -> float:
    return path.stat().st_size * (GZIP_RATIO if is_gzip(path) else 1)


def _rows(count: int) -> str:
    return f"{count / 1e6:.3g} million" if count >= 1e6 else str(count)


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
