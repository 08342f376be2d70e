import numpy as np
import polars as pl
import pytest

import sources.adult
from sources import GROUP, DataError, Groups, SourceOptions, open_source
from sources.adult import DENSE, FIELDS, TABLES, AdultSource

STATUS = ("Never-married", "Married-civ-spouse", "Divorced")


def person(random, **cells):
    row = {
        "age": random.integers(17, 90),
        "workclass": random.choice(["Private", "?", "State-gov"]),
        "fnlwgt": random.integers(10_000, 99_999),
        "education": random.choice(["HS-grad", "Bachelors"]),
        "education_num": random.integers(1, 16),
        "marital_status": random.choice(STATUS),
        "occupation": random.choice(["Sales", "?"]),
        "relationship": random.choice(["Husband", "Own-child"]),
        "race": "White",
        "sex": random.choice(["Male", "Female"]),
        "capital_gain": random.choice([0, 2174]),
        "capital_loss": 0,
        "hours_per_week": random.integers(1, 99),
        "native_country": random.choice(["Cuba", "?"]),
        "income": random.choice(["<=50K", ">50K"]),
    }
    return ", ".join(str(value) for value in (row | cells).values() if value is not None)


def folder(tmp_path, rows=(40, 9), extra=None, **cells):
    """The two files; `extra`: one more line, the sixth of adult.data."""
    random = np.random.default_rng(0)
    data = [person(random, **cells) for _ in range(rows[0])]
    if extra is not None:
        data.insert(5, extra)
    test = [person(random, **cells) + "." for _ in range(rows[1])]
    (tmp_path / "adult.data").write_text("\n".join(data) + "\n\n")
    (tmp_path / "adult.test").write_text("\n".join(["|1x3 Cross validator", *test]) + "\n\n")
    return str(tmp_path)


def twin(path, tables):
    rows = []
    for number, file in enumerate(("adult.data", "adult.test")):
        for line in (path / file).read_text().splitlines():
            if not line or line.startswith("|"):
                continue
            cells = dict(zip(FIELDS, line.rstrip(".").split(", "), strict=True))
            labels = int(cells["income"] == ">50K"), int(cells["marital_status"] == "Never-married")
            dense = (int(cells[name]) for name in DENSE)
            rows.append((*labels, *dense, *(None if cells[t] == "?" else cells[t] for t in tables), number))
    return rows


def read(source, start=None):
    blocks = list(source.blocks(start))
    layout = source.layout
    return pl.concat([block.frame for block in blocks]).select(*layout.labels, *layout.dense, *layout.tables, GROUP)


@pytest.mark.parametrize("relationship", ["out", "in"])
def test_rows_are_those_of_a_plain_reader(tmp_path, relationship):
    options = SourceOptions(settings={"relationship": relationship})
    source = open_source("adult", folder(tmp_path), options)
    tables = (*TABLES, "relationship") if relationship == "in" else TABLES
    assert source.layout.tables == tables
    assert not {"marital_status", "fnlwgt", "income", "never_married"} & {*tables, *source.layout.dense}
    frame = read(source)
    assert frame.rows() == twin(tmp_path, tables) and frame.height == 49
    assert frame["income"].dtype == frame["never_married"].dtype == pl.Int8 and frame["age"].dtype == pl.Int64


def test_missing_numbers_are_null(tmp_path):
    assert read(AdultSource(folder(tmp_path, age="?")))["age"].null_count() == 49


BAD = {
    "short": (dict(native_country=None), "14 columns, expected 15"),
    "long": (dict(native_country="Cuba, x"), "16 columns, expected 15"),
    "number": (dict(capital_gain="1.5"), "column capital_gain: '1.5' is not an integer"),
    "no number": (dict(age=""), "column age: '' is not an integer"),
    "empty": (dict(race=""), "column race: the field is empty"),
    "income": (dict(income="50K"), "column income: '50K' is not a label, expected <=50K or >50K"),
    "no income": (dict(income="?"), "column income: '?' is not a label"),
    "status": (dict(marital_status="?"), "column marital_status: '?' is no label"),
}


@pytest.mark.parametrize("which", BAD)
def test_bad_rows(tmp_path, which):
    cells, message = BAD[which]
    path = folder(tmp_path, extra=person(np.random.default_rng(1), **cells))
    with pytest.raises(DataError) as error:
        list(AdultSource(path).blocks())
    assert f"adult.data, line 6{', ' if 'column ' in message else ': '}{message}" in str(error.value)
    source = AdultSource(path, SourceOptions(bad_rows="skip"))
    (block,) = source.blocks()
    assert (block.skipped, message in block.problem) == (1, True)
    folder(tmp_path)
    assert read(source).rows() == twin(tmp_path, TABLES)


def test_lines_of_the_test_file_are_counted_from_its_comment(tmp_path):
    path = folder(tmp_path)
    test = tmp_path / "adult.test"
    test.write_text(test.read_text().rstrip() + "\nx\n")
    with pytest.raises(DataError, match=r"adult.test, line 11: 1 columns, expected 15"):
        list(AdultSource(path).blocks())


def test_files_that_are_not_there_or_empty(tmp_path):
    with pytest.raises(ValueError, match="--raw-data-file is empty"):
        AdultSource("")
    with pytest.raises(FileNotFoundError, match=r"adult.data"):
        list(AdultSource(str(tmp_path)).blocks())
    folder(tmp_path)
    (tmp_path / "adult.test").write_text("|1x3 Cross validator\n\n")
    with pytest.raises(DataError, match=r"adult.test: the file has no rows"):
        list(AdultSource(str(tmp_path)).blocks())


def test_reading_goes_on_from_any_block(tmp_path, monkeypatch):
    monkeypatch.setattr(sources.adult, "BLOCK_ROWS", 7)
    path = folder(tmp_path)
    whole, blocks = read(AdultSource(path)), list(AdultSource(path).blocks())
    assert len(blocks) == 7
    for number, block in enumerate(blocks[:-1], start=1):
        assert read(AdultSource(path), block.end).equals(whole[7 * number :])


def test_split(tmp_path):
    source = AdultSource(folder(tmp_path))
    split = source.split(49, Groups(np.array([0, 1]), np.array([40, 9])))
    assert (split.train_days, split.val, split.test) == (((0, 36),), (36, 40), (40, 49))
    drawn = sorted(np.random.RandomState(123).permutation(40)[:4].tolist())
    assert np.flatnonzero(split.part_of_row == 1).tolist() == drawn
    other = AdultSource(str(tmp_path), SourceOptions(settings={"split_seed": "5"}))
    again = other.split(49, Groups(np.array([0, 1]), np.array([40, 9])))
    assert not np.array_equal(split.part_of_row, again.part_of_row) and "seed 5" in again.description


def test_scoring_without_income(tmp_path):
    folder(tmp_path, income=None)
    (block,) = AdultSource.scoring_blocks(tmp_path / "adult.data", {"split_seed": 123, "relationship": "out"})
    assert block.frame.height == 40 and block.frame["income"].null_count() == 40
    assert set(block.frame.columns) == {"income", "never_married", *DENSE, *TABLES}
    folder(tmp_path)
    (labelled,) = AdultSource.scoring_blocks(tmp_path / "adult.data", {"split_seed": 123, "relationship": "in"})
    assert labelled.frame["income"].null_count() == 0 and "relationship" in labelled.frame.columns


def test_real_data(real_data):
    source = AdultSource(str(real_data("adult")))
    frame = read(source)
    learning = frame.filter(pl.col(GROUP) == 0)
    assert (learning.height, frame.height - learning.height) == (32_561, 16_281)
    assert [round(learning[name].mean(), 4) for name in source.layout.labels] == [0.2408, 0.3281]
    assert [frame[name].drop_nulls().n_unique() for name in TABLES] == [8, 16, 14, 5, 2, 41]
    assert [frame[name].null_count() for name in TABLES] == [2799, 0, 2809, 0, 0, 857]
    split = source.split(frame.height, Groups(np.array([0, 1]), np.array([32_561, 16_281])))
    assert (split.train_days, split.val, split.test) == (((0, 29_305),), (29_305, 32_561), (32_561, 48_842))
