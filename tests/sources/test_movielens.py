import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

import sources.movielens
from sources import DataError, SourceOptions, open_source

USERS = "1::F::1::10::48067\n2::M::56::16::98107-2117\n3::M::25::0::55117\n"
MOVIES = (
    "1::Toy Story (1995)::Animation|Children's|Comedy\n2::Mis\xe9rables, Les (1958)::Drama\n"
    "3::Star Wars: Episode (Two) (1977)::Action|Sci-Fi\n5::No Year::Drama\n"
)
DAT = [(1, 1, 5), (1, 2, 3), (2, 3, 4), (3, 5, 2), (2, 1, 1), (9, 1, 5), (3, 8, 1), (3, 3, 3)]
CSV = "user_id,movie_id,ge3,ge4\n1,1,1,1\n1,2,1,0\n2,3,-1,0\n3,5,0,0\n2,1,1,-1\n9,1,1,1\n"


def write(folder, users=USERS, movies=MOVIES, dat=None, csv=None):
    folder.mkdir(exist_ok=True)
    (folder / "users.dat").write_bytes(users.encode("latin-1"))
    (folder / "movies.dat").write_bytes(movies.encode("latin-1"))
    if csv is None or dat is not None:
        lines = "".join(f"{u}::{m}::{r}::978300760\n" for u, m, r in DAT)
        (folder / "ratings.dat").write_text(lines if dat is None else dat)
    if csv is not None:
        (folder / "ratings.csv").write_text(csv)
    return folder


def source(folder, bad_rows="fail", **settings):
    return open_source("movielens-1m", str(folder), SourceOptions(settings=settings, bad_rows=bad_rows))


def read(folder, **settings):
    return pl.concat(block.frame for block in source(folder, **settings).blocks())


def twin(folder, ratings):
    """The rows as dictionaries, by the plainest of means."""
    users = dict(line.split("::", 1) for line in (folder / "users.dat").read_text("latin-1").splitlines())
    movies = dict(line.split("::", 1) for line in (folder / "movies.dat").read_text("latin-1").splitlines())
    rows = []
    for user, movie, click in ratings:
        gender, age, occupation, code = users.get(str(user), "::" * 3).split("::")
        title, genres = movies.get(str(movie), "::").split("::")
        year = title[-5:-1]
        row = {"click": int(click), "user": user, "movie": movie, "gender": gender or None}
        row |= {"age": int(age) if age else None, "occupation": int(occupation) if occupation else None}
        row |= {"zip": code or None, "genres": genres.split("|") if genres else None}
        rows.append(row | {"year": int(year) if year.isdigit() else None})
    return rows


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("neutral", ["drop", "negative"])
def test_the_original_form(tmp_path, neutral, end):
    folder = write(tmp_path)
    expected = twin(folder, [(u, m, r >= 4) for u, m, r in DAT if r != 3 or neutral == "negative"])
    for file in folder.iterdir():
        file.write_bytes(file.read_bytes().replace(b"\n", end.encode()))
    assert read(folder, neutral=neutral).to_dicts() == expected
    assert expected[0]["genres"] == ["Animation", "Children's", "Comedy"] and expected[0]["year"] == 1995


@pytest.mark.parametrize("neutral", ["drop", "negative"])
def test_the_form_with_thresholds(tmp_path, neutral):
    folder = write(tmp_path, csv=CSV)
    kept = [(1, 1, 1), (3, 5, 0), (9, 1, 1)] if neutral == "drop" else [(1, 1, 1), (1, 2, 0), (3, 5, 0), (9, 1, 1)]
    assert read(folder, neutral=neutral).to_dicts() == twin(folder, kept)


def test_what_is_unknown_of_a_user_or_movie_is_missing(tmp_path):
    rows = read(write(tmp_path)).to_dicts()
    no_user = next(row for row in rows if row["user"] == 9)
    assert [no_user[c] for c in ("gender", "age", "occupation", "zip")] == [None] * 4 and no_user["year"] == 1995
    no_movie = next(row for row in rows if row["movie"] == 8)
    assert no_movie["genres"] is None and no_movie["year"] is None and no_movie["gender"] == "M"
    assert next(row for row in rows if row["movie"] == 5)["year"] is None


def test_layout_names_the_columns_of_the_blocks(tmp_path):
    frame, layout = read(write(tmp_path)), source(tmp_path).layout
    assert frame.columns == [*layout.labels, *layout.tables] and layout.multi_hot == ("genres",)
    assert frame.schema["genres"] == pl.List(pl.String) and frame.schema["click"] == pl.Int8


BAD = {
    "user, gender": ("users", USERS.replace("2::M", "2::X"), "users.dat, line 2, column gender: 'X'"),
    "user, age": ("users", USERS.replace("::25::", "::::"), "users.dat, line 3, column age: ''"),
    "user, too few": ("users", USERS.replace("1::F::", "1::"), "users.dat, line 1: '1::1::10::48067' has not the 5"),
    "user, twice": ("users", USERS + "01::F::1::1::1\n", "users.dat, line 4, column user: '1' stands"),
    "user, blank": ("users", USERS + "\n4::M::1::1::1\n", "users.dat, line 4: '' has not the 5 columns"),
    "movie, id": ("movies", MOVIES.replace("3::S", "x::S"), "movies.dat, line 3, column movie: 'x'"),
    "movie, genres": ("movies", MOVIES.replace("Action|", "Action||"), "movies.dat, line 3, column genres: 'Action||"),
    "movie, too many": ("movies", MOVIES.replace("Star Wars: ", "Star Wars:: "), "movies.dat, line 3: '3::Star"),
    "no movies": ("movies", "", "movies.dat: the file has no rows"),
    "rating": ("dat", "1::1::4::7\n1::2::6::7\n", "ratings.dat, line 2, column rating: '6'"),
    "rating, user": ("dat", "1::1::4::7\n-1::2::5::7\n", "ratings.dat, line 2, column user: '-1'"),
    "flag": ("csv", CSV.replace("3,5,0,0", "3,5,0,2"), "ratings.csv, line 5, column ge4: '2'"),
    "flags, too few": ("csv", CSV.replace("3,5,0,0", "3,5,0"), "ratings.csv, line 5: '3,5,0' has not"),
    "header": ("csv", CSV.replace("ge3", "ge2"), "ratings.csv, line 1: the header is 'user_id,movie_id,ge2,ge4'"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_line_is_named(tmp_path, case):
    name, text, message = BAD[case]
    folder = write(tmp_path, **{name: text})
    with pytest.raises(DataError) as error:
        read(folder)
    assert message in str(error.value) and str(folder) in str(error.value) and "\n" not in str(error.value)


def test_bad_lines_can_be_skipped(tmp_path):
    folder = write(tmp_path, users=USERS + "1::M::1::1::1\n", dat="1::1::4::7\n1::2::6::7\n2::1::1::7\nx\n")
    (block,) = source(folder, "skip").blocks()
    assert block.frame.to_dicts() == twin(write(tmp_path / "good"), [(1, 1, 1), (2, 1, 0)])
    assert block.skipped == 3 and "ratings.dat, line 2, column rating" in block.problem


def test_resuming(tmp_path, monkeypatch):
    folder = write(tmp_path, users=USERS + "bad\n")
    whole = pl.concat(block.frame for block in source(folder, "skip").blocks())
    monkeypatch.setattr(sources.movielens, "BLOCK_ROWS", 4)
    blocks = list(source(folder, "skip").blocks())
    assert [b.frame.height for b in blocks] == [4, 2] and [b.skipped for b in blocks] == [1, 0]
    for i, block in enumerate(blocks):
        rest = list(source(folder, "skip").blocks(block.end))
        assert_frame_equal(pl.concat(b.frame for b in blocks[: i + 1] + rest), whole)
        assert sum(b.skipped for b in rest) == 0 and len(rest) == 1 - i


def test_split():
    split = source("x", split_seed="5").split(738_816)
    assert split.train_days == ((0, 591_052),) and split.val == (591_052, 664_934) and split.test[1] == 738_816
    order = np.random.RandomState(5).permutation(738_816)
    assert (split.part_of_row[order[:591_052]] == 0).all() and "seed 5" in split.description


def test_settings_and_paths(tmp_path):
    with pytest.raises(ValueError, match="--data-option=neutral=keep: choose from drop, negative"):
        source("x", neutral="keep")
    with pytest.raises(ValueError, match="movies.dat"):
        source("")
    with pytest.raises(FileNotFoundError, match="ratings"):
        read(tmp_path)
    folder = write(tmp_path, csv=CSV)
    assert [path.name for path in source(folder).paths] == ["ratings.csv", "users.dat", "movies.dat"]
    write(tmp_path)
    assert source(folder).paths[0].name == "ratings.dat"


def test_real_data(real_data):
    folder = real_data("movielens1m/ratings.csv").parent
    raw = pl.read_csv(folder / "ratings.csv").filter(pl.col("ge3") >= 0, pl.col("ge4") >= 0)
    frame = read(folder, neutral="negative")
    assert frame.height == 999_990
    renamed = {"user_id": "user", "movie_id": "movie", "ge4": "click"}
    assert_frame_equal(
        frame.select("user", "movie", "click"), raw.rename(renamed).select("user", "movie", "click"), check_dtypes=False
    )
    assert sum(frame.null_count().row(0)) == 0 and (frame["year"].min(), frame["year"].max()) == (1919, 2000)
    assert frame["genres"].explode().n_unique() == 18
    dropped = read(folder)
    assert dropped.height == 738_816 and dropped["click"].sum() == 575_280
    some = frame[::50_000]
    assert some.to_dicts() == twin(folder, some.select("user", "movie", "click").rows())
