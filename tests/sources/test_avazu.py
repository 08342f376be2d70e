import datetime
import gzip
import random
import sqlite3

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

import sources.text
from sources import GROUP, DataError, Groups, SourceOptions, open_source
from sources.avazu import AUTHORS_TABLE_ROWS, FIELDS, AvazuSource, sqlite_form
from sources.text_kinds import field_problem

HEADER = "id,click,hour," + ",".join(FIELDS)


def row(number=1, click="0", hour="14102100", **fields):
    return ",".join([str(number), click, hour, *(fields.get(name, f"{name}a{number % 3}") for name in FIELDS)])


def write(tmp_path, *rows, name="train.csv"):
    path = tmp_path / name
    path.write_text("\n".join([HEADER, *rows]) + "\n")
    return path


def source(path, **settings):
    bad_rows = settings.pop("bad_rows", "fail")
    return open_source("avazu", str(path), SourceOptions(settings=settings, bad_rows=bad_rows))


def read(path, **settings):
    return pl.concat(block.frame for block in source(path, **settings).blocks())


def groups_of(days):
    runs = pl.Series(days).rle().struct.unnest()
    return Groups(runs["value"].to_numpy().astype(np.int64), runs["len"].to_numpy().astype(np.int64))


def day(text):
    return (datetime.date.fromisoformat(text) - datetime.date(1970, 1, 1)).days


def test_time_fields(tmp_path):
    path = write(tmp_path, row(1, "1", "14102123", C20="-1"), row(2, hour="14102600"), row(3, hour="24022909", C1=""))
    frame = read(path)
    layout = source(path).layout
    assert layout.tables == (*FIELDS, "hour", "weekday") and not layout.dense and not layout.grouped
    assert set(frame.columns) == {*layout.labels, *layout.tables}
    assert frame["click"].to_list() == [1, 0, 0]
    assert frame["hour"].to_list() == [23, 0, 9]
    assert frame["weekday"].to_list() == [1, 6, 3]  # Tuesday, Sunday, Thursday
    assert frame["C20"].to_list() == ["-1", "C20a2", "C20a0"] and frame["C1"].to_list() == ["C1a1", "C1a2", None]


def test_every_stamp_of_the_data_set_is_decoded(tmp_path):
    stamps = [f"1410{d}{h:02}" for d in range(21, 31) for h in range(24)]
    frame = read(write(tmp_path, *(row(i, hour=stamp) for i, stamp in enumerate(stamps))), split="day")
    times = [datetime.datetime.strptime(stamp, "%y%m%d%H") for stamp in stamps]
    assert frame["hour"].to_list() == [t.hour for t in times]
    assert frame["weekday"].to_list() == [t.weekday() for t in times]
    assert frame[GROUP].to_list() == [day(str(t.date())) for t in times]
    authors = {datetime.datetime.fromtimestamp(int(stamp), datetime.UTC).hour for stamp in stamps}
    assert authors == set(read(write(tmp_path, row()), fields="authors")["hour"].to_list()) == {5}


def test_authors_fields(tmp_path):
    path = write(tmp_path, row(hour="14102113"), row(2, hour="14103023"))
    layout = source(path, fields="authors").layout
    assert layout.tables == tuple(AUTHORS_TABLE_ROWS) and layout.dense == {"hour": "log1p"}
    assert len(layout.tables) == 21 and sum(AUTHORS_TABLE_ROWS.values()) == 9_364_331
    frame = read(path, fields="authors")
    assert set(frame.columns) == {"click", "hour", *layout.tables} and frame["hour"].to_list() == [5, 5]


def classes(values):
    """Which values are equal, as the position of the first equal one."""
    first = {}
    return [first.setdefault(value, i) for i, value in enumerate(values)]


ODD = (
    ["1", "+1", " 1", "1 ", "01", "1.0", "1e0", "1.", "0.1", "-0", "0", "-0.0", "0e9", "1e400", "-1e400", "9e999"]
    + ["inf", "Inf", "nan", "", "-", "e5", "1e", "1e+", "1e+5", "100000", "1e5", "0x10", "1_0", "1.5", "15e-1", ".5"]
    + ["9223372036854775807", "9223372036854775808", "9.223372036854775807e18", "-9223372036854775808", "5e-1"]
    + [
        "12345678901234567890",
        "10000000000000000",
        "1e16",
        "1e-400",
        "\t7\n",
        "7",
        "7\u00a0",
        "1 2",
        "1234e305",
        "12340e304",
        "\uff19",
        ".",
    ]
)


def test_sqlite_ids_are_the_classes_of_an_integer_column():
    draw = random.Random(1)
    texts = ODD + [f"{draw.randrange(2**32):08x}" for _ in range(3000)]
    digit = "0123456789eeee."
    texts += ["".join(draw.choice(digit) for _ in range(draw.choice([3, 4, 8]))) for _ in range(6000)]
    with sqlite3.connect(":memory:") as base:
        base.execute("CREATE TABLE t (i INTEGER PRIMARY KEY, v INTEGER)")
        base.executemany("INSERT INTO t (v) VALUES (?)", [(text,) for text in texts])
        stored = [value for (value,) in base.execute("SELECT v FROM t ORDER BY i")]
    ours = pl.DataFrame({"v": texts}).select(sqlite_form(pl.col("v")))["v"].to_list()
    assert classes(ours) == classes(stored)
    assert sum(isinstance(value, int | float) for value in stored) > 1000 and float("inf") in stored


def test_sqlite_ids_of_a_file(tmp_path):
    ids = ["00012345", "12345", "12e5", "1200000", "9999e567", "1234e567", "1fbe01fe", ""]
    path = write(tmp_path, *(row(i, device_ip=value) for i, value in enumerate(ids)))
    values = ["12345", "12345", "1200000", "1200000", "9e999", "9e999", "1fbe01fe", None]
    assert read(path, ids="sqlite")["device_ip"].to_list() == values
    assert read(path)["device_ip"].to_list() == [*ids[:-1], None]


BAD = {
    "month 0": (row(hour="14002100"), "column hour: '14002100' is not a YYMMDDHH date and hour"),
    "month 13": (row(hour="14132100"), "column hour: '14132100'"),
    "day 0": (row(hour="14100000"), "column hour: '14100000'"),
    "31 November": (row(hour="14113100"), "column hour: '14113100'"),
    "29 February": (row(hour="14022900"), "column hour: '14022900'"),
    "hour 24": (row(hour="14102124"), "column hour: '14102124'"),
    "7 digits": (row(hour="1410210"), "column hour: '1410210'"),
    "9 digits": (row(hour="141021000"), "column hour: '141021000'"),
    "no hour": (row(hour=""), "column hour: ''"),
    "no label": (row(click=""), "column click: '' is not a label"),
    "label 2": (row(click="2"), "column click: '2' is not a label"),
    "too few": (row().rsplit(",", 1)[0], "23 columns, expected 24"),
}


@pytest.mark.parametrize("block_bytes", [100, 16 << 20])
@pytest.mark.parametrize("case", BAD)
def test_a_bad_row_is_named(tmp_path, monkeypatch, case, block_bytes):
    monkeypatch.setattr(sources.text, "BLOCK_BYTES", block_bytes)
    bad, message = BAD[case]
    path = write(tmp_path, row(1), row(2), bad, row(4))
    with pytest.raises(DataError) as error:
        read(path)
    assert f"{path}, line 4" in str(error.value) and message in str(error.value) and "\n" not in str(error.value)
    blocks = list(source(path, bad_rows="skip").blocks())
    assert sum(b.frame.height for b in blocks) == 3 and sum(b.skipped for b in blocks) == 1


def test_the_rule_for_stamps_is_the_calendar():
    for year in (0, 14, 15, 16, 96):
        for number in range(10_000 * year, 10_000 * year + 1400):
            try:
                datetime.datetime.strptime(f"20{number:06}", "%Y%m%d")
                good = True
            except ValueError:
                good = False
            assert (field_problem("yymmddhh", f"{number:06}23".encode()) is None) == good, number


def test_a_file_without_the_label_can_be_scored_and_not_trained(tmp_path):
    path = tmp_path / "test.csv"
    lines = [HEADER, row(1, "1", "14103101"), row(2, hour="14103102")]
    path.write_text("\n".join(",".join(f for i, f in enumerate(line.split(",")) if i != 1) for line in lines) + "\n")
    with pytest.raises(DataError, match="no column 'click'"):
        read(path)
    labelled = write(tmp_path, *lines[1:])
    for fields in ("time", "authors"):
        settings = source(path, fields=fields, split="day").settings
        (block,) = AvazuSource.scoring_blocks(path, settings)
        assert_frame_equal(block.frame, read(labelled, fields=fields).drop("click"), check_column_order=False)
        (block,) = AvazuSource.scoring_blocks(labelled, settings)
        assert block.frame["click"].to_list() == [1, 0]


def test_resuming_and_gzip(tmp_path, monkeypatch):
    rows = [row(i, str(i % 2), f"1410{21 + i // 30}{i % 24:02}") for i in range(90)]
    path = write(tmp_path, *rows)
    whole = read(path, split="day")
    packed = tmp_path / "train.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    monkeypatch.setattr(sources.text, "BLOCK_BYTES", 2000)
    for file in (path, packed):
        blocks = list(source(file, split="day").blocks())
        assert len(blocks) > 5
        assert_frame_equal(pl.concat(b.frame for b in blocks), whole)
        for i, block in enumerate(blocks):
            rest = [b.frame for b in source(file, split="day").blocks(block.end)]
            assert_frame_equal(pl.concat([b.frame for b in blocks[: i + 1]] + rest), whole)


def test_random_split(tmp_path):
    split = source("x").split(1003, None)
    assert split.train_days == ((0, 802),) and split.val == (802, 902) and split.test == (902, 1003)
    order = np.random.RandomState(123).permutation(1003)
    assert (split.part_of_row[order[:802]] == 0).all() and (split.part_of_row[order[902:]] == 2).all()
    assert (source("x", split_seed="7").split(1003, None).part_of_row != split.part_of_row).any()


def test_split_by_day_in_time_order():
    days = np.repeat([day("2014-10-21"), day("2014-10-22"), day("2014-10-24"), day("2014-10-25")], [5, 3, 4, 2])
    split = source("x", split="day").split(14, groups_of(days))
    assert split.train_days == ((0, 5), (5, 8)) and split.val == (8, 12) and split.test == (12, 14)
    assert split.part_of_row is None
    assert split.description == "by day; train: 2014-10-21 to 2014-10-22, val: 2014-10-24, test: 2014-10-25"


def test_split_by_day_out_of_order():
    days = [20, 22, 20, 19, 21, 21, 22, 22]
    split = source("x", split="day").split(8, groups_of(days))
    assert split.train_days == ((0, 3),) and split.val == (3, 5) and split.test == (5, 8)
    assert split.part_of_row.tolist() == [0, 2, 0, 0, 1, 1, 2, 2]


def test_split_by_day_needs_three_days():
    with pytest.raises(DataError, match="train.csv: 2 days"):
        source("train.csv", split="day").split(4, groups_of([1, 1, 2, 2]))


def test_settings():
    for settings in ({"fields": "all"}, {"split": "week"}, {"split_seed": "-1"}, {"days": "3"}):
        with pytest.raises(ValueError, match=f"--data-option={next(iter(settings))}="):
            source("x", **settings)
    with pytest.raises(ValueError, match="train.csv"):
        source("")


def test_real_data(real_data):
    path = real_data("avazu/avazu_10k.csv")
    frame = read(path, split="day")
    twin = pl.read_csv(path, infer_schema=False)
    assert frame.height == 9999 and frame["click"].sum() == (twin["click"] == "1").sum() == 1706
    assert_frame_equal(frame.select(FIELDS), twin.select(FIELDS))
    assert set(frame["hour"]) == {0} and set(frame["weekday"]) == {1} and set(frame[GROUP]) == {day("2014-10-21")}
    merged = read(path, ids="sqlite", fields="authors")
    assert frame["device_ip"].n_unique() == 7302 and merged["device_ip"].n_unique() == 7243
    assert all(merged[name].n_unique() <= frame[name].n_unique() for name in FIELDS)
