import csv

import numpy as np
import polars as pl
import pytest

import sources.kuairand
import sources.text
from sources import GROUP, DataError, Groups, SourceOptions, open_source
from sources.kuairand import LABELS, LOG_NAMES, USER_FEATURES, VIDEO_FEATURES, KuaiRandSource

LOG_HEADER = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,"
    "play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab"
).split(",")
DATES = ((20220408, 20220421, 20220409), (20220422, 20220508, 20220430))
USERS, VIDEOS = range(5), range(100, 109)


def write(path, header, rows):
    with open(path, "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


def log_row(random, dates):
    cells = {name: random.integers(2) for name in LOG_HEADER}
    cells |= {"user_id": random.choice(USERS), "video_id": random.choice(VIDEOS), "date": random.choice(dates)}
    cells |= {"hourmin": 100 * random.integers(24) + random.integers(60), "time_ms": random.integers(1000)}
    cells |= {"duration_ms": random.integers(10**5), "tab": random.integers(15)}
    return [cells[name] for name in LOG_HEADER]


def folder(tmp_path, rows=(30, 21), extra=None, dates=DATES):
    """The files of the published layout that are read; user 4 and video 108 have no features."""
    random = np.random.default_rng(0)
    data = tmp_path / "data"
    data.mkdir(exist_ok=True)
    for name, number, days in zip(LOG_NAMES, rows, dates, strict=True):
        lines = [log_row(random, days) for _ in range(number)]
        if extra and name == LOG_NAMES[0]:
            lines.insert(5, [extra.get(name, cell) for name, cell in zip(LOG_HEADER, lines[0], strict=True)])
        write(data / name, LOG_HEADER, lines)
    header = ["user_id", "follow_user_num", *USER_FEATURES]
    users = [[user, 7, "full_active", *("(0,10]" if i % 5 else "" for i in range(25))] for user in USERS[:-1]]
    write(data / "user_features_pure.csv", header, users)
    header = ["video_id", "upload_dt", *VIDEO_FEATURES]
    videos = [
        [v, "2022-01-01", v // 2, "AD", "Web", 1, 8 * 10**17 + v, "", ["12,65", "3", ""][v % 3]] for v in VIDEOS[:-1]
    ]
    write(data / "video_features_basic_pure.csv", header, videos)
    return str(tmp_path)


def twin(path):
    """The rows in plain Python."""

    def table(name, key):
        with open(path / "data" / name, newline="") as file:
            return {row[key]: row for row in csv.DictReader(file)}

    users, videos = table("user_features_pure.csv", "user_id"), table("video_features_basic_pure.csv", "video_id")
    log = []
    for name in LOG_NAMES:
        with open(path / "data" / name, newline="") as file:
            log += csv.DictReader(file)
    rows = []
    for row in sorted(log, key=lambda row: (int(row["date"]), int(row["time_ms"]))):
        user, video = users.get(row["user_id"], {}), videos.get(row["video_id"], {})
        ids = (int(row["user_id"]), int(row["video_id"]), int(row["tab"]), int(row["hourmin"]) // 100)
        cells = (*(user.get(n) or None for n in USER_FEATURES), *(video.get(n) or None for n in VIDEO_FEATURES[:-1]))
        tags = video["tag"].split(",") if video.get("tag") else None
        labels = (int(row[name]) for name in LABELS)
        rows.append((*labels, float(row["duration_ms"]), *ids, *cells, tags, int(row["date"])))
    return rows


def read(source, start=None):
    layout, blocks = source.layout, list(source.blocks(start))
    return pl.concat([block.frame for block in blocks]).select(*layout.labels, *layout.dense, *layout.tables, GROUP)


def runs(frame):
    values, lengths = frame[GROUP].rle().struct.unnest().select("value", "len").to_numpy().T
    return Groups(values, lengths)


@pytest.mark.parametrize("inner", ["", "data"])
def test_rows_are_those_of_a_plain_reader(tmp_path, inner):
    path = folder(tmp_path)
    source = open_source("kuairand", f"{path}/{inner}", SourceOptions())
    frame = read(source)
    assert frame.rows() == twin(tmp_path) and frame.height == 51
    assert {frame[name].dtype for name in LABELS} == {pl.Int8} and frame["tag"].dtype == pl.List(pl.String)
    assert {path.name for path in source.paths} == {path.name for path in (tmp_path / "data").iterdir()}
    assert not any("statistic" in path.name or "random" in path.name for path in source.paths)


BAD = {
    "label": ({"is_like": 2}, ", column is_like: '2' is not a label"),
    "number": ({"video_id": "a"}, ", column video_id: 'a' is not an integer"),
    "no user": ({"user_id": ""}, ", column user_id: the field is empty"),
    "no date": ({"date": ""}, ", column date: the field is empty"),
    "date": ({"date": 220408}, ", column date: 220408 lies outside 20000101 to 29991231"),
    "hour": ({"hourmin": 2400}, ", column hourmin: 2400 lies outside 0 to 2359"),
    "duration": ({"duration_ms": "-1"}, ", column duration_ms: -1.0 lies outside 0"),
}


@pytest.mark.parametrize("which", BAD)
@pytest.mark.parametrize("block_bytes", [300, 1 << 20])
def test_bad_rows(tmp_path, monkeypatch, which, block_bytes):
    monkeypatch.setattr(sources.text, "BLOCK_BYTES", block_bytes)
    cells, message = BAD[which]
    path = folder(tmp_path, extra=cells)
    with pytest.raises(DataError) as error:
        list(KuaiRandSource(path).blocks())
    assert f"{LOG_NAMES[0]}, line 7{message}" in str(error.value)
    source = KuaiRandSource(path, SourceOptions(bad_rows="skip"))
    (block,) = source.blocks()
    assert (block.skipped, message in block.problem) == (1, True)
    frame = read(source)
    folder(tmp_path)
    assert frame.rows() == twin(tmp_path)


def test_missing_duration_is_null(tmp_path):
    assert read(KuaiRandSource(folder(tmp_path, extra={"duration_ms": ""})))["duration_ms"].null_count() == 1


def replace(path, old, new):
    path.write_text(path.read_text().replace(old, new, 1))


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        (
            LOG_NAMES[1],
            "hourmin",
            "hour",
            "log_standard_4_22_to_5_08_pure.csv, line 1: the header has no column 'hourmin'",
        ),
        ("user_features_pure.csv", "onehot_feat17", "x", "line 1: the header has no column 'onehot_feat17'"),
        ("video_features_basic_pure.csv", "music_type", "x", "line 1: the header has no column 'music_type'"),
        ("user_features_pure.csv", "\n1,", "\n2,", "user_features_pure.csv: user_id 2 has several rows"),
        ("video_features_basic_pure.csv", "\n101,", "\n,", "video_features_basic_pure.csv: a row has no video_id"),
    ],
)
def test_wrong_columns_and_keys(tmp_path, name, old, new, message):
    path = folder(tmp_path)
    replace(tmp_path / "data" / name, old, new)
    with pytest.raises(DataError) as error:
        list(KuaiRandSource(path).blocks())
    assert message in str(error.value)


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(ValueError, match="--raw-data-file is empty"):
        KuaiRandSource("")
    with pytest.raises(FileNotFoundError, match=r"_pure.csv"):
        list(KuaiRandSource(str(tmp_path)).blocks())


def test_reading_goes_on_from_any_block(tmp_path, monkeypatch):
    monkeypatch.setattr(sources.kuairand, "BLOCK_ROWS", 8)
    path = folder(tmp_path)
    whole, blocks = read(KuaiRandSource(path)), list(KuaiRandSource(path).blocks())
    assert len(blocks) == 7
    for number, block in enumerate(blocks[:-1], start=1):
        assert read(KuaiRandSource(path), block.end).equals(whole[8 * number :])


def test_split_by_date(tmp_path):
    source = KuaiRandSource(folder(tmp_path))
    frame = read(source)
    split = source.split(frame.height, runs(frame))
    parts = [*split.train_days, split.val, split.test]
    dates = sorted(date for days in DATES for date in days)
    assert [frame[GROUP][start:stop].unique().to_list() for start, stop in parts] == [[date] for date in dates]
    assert parts[0][0] == 0 and parts[-1][1] == frame.height and split.part_of_row is None
    assert split.description == "by date; train: 20220408 to 20220422, val: 20220430, test: 20220508"


def test_too_few_dates(tmp_path):
    source = KuaiRandSource(folder(tmp_path, dates=((20220408,), (20220422,))))
    frame = read(source)
    with pytest.raises(DataError, match="2 dates in the logs, a split needs 3"):
        source.split(frame.height, runs(frame))
