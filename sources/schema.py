"""People's own data: CSV, TSV or Parquet files described by a small schema, a .yaml or .json file.

    files: clicks.csv          # a name, a list of names, or a pattern such as "day_*.csv.gz" (files in order of their
                               # names); relative to the schema's folder; .csv, .tsv, each also with .gz, or .parquet
    separator: ";"             # of text, one character; left out: "," for .csv, a tab for .tsv
    labels: [click, buy]       # columns of 0 and 1; the first is the one trained by default
    optional_labels: [buy]     # those of them that may be empty where unknown
    dense:                     # columns of numbers, and what the model sees of a value x (empty: missing)
      price: log1p             #   log(x + 1); a negative x is refused
      age: standard            #   (x - mean) / standard deviation
      discount: none           #   x
    categorical: [user, item]  # one value a cell, any text or number; empty: missing, which counts as a value too
    multi_hot:                 # any number of values a cell: column -> the separator between them, "" for a list
      tags: "|"                #   column of Parquet
    split:                     # which rows are for training, validation and test
      by: time                 #   time, random or column
      column: ts               #   time: integers or ISO dates (and times), not empty, of rows in any order;
                               #   column: each row's part: train, val (or valid, validation) or test
      val: 0.1                 #   share of the rows (not with column), 0.1 if left out
      test: 0.1                #   likewise
    # seed: 123                #   with random only, 123 if left out

Only `files`, `labels`, at least one of `categorical` and `multi_hot`, and `split` must be there. A text file names its
columns in its first line; columns that the schema does not name are ignored. YAML needs PyYAML (pip install pyyaml).

By time, the latest rows are the test part and those before them validation. A part ends with the first value of the
column at which it has reached its share, and rows of one time are never torn apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from sources import (
    PARTS,
    Block,
    Groups,
    Layout,
    Position,
    SourceOptions,
    Split,
    random_split,
    split_by_part,
    take_settings,
)
from sources.schema_file import read_schema
from sources.table import TableFormat, dense_kind, read_tables
from sources.text_kinds import Column


class SchemaSource:
    """`--data-set=schema`. `--raw-data-file` is the schema; this module's documentation explains its keys."""

    def __init__(self, raw_data_file: str, options: SourceOptions) -> None:
        if not raw_data_file:
            raise ValueError("--raw-data-file is empty: --data-set=schema needs the path of a .yaml or .json schema")
        take_settings(options.settings, {})
        schema, self.paths = read_schema(Path(raw_data_file))
        # without the files' folders: the same data elsewhere is the same data
        self.settings: dict[str, Any] = {**schema, "files": [path.name for path in self.paths]}
        self._split: dict[str, Any] = schema["split"]
        self._bad_rows = options.bad_rows
        self.layout = Layout(
            labels=tuple(schema["labels"]),
            dense=dict(schema["dense"]),
            tables=(*schema["categorical"], *schema["multi_hot"]),
            multi_hot=tuple(schema["multi_hot"]),
            grouped=self._split["by"] != "random",
        )

    def blocks(self, start: Position | None = None) -> Iterator[Block]:
        """The rows of all files, in order."""
        optional = self.settings["optional_labels"]
        labels = [Column(n, "optional-label" if n in optional else "label") for n in self.settings["labels"]]
        group = self._split.get("column", "")
        last = [Column(group, {"time": "time", "column": "part"}[self._split["by"]])] if group else []
        columns = (*labels, *_features(self.settings), *last)
        table = TableFormat(columns, self.settings["multi_hot"], self.settings["separator"], group=group)
        return read_tables(self.paths, table, start, self._bad_rows)

    def split(self, rows: int, groups: Groups | None = None) -> Split:
        """As the schema says."""
        split = self._split
        if split["by"] == "column":
            return split_by_part(groups.per_row(np.uint8), f"as the column {split['column']} says")
        val, test = Fraction(str(split["val"])), Fraction(str(split["test"]))
        if split["by"] == "time":
            return _split_by_time(groups, val, test, split["column"])
        parts = math.lcm(val.denominator, test.denominator)
        tenths = (int((1 - val - test) * parts), int(val * parts), int(test * parts))
        return random_split(rows, split["seed"], tenths)

    @staticmethod
    def scoring_blocks(path: Path, settings: dict[str, Any]) -> Iterator[Block]:
        """Rows of a CSV, TSV or Parquet file by the same schema; its labels may be empty or missing as columns."""
        labels = tuple(settings["labels"])
        columns = (*(Column(name, "optional-label") for name in labels), *_features(settings))
        return read_tables([path], TableFormat(columns, settings["multi_hot"], settings["separator"], optional=labels))


def _features(settings: dict[str, Any]) -> list[Column]:
    dense = [Column(name, dense_kind(transform)) for name, transform in settings["dense"].items()]
    return dense + [Column(name, "text") for name in (*settings["categorical"], *settings["multi_hot"])]


def _split_by_time(groups: Groups, val: Fraction, test: Fraction, column: str) -> Split:
    """Parts by quantiles of the time. A part ends with the first time at which it has reached its share."""
    times, which = np.unique(groups.values, return_inverse=True)
    rows_until = np.cumsum(np.bincount(which, weights=groups.lengths, minlength=len(times)).astype(np.int64))
    rows = int(rows_until[-1])
    ends = [int(np.searchsorted(rows_until, math.ceil(rows * share))) for share in (1 - val - test, 1 - test)]
    part_of_time = np.full(len(times), PARTS["test"], np.uint8)
    part_of_time[: ends[1] + 1] = PARTS["val"]
    part_of_time[: ends[0] + 1] = PARTS["train"]
    names = [int(times[min(end, len(times) - 1)]) for end in ends]
    description = (
        f"by time, column {column}: train up to {names[0]}, val up to {names[1]}, test after it"
        f" (shares {float(1 - val - test):g}, {float(val):g}, {float(test):g}; rows of one time stay together)"
    )
    return split_by_part(np.repeat(part_of_time[which], groups.lengths), description)


__all__ = ["SchemaSource"]
