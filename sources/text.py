"""Delimited text (CSV, TSV, Criteo's format), plain or gzip, read block by block and strict about every row.

A block of whole lines is parsed by polars. What polars is lenient about (rows of the wrong length) is counted first;
a block that fails is read again line by line in Python, slowly, only to name the file, line, column and value at fault
or, with bad_rows="skip", to leave those lines out. Memory does not depend on the size of the file.
"""

from __future__ import annotations

import gzip
import io
import re
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from sources import GROUP, Block, DataError, Position
from sources.prefetch import in_order_ahead
from sources.text_kinds import KINDS, Column, Refused, converted, field_problem

BLOCK_BYTES = 16 << 20
MAX_LINE_BYTES = 64 << 20
WORKERS = 3  # blocks parsed at a time; more would only cost memory, polars has threads of its own
COUNT_BYTES = 1 << 17
WINDOW_BYTES = 1 << 16  # looked through at a time for a line end
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class TextFormat:
    """How lines become rows.

    Args:
        columns: without a header, the fields in order; with one, the columns wanted, by name.
        separator: one character.
        header: the first line names the columns; what is not wanted is ignored.
        optional: columns that a file may lack as a whole (labels, when rows are scored). Without a header they are
            told by the number of fields in the first line, all or none.
        quoted: fields may stand in double quotes, a quote inside them is doubled (a line break inside is refused).
        skip_blank: blank lines are no error.
    """

    columns: tuple[Column, ...]
    separator: str = ","
    header: bool = False
    optional: tuple[str, ...] = ()
    quoted: bool = False
    skip_blank: bool = False


class _Chunk(NamedTuple):
    text: bytes  # whole lines
    lines: int
    path: Path
    columns: tuple[Column, ...]
    first_line: int
    crlf: bool
    file: int
    end: Position


def text_blocks(
    paths: Sequence[Path],
    text_format: TextFormat,
    start: Position | None = None,
    bad_rows: str = "fail",
    group_by_file: bool = False,
) -> Iterator[Block]:
    """Parse files one after another.

    Args:
        paths: text files, gzip or not (told by their first bytes).
        text_format: the columns.
        start: a block's `end`, to go on from there.
        bad_rows: "fail", or "skip" to leave bad rows out and count them.
        group_by_file: add the column GROUP with the number of the file.

    Raises:
        DataError: a row, a header or a gzip stream that cannot be read, or an empty file. OSError: unreadable path.
    """

    def parse(chunk: _Chunk) -> Block:
        frame, skipped, problem = _parse(chunk, text_format, bad_rows)
        if group_by_file:
            frame = frame.with_columns(pl.lit(chunk.file, pl.Int32).alias(GROUP))
        return Block(frame, chunk.end, skipped, problem)

    with ThreadPoolExecutor(WORKERS) as pool:
        yield from in_order_ahead(pool, parse, _chunks(paths, text_format, start or {"file": 0}, bad_rows), WORKERS)


# --------------------------------------------------------------------------------------------------- whole lines


def _chunks(paths: Sequence[Path], text_format: TextFormat, start: Position, bad_rows: str) -> Iterator[_Chunk]:
    for number in range(start["file"], len(paths)):
        path = paths[number]
        at = start if number == start["file"] and "offset" in start else {"offset": 0, "line": 1}
        first, lead = _first_line(path, bad_rows)
        if not first.strip():
            raise DataError(f"{path}: the file is empty" if not first else f"{path}, line 1: the line is blank")
        columns = _columns_of(first, path, text_format)
        offset, line = max(at["offset"], lead), at["line"]
        if text_format.header and line == 1:
            offset, line = lead + len(first), 2
        rows_seen = False
        crlf = first.endswith(b"\r\n")
        last_of_file = {"file": number + 1}
        for text, is_last in _whole_lines(path, offset, line, crlf):
            lines = _count(text, b"\n")
            offset, first_line, line = offset + len(text), line, line + lines
            end = last_of_file if is_last else {"file": number, "offset": offset, "line": line}
            rows_seen = True
            yield _Chunk(text, lines, path, columns, first_line, crlf, number, end)
        if not rows_seen:
            raise DataError(f"{path}: there is a header, and no row below it")


def is_gzip(path: Path) -> bool:
    """Whether a file is packed, told by its first bytes."""
    with open(path, "rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _open(path: Path) -> io.BufferedIOBase:
    return gzip.open(path, "rb") if is_gzip(path) else open(path, "rb", buffering=0)


def _read_into(file: io.BufferedIOBase, target: memoryview, path: Path, line: int) -> int:
    try:
        return file.readinto(target)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}, line {line} or after: the gzip stream is cut off or damaged ({error})") from None


def _first_line(path: Path, bad_rows: str) -> tuple[bytes, int]:
    """The first line with its end, and how many bytes before it (a byte-order mark) are left out."""
    with _open(path) as file:
        text, buffer = b"", bytearray(1 << 16)
        while b"\n" not in text and len(text) < MAX_LINE_BYTES:
            read = _read_into(file, memoryview(buffer), path, 1)
            if not read:
                break
            text += buffer[:read]
    first = text[: text.index(b"\n") + 1] if b"\n" in text else text
    if not first.startswith(BOM):
        return first, 0
    if bad_rows == "fail":
        raise DataError(
            f"{path}, line 1, column 1: the file begins with a byte-order mark (BOM): save it as plain UTF-8"
            " (sed -i '1s/^\\xEF\\xBB\\xBF//' FILE), or give --bad-rows=skip"
        )
    return first[len(BOM) :], len(BOM)


def _whole_lines(path: Path, offset: int, line: int, crlf: bool) -> Iterator[tuple[bytes, bool]]:
    """Cut a file from `offset` on into blocks that end with a line end; the flag says that nothing follows."""
    ready = None
    with _open(path) as file:
        for text in _packed_blocks(file, path, offset, line) if is_gzip(path) else _plain_blocks(file, path, offset):
            if ready is not None:
                yield ready, False
            ready = text
            if not text.endswith(b"\n"):  # the last line, or one without an end in sight
                if len(text) > MAX_LINE_BYTES:
                    raise DataError(f"{path}, line {line} or after: longer than {MAX_LINE_BYTES} bytes: is it text?")
                ready = text.rstrip(b"\r") + (b"\r\n" if crlf else b"\n")
    if ready is not None:
        yield ready, True


def _plain_blocks(file: io.FileIO, path: Path, offset: int) -> Iterator[bytes]:
    """Blocks of a plain file, each read at once in its exact length: fresh memory is what reading costs."""
    size = path.stat().st_size
    while offset < size:
        length = _length_of_lines(file, offset, min(BLOCK_BYTES, size - offset), size)
        file.seek(offset)
        text = file.read(length)
        if not text:
            raise DataError(f"{path}: the file became shorter while it was read")
        offset += len(text)
        yield text


def _length_of_lines(file: io.FileIO, offset: int, length: int, size: int) -> int:
    """At most `length` bytes that end with a line end; more if the first line is longer; all where none ends."""
    at = offset + length
    while at > offset:
        begin = max(offset, at - WINDOW_BYTES)
        file.seek(begin)
        end = file.read(at - begin).rfind(b"\n") + 1
        if end:
            return begin + end - offset
        at = begin
    at = offset + length
    while at < size and at - offset <= MAX_LINE_BYTES:
        file.seek(at)
        window = file.read(WINDOW_BYTES)
        end = window.find(b"\n") + 1
        if end or not window:
            return at + end - offset
        at += len(window)
    return min(at, size) - offset


def _packed_blocks(file: io.BufferedIOBase, path: Path, offset: int, line: int) -> Iterator[bytes]:
    """Blocks of a gzip file, which can only be read on."""
    rest, block = b"", bytearray(BLOCK_BYTES)
    left = offset
    while left and (read := _read_into(file, memoryview(block)[: min(left, BLOCK_BYTES)], path, line)):
        left -= read
    while read := _read_into(file, memoryview(block), path, line):
        end = block.rfind(b"\n", 0, read) + 1
        if end:
            yield rest + block[:end]
        rest = bytes(block[end:read]) if end else rest + block[:read]
        if len(rest) > MAX_LINE_BYTES:
            break
    if rest:
        yield rest


def _count(text: bytes, character: bytes) -> int:
    characters = np.frombuffer(text, np.uint8)
    pieces = range(0, len(characters), COUNT_BYTES)  # small ones: fresh memory costs more than the comparison
    return sum(int(np.count_nonzero(characters[at : at + COUNT_BYTES] == ord(character))) for at in pieces)


# ------------------------------------------------------------------------------------------------------- columns


def _columns_of(first: bytes, path: Path, text_format: TextFormat) -> tuple[Column, ...]:
    """The kind of each field of a file, from its first line."""
    if not text_format.header:
        required = tuple(c for c in text_format.columns if c.name not in text_format.optional)
        fields = len(_fields(first.rstrip(b"\r\n"), text_format))
        return required if fields == len(required) else text_format.columns
    names = [field.decode("utf-8", "backslashreplace").strip() for field in _fields(first.rstrip(b"\r\n"), text_format)]
    kinds = {column.name: column.kind for column in text_format.columns}
    for name in kinds:
        if name not in names and name not in text_format.optional:
            guess = _separator_hint(first, text_format)
            shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
            raise DataError(f"{path}, line 1: the header has no column {name!r} (it has: {shown}){guess}")
        if names.count(name) > 1:
            raise DataError(f"{path}, line 1: the header has column {name!r} twice")
    twice = {name for name in names if names.count(name) > 1}
    return tuple(
        Column(f"{name}#{i}" if name in twice else name, kinds.get(name, "ignore")) for i, name in enumerate(names)
    )


def _fields(line: bytes, text_format: TextFormat) -> list[bytes]:
    separator = text_format.separator.encode()
    if not (text_format.quoted and b'"' in line and _well_quoted(line, separator)):
        return line.split(separator)
    ends = re.escape(separator)
    pattern = rb'"((?:[^"]|"")*)"%b|([^%b]*)%b' % (ends, ends, ends)
    found = re.finditer(pattern, line + separator)
    return [m[2] if m[1] is None else m[1].replace(b'""', b'"') for m in found]


def _well_quoted(line: bytes, separator: bytes) -> bool:
    """Quotes stand around a whole field, or doubled inside such quotes."""
    field = rb'(?:"(?:[^"]|"")*"|[^"%b]*)' % re.escape(separator)
    return re.fullmatch(rb"%b(?:%b%b)*" % (field, re.escape(separator), field), line) is not None


def _separator_hint(line: bytes, text_format: TextFormat) -> str:
    counts = {other: line.count(other.encode()) for other in "\t,;|" if other != text_format.separator}
    best = max(counts, key=counts.get)
    if counts[best] < max(1, len(_fields(line, text_format))):
        return ""
    return f"; the line holds {counts[best]} times {best!r}: is the separator another than {text_format.separator!r}?"


# --------------------------------------------------------------------------------------------------------- parse


def _parse(chunk: _Chunk, text_format: TextFormat, bad_rows: str) -> tuple[pl.DataFrame, int, str]:
    """The rows of a chunk, how many were left out, and what was wrong with the first of those."""
    try:
        return _parse_fast(chunk.text, chunk.lines, chunk, text_format), 0, ""
    except (pl.exceptions.PolarsError, Refused) as error:
        reason = str(error).split("\n")[0]
    good, skipped, problem = [], 0, ""
    lines = chunk.text[:-1].split(b"\n")
    for number, line in enumerate(lines, start=chunk.first_line):
        if text_format.skip_blank and not line.strip():
            continue
        found = _line_problem(line, number, chunk, text_format)
        if not found:
            good.append(line)
            continue
        message = f"{chunk.path}, line {number}{found}"
        if bad_rows == "fail":
            raise DataError(message)
        skipped, problem = skipped + 1, problem or message
    if len(good) == len(lines):
        last = chunk.first_line + len(lines) - 1
        raise DataError(f"{chunk.path}, lines {chunk.first_line} to {last}: cannot be read: {reason}")
    text = b"".join(line + b"\n" for line in good)
    return _parse_fast(text, len(good), chunk, text_format), skipped, problem


def _parse_fast(text: bytes, lines: int, chunk: _Chunk, text_format: TextFormat) -> pl.DataFrame:
    wanted = [column for column in chunk.columns if column.kind != "ignore"]
    schema = {column.name: KINDS[column.kind].dtype for column in chunk.columns}
    if not text:
        frame = pl.DataFrame(schema={column.name: schema[column.name] for column in wanted})
    else:
        if chunk.crlf:
            if text.count(b"\r\n") != lines:
                raise Refused("mixed line ends")
            text = text.replace(b"\r\n", b"\n")
        if b"\r" in text:
            raise Refused("carriage return")
        if len(chunk.columns) == 1 and (text.startswith(b"\n") or b"\n\n" in text):
            raise Refused("blank line")  # of which polars makes a missing value
        quoted = text_format.quoted and b'"' in text
        _check_field_counts(text, lines, len(chunk.columns), text_format.separator, quoted)
        frame = pl.read_csv(
            text,
            separator=text_format.separator,
            has_header=False,
            schema=schema,
            columns=[i for i, column in enumerate(chunk.columns) if column.kind != "ignore"],
            quote_char='"' if quoted else None,
        )
        if frame.height != lines:  # polars skips blank lines
            raise Refused("blank line")
    return converted(frame, wanted)


def _check_field_counts(text: bytes, lines: int, columns: int, separator: str, quoted: bool) -> None:
    """Rows of the wrong length: polars fills or refuses them row by row, but only in some cases."""
    if not quoted:
        separators = _count(text, separator.encode())
    else:
        characters = np.frombuffer(text, np.uint8)
        inside = np.logical_xor.accumulate(characters == ord('"'))
        if (inside & (characters == ord("\n"))).any():
            raise Refused("line break in quotes")
        _check_quotes(characters, inside, separator)
        separators = np.count_nonzero((characters == ord(separator)) & ~inside)
    if separators != lines * (columns - 1):
        raise Refused("wrong number of fields")


def _check_quotes(characters: np.ndarray, inside: np.ndarray, separator: str) -> None:
    """Quotes stand around a whole field, or doubled inside such quotes: else readers disagree on what is meant."""
    at = np.flatnonzero(characters == ord('"'))
    opening = inside[at]
    before = np.where(at > 0, characters[at - 1], ord("\n"))[opening]
    after = characters[at[~opening] + 1]  # there is one: the text ends with a line end
    for neighbour in (before, after):
        if not np.isin(neighbour, [ord(separator), ord("\n"), ord('"')]).all():
            raise Refused("quote inside a field")


def _line_problem(line: bytes, number: int, chunk: _Chunk, text_format: TextFormat) -> str:
    """What is wrong with a line, to stand behind its number; "" if nothing is."""
    if line.endswith(b"\r") != chunk.crlf:
        ends = ("LF", "CRLF")
        return f": ends in {ends[not chunk.crlf]}, the file's first line in {ends[chunk.crlf]} (mixed line ends)"
    line = line.removesuffix(b"\r")
    if text_format.quoted and line.count(b'"') % 2:
        return ": a double quote is not closed on its line"
    if text_format.quoted and b'"' in line and not _well_quoted(line, text_format.separator.encode()):
        return ": a double quote inside a field (quote the whole field and double the quotes in it)"
    if not line and len(chunk.columns) == 1:
        return ": the line is blank"
    fields = _fields(line, text_format)
    if len(fields) != len(chunk.columns):
        hint = _separator_hint(line, text_format)
        return f": {len(fields)} columns, expected {len(chunk.columns)}{hint}"
    for (name, kind), field in zip(chunk.columns, fields, strict=True):
        problem = field_problem(kind, field)
        if problem:
            shown = field[:40].decode("utf-8", "backslashreplace")
            hint = " (a header line? this format has none)" if not text_format.header and number == 1 else ""
            return f", column {name}: {shown!r} {problem}{hint if _looks_like_header(fields) else ''}"
    return ""


def _looks_like_header(fields: Sequence[bytes]) -> bool:
    return all(re.fullmatch(rb"[A-Za-z_][\w .-]*", field) for field in fields)


__all__ = ["KINDS", "Column", "TextFormat", "field_problem", "text_blocks", "is_gzip"]
