"""Ali-CCP: Alibaba click and conversion prediction (tianchi.aliyun.com/dataset/408; Ma et al., SIGIR 2018).

Taobao's recommendation log: 42.3 million impressions for training, 43 million for test. Labels: `click` and `buy`,
where only what was clicked can be bought; the few rows that claim buy without click are left out, as public code for
this data does (AITM), and are not counted as bad rows.

Each part is two files without a header. The skeleton has a line an impression, the common file a line a user:

    sample_skeleton_{train,test}.csv: sample_id,click,buy,common_feature_index,feature_num,feature_list
    common_features_{train,test}.csv: common_feature_index,feature_num,feature_list

A feature list holds `field \\x02 feature id \\x03 value`, separated by \\x01. A row's features are those of its own
list and those of the common line it points to. Field 205 becomes table F205, and so on; its categories are the feature
ids, the values are not used. `--data-option fields=single` (the default) takes the 18 fields with one feature a row
that AITM and its successors read; if there are more, the last one counts, as there. `fields=all` adds the five with
any number of features (history of the user by category, shop, brand and intention; intention of the item) as
multi-hot tables. A field a row lacks is missing.

The common file of a part, some 730,000 users, is kept in memory while that part is read. Estimates: 0.1 GB with
fields=single; up to 2 GB with fields=all (some 600 features a user, 4 bytes each) and twice that for a moment, when
it has been read. The skeleton is read block by block.

Split: the test files are the test part. Of the rows of the train files, in their order, row i is validation where the
i-th uniform draw of NumPy's RandomState(`split_seed`) lies below 0.1.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

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
    split_by_part,
    take_settings,
)
from sources.text import Column, TextFormat, text_blocks

USER_FIELDS = ("101", "121", "122", "124", "125", "126", "127", "128", "129")
ITEM_FIELDS = ("205", "206", "207", "216", "508", "509", "702", "853", "301")
SINGLE = USER_FIELDS + ITEM_FIELDS
MULTI = ("109_14", "110_14", "127_14", "150_14", "210")
FILE_PARTS = ("train", "test")
VALIDATION = 0.1
DRAWS = 1 << 20  # random numbers held at a time

LIST_COLUMNS = (Column("common_feature_index", "text"), Column("feature_num", "id"), Column("feature_list", "text"))
COMMON_FORMAT = TextFormat(LIST_COLUMNS)
SKELETON_FORMAT = TextFormat(
    (Column("sample_id", "ignore"), Column("click", "label"), Column("buy", "label"), *LIST_COLUMNS)
)


class AliCcpSource:
    """`--data-set=ali-ccp`. `--raw-data-file` is the folder with the four files."""

    def __init__(self, raw_data_file: str, options: SourceOptions | None = None) -> None:
        if not raw_data_file:
            raise ValueError(
                "--raw-data-file is empty: --data-set=ali-ccp needs the folder of sample_skeleton_train.csv"
            )
        options = options or SourceOptions()
        self.settings = take_settings(options.settings, {"fields": ("single", "all"), "split_seed": 123})
        folder = Path(raw_data_file)
        self._skeletons = tuple(folder / f"sample_skeleton_{part}.csv" for part in FILE_PARTS)
        self._commons = tuple(folder / f"common_features_{part}.csv" for part in FILE_PARTS)
        self.paths: tuple[Path, ...] = (*self._skeletons, *self._commons)
        multi = MULTI if self.settings["fields"] == "all" else ()
        self._fields = SINGLE + multi
        self.layout = Layout(
            labels=("click", "buy"),
            dense={},
            tables=tuple(map(_table, self._fields)),
            multi_hot=tuple(map(_table, multi)),
            grouped=True,
        )
        self._bad_rows = options.bad_rows

    def blocks(self, start: Position | None = None) -> Iterator[Block]:
        """The rows of the train skeleton, then of the test skeleton, with their users' features."""
        common, held = None, None
        for part in _parsed(self._skeletons, SKELETON_FORMAT, self._fields, start, self._bad_rows):
            if part.file != held:
                common = None  # frees one part's users before the next part's are read
                common, held = _read_common(self._commons[part.file], self._fields, self._bad_rows), part.file
            yield _joined(part, common, self._skeletons[part.file], self._fields, self._bad_rows)

    def split(self, rows: int, groups: Groups) -> Split:
        """Test as shipped; validation a tenth of the train file, row by row."""
        seed = self.settings["split_seed"]
        random = np.random.RandomState(seed)
        part_of_row = np.full(rows, PARTS["test"], np.uint8)
        (learning,) = np.nonzero(groups.per_row(np.int8) == 0)
        for first in range(0, len(learning), DRAWS):
            some = learning[first : first + DRAWS]
            drawn = random.random_sample(len(some)) < VALIDATION
            part_of_row[some] = np.where(drawn, PARTS["val"], PARTS["train"])
        return split_by_part(
            part_of_row,
            f"test: test files; val: rows of the train files drawn with p = 0.1, seed {seed}; train: the rest",
        )


class _Part(NamedTuple):
    """Some consecutive lines of one file, without bad ones (which are counted in `block`)."""

    block: Block  # its frame: the columns of the file that are no list, and one column a field
    file: int
    lines: np.ndarray  # the line of each row; wrong, and not shown, where text_blocks has left some out


def _table(field: str) -> str:
    return f"F{field}"


def _parsed(
    paths: tuple[Path, ...], text_format: TextFormat, fields: tuple[str, ...], start: Position | None, bad_rows: str
) -> Iterator[_Part]:
    """Read files with feature lists. Raises DataError on a bad one, or leaves its line out."""
    line = (start or {}).get("line", 1)
    for block in text_blocks(paths, text_format, start, bad_rows, group_by_file=True):
        first_line, line = line, block.end.get("line", 1)
        frame = block.frame
        columns, good = _lists(frame, fields)
        good &= frame["common_feature_index"].is_not_null()
        file = block.end["file"] - ("line" not in block.end)  # without a line, the next file's beginning
        lines = np.arange(first_line, first_line + frame.height)
        frame = frame.drop("feature_num", "feature_list").hstack(columns)
        if not good.all():
            problem = _list_problem(block.frame, (~good).arg_max(), paths[file], lines)
            if bad_rows == "fail":
                raise DataError(problem)
            block = block._replace(skipped=block.skipped + int((~good).sum()), problem=block.problem or problem)
            frame, lines = frame.filter(good), lines[good.to_numpy()]
        yield _Part(block._replace(frame=frame), file, lines)


def _lists(frame: pl.DataFrame, fields: tuple[str, ...]) -> tuple[list[pl.Series], pl.Series]:
    """A column for each field, and whether each row's list is well-formed and as long as stated."""
    rows = frame.height
    entries = frame.select(pl.col("feature_list").str.split("\x01").alias("entry")).with_row_index("row")
    entries = entries.explode("entry", empty_as_null=True).drop_nulls("entry")
    entries = entries.select(
        "row", pl.col("entry").str.extract_groups("^([^\x02\x03]+)\x02([0-9]{1,10})\x03[^\x02\x03]+$").alias("entry")
    ).unnest("entry")
    row, field = entries["row"].to_numpy(), entries["1"]
    ids = entries["2"].cast(pl.Int64).cast(pl.UInt32, strict=False)
    counted = np.bincount(row[ids.is_not_null().to_numpy()], minlength=rows)
    malformed = np.bincount(row[ids.is_null().to_numpy()], minlength=rows)
    good = pl.Series((counted == frame["feature_num"].fill_null(-1).to_numpy()) & (malformed == 0))
    columns = []
    for name in fields:
        chosen = (field == name).fill_null(False).to_numpy()
        values, at = ids.filter(pl.Series(chosen)), row[chosen]
        columns.append((_lists_of if name in MULTI else _last_of)(_table(name), values, at, rows))
    return columns, good


def _last_of(name: str, values: pl.Series, at: np.ndarray, rows: int) -> pl.Series:
    column, known = np.zeros(rows, np.uint32), np.zeros(rows, bool)
    column[at], known[at] = values.fill_null(0).to_numpy(), True  # NumPy keeps the last of several values for one row
    return pl.select(pl.when(pl.Series(known)).then(pl.Series(column)).alias(name)).to_series()


def _lists_of(name: str, values: pl.Series, at: np.ndarray, rows: int) -> pl.Series:
    lists = pl.DataFrame({"row": pl.Series(at, dtype=pl.UInt32), name: values})
    lists = lists.group_by("row", maintain_order=True).agg(name)
    every = pl.DataFrame({"row": pl.Series(np.arange(rows), dtype=pl.UInt32)})
    return every.join(lists, on="row", how="left", maintain_order="left")[name]


def _list_problem(frame: pl.DataFrame, row: int, path: Path, lines: np.ndarray) -> str:
    at = f"{path}, line {lines[row]}"
    if frame["common_feature_index"][row] is None:
        return f"{at}, column common_feature_index: the field is empty"
    entries = (frame["feature_list"][row] or "").split("\x01")
    for entry in filter(None, entries):
        field, _, rest = entry.partition("\x02")
        feature, _, value = rest.partition("\x03")
        number = int(feature) if feature.isascii() and feature.isdigit() and len(feature) <= 10 else -1
        if not (field and value and 0 <= number < 2**32):
            return f"{at}, column feature_list: {entry[:40]!r} is not field\\x02feature\\x03value"
    found = sum(map(bool, entries))
    return f"{at}, column feature_list: {found} features, but feature_num says {frame['feature_num'][row]}"


def _read_common(path: Path, fields: tuple[str, ...], bad_rows: str) -> pl.DataFrame:
    """The common features of all users of a part, one row a user; the last line counts if a user has several."""
    parts = [part.block.frame.drop(GROUP) for part in _parsed((path,), COMMON_FORMAT, fields, None, bad_rows)]
    if not parts:
        raise DataError(f"{path}: the file has no usable row")
    common = pl.concat(parts)
    parts.clear()  # so that `rechunk` can free what it has copied
    common = common.rechunk()
    if common["common_feature_index"].n_unique() < common.height:
        return common.unique("common_feature_index", keep="last", maintain_order=True)
    return common


def _joined(part: _Part, common: pl.DataFrame, path: Path, fields: tuple[str, ...], bad_rows: str) -> Block:
    """Add the users' features to a block of the skeleton, and leave out what was bought unclicked."""
    block, tables = part.block, [_table(field) for field in fields]
    users = common.rename({name: f"{name} of the user" for name in tables})
    users = users.with_columns(pl.lit(True).alias("found"))
    frame = block.frame.join(users, on="common_feature_index", how="left", maintain_order="left")
    lost = frame["found"].is_null()
    if lost.any():
        row = lost.arg_max()
        index = frame["common_feature_index"][row][:40]
        at = f"{path}, line {part.lines[row]}, column common_feature_index"
        problem = f"{at}: {index!r} is not in the common features file"
        if bad_rows == "fail":
            raise DataError(problem)
        block = block._replace(skipped=block.skipped + int(lost.sum()), problem=block.problem or problem)
        frame = frame.filter(~lost)
    frame = frame.filter((pl.col("click") == 1) | (pl.col("buy") == 0))
    features = (pl.coalesce(f"{name} of the user", name).alias(name) for name in tables)
    return block._replace(frame=frame.select("click", "buy", GROUP, *features))
