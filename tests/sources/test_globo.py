import random
from collections import Counter, defaultdict
from datetime import UTC, datetime

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

import sources.globo
from sources import GROUP, DataError, Groups, SourceOptions, open_source

START = 1_506_826_800_000  # 2017-10-01 03:00 UTC
OTHERS = ("click_environment", "click_deviceGroup", "click_os", "click_country", "click_region", "click_referrer_type")


def clicks(rows=600, hours=60, sessions=150, articles=40, seed=1):
    """Random clicks, not in the order of time, with equal times among them."""
    draw = random.Random(seed)
    table = {name: [] for name in ("user_id", "session_id", "click_article_id", "click_timestamp", *OTHERS)}
    for _ in range(rows):
        session = draw.randrange(sessions)
        table["session_id"].append(1_506_826_000_000_000 + session)
        table["user_id"].append(session // 2)
        table["click_article_id"].append(3 + draw.randrange(articles) ** 2)
        table["click_timestamp"].append(START + draw.randrange(hours * 6) * 600_000)
        for name in OTHERS:
            table[name].append(draw.randrange(4))
    return pl.DataFrame(table)


def write(folder, table, categories=None):
    table.write_parquet(folder / "clicks.parquet")
    if categories is None:
        ids = table["click_article_id"].unique().sort().to_list()
        categories = "article_id,category_id\n" + "".join(f"{i},{i % 7 - 1}\n" for i in ids[1:])
    (folder / "article_category.csv").write_text(categories)
    return folder


def source(folder, bad_rows="fail", **settings):
    settings = {name: str(value) for name, value in settings.items()}
    return open_source("globo", str(folder), SourceOptions(settings=settings, bad_rows=bad_rows))


def read(folder, **settings):
    return pl.concat(block.frame for block in source(folder, **settings).blocks())


def split(folder, frame, **settings):
    runs = frame[GROUP].rle().struct.unnest()
    groups = Groups(runs["value"].to_numpy().astype(np.int64), runs["len"].to_numpy().astype(np.int64))
    return source(folder, **settings).split(frame.height, groups)


def positives(table, dwell_seconds=30):
    """What the clicks' own rows must be, by the plainest of means."""
    rows = sorted(table.to_dicts(), key=lambda row: row["click_timestamp"])
    for row, later in ((row, rows[i + 1 :]) for i, row in enumerate(rows)):
        following = next((x for x in later if x["session_id"] == row["session_id"]), None)
        gap = following and following["click_timestamp"] - row["click_timestamp"]
        time = datetime.fromtimestamp(row["click_timestamp"] / 1000, UTC)
        article = row["click_article_id"]
        yield {
            "click": 1,
            "long_dwell": None if following is None else int(gap >= dwell_seconds * 1000),
            "user": row["user_id"],
            "article": article,
            "category": -1 if article == table["click_article_id"].min() else article % 7 - 1,
            **dict(
                zip(("environment", "device", "os", "country", "region", "referrer"), map(row.get, OTHERS), strict=True)
            ),
            "hour": time.hour,
            "weekday": time.weekday(),
        }


@pytest.mark.parametrize("dwell_seconds", [3600, 36000])
def test_the_rows_of_the_clicks(tmp_path, dwell_seconds):
    table = clicks()
    frame = read(write(tmp_path, table), dwell_seconds=dwell_seconds)
    layout = source(tmp_path).layout
    assert set(frame.columns) == {*layout.labels, *layout.tables, GROUP} and layout.grouped and not layout.dense
    expected = list(positives(table, dwell_seconds))
    found = frame.filter(pl.col("click") == 1).drop(GROUP).select(list(expected[0]))
    assert found.to_dicts() == expected
    assert {row["long_dwell"] for row in expected} == {0, 1, None}


@pytest.mark.parametrize("negatives", [1, 3])
def test_the_rows_of_the_negatives(tmp_path, negatives):
    table = clicks()
    frame = read(write(tmp_path, table), negatives=negatives)
    rows, order = frame.to_dicts(), sorted(table.to_dicts(), key=lambda row: row["click_timestamp"])
    alive, session = defaultdict(set), defaultdict(set)
    for row in order:
        alive[row["click_timestamp"] // 3_600_000].add(row["click_article_id"])
        session[row["session_id"]].add(row["click_article_id"])
    category = {row["article"]: row["category"] for row in positives(table)}
    at, per_click = -1, Counter()
    for row in rows:
        if row["click"]:
            at, positive = at + 1, row
            continue
        per_click[at] += 1
        assert row["article"] in alive[order[at]["click_timestamp"] // 3_600_000] - session[order[at]["session_id"]]
        assert row["category"] == category[row["article"]] and row["long_dwell"] == 0
        same = ("user", "environment", "device", "os", "country", "region", "referrer", "hour", "weekday", GROUP)
        assert [row[name] for name in same] == [positive[name] for name in same]
    assert max(per_click.values()) == negatives and 0.9 < sum(per_click.values()) / (600 * negatives) <= 1


def test_negatives_come_by_popularity_in_their_hour(tmp_path):
    n = 20_000  # one hour, one click a session: article 0 has half the clicks, 1 three tenths, 2 the rest
    article = np.sort(
        np.random.RandomState(0).choice(3, n, p=[0.5, 0.3, 0.2])
    )  # not mixed: any place in the hour counts
    table = pl.DataFrame({"click_article_id": article, "session_id": np.arange(n), "click_timestamp": START})
    table = table.with_columns(user_id=pl.col("session_id"), **{name: pl.lit(1) for name in OTHERS})
    frame = read(write(tmp_path, table))
    pairs = frame.with_columns(of=pl.col("click").cum_sum()).pivot("click", index="of", values="article")
    counts = Counter(pairs.drop_nulls().select("1", "0").rows())
    assert all(a != b for a, b in counts)
    assert counts[0, 1] / (counts[0, 1] + counts[0, 2]) == pytest.approx(0.6, abs=0.02)
    assert counts[2, 0] / (counts[2, 0] + counts[2, 1]) == pytest.approx(0.625, abs=0.03)


def test_a_negative_that_cannot_be_drawn_is_left_out(tmp_path):
    table = clicks(50).with_columns(click_article_id=pl.lit(7, pl.Int64))
    frame = read(write(tmp_path, table, "article_id,category_id\n7,1\n"), negatives=2)
    assert frame.height == 50 and frame["click"].sum() == 50


def test_seed(tmp_path):
    write(tmp_path, clicks())
    assert_frame_equal(read(tmp_path, seed=3), read(tmp_path, seed=3))
    assert not read(tmp_path, seed=3).equals(read(tmp_path))


def test_split(tmp_path):
    table = clicks()
    frame = read(write(tmp_path, table), negatives=2)
    parts = split(tmp_path, frame, negatives=2)
    edges = (*parts.train_days, parts.val, parts.test)
    assert edges[0][0] == 0 and edges[-1][1] == frame.height
    assert all(a[1] == b[0] for a, b in zip(edges[:-1], edges[1:], strict=True))
    sizes = [frame["click"][start:stop].sum() for start, stop in edges]
    assert sum(sizes[:-2]) == 480 and sizes[-2:] == [60, 60]
    assert all(frame["click"][start] == 1 for start, _ in edges)  # a negative stays with its click
    days = Counter(t // 86_400_000 for t in sorted(table["click_timestamp"])[:480])
    assert sizes[:-2] == [days[day] for day in sorted(days)] and len(days) == 3
    assert "2 negative(s) a click" in parts.description and "seed 0" in parts.description


def test_resuming(tmp_path, monkeypatch):
    whole = read(write(tmp_path, clicks()))
    monkeypatch.setattr(sources.globo, "BLOCK_ROWS", 250)
    blocks = list(source(tmp_path).blocks())
    assert len(blocks) == 5
    for i, block in enumerate(blocks):
        rest = [b.frame for b in source(tmp_path).blocks(block.end)]
        assert_frame_equal(pl.concat([b.frame for b in blocks[: i + 1]] + rest), whole)


@pytest.mark.parametrize("column", ["user_id", "session_id", "click_timestamp", "click_region"])
def test_a_missing_column_is_named(tmp_path, column):
    write(tmp_path, clicks(20).drop(column))
    with pytest.raises(DataError, match=f"clicks.parquet: there is no column '{column}'"):
        read(tmp_path)


def test_bad_clicks(tmp_path):
    good = clicks(20)
    at_5 = pl.int_range(20) == 5
    bad = {
        "row 6, column click_timestamp: None": good.with_columns(
            click_timestamp=pl.when(~at_5).then("click_timestamp")
        ),
        "row 6, column click_timestamp: -1": good.with_columns(
            click_timestamp=pl.when(at_5).then(-1).otherwise("click_timestamp")
        ),
        "row 6, column session_id: None": good.with_columns(session_id=pl.when(~at_5).then("session_id")),
        "column user_id: holds String": good.cast({"user_id": pl.String}),
        "9 clicks are too few": good.head(9),
    }
    for message, table in bad.items():
        with pytest.raises(DataError, match=message):
            read(write(tmp_path, table))
    write(tmp_path, good.with_columns(click_os=pl.when(~at_5).then("click_os")))
    assert read(tmp_path).filter(pl.col("click") == 1)["os"].null_count() == 1
    (tmp_path / "clicks.parquet").write_bytes(b"PAR1, or not")
    with pytest.raises(DataError, match="clicks.parquet: cannot be read as Parquet"):
        read(tmp_path)


def test_bad_categories(tmp_path):
    bad = {
        "article_category.csv, line 1: the header has no column 'category_id'": "article_id,kind\n3,1\n",
        "article_category.csv, line 3, column category_id: 'x'": "article_id,category_id\n3,1\n4,x\n",
        "article_category.csv, line 4, column article_id: 3": "article_id,category_id\n3,1\n4,1\n3,2\n",
        "article_category.csv, line 2, column article_id: None": "article_id,category_id\n,1\n",
    }
    for message, text in bad.items():
        write(tmp_path, clicks(20), text)
        with pytest.raises(DataError, match=message):
            read(tmp_path)
    write(tmp_path, clicks(20), "article_id,category_id\n3,x\n3,1\n3,2\n,4\n")
    (block,) = source(tmp_path, "skip").blocks()
    assert block.skipped == 3 and "line 2, column category_id: 'x'" in block.problem
    assert set(block.frame.filter(pl.col("article") == 3)["category"]) <= {1}


def test_settings_and_missing_files(tmp_path):
    for settings in ({"negatives": 0}, {"seed": -1}, {"dwell_seconds": 0}, {"neg": 1}):
        with pytest.raises(ValueError, match=f"--data-option={next(iter(settings))}="):
            source(tmp_path, **settings)
    with pytest.raises(ValueError, match="clicks.parquet"):
        source("")
    with pytest.raises(FileNotFoundError, match="clicks.parquet"):
        read(tmp_path)


def test_real_data(real_data):
    folder = real_data("globo/clicks.parquet").parent
    first = next(source(folder).blocks())
    raw = pl.read_parquet(folder / "clicks.parquet").sort("click_timestamp", maintain_order=True)
    clicked = first.frame.filter(pl.col("click") == 1)
    assert first.frame.height == 262_144 and first.end == {"row": 262_144}
    assert clicked["article"].to_list() == raw["click_article_id"][: clicked.height].to_list()
    assert 0.499 < first.frame["click"].mean() < 0.501 and 0.9 < clicked["long_dwell"].mean() < 0.99
    assert first.frame["category"].null_count() == 0
