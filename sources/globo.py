"""Globo.com news portal clicks (October 2017): 2,988,181 clicks of 322,897 users on 46,033 articles, no views.

The raw folder holds `clicks.parquet` with integer columns user_id, session_id, click_article_id, click_timestamp (in
milliseconds, UTC), click_environment, click_deviceGroup, click_os, click_country, click_region and click_referrer_type
(others are ignored), and `article_category.csv` with a header and the columns article_id and category_id (-1 where
unknown). Source: "News Portal User Interactions by Globo.com", made public with the CHAMELEON papers of G. de Souza
P. Moreira and others.

Negatives. For each click `--data-option negatives` (1) articles are drawn with replacement from all clicks of the same
hour of the same day (UTC), so that articles alive in that hour come by their popularity in it. An article that the
click's session holds anywhere is rejected and drawn again, up to ROUNDS draws in all; what is rejected then is left
out. `seed` (0) sets the draws. A negative takes all but article and category from its click and stands right behind it.

Labels: `click`; and `long_dwell`: the session's next click comes after `dwell_seconds` (30) or more. It is unknown for
the last click of a session, and 0 for negatives.

Tables: user, article, category, environment, device, os, country, region, referrer, hour (0 to 23) and weekday (Monday
0), both UTC. Nothing is dense: the age of an article, the one natural candidate, would give negatives away, of which
some are drawn before their article's first click, and no positive is.

Split: by time. The first 80 % of the clicks are the training part, one range a calendar day (UTC); the next 10 % are
validation, the last 10 % test; negatives go with their click.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from sources import (
    GROUP,
    PARTS,
    Block,
    DataError,
    Groups,
    Layout,
    Position,
    SourceOptions,
    Split,
    blocks_of_slices,
    take_settings,
)
from sources.text import Column, TextFormat, text_blocks

BLOCK_ROWS = 262_144
ROUNDS = 8

_TABLES = {  # table -> column of clicks.parquet
    "user": "user_id",
    "article": "click_article_id",
    "environment": "click_environment",
    "device": "click_deviceGroup",
    "os": "click_os",
    "country": "click_country",
    "region": "click_region",
    "referrer": "click_referrer_type",
}
_KEYS = {"time": "click_timestamp", "session": "session_id"}
_NEEDED = ("session", "user", "article")
_SETTINGS = {"negatives": 1, "dwell_seconds": 30, "seed": 0}
_HOUR_MS = 3_600_000
_PART_STEP = 1_000_000  # GROUP is part * _PART_STEP + day, days being counted from 1970
_LAST_MS = _PART_STEP * 24 * _HOUR_MS


class _Rows(NamedTuple):
    """All rows as references: row r is click `click[r]`, with `article[r]` in place of the click's own if negative."""

    clicks: pl.DataFrame  # sorted by time
    categories: pl.DataFrame
    click: np.ndarray  # int32 [rows]
    article: np.ndarray  # int64 [rows]
    positive: np.ndarray  # bool [rows]
    skipped: int
    problem: str


class GloboSource:
    """`--data-set=globo`. `--raw-data-file` is the folder with clicks.parquet and article_category.csv."""

    layout = Layout(
        labels=("click", "long_dwell"),
        dense={},
        tables=("user", "article", "category", *list(_TABLES)[2:], "hour", "weekday"),
        grouped=True,
    )

    def __init__(self, raw_data_file: str, options: SourceOptions) -> None:
        if not raw_data_file:
            raise ValueError("--raw-data-file is empty: --data-set=globo needs the folder with clicks.parquet")
        self.settings: dict[str, Any] = take_settings(options.settings, _SETTINGS)
        for name, low, high in (("negatives", 1, 100), ("dwell_seconds", 1, 10**9), ("seed", 0, 2**32 - 1)):
            if not low <= self.settings[name] <= high:
                raise ValueError(f"--data-option={name}={self.settings[name]}: give a number from {low} to {high}")
        folder = Path(raw_data_file)
        self.paths: tuple[Path, ...] = (folder / "clicks.parquet", folder / "article_category.csv")
        self._bad_rows = options.bad_rows

    def blocks(self, start: Position | None = None) -> Iterator[Block]:
        """The clicks in the order of time, each with its negatives behind it."""
        rows = self._rows()
        return blocks_of_slices(
            len(rows.click), BLOCK_ROWS, start, lambda a, b: _frame(rows, a, b), rows.skipped, rows.problem
        )

    def split(self, rows: int, groups: Groups) -> Split:
        """Parts and days as `blocks` has marked them."""
        part, bounds = groups.values // _PART_STEP, np.cumsum([0, *groups.lengths]).tolist()
        runs = list(zip(bounds[:-1], bounds[1:], strict=True))
        ranges = {}
        for name, number in PARTS.items():
            ranges[name] = tuple(run for run, of in zip(runs, part, strict=True) if of == number)
            if not ranges[name]:
                raise DataError(f"{self.paths[0]}: of {rows} rows none falls into the {name} part")
        negatives = self.settings["negatives"]
        return Split(
            train_days=ranges["train"],
            val=(ranges["val"][0][0], ranges["val"][-1][1]),
            test=(ranges["test"][0][0], ranges["test"][-1][1]),
            description="by time; the first 80 % of the clicks train (one range a day), 10 % val, 10 % test; "
            f"{negatives} negative(s) a click, drawn from the clicks of its hour without the articles of its session "
            f"(up to {ROUNDS} draws, else left out), seed {self.settings['seed']}",
        )

    def _rows(self) -> _Rows:
        clicks = _read_clicks(self.paths[0], self.settings["dwell_seconds"])
        categories, skipped, problem = _read_categories(self.paths[1], self._bad_rows)
        article = clicks["article"].to_numpy()
        drawn = _negatives(clicks, self.settings["negatives"], self.settings["seed"])
        table = np.column_stack([np.arange(len(article)), drawn])  # [clicks, 1 + negatives], positions in `clicks`
        kept = table >= 0
        click = np.broadcast_to(np.arange(len(article), dtype=np.int32)[:, None], table.shape)[kept]
        positive = np.zeros(table.shape, bool)
        positive[:, 0] = True
        return _Rows(clicks, categories, click, article[table[kept]], positive[kept], skipped, problem)


def _frame(rows: _Rows, start: int, stop: int) -> pl.DataFrame:
    """Rows start to stop with the layout's columns and GROUP."""
    click = rows.click[start:stop]
    part = np.searchsorted([rows.clicks.height * tenths // 10 for tenths in (8, 9)], click, side="right")
    time = pl.from_epoch("time", "ms")
    day = time.dt.date().cast(pl.Int32)
    return (
        rows.clicks[click]
        .with_columns(
            pl.Series("article", rows.article[start:stop]),
            pl.Series("click", rows.positive[start:stop]).cast(pl.Int8),
            pl.Series("part", part, pl.Int32),
        )
        .join(rows.categories, on="article", how="left", maintain_order="left")
        .with_columns(
            pl.when(pl.col("click") == 1).then("long_dwell").otherwise(pl.lit(0, pl.Int8)).alias("long_dwell"),
            pl.col("category").fill_null(-1),
            time.dt.hour().alias("hour"),
            (time.dt.weekday() - 1).alias("weekday"),
            (pl.col("part") * _PART_STEP + day).alias(GROUP),
        )
        .drop("time", "session", "part")
    )


def _negatives(clicks: pl.DataFrame, count: int, seed: int) -> np.ndarray:
    """Positions of the clicks whose articles are drawn, -1 where every draw was rejected: int64 [clicks, count]."""
    hour = clicks["time"].to_numpy() // _HOUR_MS
    low, high = np.searchsorted(hour, hour, "left"), np.searchsorted(hour, hour, "right")
    article = clicks["article"].rank("dense").to_numpy().astype(np.int64)
    session = clicks["session"].rank("dense").to_numpy().astype(np.int64) * (len(article) + 1)  # articles fit between
    own = pl.Series(session + article).implode()
    random = np.random.RandomState(seed)
    drawn = np.full(len(article) * count, -1)
    open_slots = np.arange(len(drawn))
    for _ in range(ROUNDS):
        of = open_slots // count
        draw = low[of] + (random.random_sample(len(of)) * (high[of] - low[of])).astype(np.int64)
        pair = session[of] + article[draw]
        rejected = pl.Series(pair).is_in(own).to_numpy()
        drawn[open_slots[~rejected]] = draw[~rejected]
        open_slots = open_slots[rejected]
    return drawn.reshape(-1, count)


def _read_clicks(path: Path, dwell_seconds: int) -> pl.DataFrame:
    """The clicks in the order of time (where equal, in that of the file), with `long_dwell`."""
    columns = {**_KEYS, **_TABLES}
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file")
    try:
        schema = pl.read_parquet_schema(path)
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{path}: cannot be read as Parquet: {str(error).splitlines()[0]}") from None
    for column in columns.values():
        if column not in schema:
            raise DataError(f"{path}: there is no column {column!r} (it has: {', '.join(schema)})")
        if not schema[column].is_integer():
            raise DataError(f"{path}, column {column}: holds {schema[column]}, expected integers")
    try:
        raw = pl.read_parquet(path, columns=list(columns.values()))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{path}: cannot be read as Parquet: {str(error).splitlines()[0]}") from None
    clicks = raw.select(pl.col(old).cast(pl.Int64, strict=False).alias(new) for new, old in columns.items())
    _check_clicks(path, clicks, raw)
    del raw
    clicks = clicks.sort("time", maintain_order=True)
    dwell = pl.col("time").shift(-1).over("session") - pl.col("time")
    return clicks.with_columns((dwell >= 1000 * dwell_seconds).cast(pl.Int8).alias("long_dwell"))


def _check_clicks(path: Path, clicks: pl.DataFrame, raw: pl.DataFrame) -> None:
    if clicks.height < 10:
        raise DataError(f"{path}: {clicks.height} clicks are too few for training, validation and test")
    for new, old in (_KEYS | _TABLES).items():
        bad = clicks[new].is_null()
        if new == "time":
            bad |= ~clicks[new].is_between(0, _LAST_MS, closed="left")
        elif new not in _NEEDED:
            bad &= raw[old].is_not_null()  # beyond 64 bits
        if bad.any():
            row = bad.arg_max()
            raise DataError(f"{path}, row {row + 1}, column {old}: {raw[old][row]!r} is no valid value")


def _read_categories(path: Path, bad_rows: str) -> tuple[pl.DataFrame, int, str]:
    text_format = TextFormat((Column("article_id", "int64"), Column("category_id", "int64")), header=True)
    blocks = list(text_blocks((path,), text_format, bad_rows=bad_rows))
    frame = pl.concat(block.frame for block in blocks).rename({"article_id": "article", "category_id": "category"})
    skipped, problem = sum(block.skipped for block in blocks), next((b.problem for b in blocks if b.problem), "")
    bad = frame["article"].is_null() | ~frame["article"].is_first_distinct()
    if bad.any():
        row = bad.arg_max()
        found = f"{path}, line {row + 2}, column article_id: {frame['article'][row]!r} is missing or stands there twice"
        if bad_rows == "fail":
            raise DataError(found)
        frame, skipped, problem = frame.filter(~bad), skipped + bad.sum(), problem or found
    return frame, skipped, problem
