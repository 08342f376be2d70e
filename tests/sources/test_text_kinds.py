"""The two readings of a field, for a column at once and in words, agree with one another and with Python."""

import io
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sources.text_kinds import KINDS, Column, Refused, converted, field_problem, iso_microseconds

ALPHABET = {
    "time-iso": "0123456789-:T Z+.",
    "part": "trainvlestd",
    "yymmddhh": "0123",
    "hex32": "0189afAFxg+-_ ",
}
STAMPS = st.datetimes().map(lambda t: t.isoformat(" ")) | st.dates().map(str)
OFFSETS = st.sampled_from(["", "Z", "+02:30", "-23:59", "+24:00", "+0200", "+12:3", "+1:234", "+02:60", "+02:59"])


@settings(max_examples=150, deadline=None)
@given(kind=st.sampled_from(sorted(set(KINDS) - {"text", "ignore"})), data=st.data())
def test_the_fast_reader_takes_a_field_exactly_if_the_slow_one_finds_no_fault(kind, data):
    """For every kind, one field at a time."""
    fields = st.text(ALPHABET.get(kind, "0129+-.eE infa_\t"), max_size=7)
    fields |= st.sampled_from([*KINDS, *GOOD_AND_NEAR])
    fields |= st.integers(-(2**64), 2**64).map(str) | st.integers(-(2**32), 2**33).map(lambda i: f"{i:x}")
    fields |= st.floats().map(str) | st.builds(lambda a, b: a + b, STAMPS, OFFSETS)
    check_field(kind, data.draw(fields))


GOOD_AND_NEAR = [
    "train",
    "val",
    "test",
    "valid",
    "validation",
    "",
    " ",
    "01",
    "-0",
    "+1",
    "-1",
    " 1",
    "\t0",
    "1 ",
    "-",
    "-00",
]
GOOD_AND_NEAR += ["24022923", "23022900", "24022924", "24043100", "99123123", "00022900"]
GOOD_AND_NEAR += ["0000-01-01", "0001-01-01", "9999-12-31", "2024-02-30", "2024-02-29T24:00", "2024-02-29T23:59:60"]
GOOD_AND_NEAR += ["1.", ".5", ".", "1e5", "1e999", "-1e-999", "nan", "inf", "-.0", "ffffffff", "100000000", "+f", "-f"]


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"text", "ignore"}))
def test_fields_at_the_edge(kind):
    for field in GOOD_AND_NEAR:
        check_field(kind, field)


def check_field(kind, field):
    text = f"{field};x\n".encode()
    try:
        schema = {"a": KINDS[kind].dtype, "b": pl.String}
        frame = pl.read_csv(io.BytesIO(text), separator=";", has_header=False, schema=schema, quote_char=None)
        value = converted(frame, [Column("a", kind)])["a"][0]
    except (pl.exceptions.PolarsError, Refused):
        assert field_problem(kind, field.encode()) is not None, field
        return
    assert field_problem(kind, field.encode()) is None, field
    if value is not None:
        read_by_python = {
            "hex32": lambda: int(field, 16),
            "signed-label": lambda: max(int(field), 0),
            "float": lambda: float(field),
            "nonnegative-float": lambda: float(field),
            "time-iso": lambda: microseconds(field),
            "yymmddhh": lambda: datetime.strptime(field, "%y%m%d%H").strftime("%y%m%d%H"),
            "part": lambda: {"train": 0, "test": 2}.get(field, 1),
        }
        assert value == read_by_python.get(kind, lambda: int(field))()


def microseconds(text):
    from datetime import datetime

    moment = datetime.fromisoformat(text)
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


@given(stamp=STAMPS, offset=OFFSETS)
@example(stamp="1969-12-31 23:59:59.999999", offset="")
def test_iso_times_are_microseconds(stamp, offset):
    text = stamp + offset * (":" in stamp)
    got = iso_microseconds(pl.Series("t", [text])).to_list()
    assert got == ([microseconds(text)] if not field_problem("time-iso", text.encode()) else [None])
