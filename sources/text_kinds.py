"""What a field of a text file may hold, told twice: for a column at once (fast), and for one field (in words).

The two must agree on every field, or a row would be bad only where another bad row stands near it; the tests compare
them. Both take what polars takes: blanks before a number and a plus sign.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

import polars as pl

from sources import PARTS

PART_NAMES = {**PARTS, "validation": PARTS["val"], "valid": PARTS["val"]}


class Column(NamedTuple):
    """A column of a text file; the kinds are the keys of KINDS."""

    name: str
    kind: str


class Kind(NamedTuple):
    """One kind of field."""

    dtype: Any  # as polars reads it
    pattern: bytes  # what a field may look like
    what: str  # ... in words
    low: int | None = None
    high: int | None = None
    empty: bool = True  # an empty field is a missing value


class Refused(Exception):
    """The fast reader will not have this block."""


FLOAT_MAX = 3.4028234663852886e38  # of float32, in which the model sees numbers
_INTEGER = rb"[ \t]*[+-]?[0-9]+"
_NUMBER = rb"[ \t]*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?"
_LABEL = rb"[ \t]*(\+?0*[01]|-0+)"
_DATE, _CLOCK = r"([0-9]{4}-[0-9]{2}-[0-9]{2})", r"([0-9]{2}):([0-9]{2})(?::([0-9]{2})(?:\.([0-9]{1,6}))?)?"
_ISO = rf"^{_DATE}(?:[T ]{_CLOCK}(Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])?)?$"
_ISO_WORDS = "date or date and time (2024-05-31, 2024-05-31T12:00:00.5, 2024-05-31 12:00+02:00)"
_YYMMDDHH = (  # a day that the calendar has: 31, 30 and 28 days, 29 February in years that 4 divides
    rb"([0-9]{2}((0[13578]|1[02])(0[1-9]|[12][0-9]|3[01])|(0[469]|11)(0[1-9]|[12][0-9]|30)|02(0[1-9]|1[0-9]|2[0-8]))"
    rb"|([02468][048]|[13579][26])0229)([01][0-9]|2[0-3])"
)

KINDS = {
    "label": Kind(pl.Int8, _LABEL, "label, expected 0 or 1", empty=False),
    "optional-label": Kind(pl.Int8, _LABEL, "label, expected 0, 1 or nothing"),
    "signed-label": Kind(pl.Int8, rb"[ \t]*[+-]?0*[01]", "label, expected 1, 0 or -1", empty=False),
    "int32": Kind(pl.Int32, _INTEGER, "integer", -(2**31), 2**31 - 1),
    "int64": Kind(pl.Int64, _INTEGER, "integer", -(2**63), 2**63 - 1),
    "id": Kind(pl.Int64, _INTEGER, "integer", 0, 2**63 - 1),
    "float": Kind(pl.Float64, _NUMBER, "number"),
    "nonnegative-float": Kind(pl.Float64, _NUMBER, "number"),
    "hex32": Kind(pl.String, rb"\+?[0-9a-fA-F]+|-0*[1-9a-fA-F][0-9a-fA-F]*", "hexadecimal number", 0, 2**32 - 1),
    "text": Kind(pl.String, rb"(?s).*", "text"),
    "ignore": Kind(pl.String, rb"(?s).*", "text"),
    "time-integer": Kind(pl.Int64, _INTEGER, "integer", -(2**63), 2**63 - 1, empty=False),
    "time-iso": Kind(pl.String, _ISO[1:-1].encode(), _ISO_WORDS, empty=False),
    "yymmddhh": Kind(pl.String, _YYMMDDHH, "YYMMDDHH date and hour", empty=False),
    "part": Kind(pl.String, "|".join(PART_NAMES).encode(), f"part, expected {', '.join(PART_NAMES)}", empty=False),
}


def converted(frame: pl.DataFrame, columns: Sequence[Column]) -> pl.DataFrame:
    """The columns in the types of `sources.Block`; raises Refused or polars' error where a value breaks the rules."""
    return frame.with_columns(_converted(frame[name], kind) for name, kind in columns)


def _converted(values: pl.Series, kind: str) -> pl.Series:
    if not KINDS[kind].empty and values.null_count():
        raise Refused(f"{values.name} is missing")
    if kind == "hex32":
        return values.str.to_integer(base=16, dtype=pl.UInt32, strict=True)
    if kind == "time-iso":
        values, count = iso_microseconds(values), values.null_count()
        good = values.null_count() == count
    elif kind == "yymmddhh":
        good = values.str.contains(f"^(?:{_YYMMDDHH.decode()})$").all()
    elif kind == "part":
        values = values.replace_strict(PART_NAMES, default=None, return_dtype=pl.Int64)
        good = not values.null_count()
    elif kind == "signed-label":
        good = values.is_between(-1, 1).all()
        values = values.clip(lower_bound=0)
    elif kind in ("label", "optional-label"):
        good = values.is_between(0, 1).all()
    elif kind in ("float", "nonnegative-float"):
        good = values.is_between(0 if kind == "nonnegative-float" else -FLOAT_MAX, FLOAT_MAX).all()
    else:
        good = kind != "id" or not (values < 0).any()
    if not good:
        raise Refused(f"{values.name}: a value is not in its range")
    return values


def iso_microseconds(values: pl.Series) -> pl.Series:
    """ISO dates and times as microseconds since 1970, null where there is none; without an offset they are UTC."""
    fields = values.str.extract_groups(_ISO).struct.rename_fields(list("dhmsfz")).struct.unnest()
    hours, minutes, seconds = (pl.col(c).cast(pl.Int64).fill_null(0) for c in "hms")
    zone = pl.col("z").replace("Z", "+00:00").fill_null("+00:00")
    away = zone.str.slice(1, 2).cast(pl.Int64) * 60 + zone.str.slice(4, 2).cast(pl.Int64)
    away *= pl.when(zone.str.starts_with("-")).then(-1).otherwise(1)
    days = pl.col("d").str.to_date("%Y-%m-%d", strict=False).cast(pl.Int32).cast(pl.Int64)
    fraction = pl.col("f").fill_null("").str.pad_end(6, "0").cast(pl.Int64)
    total = (((days * 24 + hours) * 60 + minutes - away) * 60 + seconds) * 1_000_000 + fraction
    valid = (hours < 24) & (minutes < 60) & (seconds < 60) & (pl.col("d") >= "0001")
    return fields.select(pl.when(valid).then(total).alias(values.name)).to_series()


def field_problem(kind: str, field: bytes) -> str | None:
    """Why a field is no value of its kind; None if it is one."""
    rules = KINDS[kind]
    if kind in ("text", "ignore"):
        try:
            field.decode()
        except UnicodeDecodeError:
            return "is not UTF-8"
        return "holds a carriage return" if b"\r" in field else None
    if rules.empty and not (field if rules.dtype == pl.String else field.strip(b" \t")):
        return None
    if not re.fullmatch(rules.pattern, field) or (kind == "time-iso" and not _is_iso(field)):
        return f"is not a {rules.what}" if rules.what[0] not in "aeiou" else f"is not an {rules.what}"
    if rules.high is not None:
        value = int(field, 16 if kind == "hex32" else 10)
        if not rules.low <= value <= rules.high:
            return f"lies outside {rules.low} to {rules.high}"
    if "float" in kind and not abs(float(field)) <= FLOAT_MAX:
        return "is not a finite number of 32 bits"
    if kind == "nonnegative-float" and float(field) < 0:
        return "is negative, and log1p takes none below 0"
    return None


def _is_iso(field: bytes) -> bool:
    try:
        datetime.fromisoformat(field.decode())
    except ValueError:
        return False
    return True


__all__ = ["KINDS", "PART_NAMES", "Column", "Kind", "Refused", "converted", "field_problem", "iso_microseconds"]
