import gzip

import numpy as np
import polars as pl
import pytest

import sources.text
from sources import GROUP, DataError, Groups, SourceOptions, open_source
from sources.synthetic import write_criteo_tsv
from sources.terabyte import TerabyteSource

SIZES = (30, 41, 25)


@pytest.fixture(scope="module")
def contents(tmp_path_factory):
    path = tmp_path_factory.mktemp("days") / "one.txt"
    write_criteo_tsv(path, sum(SIZES), seed=1)
    lines = path.read_text().splitlines()
    return [lines[stop - rows : stop] for rows, stop in zip(SIZES, np.cumsum(SIZES), strict=True)]


@pytest.fixture
def days(tmp_path, contents):
    """Three days, the middle one gzip; the prefix of their names and their lines."""
    for day, lines in enumerate(contents):
        text = "\n".join(lines).encode() + b"\n"
        name, text = (f"day_{day}.gz", gzip.compress(text)) if day == 1 else (f"day_{day}", text)
        (tmp_path / name).write_bytes(text)
    return str(tmp_path / "day"), sum(contents, [])


def open_days(prefix, **settings):
    return TerabyteSource(prefix, SourceOptions(settings={name: str(value) for name, value in settings.items()}))


def read(source, start=None):
    return pl.concat([block.frame for block in source.blocks(start)])


def test_days_are_read_in_order_plain_or_packed(days):
    prefix, lines = days
    source = open_days(prefix, days=3)
    assert [path.name for path in source.paths] == ["day_0", "day_1.gz", "day_2"]
    assert source.settings == {"days": 3} and source.layout.grouped
    frame = read(source)
    rows = [line.split("\t") for line in lines]
    assert frame["click"].to_list() == [int(row[0]) for row in rows]
    assert frame["I2"].to_list() == [max(int(row[2]), 0) if row[2] else None for row in rows]
    assert frame["C26"].to_list() == [int(row[39], 16) if row[39] else None for row in rows]
    assert frame[GROUP].to_list() == np.repeat([0, 1, 2], SIZES).tolist()


def test_the_plain_file_is_taken_where_both_exist(days, tmp_path):
    (tmp_path / "day_1").write_text("x\n")
    assert open_days(days[0], days=2).paths[1].name == "day_1"
    with pytest.raises(DataError, match="day_1, line 1: 1 columns, expected 40"):
        read(open_days(days[0], days=2))


def test_reading_goes_on_from_every_blocks_end(days, monkeypatch):
    monkeypatch.setattr(sources.text, "BLOCK_BYTES", 1500)
    source = open_days(days[0], days=3)
    blocks, whole, done = list(source.blocks()), read(source), 0
    assert len(blocks) > 6
    for block in blocks[:-1]:
        done += block.frame.height
        assert read(open_days(days[0], days=3), block.end).equals(whole[done:])


def test_the_last_day_is_halved_the_others_train(days):
    source = open_days(days[0], days=3)
    split = source.split(96, Groups(np.array([0, 1, 1, 2]), np.array([30, 40, 1, 25])))
    assert split.train_days == ((0, 30), (30, 71)) and split.part_of_row is None
    assert split.test == (71, 84) and split.val == (84, 96)
    assert split.description == "one day a file; train: days 0-1, test: first half of day 2, val: second half"
    first_two = open_days(days[0], days=2)
    split = first_two.split(71, Groups(np.array([0, 1]), np.array([30, 41])))
    assert (split.train_days, split.test, split.val) == (((0, 30),), (30, 51), (51, 71))


@pytest.mark.parametrize(("lengths", "message"), [((30, 0, 25), "day_1.gz: 0 rows"), ((30, 41, 1), "day_2: 1 rows")])
def test_a_day_of_too_few_rows_is_refused(days, lengths, message):
    with pytest.raises(DataError, match=message + " are too few for a day"):
        open_days(days[0], days=3).split(sum(lengths), Groups(np.array([0, 1, 2]), np.array(lengths)))


def test_a_bad_row_names_its_day_and_can_be_skipped(days, tmp_path):
    (tmp_path / "day_2").write_text("2" + days[1][-1][1:] + "\n" + days[1][-1] + "\n")
    with pytest.raises(DataError, match="day_2, line 1, column click: '2' is not a label"):
        read(open_days(days[0], days=3))
    blocks = list(TerabyteSource(days[0], SourceOptions(settings={"days": "3"}, bad_rows="skip")).blocks())
    assert sum(block.skipped for block in blocks) == 1 and sum(block.frame.height for block in blocks) == 72


def test_mistakes_are_named(days):
    with pytest.raises(ValueError, match="--raw-data-file is empty: --data-set=terabyte needs the prefix"):
        open_source("terabyte", "", SourceOptions())
    for wrong in ("1", "25"):
        with pytest.raises(ValueError, match=f"--data-option=days={wrong}: give a number from 2 to 24"):
            open_days(days[0], days=wrong)
    with pytest.raises(ValueError, match="--data-option=days=few is no int"):
        open_days(days[0], days="few")
    with pytest.raises(FileNotFoundError, match="day_3"):
        read(open_days(days[0]))
    assert len(open_days(days[0]).paths) == 24
