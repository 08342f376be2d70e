"""Parquet columns of every type against the values expected; what is refused, and where reading goes on."""

from datetime import UTC, date, datetime

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import sources.parquet
from sources import GROUP, DataError
from sources.table import TableFormat, read_tables
from sources.text_kinds import Column


def write_parquet(path, **columns):
    pq.write_table(pa.table({name: pa.array(v) if isinstance(v, list) else v for name, v in columns.items()}), path)
    return path


def read(path, *columns, bad_rows="fail", **more):
    blocks = list(read_tables([path], TableFormat(tuple(Column(*c) for c in columns), **more), None, bad_rows))
    return pl.concat([b.frame for b in blocks]), sum(b.skipped for b in blocks), "".join(b.problem for b in blocks)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pa.array([2**64 - 1, 0, None], pa.uint64()), ["18446744073709551615", "0", None]),
        (pa.array([-5, 7, None], pa.int8()), ["-5", "7", None]),
        (pa.array(["a", "", None]), ["a", "", None]),
        (pa.array(["a", "b", None], pa.large_string()), ["a", "b", None]),
        (pa.array(["a", "b", None]).dictionary_encode(), ["a", "b", None]),
        (pa.array([30, 20, None]).dictionary_encode(), ["30", "20", None]),
        (pa.array([True, False, None]), ["true", "false", None]),
    ],
)
def test_parquet_categoricals_come_out_as_text(tmp_path, values, expected):
    frame = read(write_parquet(tmp_path / "a.parquet", c=values), ("c", "text"))[0]
    assert frame["c"].dtype == pl.String and frame["c"].to_list() == expected


@pytest.mark.parametrize(
    ("values", "separator", "expected"),
    [
        (pa.array([[1, None, 2], [], None]), "", [["1", "2"], None, None]),
        (pa.array([["a", ""], [""], ["b"]], pa.large_list(pa.string())), "|", [["a"], None, ["b"]]),
        (pa.array(["a;b", ";", None]), ";", [["a", "b"], None, None]),
        (pa.array(["a;b", "c", None]).dictionary_encode(), ";", [["a", "b"], ["c"], None]),
    ],
)
def test_parquet_multi_hot(tmp_path, values, separator, expected):
    path = write_parquet(tmp_path / "a.parquet", c=values)
    assert read(path, ("c", "text"), cells={"c": separator})[0]["c"].to_list() == expected


@pytest.mark.parametrize(
    "values",
    [
        pa.array([10**15, 0]),
        pa.array([datetime(2001, 9, 9, 1, 46, 40), datetime(1970, 1, 1)], pa.timestamp("ms")),
        pa.array([datetime(2001, 9, 9, 1, 46, 40), datetime(1970, 1, 1)], pa.timestamp("ns")),
        pa.array([datetime(2001, 9, 9, 1, 46, 40, tzinfo=UTC), datetime(1970, 1, 1, tzinfo=UTC)]),
        pa.array([datetime(2001, 9, 9, 1, 46, 40), datetime(1970, 1, 1)], pa.timestamp("us", "America/New_York")),
        pa.array(["2001-09-09T03:46:40+02:00", "1970-01-01"]),
        pa.array([10**15, 0], pa.uint64()),
    ],
)
def test_parquet_times_are_integers_or_microseconds(tmp_path, values):
    frame = read(write_parquet(tmp_path / "a.parquet", t=values), ("t", "time"), group="t")[0]
    assert frame.to_dict(as_series=False) == {GROUP: [10**15, 0]}


def test_parquet_dates_and_parts(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", t=[date(1970, 1, 2), date(1969, 12, 31)], p=["valid", "train"])
    frame = read(path, ("t", "time"), ("p", "part"))[0]
    assert frame.rows() == [(86_400_000_000, 1), (-86_400_000_000, 0)]


BAD = [
    ("label", [1, 0, 2], "'2' is not a label, expected 0 or 1"),
    ("label", [True, False, None], "empty is not a label, expected 0 or 1"),
    ("label", [1.0, 0.0, 0.5], "'0.5' is not a label"),
    ("optional-label", [1.0, None, float("nan")], "'nan' is not a label, expected 0, 1 or nothing"),
    ("float", [1.0, None, float("inf")], "'inf' is not a finite number"),
    ("float", [1.0, None, float("nan")], "'nan' is not a finite number"),
    ("nonnegative-float", [0, None, -1], "'-1' is not a finite number of at least 0"),
    ("time", [1, 2, None], "empty is not an integer below 2^63, a date or a date and time"),
    ("time", pa.array([1, 2, 2**63], pa.uint64()), f"'{2**63}' is not an integer below 2^63"),
    ("time", ["2024-01-01", "2024-01-02", "2024-02-30"], "'2024-02-30' is not an integer below"),
    ("part", ["train", "val", "Test"], "'Test' is not a part, expected train, val, test"),
]


@pytest.mark.parametrize("batch_rows", [1, 2, 100])
@pytest.mark.parametrize(("kind", "values", "message"), BAD)
def test_parquet_bad_values_are_named_with_row_and_column(tmp_path, monkeypatch, kind, values, message, batch_rows):
    monkeypatch.setattr(sources.parquet, "BATCH_ROWS", batch_rows)
    path = write_parquet(tmp_path / "a.parquet", u=["a", "b", "c"], c=values)
    with pytest.raises(DataError) as error:
        read(path, ("u", "text"), ("c", kind))
    assert f"{path}, row 3, column c: {message}" in str(error.value) and "\n" not in str(error.value)
    frame, skipped, problem = read(path, ("u", "text"), ("c", kind), bad_rows="skip")
    assert frame["u"].to_list() == ["a", "b"] and skipped == 1 and message in problem


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        ("text", [1.0], "column c: is of type double, expected an integer, text, boolean or dictionary column"),
        ("text", [["a"]], "column c: is of type list<"),
        ("float", ["1"], "column c: is of type string, expected a number column"),
        ("label", ["1"], "column c: is of type string, expected an integer, boolean or number column of 0 and 1"),
        ("time", [1.5], "column c: is of type double, expected an integer, date, timestamp or ISO text column"),
        ("part", [1], "column c: is of type int64, expected a text column"),
        ("text", [], "there are no rows"),
    ],
)
def test_parquet_columns_of_an_unsuitable_type_are_refused(tmp_path, kind, values, message):
    path = write_parquet(tmp_path / "a.parquet", c=pa.array(values, pa.string()) if not values else values)
    with pytest.raises(DataError) as error:
        read(path, ("c", kind))
    assert str(error.value).startswith(str(path)) and message in str(error.value)


def test_parquet_missing_columns_and_damaged_files(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", c=list(range(50_000)))
    with pytest.raises(DataError, match=r"a.parquet: there is no column 'd' \(there are: c\)$"):
        read(path, ("d", "text"))
    assert read(path, ("c", "text"), ("d", "text"), optional=("d",))[0].columns == ["c"]
    for content in (b"", b"PAR1", path.read_bytes()[:-10], bytes(range(256)) * 4):
        broken = tmp_path / "broken.parquet"
        broken.write_bytes(content)
        with pytest.raises(DataError, match="broken.parquet, row 1 or after: cannot be read as Parquet: "):
            read(broken, ("c", "text"))
    table = pa.table([pa.array([1]), pa.array([2])], names=["c", "c"])
    pq.write_table(table, path)
    with pytest.raises(DataError, match="a.parquet: there are two columns 'c'"):
        read(path, ("c", "text"))


def test_parquet_goes_on_from_every_blocks_end(tmp_path, monkeypatch):
    monkeypatch.setattr(sources.parquet, "BATCH_ROWS", 7)
    paths, whole = [], []
    for number, size in enumerate((30, 1, 45)):
        paths.append(tmp_path / f"{number}.parquet")
        values = [f"{number}-{i}" for i in range(size)]
        whole += [(value,) for value in values]
        pq.write_table(pa.table({"c": pa.array(values)}), paths[-1], row_group_size=10)
    table_format = TableFormat((Column("c", "text"),))
    blocks = list(read_tables(paths, table_format))
    assert len(blocks) > 10 and [row for block in blocks for row in block.frame.rows()] == whole
    assert blocks[-1].end == {"file": 3}
    done = 0
    for block in blocks:
        done += block.frame.height
        rest = [row for later in read_tables(paths, table_format, block.end) for row in later.frame.rows()]
        assert rest == whole[done:]
    for at in range(30):
        rest = [row for later in read_tables(paths, table_format, {"file": 0, "row": at}) for row in later.frame.rows()]
        assert rest == whole[at:]
