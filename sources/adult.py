"""UCI Adult (census income, 1994): 32,561 and 16,281 persons, two labels (archive.ics.uci.edu/dataset/2/adult).

Two files without a header, adult.data and adult.test: 15 fields separated by ", ", "?" where a value is missing,
blank lines at the end. adult.test begins with a comment line ("|1x3 Cross validator") and puts a dot behind its last
field.

Labels: `income` (more than 50K, 24.1 % of adult.data) and `never_married` (32.8 %), the pair of tasks that the MMoE
paper (KDD 2018) takes from the larger census-income data. `marital_status` is the second label and no feature.
`relationship` is left out as well, since Husband and Wife give that label away; `--data-option relationship=in` takes
it back, for work on income alone. `fnlwgt` is left out: it says how many persons a row stands for, nothing of the
person. Capital gain and loss are zero for most and heavy-tailed, hence log1p; the other numbers are standardised.

Split: adult.test is the test part; a tenth of adult.data, drawn by a seeded permutation (`split_seed`), is validation.
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
    blocks_of_slices,
    split_by_part,
    take_settings,
)

BLOCK_ROWS = 1 << 18
FIELDS = (
    "age",
    "workclass",
    "fnlwgt",
    "education",
    "education_num",
    "marital_status",
    "occupation",
    "relationship",
    "race",
    "sex",
    "capital_gain",
    "capital_loss",
    "hours_per_week",
    "native_country",
    "income",
)
DENSE = {
    "age": "standard",
    "education_num": "standard",
    "capital_gain": "log1p",
    "capital_loss": "log1p",
    "hours_per_week": "standard",
}
TABLES = ("workclass", "education", "occupation", "race", "sex", "native_country")
SETTINGS = {"split_seed": 123, "relationship": ("out", "in")}


class AdultSource:
    """`--data-set=adult`. `--raw-data-file` is the folder with adult.data and adult.test."""

    def __init__(self, raw_data_file: str, options: SourceOptions | None = None) -> None:
        if not raw_data_file:
            raise ValueError("--raw-data-file is empty: --data-set=adult needs the folder of adult.data and adult.test")
        options = options or SourceOptions()
        self.settings = take_settings(options.settings, SETTINGS)
        folder = Path(raw_data_file)
        self.paths: tuple[Path, ...] = (folder / "adult.data", folder / "adult.test")
        self.layout = _layout(self.settings)
        self._bad_rows = options.bad_rows

    def blocks(self, start: Position | None = None) -> Iterator[Block]:
        """Rows of adult.data, then of adult.test."""
        parts, skipped, problem = [], 0, ""
        for number, path in enumerate(self.paths):
            frame, left_out, what = read_adult(path, self._bad_rows)
            parts.append(frame.with_columns(pl.lit(number, pl.Int32).alias(GROUP)))
            skipped, problem = skipped + left_out, problem or what
        frame = pl.concat(parts).select(*_columns(self.layout), GROUP)
        return blocks_of_slices(frame.height, BLOCK_ROWS, start, lambda a, b: frame[a:b], skipped, problem)

    def split(self, rows: int, groups: Groups) -> Split:
        """Test as shipped, validation a tenth of the rest."""
        part_of_row = np.full(rows, PARTS["test"], np.uint8)
        (learning,) = np.nonzero(groups.per_row() == 0)
        part_of_row[learning] = PARTS["train"]
        seed = self.settings["split_seed"]
        order = np.random.RandomState(seed).permutation(len(learning))
        part_of_row[learning[order[: len(learning) // 10]]] = PARTS["val"]
        return split_by_part(
            part_of_row,
            f"test: adult.test; val: a tenth of adult.data by a permutation, seed {seed}; train: the rest of it",
        )

    @staticmethod
    def scoring_blocks(path: Path, settings: dict[str, Any]) -> Iterator[Block]:
        """Rows of 15 fields, or all of 14, without the income."""
        frame, _, _ = read_adult(path, "fail", optional_income=True)
        yield Block(frame.select(_columns(_layout(settings))), {"row": frame.height})


def _layout(settings: dict[str, Any]) -> Layout:
    tables = TABLES + (("relationship",) if settings["relationship"] == "in" else ())
    return Layout(labels=("income", "never_married"), dense=DENSE, tables=tables, grouped=True)


def _columns(layout: Layout) -> list[str]:
    return [*layout.labels, *layout.dense, *layout.tables]


def read_adult(path: Path, bad_rows: str, *, optional_income: bool = False) -> tuple[pl.DataFrame, int, str]:
    """The rows of a file with all columns, how many bad ones were left out, and what was wrong with the first."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}, byte {error.start}: is not UTF-8") from None
    frame = pl.DataFrame({"line": pl.Series(lines, dtype=pl.String)}).with_row_index("number", offset=1)
    stripped = pl.col("line").str.strip_chars()
    frame = frame.filter((stripped != "") & ~stripped.str.starts_with("|"))
    frame = frame.with_columns(pl.col("line").str.split(",").list.eval(pl.element().str.strip_chars()).alias("fields"))
    if frame.is_empty():
        raise DataError(f"{path}: the file has no rows")
    expected = len(FIELDS)
    if optional_income and frame["fields"].list.len()[0] == expected - 1:
        expected -= 1
    names = FIELDS[:expected]
    frame = frame.with_columns(
        pl.col("fields").list.get(i, null_on_oob=True).alias(name) for i, name in enumerate(names)
    )
    parsed = _parsed(frame, names)
    good = _good(frame, parsed, names)
    problem = ""
    if not good.all():
        problem = _problem(path, frame, parsed, names, (~good).arg_max())
        if bad_rows == "fail":
            raise DataError(problem)
    return parsed.filter(good), int((~good).sum()), problem


def _parsed(frame: pl.DataFrame, names: tuple[str, ...]) -> pl.DataFrame:
    """The columns in their types; null where a value is missing or none of its kind."""
    columns = []
    for name in names:
        text = pl.when(pl.col(name) != "?").then(pl.col(name))
        if name == "income":
            income = pl.col(name).str.strip_suffix(".")
            columns.append(income.replace_strict({"<=50K": 0, ">50K": 1}, default=None, return_dtype=pl.Int8))
        elif name in DENSE:
            columns.append(text.cast(pl.Int64, strict=False))
        else:
            columns.append(text)
    if "income" not in names:
        columns.append(pl.lit(None, pl.Int8).alias("income"))
    married = pl.when(pl.col("marital_status") != "?").then(pl.col("marital_status") == "Never-married")
    return frame.select(*columns, married.cast(pl.Int8).alias("never_married"))


def _good(frame: pl.DataFrame, parsed: pl.DataFrame, names: tuple[str, ...]) -> pl.Series:
    """Whether each row has all fields, numbers where numbers belong, and its labels."""
    good = frame["fields"].list.len() == len(names)
    for name in names:
        if name in DENSE:
            good &= parsed[name].is_not_null() | (frame[name] == "?").fill_null(False)
        elif name == "income":
            good &= parsed[name].is_not_null()
        else:
            good &= (frame[name] != "").fill_null(False)
    return good & (parsed["never_married"].is_not_null() | ("income" not in names))


def _problem(path: Path, frame: pl.DataFrame, parsed: pl.DataFrame, names: tuple[str, ...], row: int) -> str:
    """What is wrong with a row that is not good."""
    at = f"{path}, line {frame['number'][row]}"
    count = len(frame["fields"][row])
    if count != len(names):
        return f"{at}: {count} columns, expected {len(names)}"
    for name in names:
        value = frame[name][row]
        if name in DENSE and value != "?" and parsed[name][row] is None:
            return f"{at}, column {name}: {value[:40]!r} is not an integer"
        if name == "income" and parsed[name][row] is None:
            return f"{at}, column income: {value[:40]!r} is not a label, expected <=50K or >50K"
        if value == "":
            return f"{at}, column {name}: the field is empty"
    return f"{at}, column marital_status: '?' is no label (never_married)"
