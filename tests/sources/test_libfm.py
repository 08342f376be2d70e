import gzip
from itertools import pairwise

import numpy as np
import polars as pl
import pytest

import sources.text
from sources import GROUP, DataError, Groups, SourceOptions, open_source
from sources.libfm import FRAPPE_TABLES, FrappeSource, LibfmSource

FILES = {"train": 7, "validation": 3, "test": 4}


def lines(rows, seed, fields=3, negative="-1"):
    random = np.random.default_rng(seed)
    return [
        " ".join(
            [random.choice(["1", negative]), *(f"{random.integers(100 * i, 100 * i + 90)}:1" for i in range(fields))]
        )
        for _ in range(rows)
    ]


def folder(tmp_path, change=None, end="\n", names=FILES):
    """Three files; `change` maps a file's lines to others."""
    for seed, name in enumerate(names):
        rows = lines(FILES.get(name, 3), seed)
        rows = change(name, rows) if change else rows
        (tmp_path / f"my-train.{name}.libfm").write_text("".join(row + end for row in rows))
    return tmp_path / "my-train.train.libfm"


def twin(paths):
    """The rows in ten lines of plain Python."""
    rows = []
    for number, path in enumerate(paths):
        for line in path.read_text().splitlines():
            label, *features = line.split()
            rows.append((max(0, int(float(label))), *(int(f.split(":")[0]) for f in features), number))
    return rows


def read(source, start=None):
    blocks = list(source.blocks(start))
    frame = pl.concat([block.frame for block in blocks])
    return frame.select(*source.layout.labels, *source.layout.tables, GROUP), blocks


def runs(frame):
    values, lengths = frame[GROUP].rle().struct.unnest().select("value", "len").to_numpy().T
    return Groups(values, lengths)


@pytest.mark.parametrize("end", ["\n", " \n", "\r\n"])
def test_rows_are_those_of_a_plain_reader(tmp_path, end):
    source = open_source("libfm", str(folder(tmp_path, end=end)), SourceOptions())
    assert source.layout.tables == ("F1", "F2", "F3")
    frame, blocks = read(source)
    assert frame.rows() == twin(source.paths) and frame.height == 14
    assert {frame[name].dtype for name in source.layout.tables} == {pl.Int64} and frame["label"].dtype == pl.Int8
    assert [path.name for path in source.paths] == [f"my-train.{part}.libfm" for part in FILES]


@pytest.mark.parametrize("label", ["-1", "0", "0.0", "-1.0", "+0"])
def test_labels_and_values_with_a_decimal_point(tmp_path, label):
    path = folder(tmp_path, lambda name, rows: [f"{label} 5:1.0 6:1", "+1 7:1 8:1.", "1.0 0:+1 9:1"])
    frame, _ = read(LibfmSource(str(path)))
    assert frame.rows()[:3] == [(0, 5, 6, 0), (1, 7, 8, 0), (1, 0, 9, 0)]


@pytest.mark.parametrize("name", ["valid", "validation", "val"])
def test_names_of_the_validation_file(tmp_path, name):
    source = LibfmSource(str(folder(tmp_path, names=("train", name, "test"))))
    assert source.paths[1].name == f"my-train.{name}.libfm"


def test_gzip(tmp_path):
    path = folder(tmp_path)
    expected = twin(LibfmSource(str(path)).paths)
    path.write_bytes(gzip.compress(path.read_bytes()))
    assert read(LibfmSource(str(path)))[0].rows() == expected


def test_absent_files_and_other_names(tmp_path):
    with pytest.raises(ValueError, match="--raw-data-file is empty"):
        LibfmSource("")
    path = folder(tmp_path, names=("train", "test"))
    with pytest.raises(
        DataError, match=r"no my-train.valid.libfm, my-train.validation.libfm, my-train.val.libfm beside"
    ):
        LibfmSource(str(path))
    with pytest.raises(ValueError, match='"train" does not occur'):
        LibfmSource(str(tmp_path / "data.libfm"))


BAD = {
    "a value": ("1 4:1 5:0.5 6:1", "column F2: '5:0.5' is not a category, expected index:1"),
    "no value": ("1 4:1 5:1 6", "column F3: '6' is not a category"),
    "negative": ("1 -4:1 5:1 6:1", "column F1: '-4:1' is not a category"),
    "short": ("1 4:1 5:1", "3 columns, expected 4"),
    "long": ("1 4:1 5:1 6:1 7:1", "5 columns, expected 4"),
    "trailing blank": ("1 4:1 5:1 6:1 ", "5 columns, expected 4"),
    "two blanks": ("1 4:1 5:1  6:1", "5 columns, expected 4"),
    "label": ("2 4:1 5:1 6:1", "column label: '2' is not a label, expected 1, 0 or -1"),
    "no label": (" 4:1 5:1 6:1", "column label: '' is not a label"),
}


@pytest.mark.parametrize("which", BAD)
@pytest.mark.parametrize("block_bytes", [40, 1 << 20])
def test_bad_rows(tmp_path, monkeypatch, which, block_bytes):
    monkeypatch.setattr(sources.text, "BLOCK_BYTES", block_bytes)
    bad, message = BAD[which]
    path = folder(tmp_path, lambda name, rows: rows[:5] + [bad] + rows[5:] if name == "train" else rows)
    with pytest.raises(DataError) as error:
        list(LibfmSource(str(path)).blocks())
    assert f"{path}, line 6" in str(error.value) and message in str(error.value)
    source = LibfmSource(str(path), SourceOptions(bad_rows="skip"))
    frame, blocks = read(source)
    path.write_text("".join(line + "\n" for line in lines(7, 0)))
    assert frame.rows() == twin(source.paths)
    assert sum(block.skipped for block in blocks) == 1
    assert message in next(block.problem for block in blocks if block.problem)


def test_something_behind_the_trailing_blank(tmp_path):
    path = folder(tmp_path, lambda name, rows: [row + " " for row in rows[:3]] + ["1 4:1 5:1 6:1 7:1"])
    with pytest.raises(DataError, match="line 4: '7:1' follows the last feature"):
        list(LibfmSource(str(path)).blocks())


def test_reading_goes_on_from_any_block(tmp_path, monkeypatch):
    monkeypatch.setattr(sources.text, "BLOCK_BYTES", 40)
    path = str(folder(tmp_path))
    whole, blocks = read(LibfmSource(path))
    assert len(blocks) > 6
    done = 0
    for block in blocks[:-1]:
        done += block.frame.height
        assert read(LibfmSource(path), block.end)[0].equals(whole[done:])


def test_split_is_by_file(tmp_path):
    source = LibfmSource(str(folder(tmp_path)))
    frame, _ = read(source)
    split = source.split(frame.height, runs(frame))
    assert (split.train_days, split.val, split.test) == (((0, 7),), (7, 10), (10, 14))
    assert split.part_of_row is None and "my-train.validation.libfm" in split.description
    with pytest.raises(DataError, match=r"my-train.test.libfm: the file has no usable row"):
        source.split(10, Groups(np.array([0, 1]), np.array([7, 3])))


def test_scoring_with_and_without_labels(tmp_path):
    path = tmp_path / "score.libfm"
    path.write_text("3:1 4:1\n5:1 6:1\n")
    (block,) = LibfmSource.scoring_blocks(path, {})
    assert block.frame.select("label", "F1", "F2").rows() == [(None, 3, 4), (None, 5, 6)]
    path.write_text("-1 3:1 4:1\n1 5:1 6:1\n")
    (block,) = LibfmSource.scoring_blocks(path, {})
    assert block.frame.select("label", "F1", "F2").rows() == [(0, 3, 4), (1, 5, 6)]


def frappe_folder(tmp_path):
    random = np.random.default_rng(0)
    header = ",".join(["label", *FRAPPE_TABLES])
    for name, rows in (("train", 9), ("valid", 2), ("test", 3)):
        cells = [[random.integers(2), *random.integers(0, 500, len(FRAPPE_TABLES))] for _ in range(rows)]
        text = "".join(",".join(map(str, row)) + "\n" for row in cells)
        (tmp_path / f"{name}.csv").write_text(f"{header}\n{text}")
    return str(tmp_path)


def test_frappe_rows_split_and_restart(tmp_path, monkeypatch):
    monkeypatch.setattr(sources.text, "BLOCK_BYTES", 120)
    path = frappe_folder(tmp_path)
    whole, blocks = read(open_source("frappe", path, SourceOptions()))
    expected = [
        (*map(int, line.split(",")), number)
        for number, file in enumerate(FrappeSource(path).paths)
        for line in file.read_text().splitlines()[1:]
    ]
    assert whole.rows() == expected
    ends = [0, *np.cumsum([block.frame.height for block in blocks])]
    for block, (_, done) in zip(blocks[:-1], pairwise(ends), strict=False):
        assert read(FrappeSource(path), block.end)[0].equals(whole[done:])
    split = FrappeSource(path).split(14, runs(whole))
    assert (split.train_days, split.val, split.test) == (((0, 9),), (9, 11), (11, 14))


def test_frappe_errors_and_scoring(tmp_path):
    with pytest.raises(ValueError, match="--raw-data-file is empty"):
        FrappeSource("")
    path = frappe_folder(tmp_path)
    test = tmp_path / "test.csv"
    test.write_text(test.read_text().rstrip("\n") + "x\n")
    with pytest.raises(DataError, match=r"test.csv, line 4, column city: '\d+x' is not an integer"):
        list(FrappeSource(path).blocks())
    score = tmp_path / "score.csv"
    score.write_text(",".join(FRAPPE_TABLES) + "\n" + ",".join(map(str, range(10))) + "\n")
    (block,) = FrappeSource.scoring_blocks(score, {})
    assert block.frame.select(FRAPPE_TABLES).rows() == [tuple(range(10))]


def test_frappe_on_real_data(real_data):
    frame, _ = read(FrappeSource(str(real_data("frappe"))))
    groups = runs(frame)
    assert groups.lengths.tolist() == [202_009, 57_722, 28_860]
    assert round(frame["label"].mean(), 4) == 0.3333
    counts = {name: frame[name].n_unique() for name in FRAPPE_TABLES}
    assert list(counts.values()) == [957, 4082, 7, 7, 2, 3, 2, 9, 80, 233]
    ends = np.cumsum(list(counts.values()))  # one joint space of indices, field behind field
    assert [frame[name].max() + 1 for name in FRAPPE_TABLES] == ends.tolist() and ends[-1] == 5382


def test_frappe_written_as_libfm_reads_alike(real_data, tmp_path):
    for name, part in (("train", "train"), ("valid", "validation"), ("test", "test")):
        frame = pl.read_csv(real_data("frappe") / f"{name}.csv", n_rows=2000)
        label = (2 * pl.col("label") - 1).cast(pl.String)
        text = frame.select(pl.concat_str(label, *(pl.format("{}:1", name) for name in FRAPPE_TABLES), separator=" "))
        (tmp_path / f"frappe.{part}.libfm").write_text("\n".join(text.to_series()) + "\n")
    libfm, _ = read(LibfmSource(str(tmp_path / "frappe.train.libfm")))
    whole, _ = read(FrappeSource(str(real_data("frappe"))))
    expected = pl.concat([rows.head(2000) for rows in whole.partition_by(GROUP, maintain_order=True)])
    assert libfm.rows() == expected.rows()
