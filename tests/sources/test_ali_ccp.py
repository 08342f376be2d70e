import numpy as np
import polars as pl
import pytest

import sources.ali_ccp
import sources.text
from sources import GROUP, DataError, Groups, SourceOptions, open_source
from sources.ali_ccp import ITEM_FIELDS, MULTI, SINGLE, USER_FIELDS, AliCcpSource

USER_LISTS, ITEM_LISTS = MULTI[:4], MULTI[4:]
ROWS = {"train": 60, "test": 25}


def features(random, single, multi):
    """Some fields once, some more than once, some not at all; and a field that nobody asks for."""
    found = [name for name in single if random.random() < 0.8]
    found += [name for name in multi for _ in range(random.integers(4))]
    random.shuffle(found)
    entries = [f"{name}\x02{random.integers(1, 5000)}\x03{random.choice(['1.0', '0.69315'])}" for name in found]
    return [*entries, "999\x027\x031.0"]


def listed(entries, count=None):
    return f"{len(entries) if count is None else count},{chr(1).join(entries)}"


def folder(tmp_path, extra=None, extra_user=None):
    """The four files of the published layout; `extra`: one more line, the sixth of the train skeleton."""
    random = np.random.default_rng(0)
    for part, rows in ROWS.items():
        users = [f"{part}{number:012x}" for number in range(7)]
        common = [f"{user},{listed(features(random, USER_FIELDS, USER_LISTS))}" for user in users]
        skeleton = []
        for number in range(rows):
            labels = random.choice(["0,0", "1,0", "1,1", "0,1"])
            entries = features(random, ITEM_FIELDS, ITEM_LISTS)
            skeleton.append(f"{number},{labels},{random.choice(users)},{listed(entries)}")
        if extra and part == "train":
            skeleton.insert(5, extra)
        if extra_user and part == "train":
            common.insert(2, extra_user)
        (tmp_path / f"sample_skeleton_{part}.csv").write_text("\n".join(skeleton) + "\n")
        (tmp_path / f"common_features_{part}.csv").write_text("\n".join(common) + "\n")
    return str(tmp_path)


def twin(path, fields):
    """The rows in plain Python."""
    rows = []
    for number, part in enumerate(ROWS):
        common = {}
        for line in (path / f"common_features_{part}.csv").read_text().splitlines():
            user, _, text = line.split(",")
            common[user] = text
        for line in (path / f"sample_skeleton_{part}.csv").read_text().splitlines():
            _, click, buy, user, _, text = line.split(",")
            if (click, buy) == ("0", "1"):
                continue
            found = {}
            for entry in text.split("\x01") + common[user].split("\x01"):
                field, rest = entry.split("\x02")
                found.setdefault(field, []).append(int(rest.split("\x03")[0]))
            cells = (found.get(name, [None])[-1] if name in SINGLE else found.get(name) for name in fields)
            rows.append((int(click), int(buy), *cells, number))
    return rows


def read(source, start=None):
    blocks = list(source.blocks(start))
    return pl.concat([block.frame for block in blocks]).select(*source.layout.labels, *source.layout.tables, GROUP)


def groups(frame):
    train = int((frame[GROUP] == 0).sum())
    return Groups(np.array([0, 1]), np.array([train, frame.height - train]))


@pytest.mark.parametrize(("fields", "names"), [("single", SINGLE), ("all", SINGLE + MULTI)])
def test_rows_are_those_of_a_plain_reader(tmp_path, fields, names):
    source = open_source("ali-ccp", folder(tmp_path), SourceOptions(settings={"fields": fields}))
    assert source.layout.tables == tuple(f"F{name}" for name in names)
    assert source.layout.multi_hot == tuple(f"F{name}" for name in names if name in MULTI)
    frame, expected = read(source), twin(tmp_path, names)
    assert frame.rows() == expected and 40 < frame.height < 85
    assert any(None in row for row in expected)
    assert frame["click"].dtype == frame["buy"].dtype == pl.Int8
    assert [path.name for path in source.paths] == [
        "sample_skeleton_train.csv",
        "sample_skeleton_test.csv",
        "common_features_train.csv",
        "common_features_test.csv",
    ]


def test_of_several_features_the_last_counts(tmp_path):
    user, item = "train000000000003", ["205\x028\x031.0", "205\x024294967295\x031.0"]
    path = folder(tmp_path, extra=f"9,1,1,{user},{listed(item)}")
    assert read(AliCcpSource(path))["F205"].to_list().count(2**32 - 1) == 1
    assert read(AliCcpSource(path)).rows() == twin(tmp_path, SINGLE)


def test_a_row_without_features_of_its_own(tmp_path):
    path = folder(tmp_path, extra="9,1,1,train000000000003,0,")
    (row,) = set(read(AliCcpSource(path)).rows()) - set(read(AliCcpSource(folder(tmp_path))).rows())
    assert row[:2] == (1, 1) and set(row[2 + len(USER_FIELDS) : -1]) == {None} and any(row[2 : 2 + len(USER_FIELDS)])


USER = "train000000000001"
BAD = {
    "click": (f"9,2,0,{USER},1,205\x021\x031.0", "column click: '2' is not a label"),
    "buy": (f"9,1,,{USER},1,205\x021\x031.0", "column buy: '' is not a label"),
    "short": (f"9,1,0,{USER},1", "5 columns, expected 6"),
    "user": ("9,1,0,nobody,1,205\x021\x031.0", "column common_feature_index: 'nobody' is not in the common features"),
    "no user": ("9,1,0,,1,205\x021\x031.0", "column common_feature_index: the field is empty"),
    "count": (f"9,1,0,{USER},2,205\x021\x031.0", "column feature_list: 1 features, but feature_num says 2"),
    "no list": (f"9,1,0,{USER},2,", "column feature_list: 0 features, but feature_num says 2"),
    "no id": (f"9,1,0,{USER},1,205\x02x\x031.0", "column feature_list: '205\\x02x\\x031.0' is not field"),
    "large id": (f"9,1,0,{USER},1,205\x024294967296\x031.0", "'205\\x024294967296\\x031.0' is not field"),
    "one more": (f"9,1,0,{USER},1,205\x021\x031.0\x01206", "column feature_list: '206' is not field"),
    "no value": (f"9,1,0,{USER},1,205\x021", "column feature_list: '205\\x021' is not field"),
    "no field": (f"9,1,0,{USER},1,\x021\x031.0", "column feature_list: '\\x021\\x031.0' is not field"),
}


@pytest.mark.parametrize("which", BAD)
@pytest.mark.parametrize("block_bytes", [2500, 1 << 20])
def test_bad_rows(tmp_path, monkeypatch, which, block_bytes):
    monkeypatch.setattr(sources.text, "BLOCK_BYTES", block_bytes)
    line, message = BAD[which]
    path = folder(tmp_path, extra=line)
    with pytest.raises(DataError) as error:
        list(AliCcpSource(path).blocks())
    assert "sample_skeleton_train.csv, line 6" in str(error.value) and message in str(error.value)
    source = AliCcpSource(path, SourceOptions(bad_rows="skip"))
    blocks = list(source.blocks())
    assert sum(block.skipped for block in blocks) == 1
    assert message in next(block.problem for block in blocks if block.problem)
    frame = read(source)
    folder(tmp_path)
    assert frame.rows() == twin(tmp_path, SINGLE)


def test_bad_common_features(tmp_path):
    path = folder(tmp_path, extra_user="someone,1,101\x02a\x031")
    with pytest.raises(DataError, match=r"common_features_train.csv, line 3, column feature_list: '101"):
        list(AliCcpSource(path).blocks())
    frame = read(AliCcpSource(path, SourceOptions(bad_rows="skip")))
    folder(tmp_path)
    assert frame.rows() == twin(tmp_path, SINGLE)


def test_the_last_line_of_a_user_counts(tmp_path):
    path = folder(tmp_path)
    common = tmp_path / "common_features_train.csv"
    common.write_text(common.read_text() + f"{USER},1,101\x0277\x031.0\n")
    assert read(AliCcpSource(path)).rows() == twin(tmp_path, SINGLE)


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(ValueError, match="--raw-data-file is empty"):
        AliCcpSource("")
    path = folder(tmp_path)
    (tmp_path / "common_features_test.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"common_features_test.csv"):
        list(AliCcpSource(path).blocks())


@pytest.mark.parametrize("fields", ["single", "all"])
def test_reading_goes_on_from_any_block(tmp_path, monkeypatch, fields):
    monkeypatch.setattr(sources.text, "BLOCK_BYTES", 4000)
    path, options = folder(tmp_path), SourceOptions(settings={"fields": fields})
    whole, blocks = read(AliCcpSource(path, options)), list(AliCcpSource(path, options).blocks())
    assert len(blocks) > 4
    done = 0
    for block in blocks[:-1]:
        done += block.frame.height
        assert read(AliCcpSource(path, options), block.end).equals(whole[done:])


def test_split(tmp_path, monkeypatch):
    source = AliCcpSource(folder(tmp_path))
    frame = read(source)
    split = source.split(frame.height, groups(frame))
    train = int((frame[GROUP] == 0).sum())
    drawn = np.random.RandomState(123).random_sample(train) < 0.1
    assert np.array_equal(split.part_of_row[:train], drawn) and set(split.part_of_row[train:]) == {2}
    assert split.train_days == ((0, train - drawn.sum()),) and split.test == (train, frame.height)
    monkeypatch.setattr(sources.ali_ccp, "DRAWS", 7)
    assert np.array_equal(source.split(frame.height, groups(frame)).part_of_row, split.part_of_row)
    other = AliCcpSource(str(tmp_path), SourceOptions(settings={"split_seed": "4"}))
    assert not np.array_equal(other.split(frame.height, groups(frame)).part_of_row, split.part_of_row)
