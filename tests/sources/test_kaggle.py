import gzip

import numpy as np
import polars as pl
import pytest

import sources.text
from sources import DataError, SourceOptions, open_source, register_source, source_names
from sources.kaggle import DENSE_NAMES, TABLE_NAMES, KaggleSource, criteo_blocks


def row(label="0", dense=None, tables=None):
    dense, tables = dense or {}, tables or {}
    fields = [label] if label is not None else []
    fields += [dense.get(name, "3") for name in DENSE_NAMES]
    fields += [tables.get(name, "05db9164") for name in TABLE_NAMES]
    return "\t".join(fields)


def read(path, labelled=True, start=None, bad_rows="fail"):
    """Labels [N, 1 or 0], dense and values as matrices, a missing value as 0."""
    frame = pl.concat([block.frame for block in criteo_blocks((path,), start, bad_rows, labelled=labelled)])
    labels = frame["click"].to_numpy()[:, None] if "click" in frame.columns else np.empty((frame.height, 0), np.int8)
    return labels, *(frame.select(pl.col(names).fill_null(0)).to_numpy() for names in (DENSE_NAMES, TABLE_NAMES))


def write(tmp_path, *rows, end="\n", last="\n"):
    path = tmp_path / "train.txt"
    path.write_bytes((end.join(rows) + last).encode())
    return path


def test_values_missing_fields_and_negative_integers(tmp_path):
    path = write(
        tmp_path,
        row("1", {"I1": "", "I2": "-2", "I13": "2147483647"}, {"C1": "", "C26": "ffffffff", "C2": "0000000A"}),
        row("0", {"I2": "7"}, {"C1": "0"}),
    )
    labels, dense, values = read(path)
    frame = next(criteo_blocks((path,), None, "fail", labelled=True)).frame
    assert frame["I1"].to_list() == [None, 3] and frame["C1"].to_list() == [None, 0]
    assert labels.tolist() == [[1], [0]]
    assert dense[:, [0, 1, 2, 12]].tolist() == [[0, 0, 3, 2147483647], [3, 7, 3, 3]]
    assert values[:, [0, 1, 25]].tolist() == [[0, 10, 0xFFFFFFFF], [0, 0x05DB9164, 0x05DB9164]]
    assert (labels.dtype, dense.dtype, values.dtype) == (np.int8, np.int32, np.uint32)


@pytest.mark.parametrize(("end", "last"), [("\n", ""), ("\r\n", "\r\n"), ("\r\n", "\r"), ("\r\n", ""), ("\n", "\n")])
def test_line_ends(tmp_path, end, last):
    rows = [row("1", tables={"C26": "ab"}), row("0", tables={"C26": ""}), row("1", tables={"C26": "cd"})]
    labels, _, values = read(write(tmp_path, *rows, end=end, last=last))
    assert labels[:, 0].tolist() == [1, 0, 1] and values[:, 25].tolist() == [0xAB, 0, 0xCD]


@pytest.mark.parametrize(("first", "other", "name"), [("\n", "\r\n", "CRLF"), ("\r\n", "\n", "LF")])
def test_mixed_line_ends_are_refused(tmp_path, first, other, name):
    path = write(tmp_path, row() + first + row() + other + row(), end="", last=first)
    with pytest.raises(DataError, match=rf"train.txt, line 2: ends in {name}, .*\(mixed line ends\)$"):
        read(path)
    assert len(read(path, bad_rows="skip")[0]) == 2


def test_a_byte_order_mark_is_refused(tmp_path):
    path = write(tmp_path, "\ufeff" + row("1"), row())
    with pytest.raises(DataError, match="line 1, column 1: the file begins with a byte-order mark"):
        read(path)
    assert read(path, bad_rows="skip")[0].tolist() == [[1], [0]]


@pytest.mark.parametrize("packed", [False, True])
def test_blocks_do_not_change_what_is_read(tmp_path, small_tsv, monkeypatch, packed):
    path, whole = small_tsv, read(small_tsv)
    if packed:
        path = tmp_path / "train.txt.gz"
        path.write_bytes(gzip.compress(small_tsv.read_bytes(), 1))
    monkeypatch.setattr(sources.text, "BLOCK_BYTES", 4000)
    blocks = list(criteo_blocks((path,), None, "fail", labelled=True))
    assert len(blocks) > 100
    for a, b in zip(whole, read(path), strict=True):
        assert np.array_equal(a, b)
    done = np.cumsum([block.frame.height for block in blocks])
    for i in (0, 57, len(blocks) - 2):
        for a, b in zip(whole, read(path, start=blocks[i].end), strict=True):
            assert np.array_equal(a[done[i] :], b)


def test_unlabelled_rows(tmp_path):
    path = write(tmp_path, row(None, {"I1": "5"}), row(None))
    labels, dense, _ = read(path, labelled=False)
    assert labels.shape == (2, 0) and dense[:, 0].tolist() == [5, 3]
    with pytest.raises(DataError, match="line 1: 39 columns, expected 40"):
        read(path)
    with_label = write(tmp_path, row("1"))
    assert read(with_label, labelled=False)[0].tolist() == [[1]]
    (block,) = KaggleSource.scoring_blocks(with_label, {})
    assert block.frame["click"].to_list() == [1]


BAD = {
    "too few": (row().rsplit("\t", 1)[0], "39 columns, expected 40"),
    "too many": (row() + "\tab", "41 columns, expected 40"),
    "blank": ("", "1 columns, expected 40"),
    "not hex": (row(tables={"C7": "xyz"}), "column C7: 'xyz' is not a hexadecimal number"),
    "hex too large": (row(tables={"C7": "1ffffffff"}), "column C7: '1ffffffff' lies outside 0 to 4294967295"),
    "negative hex": (row(tables={"C7": "-1"}), "column C7: '-1' lies outside"),
    "not an integer": (row(dense={"I4": "1.5"}), "column I4: '1.5' is not an integer"),
    "integer too large": (row(dense={"I4": "2147483648"}), "column I4: '2147483648' lies outside"),
    "label 2": (row("2"), "column click: '2' is not a label"),
    "label missing": (row(""), "column click: '' is not a label"),
    "label text": (row("yes"), "column click: 'yes' is not a label"),
    "hex prefix": (row(tables={"C7": "0x1f"}), "column C7: '0x1f' is not a hexadecimal number"),
    "underscore": (row(dense={"I4": "1_0"}), "column I4: '1_0' is not an integer"),
    "not utf-8": (row(tables={"C7": "\udcff"}), "column C7: '\\\\xff' is not a hexadecimal number"),
}


@pytest.mark.parametrize("block_bytes", [50, 32 << 20])
@pytest.mark.parametrize("case", BAD)
def test_a_bad_row_is_named_with_file_line_and_column(tmp_path, monkeypatch, case, block_bytes):
    monkeypatch.setattr(sources.text, "BLOCK_BYTES", block_bytes)
    bad, message = BAD[case]
    path = tmp_path / "train.txt"
    path.write_bytes("\n".join([row(), row("1"), bad, row()]).encode(errors="surrogateescape") + b"\n")
    rows = read(path, bad_rows="skip")[0]
    assert rows.tolist() == [[0], [1], [0]]
    with pytest.raises(DataError) as error:
        read(path)
    assert "\n" not in str(error.value)
    assert f"{path}, line 3" in str(error.value) and message in str(error.value)


def test_one_row_too_short_and_one_too_long_do_not_cancel(tmp_path):
    path = write(tmp_path, row(), row().rsplit("\t", 1)[0], row() + "\tab")
    with pytest.raises(DataError, match="line 2: 39 columns"):
        read(path)
    assert len(read(path, bad_rows="skip")[0]) == 1


@pytest.mark.parametrize("content", [b"", b"\n"])
def test_an_empty_file_is_refused(tmp_path, content):
    path = tmp_path / "train.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match="train.txt"):
        read(path)


@pytest.mark.parametrize("rows", [14, 15, 100, 9999, 80000])
def test_split_is_seven_days_with_the_last_one_halved(rows):
    split = KaggleSource("train.txt").split(rows)
    sizes = [len(part) for part in np.array_split(np.arange(rows), 7)]
    assert [stop - start for start, stop in split.train_days] == sizes[:6]
    assert split.train_days[0][0] == 0 and split.train_days[-1][1] == split.test[0]
    assert split.test[1] == split.val[0] and split.val[1] == rows
    assert split.test[1] - split.test[0] == (sizes[6] + 1) // 2


def test_too_few_rows_for_seven_days():
    with pytest.raises(DataError, match="13 rows are too few"):
        KaggleSource("train.txt").split(13)


def test_options_and_a_source_going_on(small_tsv, monkeypatch):
    with pytest.raises(ValueError, match="--data-option=days=3: this data set has no such option"):
        KaggleSource("train.txt", SourceOptions(settings={"days": "3"}))
    monkeypatch.setattr(sources.text, "BLOCK_BYTES", 100_000)
    blocks = list(KaggleSource(str(small_tsv)).blocks())
    rest = KaggleSource(str(small_tsv)).blocks(blocks[1].end)
    assert pl.concat([b.frame for b in rest]).equals(pl.concat([b.frame for b in blocks[2:]]))


def test_real_rows(real_data):
    """Equal to a reading by the plainest loop."""
    path = real_data("criteo/criteo_kaggle_10k.tsv")
    lines = [line.split("\t") for line in path.read_text().split("\n") if line]
    labels, dense, values = read(path)
    assert labels[:, 0].tolist() == [int(line[0]) for line in lines] and len(lines) == 10_000
    assert dense.tolist() == [[max(int(v or 0), 0) for v in line[1:14]] for line in lines]
    assert values.tolist() == [[int(v or "0", 16) for v in line[14:]] for line in lines]


def test_registry_refuses_duplicates_and_unknown_names():
    assert {"kaggle", "criteo-synthetic"} <= set(source_names())
    with pytest.raises(ValueError, match="already registered by sources.kaggle.KaggleSource"):
        register_source("kaggle", "elsewhere", "Thing")
    with pytest.raises(ValueError, match="'criteo' is not known; choose from"):
        open_source("criteo", "", None)
    with pytest.raises(ValueError, match="--raw-data-file is empty"):
        KaggleSource("")
