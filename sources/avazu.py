"""Avazu click-through-rate challenge (Kaggle 2014, `train.csv`): 40,428,967 rows of ten days, 24 columns with a header.

Columns: id, click, hour (YYMMDDHH), C1, banner_pos, site_id, site_domain, site_category, app_id, app_domain,
app_category, device_id, device_ip, device_model, device_type, device_conn_type, C14 ... C21. `id` is dropped; all
others but the label are categorical and are read as strings. Source: https://www.kaggle.com/c/avazu-ctr-prediction

`--data-option fields=time` (default): the 21 categorical columns, and `hour` (0 to 23) and `weekday` (Monday 0) decoded
from the stamp as two more tables; nothing is dense.

`--data-option fields=authors`: the 21 categorical columns and one dense column `hour`, the constant 5, of which the
model sees log(5 + 1). This repeats a known defect of the MLET authors' code on purpose: it takes the number YYMMDDHH
(14102100 ... 14103023) for a Unix time, and all of these numbers of seconds fall between 05:00 and 06:00 on 13 June
1970. Their models therefore have no working dense feature and never see the hour.

`--data-option ids=strings` (default) keeps categorical values as they are. `ids=sqlite` merges those that the authors'
data base merged: its columns have INTEGER affinity, which stores any text that reads as a number as that number, so
the hexadecimal strings 00012345 and 12345 become one, as do 12e5 and 120e4, and all that overflow as 1234e567 does.

`--data-option split=random` (default): 8:1:1 by a permutation seeded with `split_seed` (123), the authors' seed and
parts. `split=day`: the last day is test, the day before it validation, all days before are the training part.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
    random_split,
    split_by_part,
    take_settings,
)
from sources.text import Column, TextFormat, text_blocks

# Table sizes that the authors' repository states, for ids=sqlite. Each counts a row 0, which they keep for the value -1
# (here -1 is a value like any other: that changes the order of ids and nothing else); a field without -1 has one value
# fewer. Sizes of the full set differ slightly even with ids=sqlite, since the authors' reader lost 28,967 of the rows,
# and by about 1 % with ids=strings where values are hashed strings, of which SQLite merges those that read as numbers.
AUTHORS_TABLE_ROWS = {
    "C1": 8,
    "banner_pos": 8,
    "site_id": 4698,
    "site_domain": 7672,
    "site_category": 27,
    "app_id": 8473,
    "app_domain": 554,
    "app_category": 37,
    "device_id": 2662436,
    "device_ip": 6668832,
    "device_model": 8186,
    "device_type": 6,
    "device_conn_type": 5,
    "C14": 2626,
    "C15": 9,
    "C16": 10,
    "C17": 436,
    "C18": 5,
    "C19": 69,
    "C20": 173,
    "C21": 61,
}
FIELDS = tuple(AUTHORS_TABLE_ROWS)
AUTHORS_HOUR = 5  # utcfromtimestamp(14102100).hour, and so for every other stamp

_SETTINGS = {"fields": ("time", "authors"), "ids": ("strings", "sqlite"), "split": ("random", "day"), "split_seed": 123}
_SPACE = " \t\n\v\f\r"
_NUMBER = r"^[ \t\n\v\f\r]*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?[ \t\n\v\f\r]*$"
_INFINITE = "9e999"  # a literal that SQLite too reads as infinity, so that it is no new text


def sqlite_form(text: pl.Expr) -> pl.Expr:
    """One string for all strings that are equal once stored in an SQLite column of INTEGER affinity.

    A well-formed integer literal of 64 bits becomes that integer, any other well-formed number a double, which is an
    integer again if it is a whole number below 2**63; everything else stays a text.
    """
    bare = text.str.strip_chars(_SPACE)
    integer = bare.cast(pl.Int64, strict=False)
    real = bare.cast(pl.Float64, strict=False)
    whole = (real == real.floor()) & (real.abs() < 2.0**63)
    number = (
        pl.when(integer.is_not_null())
        .then(integer.cast(pl.String))
        .when(whole)
        .then(real.cast(pl.Int64, strict=False).cast(pl.String))
        .when(real.is_infinite())
        .then(pl.when(real > 0).then(pl.lit(_INFINITE)).otherwise(pl.lit("-" + _INFINITE)))
        .otherwise(real.cast(pl.String))
    )
    return pl.when(text.str.contains(_NUMBER)).then(number).otherwise(text)


class AvazuSource:
    """`--data-set=avazu`. `--raw-data-file` is train.csv, or any labelled file in its format, gzip or not."""

    def __init__(self, raw_data_file: str, options: SourceOptions) -> None:
        if not raw_data_file:
            raise ValueError("--raw-data-file is empty: --data-set=avazu needs the path of train.csv")
        self.settings: dict[str, Any] = take_settings(options.settings, _SETTINGS)
        seed = self.settings["split_seed"]
        if not 0 <= seed < 2**32:
            raise ValueError(f"--data-option=split_seed={seed}: give a number from 0 to 2**32 - 1")
        self.paths: tuple[Path, ...] = (Path(raw_data_file),)
        authors = self.settings["fields"] == "authors"
        self.layout = Layout(
            labels=("click",),
            dense={"hour": "log1p"} if authors else {},
            tables=FIELDS if authors else (*FIELDS, "hour", "weekday"),
            grouped=self.settings["split"] == "day",
        )
        self._bad_rows = options.bad_rows

    def blocks(self, start: Position | None = None) -> Iterator[Block]:
        """Rows in file order; with split=day their day, counted from 1970, as GROUP."""
        return _blocks(self.paths[0], self.settings, start, self._bad_rows, labelled=True)

    def split(self, rows: int, groups: Groups | None = None) -> Split:
        """Random tenths, or whole days in the order of the calendar."""
        if self.settings["split"] == "random":
            return random_split(rows, self.settings["split_seed"])
        return _split_days(self.paths[0], groups)

    @staticmethod
    def scoring_blocks(path: Path, settings: dict[str, Any]) -> Iterator[Block]:
        """Rows as in test.csv, which has no column `click`, or as in train.csv."""
        return _blocks(path, settings | {"split": "random"}, None, "fail", labelled=False)


def _blocks(
    path: Path, settings: dict[str, Any], start: Position | None, bad_rows: str, *, labelled: bool
) -> Iterator[Block]:
    text_format = TextFormat(
        columns=(
            Column("click", "label" if labelled else "optional-label"),
            Column("hour", "yymmddhh"),
            *(Column(name, "text") for name in FIELDS),
        ),
        header=True,
        optional=() if labelled else ("click",),
    )
    for block in text_blocks((path,), text_format, start, bad_rows):
        yield block._replace(frame=_decoded(block.frame, settings))


def _decoded(frame: pl.DataFrame, settings: dict[str, Any]) -> pl.DataFrame:
    """The stamp taken apart, the ids as the settings want them."""
    stamp = pl.col("hour")
    part = [stamp.str.slice(at, 2).cast(pl.Int32) for at in (0, 2, 4, 6)]
    date = pl.date(2000 + part[0], part[1], part[2])
    columns = []
    if settings["split"] == "day":
        columns.append(date.cast(pl.Int32).alias(GROUP))
    if settings["fields"] == "time":
        columns += [part[3].alias("hour"), (date.dt.weekday() - 1).alias("weekday")]
    else:
        columns.append(pl.lit(AUTHORS_HOUR, pl.Int32).alias("hour"))
    if settings["ids"] == "sqlite":
        columns += [sqlite_form(pl.col(name)).alias(name) for name in FIELDS]
    return frame.with_columns(columns)


def _split_days(path: Path, groups: Groups) -> Split:
    days = np.unique(groups.values)
    if len(days) < 3:
        raise DataError(f"{path}: {len(days)} days; split=day needs at least 3 (train, validation, test)")
    first, before, val, test = np.array([days[0], days[-3], days[-2], days[-1]], "datetime64[D]").tolist()
    description = f"by day; train: {first} to {before}, val: {val}, test: {test}"
    if (np.diff(groups.values) < 0).any():  # not in time order: part by part, each in file order
        part = np.select(
            [groups.values == days[-1], groups.values == days[-2]], [PARTS["test"], PARTS["val"]], PARTS["train"]
        )
        return split_by_part(np.repeat(part.astype(np.uint8), groups.lengths), description)
    ends = np.cumsum([groups.lengths[groups.values == day].sum() for day in days]).tolist()
    ranges = list(zip([0, *ends[:-1]], ends, strict=True))
    return Split(train_days=tuple(ranges[:-2]), val=ranges[-2], test=ranges[-1], description=description)
