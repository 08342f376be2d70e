"""The text reader against plain-Python twins: what is read, what is refused and in which words, where it goes on."""

import gzip
import itertools
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sources.text
from sources import GROUP, DataError
from sources.text import TextFormat, text_blocks
from sources.text_kinds import Column

PLAIN = TextFormat((Column("y", "label"), Column("n", "int64"), Column("s", "text")))
NAMED = TextFormat(PLAIN.columns, header=True, quoted=True)
ROWS = b"1,5,a\n0,,b\n1,-7,\n0,8,d\n"


def write(folder, content, name="t.csv"):
    path = folder / name
    path.write_bytes(content)
    return path


def read(paths, text_format=PLAIN, start=None, bad_rows="fail", **more):
    """Rows as tuples, how many were left out, what was wrong with the first of them."""
    paths = paths if isinstance(paths, list) else [paths]
    rows, skipped, problem = [], 0, ""
    for block in text_blocks(paths, text_format, start, bad_rows, **more):
        rows += block.frame.rows()
        skipped, problem = skipped + block.skipped, problem or block.problem
    return rows, skipped, problem


def refused(path, text_format=PLAIN):
    with pytest.raises(DataError) as error:
        read(path, text_format)
    message = str(error.value)
    assert message.startswith(str(path)) and "\n" not in message
    return message.removeprefix(str(path))


EXPECTED = [(1, 5, "a"), (0, None, "b"), (1, -7, None), (0, 8, "d")]


def test_gzip_equals_plain(tmp_path):
    assert read(write(tmp_path, ROWS)) == (EXPECTED, 0, "")
    packed = gzip.compress(ROWS[:12]) + gzip.compress(ROWS[12:])  # of two members; the name does not matter
    assert read(write(tmp_path, packed)) == (EXPECTED, 0, "")


@pytest.mark.parametrize("bad_rows", ["fail", "skip"])
def test_a_gzip_stream_cut_off_or_damaged_is_refused(tmp_path, monkeypatch, bad_rows):
    monkeypatch.setattr(sources.text, "BLOCK_BYTES", 4000)
    content = b"".join(b"%d,%d,%d\n" % (i % 2, i * i, i * 7919 % 1009) for i in range(5000))
    packed = gzip.compress(content, mtime=0)
    assert len(read(write(tmp_path, packed))[0]) == 5000
    damaged = bytearray(packed)
    damaged[len(packed) // 2] ^= 0xFF
    wrong_sum = bytearray(packed)
    wrong_sum[-6] ^= 1
    for broken in (packed[:-100], packed[:-4], packed[:30], damaged, wrong_sum):
        path = write(tmp_path, bytes(broken))
        with pytest.raises(DataError, match=r"t.csv, line \d+") as error:
            read(path, bad_rows=bad_rows)
        told = re.search(r"or after: the gzip stream is cut off or damaged \(.*\)$", str(error.value))
        assert told or (broken is damaged and bad_rows == "fail")  # which may begin with rows of rubbish


def test_a_header_where_none_is_expected(tmp_path):
    message = refused(write(tmp_path, b"y,n,s\n" + ROWS))
    assert message == ", line 1, column y: 'y' is not a label, expected 0 or 1 (a header line? this format has none)"
    assert "header" not in refused(write(tmp_path, ROWS + b"y,n,s\n"))


def test_a_header_names_the_columns(tmp_path):
    path = write(tmp_path, b"x,s, n ,y\n9,a,5,1\n,,-7,0\n")
    assert list(text_blocks([path], NAMED))[0].frame.columns == ["s", "n", "y"]
    assert read(path, NAMED)[0] == [("a", 5, 1), (None, -7, 0)]
    optional = TextFormat(PLAIN.columns, header=True, optional=("y",))
    assert read(write(tmp_path, b"n,s\n5,a\n"), optional)[0] == [(5, "a")]
    assert read(write(tmp_path, b"5,a\n"), TextFormat(PLAIN.columns, optional=("y",)))[0] == [(5, "a")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"y,s\n1,a\n", ", line 1: the header has no column 'n' (it has: y, s)"),
        (b"y,n,s,n\n1,2,a,2\n", ", line 1: the header has column 'n' twice"),
        (b"y;n;s\n1;5;a\n", "; the line holds 2 times ';': is the separator another than ','?"),
        (b"y,n,s\n1,5,a\n1;5;a\n", ", line 3: 1 columns, expected 3; the line holds 2 times ';'"),
        (b"y,n,s\n", ": there is a header, and no row below it"),
        (gzip.compress(b"y,n,s\n", mtime=0), ": there is a header, and no row below it"),
        (b"", ": the file is empty"),
        (gzip.compress(b"", mtime=0), ": the file is empty"),
        (b"\n1,2,a\n", ", line 1: the line is blank"),
        (b"y,n,s\n1,2,a\n\n1,2,a\n", ", line 3: 1 columns, expected 3"),
        (b"y,n,s\n1,2\n1,2,a,b\n", ", line 2: 2 columns, expected 3"),
        (b'y,n,s\n1,2,"a\n', ", line 2: a double quote is not closed on its line"),
        (b'y,n,s\n1,2,"a\nb"\n', ", line 2: a double quote is not closed on its line"),
        (b'y,n,s\n1,2,x"a"\n', ", line 2: a double quote inside a field"),
        (b'y,n,s\n1,2,"a"b"c"\n', ", line 2: a double quote inside a field"),
        (b"y,n,s\n1,2,a\r\n", ", line 2: ends in CRLF, the file's first line in LF (mixed line ends)"),
        (b"y,n,s\r\n1,2,a\r\n1,2,a\n", ", line 3: ends in LF, the file's first line in CRLF (mixed line ends)"),
        (b"y,n,s\n1,2,a\rb\n", ", line 2, column s: 'a\\rb' holds a carriage return"),
        (b"y,n,s\n1,2,a\n1,2,\xff\n", ", line 3, column s: '\\\\xff' is not UTF-8"),
        (b"\xef\xbb\xbfy,n,s\n1,2,a\n", ", line 1, column 1: the file begins with a byte-order mark (BOM)"),
    ],
)
def test_a_malformed_file_is_refused_in_one_line(tmp_path, content, message):
    assert message in refused(write(tmp_path, content), NAMED)


BIG = 2**63
BAD_FIELDS = [
    ("label", b"2", "'2' is not a label, expected 0 or 1"),
    ("label", b"", "'' is not a label"),
    ("optional-label", b"-1", "'-1' is not a label, expected 0, 1 or nothing"),
    ("signed-label", b"2", "'2' is not a label, expected 1, 0 or -1"),
    ("int32", b"2147483648", "'2147483648' lies outside -2147483648 to 2147483647"),
    ("int64", b"one", "'one' is not an integer"),
    ("int64", b"1.0", "'1.0' is not an integer"),
    ("int64", str(BIG).encode(), f"'{BIG}' lies outside"),
    ("id", str(BIG).encode(), f"'{BIG}' lies outside 0 to {BIG - 1}"),
    ("id", b"-1", f"'-1' lies outside 0 to {BIG - 1}"),
    ("float", b"nan", "'nan' is not a number"),
    ("float", b"1e999", "'1e999' is not a finite number"),
    ("nonnegative-float", b"-0.5", "'-0.5' is negative, and log1p takes none below 0"),
    ("hex32", b"100000000", "'100000000' lies outside 0 to 4294967295"),
    ("hex32", b"0x1", "'0x1' is not a hexadecimal number"),
    ("time-integer", b"", "'' is not an integer"),
    ("time-iso", b"2023-02-29", "'2023-02-29' is not a date or date and time"),
    ("time-iso", b"", "'' is not a date"),
    ("yymmddhh", b"23022900", "'23022900' is not a YYMMDDHH date and hour"),
    ("part", b"dev", "'dev' is not a part, expected train, val, test, validation, valid"),
]
GOOD = {"time-iso": b"2024-02-29", "part": b"val", "yymmddhh": b"24022923"}


@pytest.mark.parametrize("block_bytes", [8, 1 << 20])
@pytest.mark.parametrize(("kind", "field", "message"), BAD_FIELDS)
def test_a_bad_value_is_named_with_line_and_column(tmp_path, monkeypatch, kind, field, message, block_bytes):
    """A column that changes its type half-way, with good rows before and after."""
    monkeypatch.setattr(sources.text, "BLOCK_BYTES", block_bytes)
    good = GOOD.get(kind, b"1")
    path = write(tmp_path, b"".join(b"%b,x\n" % value for value in (good, good, good, field, good)))
    text_format = TextFormat((Column("value", kind), Column("s", "text")))
    assert refused(path, text_format).startswith(f", line 4, column value: {message}")
    rows, skipped, problem = read(path, text_format, bad_rows="skip")
    assert len(rows) == 4 and len(set(rows)) == 1
    assert skipped == 1 and f"{path}, line 4, column value: {message}" in problem


def test_the_largest_id(tmp_path):
    text_format = TextFormat((Column("value", "id"), Column("s", "text")))
    assert read(write(tmp_path, b"9223372036854775807,\n0,\n"), text_format)[0] == [(BIG - 1, None), (0, None)]


def test_signed_labels_and_parts(tmp_path):
    text_format = TextFormat((Column("y", "signed-label"), Column("p", "part")))
    rows = read(write(tmp_path, b"-1,train\n1,valid\n0,test\n+1,validation\n-1,val\n"), text_format)[0]
    assert rows == [(0, 0), (1, 1), (0, 2), (1, 1), (0, 1)]


def test_quotes(tmp_path):
    path = write(tmp_path, b'"y","n","s"\n1,"5","a,b"\n"0",,"say ""so"", he"\n1,2,""\n')
    assert read(path, NAMED)[0] == [(1, 5, "a,b"), (0, None, 'say "so", he'), (1, 2, "")]
    long = b"z" * 200_000  # above the limit of Python's csv module
    path = write(tmp_path, b'y,n,s\n1,5,"%b"\nx,5,a\n' % long)
    assert read(path, NAMED, bad_rows="skip")[0] == [(1, 5, long.decode())]


def test_a_byte_order_mark_is_left_out_on_request(tmp_path, monkeypatch):
    whole = [(1, 5, "a"), (0, None, "b"), (1, -7, None), (0, 8, "d")]
    for header in (b"", b"y,n,s\n"):
        path = write(tmp_path, b"\xef\xbb\xbf" + header + ROWS)
        text_format = NAMED if header else PLAIN
        assert read(path, text_format, bad_rows="skip") == (whole, 0, "")
        monkeypatch.setattr(sources.text, "BLOCK_BYTES", 8)
        for at, block in enumerate(text_blocks([path], text_format, None, "skip")):
            assert read(path, text_format, block.end, "skip")[0] == whole[at + 1 :]


def test_the_last_line_needs_no_line_end(tmp_path):
    for content in (ROWS[:-1], ROWS.replace(b"\n", b"\r\n"), ROWS.replace(b"\n", b"\r\n")[:-1]):
        assert read(write(tmp_path, content)) == (EXPECTED, 0, "")


def test_blank_lines_are_left_out_on_request(tmp_path):
    text_format = TextFormat(PLAIN.columns, skip_blank=True)
    assert read(write(tmp_path, ROWS.replace(b"\n0", b"\n\n0") + b"\n"), text_format) == (EXPECTED, 0, "")
    one_column = TextFormat((Column("s", "text"),))
    assert refused(write(tmp_path, b"a\n\nb\n"), one_column) == ", line 2: the line is blank"


@pytest.mark.parametrize("block_bytes", [7, 40, 1 << 20])
def test_skip_counts_exactly_and_keeps_every_good_row(tmp_path, monkeypatch, block_bytes):
    monkeypatch.setattr(sources.text, "BLOCK_BYTES", block_bytes)
    bad = {3: b"2,1,a", 4: b"1,1", 9: b"", 10: b"1,x,a", 17: b"1,1,a\r", 30: b"0,0,\xff", 39: b"a,b,c,d"}
    lines = [bad.get(i, b"%d,%d,v%d" % (i % 2, i, i)) for i in range(40)]
    rows, skipped, problem = read(write(tmp_path, b"\n".join(lines)), bad_rows="skip")
    assert rows == [(i % 2, i, f"v{i}") for i in range(40) if i not in bad]
    assert skipped == len(bad) and problem.endswith("t.csv, line 4, column y: '2' is not a label, expected 0 or 1")


@pytest.mark.parametrize("text_format", [PLAIN, NAMED])
@pytest.mark.parametrize("packed", [False, True])
def test_reading_goes_on_from_every_blocks_end(tmp_path, monkeypatch, packed, text_format):
    monkeypatch.setattr(sources.text, "BLOCK_BYTES", 60)
    paths, whole = [], []
    for number, size in enumerate((30, 1, 17)):
        lines = [f"{i % 2},{i * 997},{'v' * (i % 9)}" for i in range(size)]
        whole += [(i % 2, i * 997, "v" * (i % 9) or None, number) for i in range(size)]
        content = "\n".join(["y,n,s"] * text_format.header + lines).encode() + b"\n" * (number % 2)
        paths.append(write(tmp_path, gzip.compress(content) if packed else content, f"{number}.csv"))
    blocks = list(text_blocks(paths, text_format, group_by_file=True))
    assert len(blocks) > 8 and blocks[0].frame.columns[-1] == GROUP
    assert [row for block in blocks for row in block.frame.rows()] == whole
    done = 0
    for block in blocks:
        done += block.frame.height
        assert read(paths, text_format, block.end, group_by_file=True)[0] == whole[done:]
    assert blocks[-1].end == {"file": 3}


def test_a_bad_line_keeps_its_number_after_going_on(tmp_path, monkeypatch):
    monkeypatch.setattr(sources.text, "BLOCK_BYTES", 30)
    path = write(tmp_path, ROWS * 20 + b"x,1,a\n")
    ends = [block.end for block in text_blocks([path], PLAIN, bad_rows="skip")]
    for end in ends[:-2]:
        with pytest.raises(DataError, match="line 81, column y"):
            read(path, start=end)


def test_a_missing_file_and_a_line_without_end(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="none.csv"):
        read(tmp_path / "none.csv")
    monkeypatch.setattr(sources.text, "MAX_LINE_BYTES", 100)
    monkeypatch.setattr(sources.text, "BLOCK_BYTES", 16)
    assert "longer than 100 bytes: is it text?" in refused(write(tmp_path, ROWS + b"1" * 300))


# ---------------------------------------------------------------------------------- properties, against slow twins

CELLS = st.text(st.characters(exclude_characters="\r\n", codec="utf-8"), max_size=6)
ROW = st.tuples(st.integers(0, 1), st.none() | st.integers(-(2**63), 2**63 - 1), CELLS)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(ROW, min_size=1, max_size=25),
    block_bytes=st.integers(1, 200),
    separator=st.sampled_from(",;\t|"),
    end=st.sampled_from(["\n", "\r\n"]),
    always=st.booleans(),
    packed=st.booleans(),
)
def test_what_is_written_is_read(tmp_path, monkeypatch, rows, block_bytes, separator, end, always, packed):
    monkeypatch.setattr(sources.text, "BLOCK_BYTES", block_bytes)

    def quote(value):
        text = "" if value is None else str(value)
        return '"' + text.replace('"', '""') + '"' if always or {separator, '"'} & set(text) else text

    lines = [separator.join(map(quote, row)) for row in [("y", "n", "s"), *rows]]
    content = (end.join(lines) + end).encode()
    path = write(tmp_path, gzip.compress(content) if packed else content)
    text_format = TextFormat(PLAIN.columns, separator, header=True, quoted=True)
    assert [(y, n, s or "") for y, n, s in read(path, text_format)[0]] == rows


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=st.lists(st.binary(max_size=8).filter(lambda b: b"\n" not in b) | st.sampled_from([b"1,2,a", b'0,,"b"'])),
    block_bytes=st.integers(1, 60),
)
def test_any_bytes_are_read_or_left_out_line_by_line(tmp_path, monkeypatch, lines, block_bytes):
    """Whether a row is bad never depends on the rows around it."""
    text_format = TextFormat(PLAIN.columns, quoted=True)
    first = b"1,1,first"
    alone = []
    for line in lines:
        rows, skipped, _ = read(write(tmp_path, first + b"\n" + line + b"\n"), text_format, bad_rows="skip")
        assert len(rows) + skipped == 2 and rows[0] == (1, 1, "first")
        alone += rows[1:]
    monkeypatch.setattr(sources.text, "BLOCK_BYTES", block_bytes)
    rows, skipped, _ = read(write(tmp_path, b"\n".join([first, *lines, b""])), text_format, bad_rows="skip")
    assert rows == [(1, 1, "first"), *alone] and skipped == len(lines) - len(alone)


def test_errors_come_out_in_the_order_of_the_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(sources.text, "BLOCK_BYTES", 8)
    path = write(tmp_path, ROWS * 3 + b"2,0,x\n" + ROWS * 3 + b"3,0,x\n")
    blocks = text_blocks([path], PLAIN)
    rows = []
    with pytest.raises(DataError, match="line 13, column y: '2'"):
        for block in blocks:
            rows += block.frame.rows()
    assert rows == EXPECTED * 3
    assert list(itertools.islice(text_blocks([path], PLAIN), 1))[0].frame.height  # closed early: nothing hangs


def test_a_file_that_shrinks_while_it_is_read_ends_in_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(sources.text, "BLOCK_BYTES", 100)
    path = tmp_path / "t.csv"
    path.write_text("1,a\n" * 1000)
    blocks = text_blocks([path], TextFormat((Column("n", "int64"), Column("s", "text"))))
    next(blocks)
    path.write_text("1,a\n")
    with pytest.raises(DataError, match="t.csv: the file became shorter while it was read"):
        list(blocks)
