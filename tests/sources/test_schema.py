import gzip
import json
import random
from datetime import datetime, timedelta
from fractions import Fraction

import numpy as np
import polars as pl
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import sources.parquet
import sources.text
from sources import GROUP, DataError, Groups, SourceOptions, open_source
from sources.schema import SchemaSource, _split_by_time

SCHEMA = {
    "files": "clicks.csv",
    "labels": ["click", "buy"],
    "optional_labels": ["buy"],
    "dense": {"price": "log1p", "age": "standard"},
    "categorical": ["user", "item"],
    "multi_hot": {"tags": "|"},
    "split": {"by": "random", "val": 0.2, "test": 0.1},
}
COLUMNS = ("click", "buy", "price", "age", "user", "item", "tags")


def make_rows(count, seed=1):
    """Rows as the reader should give them, and a time, a stamp and a part."""
    draw = random.Random(seed)
    for i in range(count):
        tags = [f"t{draw.randrange(9)}" for _ in range(draw.randrange(4))] or None
        row = (
            draw.randrange(2),
            draw.choice([0, 1, None]),
            draw.choice([None, 0.0, 2.5, 1e6]),
            draw.choice([None, -4.0]),
        )
        row += (str(2**64 - 1 - draw.randrange(50)), draw.choice(["a,b", 'say "x"', None, "é"]), tags)
        yield row, (i // 3, datetime(2024, 2, 28) + timedelta(hours=i // 3), ["train", "val", "test"][i * 3 // count])


def write_csv(path, rows, separator=","):
    def cell(value):
        text = "|".join(value) if isinstance(value, list) else "" if value is None else str(value)
        return '"' + text.replace('"', '""') + '"' if separator in text or '"' in text else text

    names = (*COLUMNS, "ts", "stamp", "part", "unused")
    lines = [separator.join(names)] + [separator.join(map(cell, (*row, *times, "?"))) for row, times in rows]
    content = ("\n".join(lines) + "\n").encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_parquet(path, rows):
    table = [(*row[:4], int(row[4]), *row[5:], *times) for row, times in rows]
    types = [pl.Int8, pl.Float32, pl.Float64, pl.Float64, pl.UInt64, pl.String, pl.List(pl.String)]
    types += [pl.Int32, pl.Datetime("ms"), pl.Categorical]
    schema = dict(zip((*COLUMNS, "ts", "stamp", "part"), types, strict=True))
    pl.DataFrame(table, schema=schema, orient="row").write_parquet(path)


def write_schema(folder, name="my.json", **changes):
    schema = {**SCHEMA, **changes}
    path = folder / name
    content = {key: value for key, value in schema.items() if value is not None}
    path.write_text(json.dumps(content) if name.endswith(".json") else yaml.safe_dump(content))
    return path


def open_schema(path, **more):
    return open_source("schema", str(path), SourceOptions(**more))


def read(source, start=None):
    return pl.concat([block.frame for block in source.blocks(start)])


@pytest.fixture
def data(tmp_path):
    rows = list(make_rows(60))
    write_csv(tmp_path / "clicks.csv", rows)
    return tmp_path, rows


def test_what_is_written_is_read_in_every_form(data):
    folder, rows = data
    write_csv(folder / "semi.csv.gz", rows, ";")
    write_csv(folder / "tabs.tsv", rows, "\t")
    write_parquet(folder / "clicks.parquet", rows)
    write_csv(folder / "part_1.csv.gz", rows[:20])
    write_csv(folder / "part_2.csv.gz", rows[20:])
    forms = [{}, {"files": "semi.csv.gz", "separator": ";"}, {"files": "tabs.tsv"}, {"files": ["clicks.parquet"]}]
    forms += [{"files": "part_*.csv.gz"}, {"files": ["part_1.csv.gz", "part_2.csv.gz"]}]
    forms += [{"files": "clicks.parquet", "multi_hot": {"tags": ""}}]
    for name in ("my.json", "my.yaml", "my.yml"):
        for form in forms:
            source = open_schema(write_schema(folder, name, **form))
            assert read(source).select(COLUMNS).rows() == [row for row, _ in rows], form
            assert (source.layout.labels, source.layout.tables) == (("click", "buy"), ("user", "item", "tags"))
            assert source.layout.multi_hot == ("tags",) and source.layout.dense == SCHEMA["dense"]
    assert [path.name for path in open_schema(write_schema(folder, files="part_*")).paths] == [
        "part_1.csv.gz",
        "part_2.csv.gz",
    ]


def test_settings_are_json_and_free_of_folders(data, tmp_path_factory):
    folder, _ = data
    settings = open_schema(write_schema(folder)).settings
    assert json.loads(json.dumps(settings)) == settings and str(folder) not in json.dumps(settings)
    elsewhere = tmp_path_factory.mktemp("moved")
    (folder / "clicks.csv").rename(elsewhere / "clicks.csv")
    assert open_schema(write_schema(elsewhere, "other.yaml")).settings == settings
    assert open_schema(write_schema(elsewhere, dense={"price": "none", "age": "none"})).settings != settings


@pytest.mark.parametrize("form", ["clicks.csv", "clicks.parquet"])
@pytest.mark.parametrize(
    "split", [{"by": "random"}, {"by": "time", "column": "stamp"}, {"by": "column", "column": "part"}]
)
def test_reading_goes_on_from_every_blocks_end(data, monkeypatch, form, split):
    folder, rows = data
    write_parquet(folder / "clicks.parquet", rows)
    monkeypatch.setattr(sources.text, "BLOCK_BYTES", 300)
    monkeypatch.setattr(sources.parquet, "BATCH_ROWS", 7)
    path = write_schema(folder, files=form, split=split)
    blocks = list(open_schema(path).blocks())
    whole, done = pl.concat([block.frame for block in blocks]), 0
    assert len(blocks) > 5 and whole.select(COLUMNS).rows() == [row for row, _ in rows]
    for block in blocks[:-1]:
        done += block.frame.height
        assert read(open_schema(path), block.end).equals(whole[done:])


def groups_of(source):
    values = read(source)[GROUP].to_numpy().astype(np.int64)
    return Groups(values, np.ones(len(values), np.int64))  # runs of one row


@pytest.mark.parametrize("form", ["clicks.csv", "clicks.parquet"])
@pytest.mark.parametrize("column", ["ts", "stamp"])
def test_split_by_time(data, form, column):
    folder, rows = data
    shuffled = random.Random(3).sample(rows, 60)
    write_csv(folder / "clicks.csv", shuffled)
    write_parquet(folder / "clicks.parquet", shuffled)
    split = {"by": "time", "column": column, "val": 0.2, "test": 0.1}
    source = open_schema(write_schema(folder, files=form, split=split))
    assert source.layout.grouped
    result = source.split(60, groups_of(source))
    times = [time for _, (time, _, _) in shuffled]  # 0 .. 19, three rows each: 42 -> 14 times, 54 -> 18 times
    assert result.part_of_row.tolist() == [0 if t < 14 else 1 if t < 18 else 2 for t in times]
    assert (result.train_days, result.val, result.test) == (((0, 42),), (42, 54), (54, 60))
    assert f"by time, column {column}: train up to " in result.description


def test_rows_in_the_order_of_time_stay_where_they_are(data):
    folder, _ = data
    source = open_schema(write_schema(folder, split={"by": "time", "column": "ts"}))
    split = source.split(60, groups_of(source))
    assert split.part_of_row is None and split.train_days == ((0, 48),) and split.val == (48, 54)


@given(
    runs=st.lists(st.tuples(st.integers(-3, 6), st.integers(1, 4)), min_size=1, max_size=12),
    shares=st.sampled_from([(0.1, 0.1), (0.2, 0.3), (0.05, 0.6), (1e-7, 0.333)]),
)
def test_split_by_time_equals_a_slow_twin(runs, shares):
    val, test = map(Fraction, map(str, shares))
    times = [time for time, length in runs for _ in range(length)]

    def reached(share):
        return min(t for t in times if sum(u <= t for u in times) >= share * len(times))

    train_until, val_until = reached(1 - val - test), reached(1 - test)
    expected = [0 if t <= train_until else 1 if t <= val_until else 2 for t in times]
    groups = Groups(*(np.array(column, np.int64) for column in zip(*runs, strict=True)))
    if set(expected) != {0, 1, 2}:
        with pytest.raises(DataError, match="none falls into the"):
            _split_by_time(groups, val, test, "ts")
        return
    split = _split_by_time(groups, val, test, "ts")
    got = np.sort(expected) if split.part_of_row is None else split.part_of_row
    assert got.tolist() == expected
    assert split.val == (expected.count(0), len(times) - expected.count(2))


@pytest.mark.parametrize("form", ["clicks.csv", "clicks.parquet"])
def test_split_by_column(data, form):
    folder, rows = data
    write_parquet(folder / "clicks.parquet", rows)
    source = open_schema(write_schema(folder, files=form, split={"by": "column", "column": "part"}))
    split = source.split(60, groups_of(source))
    assert (split.train_days, split.val, split.test) == (((0, 20),), (20, 40), (40, 60))
    assert split.description == "as the column part says"


def test_split_at_random(data):
    folder, _ = data
    split = open_schema(write_schema(folder)).split(60)
    assert (split.train_days, split.val, split.test) == (((0, 42),), (42, 54), (54, 60))
    assert split.description == "random 7:2:1 by a permutation of all rows, seed 123"
    other = open_schema(write_schema(folder, split={"by": "random", "val": 0.2, "test": 0.1, "seed": 5})).split(60)
    assert (other.part_of_row != split.part_of_row).any()


def test_scoring_reads_by_the_same_rules_labels_optional(data):
    folder, rows = data
    settings = json.loads(json.dumps(open_schema(write_schema(folder)).settings))
    write_parquet(folder / "new.parquet", rows)
    for name in ("clicks.csv", "new.parquet"):
        frame = pl.concat([block.frame for block in SchemaSource.scoring_blocks(folder / name, settings)])
        assert frame.select(COLUMNS).rows() == [row for row, _ in rows]
    (folder / "few.csv").write_text("tags,user,item,age,price,click\nt1|t2,7,,3,,\n")
    (block,) = SchemaSource.scoring_blocks(folder / "few.csv", settings)
    assert block.frame.to_dicts() == [
        {"tags": ["t1", "t2"], "user": "7", "item": None, "age": 3.0, "price": None, "click": None}
    ]
    semicolon = {**settings, "separator": ";"}
    (folder / "few.csv").write_text("tags;user;item;age;price\nt1;7;;3;\n")
    assert next(SchemaSource.scoring_blocks(folder / "few.csv", semicolon)).frame["user"].to_list() == ["7"]


BAD_DATA = [
    ("price", "-2", {}, "column price: '-2' is negative, and log1p takes none below 0"),
    ("age", "old", {}, "column age: 'old' is not a number"),
    ("click", "", {}, "column click: '' is not a label, expected 0 or 1"),
    ("buy", "2", {}, "column buy: '2' is not a label, expected 0, 1 or nothing"),
    ("ts", "2024-01-01", {"by": "time", "column": "ts"}, "column ts: '2024-01-01' is not an integer"),
    ("stamp", "7", {"by": "time", "column": "stamp"}, "column stamp: '7' is not a date or date and time"),
    ("part", "dev", {"by": "column", "column": "part"}, "column part: 'dev' is not a part, expected train, val"),
]


@pytest.mark.parametrize(("column", "value", "split", "message"), BAD_DATA)
def test_bad_data_is_named_with_line_and_column(data, monkeypatch, column, value, split, message):
    monkeypatch.setattr(sources.text, "BLOCK_BYTES", 500)
    folder, rows = data
    at = (*COLUMNS, "ts", "stamp", "part").index(column)
    flat = [[*row, *times] for row, times in rows]
    flat[40][at] = value
    write_csv(folder / "clicks.csv", [(row, ()) for row in flat])
    path = write_schema(folder, split=split or SCHEMA["split"])
    with pytest.raises(DataError) as error:
        read(open_schema(path))
    assert str(error.value).startswith(f"{folder / 'clicks.csv'}, line 42, {message}") and "\n" not in str(error.value)
    blocks = list(open_schema(path, bad_rows="skip").blocks())
    assert sum(b.frame.height for b in blocks) == 59 and sum(b.skipped for b in blocks) == 1


def test_missing_paths_and_options(tmp_path):
    with pytest.raises(ValueError, match="--raw-data-file is empty: --data-set=schema needs the path of"):
        open_schema("")
    with pytest.raises(FileNotFoundError, match="none.json"):
        open_schema(tmp_path / "none.json")
    with pytest.raises(ValueError, match="--data-option=seed=1: this data set has no such option"):
        open_schema(tmp_path / "none.json", settings={"seed": "1"})


def test_the_example_in_the_documentation_is_valid(tmp_path):
    text = sources.schema.__doc__.split("\n\n")[1]
    (tmp_path / "clicks.csv").write_text("click;buy;price;age;discount;user;item;tags;ts\n1;;2;;3;u;i;a|b;5\n")
    (tmp_path / "my.yaml").write_text("\n".join(line[4:] for line in text.splitlines()))
    row = read(open_schema(tmp_path / "my.yaml")).to_dicts()[0]
    assert row["tags"] == ["a", "b"] and row["buy"] is None and row[GROUP] == 5


def test_real_rows(real_data, tmp_path):
    path = real_data("frappe/test.csv")
    names = path.open().readline().strip().split(",")
    schema = {"files": str(path), "labels": names[:1], "categorical": names[1:], "split": {"by": "random"}}
    (tmp_path / "frappe.json").write_text(json.dumps(schema))
    source = open_schema(tmp_path / "frappe.json")
    frame = read(source)
    assert frame.height == 28_860 and source.split(frame.height).val == (23_088, 25_974)
    plain = [line.split(",") for line in path.read_text().splitlines()[1:]]
    assert frame.select(names[1:]).rows() == [tuple(line[1:]) for line in plain]
    assert frame[names[0]].to_list() == [int(line[0]) for line in plain]
