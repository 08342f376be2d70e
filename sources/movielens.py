"""MovieLens-1M: 1,000,209 ratings of 3,706 movies by 6,040 users, as a click task: a rating of 4 or 5 is a click.

The raw folder holds `users.dat` (UserID::Gender::Age::Occupation::Zip), `movies.dat` (MovieID::Title (Year)::Genres,
genres parted by |, Latin-1) and the ratings in one of two forms, the first of which is taken if both are there:
`ratings.dat` (UserID::MovieID::Rating::Timestamp, the original), or `ratings.csv` (user_id,movie_id,ge3,ge4: whether
the rating is at least 3, at least 4; -1 where that is not known). Source: https://grouplens.org/datasets/movielens/1m/

`--data-option neutral=drop` (default) leaves ratings of 3 out, as is usual for this task; `neutral=negative` counts
them as no click. Rows of ratings.csv where a flag is -1 are left out in both cases: 219 in the copy that this was
written for, of which 738,816 rows are then left with neutral=drop and 999,990 with neutral=negative.

Tables: user, movie, gender, age (a code for a range of years), occupation, zip, genres (multi-hot) and year, that of
the movie's release, from its title. What is not known of a user or a movie is missing; so is occupation 0, which stands
for other or not specified. Nothing is dense.

Split: random 8:1:1 by a permutation seeded with `--data-option split_seed` (123); the rows bear no usable time order.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from sources import (
    Block,
    DataError,
    Groups,
    Layout,
    Position,
    SourceOptions,
    Split,
    blocks_of_slices,
    random_split,
    take_settings,
)

BLOCK_ROWS = 262_144

_NUMBER = r"[0-9]{1,18}"
_RATINGS_DAT = {"user": _NUMBER, "movie": _NUMBER, "rating": r"[1-5]", "timestamp": _NUMBER}
_RATINGS_CSV = {"user_id": _NUMBER, "movie_id": _NUMBER, "ge3": r"-1|0|1", "ge4": r"-1|0|1"}
_USERS = {"user": _NUMBER, "gender": r"[FM]", "age": _NUMBER, "occupation": _NUMBER, "zip": r"\S+"}
_MOVIES = {"movie": _NUMBER, "title": r".*\S.*", "genres": r"[^|]+(\|[^|]+)*"}
_SETTINGS = {"neutral": ("drop", "negative"), "split_seed": 123}


class _Records(NamedTuple):
    frame: pl.DataFrame  # the fields as strings, and the row's `line`
    skipped: int
    problem: str


class MovieLens1MSource:
    """`--data-set=movielens-1m`. `--raw-data-file` is the folder with users.dat, movies.dat and the ratings."""

    layout = Layout(
        labels=("click",),
        dense={},
        tables=("user", "movie", "gender", "age", "occupation", "zip", "genres", "year"),
        multi_hot=("genres",),
    )

    def __init__(self, raw_data_file: str, options: SourceOptions) -> None:
        if not raw_data_file:
            raise ValueError("--raw-data-file is empty: --data-set=movielens-1m needs the folder with movies.dat")
        self.settings: dict[str, Any] = take_settings(options.settings, _SETTINGS)
        seed = self.settings["split_seed"]
        if not 0 <= seed < 2**32:
            raise ValueError(f"--data-option=split_seed={seed}: give a number from 0 to 2**32 - 1")
        folder = Path(raw_data_file)
        ratings = folder / "ratings.dat"
        if not ratings.exists():
            ratings = folder / "ratings.csv"
        self.paths: tuple[Path, ...] = (ratings, folder / "users.dat", folder / "movies.dat")
        self._bad_rows = options.bad_rows

    def blocks(self, start: Position | None = None) -> Iterator[Block]:
        """The ratings in file order, joined with what is known of user and movie."""
        frame, skipped, problem = self._build()
        return blocks_of_slices(frame.height, BLOCK_ROWS, start, lambda a, b: frame[a:b], skipped, problem)

    def split(self, rows: int, groups: Groups | None = None) -> Split:
        """Random tenths."""
        return random_split(rows, self.settings["split_seed"])

    def _build(self) -> _Records:
        ratings = _ratings(self.paths[0], self._bad_rows)
        users = _keyed(self.paths[1], _USERS, self._bad_rows)
        movies = _keyed(self.paths[2], _MOVIES, self._bad_rows)
        kept = pl.col("is_four") | ~pl.col("is_three") if self.settings["neutral"] == "drop" else pl.lit(True)
        frame = (
            ratings.frame.filter(kept)
            .join(users.frame, on="user", how="left", maintain_order="left")
            .join(movies.frame, on="movie", how="left", maintain_order="left")
        )
        frame = frame.select(
            pl.col("is_four").cast(pl.Int8).alias("click"),
            pl.col("user", "movie").cast(pl.Int64),
            "gender",
            pl.col("age", "occupation").cast(pl.Int64),
            "zip",
            pl.col("genres").str.split("|"),
            pl.col("title").str.extract(r"\(([0-9]{4})\)\s*$").cast(pl.Int32).alias("year"),
        )
        read = (ratings, users, movies)
        return _Records(frame, sum(r.skipped for r in read), next((r.problem for r in read if r.problem), ""))


def _ratings(path: Path, bad_rows: str) -> _Records:
    """Users, movies and whether the rating is at least 4 and exactly 3, without rows where one is not known."""
    user, movie = pl.col("user"), pl.col("movie")
    if path.suffix == ".dat":
        read = _records(path, "::", _RATINGS_DAT, bad_rows)
        four, three = pl.col("rating").is_in(["4", "5"]), pl.col("rating") == "3"
        known = pl.lit(True)
    else:
        read = _records(path, ",", _RATINGS_CSV, bad_rows, header=True)
        user, movie = pl.col("user_id"), pl.col("movie_id")
        four, three = pl.col("ge4") == "1", (pl.col("ge3") == "1") & (pl.col("ge4") == "0")
        known = (pl.col("ge3") != "-1") & (pl.col("ge4") != "-1")
    frame = read.frame.filter(known).select(
        _plain(user).alias("user"), _plain(movie).alias("movie"), four.alias("is_four"), three.alias("is_three")
    )
    return read._replace(frame=frame)


def _keyed(path: Path, patterns: dict[str, str], bad_rows: str) -> _Records:
    """A table whose first field names each of its rows once."""
    key = next(iter(patterns))
    read = _records(path, "::", patterns, bad_rows)
    frame = read.frame.with_columns(_plain(pl.col(key)))
    again = frame.filter(~pl.col(key).is_first_distinct())
    if not again.height:
        return read._replace(frame=frame.drop("line"))
    problem = f"{path}, line {again['line'][0]}, column {key}: {again[key][0]!r} stands in an earlier line too"
    if bad_rows == "fail":
        raise DataError(problem)
    frame = frame.filter(pl.col(key).is_first_distinct()).drop("line")
    return _Records(frame, read.skipped + again.height, read.problem or problem)


def _plain(number: pl.Expr) -> pl.Expr:
    """Without leading zeros, so that files that differ in them can be joined."""
    return number.cast(pl.Int64).cast(pl.String)


def _records(path: Path, separator: str, patterns: dict[str, str], bad_rows: str, *, header: bool = False) -> _Records:
    """Read a file of lines whose fields must match `patterns`; the first line that does not is named."""
    lines = path.read_bytes().decode("latin-1").split("\n")
    if lines[-1] == "":
        lines.pop()
    names = list(patterns)
    if header:
        found = lines.pop(0).rstrip("\r") if lines else ""
        if found != separator.join(names):
            raise DataError(f"{path}, line 1: the header is {found[:80]!r}, expected {separator.join(names)!r}")
    if not lines:
        raise DataError(f"{path}: the file has no rows")
    text = pl.DataFrame({"text": lines}, schema={"text": pl.String}).with_row_index("line", 2 if header else 1)
    whole = pl.col("text").str.strip_suffix("\r")
    fields = whole.str.split_exact(separator, len(names) - 1).struct.rename_fields(names).alias("fields")
    extra = whole.str.count_matches(separator, literal=True) != len(names) - 1
    frame = text.with_columns(fields, extra.alias("extra")).unnest("fields")
    good = pl.all_horizontal(~pl.col("extra"), *(pl.col(c).str.contains(f"^(?:{p})$") for c, p in patterns.items()))
    bad = frame.filter(~good.fill_null(False))
    problem = _problem(path, bad.row(0, named=True), patterns) if bad.height else ""
    if bad.height and bad_rows == "fail":
        raise DataError(problem)
    return _Records(frame.filter(good.fill_null(False)).drop("text", "extra"), bad.height, problem)


def _problem(path: Path, row: dict[str, Any], patterns: dict[str, str]) -> str:
    """What is wrong with a row."""
    where = f"{path}, line {row['line']}"
    if row["extra"]:
        return f"{where}: {row['text'][:80]!r} has not the {len(patterns)} columns {', '.join(patterns)}"
    matches = pl.DataFrame(row).select(pl.col(c).str.contains(f"^(?:{p})$") for c, p in patterns.items())
    name = next(name for name in patterns if not matches[name][0])
    return f"{where}, column {name}: {row[name][:40]!r} is not a valid {name} (expected {patterns[name]})"
