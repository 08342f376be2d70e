"""A data set in memory, with every kind of column."""

from pathlib import Path

import numpy as np
import polars as pl

from sources import Block, Layout, random_split, split_by_part

LAYOUT = Layout(
    labels=("click", "buy"),
    dense={"age": "standard", "price": "log1p", "score": "none"},
    tables=("user", "city", "tags"),
    multi_hot=("tags",),
)


class FrameSource:
    """Rows of a data frame, `size` a block; `fail_at`: the block at which reading is interrupted."""

    def __init__(self, folder, frame, layout=LAYOUT, size=7, split=None):
        self.layout, self.frame, self.size, self.settings = layout, frame, size, {}
        path = Path(folder) / "frame.txt"
        path.write_text(str(frame.rows()))
        self.paths = (path,)
        self.fail_at, self.error, self.read = None, KeyboardInterrupt, []
        self._split = split or (lambda rows, groups: random_split(rows, 3))

    def blocks(self, start=None):
        for at in range((start or {"row": 0})["row"], self.frame.height, self.size):
            if self.fail_at is not None and at >= self.fail_at:
                raise self.error
            self.read.append(at)
            part = self.frame.slice(at, self.size)
            yield Block(part, {"row": at + part.height})

    def split(self, rows, groups):
        return self._split(rows, groups)


def make_frame(rows=200, seed=0):
    rng = np.random.default_rng(seed)
    missing = rng.random(rows) < 0.1
    tags = [[f"t{t}" for t in rng.integers(0, 9, rng.integers(0, 4))] for _ in range(rows)]
    return pl.DataFrame(
        {
            "click": pl.Series(rng.integers(0, 2, rows), dtype=pl.Int8),
            "buy": pl.Series(rng.integers(0, 2, rows), dtype=pl.Int8).set(pl.Series(missing), None),
            "age": pl.Series(rng.normal(40, 10, rows)).set(pl.Series(missing), None),
            "price": pl.Series(rng.integers(0, 1000, rows)).set(pl.Series(rng.random(rows) < 0.1), None),
            "score": rng.normal(size=rows),
            "user": pl.Series(rng.zipf(1.5, rows) % 97, dtype=pl.Int64),
            "city": pl.Series([f"c{c}" for c in rng.integers(0, 12, rows)]).set(pl.Series(missing), None),
            "tags": pl.Series([None if m else t for m, t in zip(missing, tags, strict=True)], dtype=pl.List(pl.String)),
        }
    )  # fmt: skip


def by_group(rows, groups):
    """Group 0 train, 1 validation, 2 test."""
    return split_by_part(groups.per_row(np.uint8), "by group")
