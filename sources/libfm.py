"""libFM text (`label index:1 index:1 ...`), and the Frappe benchmark as CSV files.

libFM's format is that of LIBSVM: one row a line, separated by single blanks: the label (1 against 0 or -1, also 1.0)
and the features that are set, as index:value. It is read here as published for one-hot data (Frappe: 10 fields,
MovieLens-tag: 3, github.com/hexiangnan/neural_factorization_machine): every row has the same number of features, the
i-th of which is a category of field i with the value 1. The fields share one space of indices; field i becomes table
Fi. A line may end in one blank if all lines of its file do.

Both data sets come divided: the rows of the train, validation and test file are these parts.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from sources import GROUP, Block, DataError, Groups, Layout, Position, SourceOptions, Split, take_settings
from sources.text import Column, TextFormat, is_gzip, text_blocks

MAX_FIELDS = 1000
VALIDATION_NAMES = ("valid", "validation", "val")
LABEL_PATTERN = r"^[+-]?[01](?:\.0*)?$"
FEATURE_PATTERN = r"^([0-9]{1,18}):\+?1(?:\.0*)?$"
FILE_PARTS = ("train", "validation", "test")
TRAILING = "__after_last_blank"

FRAPPE_TABLES = (
    "user",
    "item",
    "daytime",
    "weekday",
    "isweekend",
    "homework",
    "cost",
    "weather",
    "country",
    "city",
)
FRAPPE_FORMAT = TextFormat((Column("label", "label"), *(Column(name, "id") for name in FRAPPE_TABLES)), header=True)
FRAPPE_SCORING = TextFormat(
    (Column("label", "optional-label"), *FRAPPE_FORMAT.columns[1:]), header=True, optional=("label",)
)


class LibfmSource:
    """`--data-set=libfm`. `--raw-data-file` is the train file; "valid"/"validation"/"val" and "test" lie beside it."""

    def __init__(self, raw_data_file: str, options: SourceOptions | None = None) -> None:
        if not raw_data_file:
            raise ValueError("--raw-data-file is empty: --data-set=libfm needs the path of the train file")
        options = options or SourceOptions()
        train = Path(raw_data_file)
        self.settings = take_settings(options.settings, {})
        self.paths: tuple[Path, ...] = (train, _beside(train, VALIDATION_NAMES), _beside(train, ("test",)))
        self._labelled, self._fields = _shape(train)
        if not self._labelled:
            raise DataError(f"{train}, line 1: the first field is an index:value, a label was expected")
        self.layout = Layout(labels=("label",), dense={}, tables=_table_names(self._fields), grouped=True)
        self._bad_rows = options.bad_rows

    def blocks(self, start: Position | None = None) -> Iterator[Block]:
        """Rows of the train, the validation and the test file, in file order."""
        return libfm_blocks(self.paths, self._fields, start, self._bad_rows)

    def split(self, rows: int, groups: Groups) -> Split:
        """The parts are the files."""
        return split_by_file(self.paths, groups)

    @staticmethod
    def scoring_blocks(path: Path, settings: dict[str, Any]) -> Iterator[Block]:
        """Rows with a label, or all without one, decided by the first line."""
        labelled, fields = _shape(path)
        return libfm_blocks((path,), fields, None, "fail", labelled=labelled)


class FrappeSource:
    """`--data-set=frappe`: context-aware use of apps. `--raw-data-file` is a folder with train, valid and test.csv.

    Header `label,user,item,daytime,...,city`; ten one-hot fields in one space of 5,382 indices. 202,009, 57,722 and
    28,860 rows, a third of them positive. The split is that of the benchmark Frappe_x1 (BARS).
    """

    layout = Layout(labels=("label",), dense={}, tables=FRAPPE_TABLES, grouped=True)

    def __init__(self, raw_data_file: str, options: SourceOptions | None = None) -> None:
        if not raw_data_file:
            raise ValueError("--raw-data-file is empty: --data-set=frappe needs the folder of train.csv")
        options = options or SourceOptions()
        self.settings = take_settings(options.settings, {})
        self.paths: tuple[Path, ...] = tuple(
            Path(raw_data_file) / name for name in ("train.csv", "valid.csv", "test.csv")
        )
        self._bad_rows = options.bad_rows

    def blocks(self, start: Position | None = None) -> Iterator[Block]:
        """Rows of the three files, in file order."""
        return text_blocks(self.paths, FRAPPE_FORMAT, start, self._bad_rows, group_by_file=True)

    def split(self, rows: int, groups: Groups) -> Split:
        """The parts are the files."""
        return split_by_file(self.paths, groups)

    @staticmethod
    def scoring_blocks(path: Path, settings: dict[str, Any]) -> Iterator[Block]:
        """A CSV file of the same columns, with or without the label."""
        return text_blocks((path,), FRAPPE_SCORING)


def split_by_file(paths: tuple[Path, ...], groups: Groups) -> Split:
    """Train, validation and test are the files 0, 1 and 2. Raises DataError where one of them gave no row."""
    sizes = [int(groups.lengths[groups.values == number].sum()) for number in range(len(FILE_PARTS))]
    for path, size in zip(paths, sizes, strict=True):
        if not size:
            raise DataError(f"{path}: the file has no usable row")
    train, validation, test = sizes
    names = ", ".join(f"{part}: {path.name}" for part, path in zip(FILE_PARTS, paths, strict=True))
    return Split(
        train_days=((0, train),),
        val=(train, train + validation),
        test=(train + validation, train + validation + test),
        description=f"as shipped, one file a part ({names})",
    )


def _beside(train: Path, names: tuple[str, ...]) -> Path:
    """The file of another part, named as the train file is but for "train"; the last "train" of the name counts."""
    before, found, after = train.name.rpartition("train")
    if not found:
        raise ValueError(f'--raw-data-file={train}: "train" does not occur in the file name')
    candidates = [train.with_name(before + name + after) for name in names]
    for candidate in candidates:
        if candidate.exists():
            return candidate
    looked_for = ", ".join(candidate.name for candidate in candidates)
    raise DataError(f"{train.parent}: there is no {looked_for} beside {train.name}")


def _shape(path: Path) -> tuple[bool, int]:
    """Whether the rows of a file have labels, and how many features, from its first line."""
    try:
        with gzip.open(path, "rb") if is_gzip(path) else open(path, "rb") as file:
            first = file.readline(1 << 20).split()
    except (EOFError, gzip.BadGzipFile) as error:
        raise DataError(f"{path}, line 1: the gzip stream is cut off or damaged ({error})") from None
    labelled = not first or b":" not in first[0]
    fields = len(first) - labelled
    if not 1 <= fields <= MAX_FIELDS:
        raise DataError(f"{path}, line 1: {max(fields, 0)} features index:value, expected 1 to {MAX_FIELDS}")
    return labelled, fields


def _table_names(fields: int) -> tuple[str, ...]:
    return tuple(f"F{i}" for i in range(1, fields + 1))


def libfm_blocks(
    paths: tuple[Path, ...], fields: int, start: Position | None, bad_rows: str, *, labelled: bool = True
) -> Iterator[Block]:
    """Parse libFM files of `fields` features a row; without labels the column `label` is null."""
    names = (("label",) if labelled else ()) + _table_names(fields)
    text_format = TextFormat(
        tuple(Column(name, "text") for name in (*names, TRAILING)), separator=" ", optional=(TRAILING,)
    )
    line = (start or {}).get("line", 1)
    for block in text_blocks(paths, text_format, start, bad_rows, group_by_file=True):
        first_line, line = line, block.end.get("line", 1)
        checked = _checked(block.frame, names)
        bad = checked.select(pl.any_horizontal(pl.all().is_null()).alias("bad"))["bad"]
        frame = checked.with_columns(block.frame[GROUP])
        if not labelled:
            frame = frame.with_columns(pl.lit(None, pl.Int8).alias("label"))
        frame = frame.drop(TRAILING)
        if not bad.any():
            yield block._replace(frame=frame)
            continue
        problem = _problem(block, bad.arg_max(), checked, paths, first_line)
        if bad_rows == "fail":
            raise DataError(problem)
        yield Block(frame.filter(~bad), block.end, block.skipped + bad.sum(), block.problem or problem)


def _checked(frame: pl.DataFrame, names: tuple[str, ...]) -> pl.DataFrame:
    """Labels 0 or 1 and indices, null where a field is none; TRAILING is null where something follows the row."""
    columns = []
    for name in names:
        text = pl.col(name)
        if name == "label":
            value = pl.when(text.str.contains(LABEL_PATTERN)).then(text.str.contains(r"^\+?1"))
            columns.append(value.cast(pl.Int8))
        else:
            columns.append(text.str.extract(FEATURE_PATTERN, 1).cast(pl.Int64))
    empty = pl.col(TRAILING).is_null() if TRAILING in frame.columns else pl.lit(True)
    return frame.select(*columns, pl.when(empty).then(pl.lit(True)).alias(TRAILING))


def _problem(block: Block, row: int, checked: pl.DataFrame, paths: tuple[Path, ...], first_line: int) -> str:
    """What is wrong with a row of a block that begins at `first_line` of its file.

    The line number holds where no line was left out; else `block.problem` comes first and this one is not shown.
    """
    name = next(name for name in checked.columns if checked[name][row] is None)
    value = str(block.frame[name][row] or "")[:40]
    at = f"{paths[block.frame[GROUP][row]]}, line {first_line + row}"
    if name == TRAILING:
        return f"{at}: {value!r} follows the last feature"
    wanted = "label, expected 1, 0 or -1" if name == "label" else "category, expected index:1"
    return f"{at}, column {name}: {value!r} is not a {wanted}"
