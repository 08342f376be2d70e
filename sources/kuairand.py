"""KuaiRand-Pure: short videos on Kuaishou, April 8 to May 8, 2022 (kuairand.com; Gao et al., CIKM 2022).

CSV files with headers in the folder `data`: two logs of standard recommendation (1,436,609 rows of 27,285 users and
7,551 videos), a log of random exposure (not read here), user features and basic video features. Labels: `is_click`
(in single-column feeds: played for 7 seconds or to the end), `long_view` (18 seconds or to the end), `is_like`,
`is_follow`, `is_comment`, `is_forward`. Features: from the log the user, the video, the tab, the hour of the day and
the duration; all others from the user's and the video's row; `tag` is multi-hot. They are categories as they are
written, whatever a number there may mean. A user or video without a row has missing features.

Left out on purpose: video_features_statistic_pure.csv, since its counts are taken over the whole month and so tell
the future and the labels; what follows an exposure (play_time_ms, profile_stay_time, ...); the exact numbers of which
the user file has a range (follow_user_num and follow_user_num_range); upload date and size of the video.

The rows are sorted by date and time. Split by date: the last is test, the one before validation, every other a day
of the training part.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl

from sources import (
    GROUP,
    Block,
    DataError,
    Groups,
    Layout,
    Position,
    SourceOptions,
    Split,
    blocks_of_slices,
    take_settings,
)
from sources.text import Column, TextFormat, text_blocks

BLOCK_ROWS = 1 << 18
LABELS = ("is_click", "long_view", "is_like", "is_follow", "is_comment", "is_forward")
USER_FEATURES = (
    "user_active_degree",
    "is_lowactive_period",
    "is_live_streamer",
    "is_video_author",
    "follow_user_num_range",
    "fans_user_num_range",
    "friend_user_num_range",
    "register_days_range",
    *(f"onehot_feat{i}" for i in range(18)),
)
VIDEO_FEATURES = ("author_id", "video_type", "upload_type", "visible_status", "music_id", "music_type", "tag")
LOG_NAMES = ("log_standard_4_08_to_4_21_pure.csv", "log_standard_4_22_to_5_08_pure.csv")
REQUIRED = ("user_id", "video_id", "date", "hourmin", "time_ms")
RANGES = {"date": (20000101, 29991231), "hourmin": (0, 2359), "duration_ms": (0, 1 << 40)}

LOG_FORMAT = TextFormat(
    (
        *(Column(name, "id") for name in (*REQUIRED, "tab")),
        Column("duration_ms", "float"),
        *(Column(name, "label") for name in LABELS),
    ),
    header=True,
)
USER_FORMAT = TextFormat(
    (Column("user_id", "id"), *(Column(name, "text") for name in USER_FEATURES)), header=True, quoted=True
)
VIDEO_FORMAT = TextFormat(
    (Column("video_id", "id"), *(Column(name, "text") for name in VIDEO_FEATURES)), header=True, quoted=True
)


class KuaiRandSource:
    """`--data-set=kuairand`. `--raw-data-file` is the folder `data`, or the one that holds it."""

    layout = Layout(
        labels=LABELS,
        dense={"duration_ms": "log1p"},
        tables=("user_id", "video_id", "tab", "hour", *USER_FEATURES, *VIDEO_FEATURES),
        multi_hot=("tag",),
        grouped=True,
    )

    def __init__(self, raw_data_file: str, options: SourceOptions | None = None) -> None:
        if not raw_data_file:
            raise ValueError("--raw-data-file is empty: --data-set=kuairand needs the folder of KuaiRand-Pure")
        options = options or SourceOptions()
        self.settings = take_settings(options.settings, {})
        folder = Path(raw_data_file)
        if not (folder / LOG_NAMES[0]).exists() and (folder / "data").is_dir():
            folder = folder / "data"
        self._logs = tuple(folder / name for name in LOG_NAMES)
        self._users, self._videos = folder / "user_features_pure.csv", folder / "video_features_basic_pure.csv"
        self.paths: tuple[Path, ...] = (*self._logs, self._users, self._videos)
        self._bad_rows = options.bad_rows

    def blocks(self, start: Position | None = None) -> Iterator[Block]:
        """Rows of the standard logs by date and time, with the features of their users and videos."""
        users, *bad_users = _features(self._users, USER_FORMAT, self._bad_rows)
        videos, *bad_videos = _features(self._videos, VIDEO_FORMAT, self._bad_rows)
        videos = videos.with_columns(pl.col("tag").str.split(","))
        log, *bad_log = _read_log(self._logs, self._bad_rows)
        left_out, what = zip(bad_users, bad_videos, bad_log, strict=True)
        skipped, problem = sum(left_out), next(filter(None, what), "")

        def joined(first: int, stop: int) -> pl.DataFrame:
            rows = log[first:stop].join(users, on="user_id", how="left", maintain_order="left")
            return rows.join(videos, on="video_id", how="left", maintain_order="left")

        return blocks_of_slices(log.height, BLOCK_ROWS, start, joined, skipped, problem)

    def split(self, rows: int, groups: Groups) -> Split:
        """One day a date; the last two are validation and test."""
        dates, of_run = np.unique(groups.values, return_inverse=True)
        if len(dates) < 3:
            raise DataError(f"{self._logs[0].parent}: {len(dates)} dates in the logs, a split needs 3")
        sizes = np.bincount(of_run, weights=groups.lengths).astype(np.int64)
        bounds = [0, *np.cumsum(sizes).tolist()]
        days = tuple(zip(bounds[:-1], bounds[1:], strict=True))
        return Split(
            train_days=days[:-2],
            val=days[-2],
            test=days[-1],
            description=f"by date; train: {dates[0]} to {dates[-3]}, val: {dates[-2]}, test: {dates[-1]}",
        )


def _read_log(paths: tuple[Path, ...], bad_rows: str) -> tuple[pl.DataFrame, int, str]:
    """The log in order of date and time, how many bad rows were left out, and what was wrong with the first."""
    parts, skipped, problem, line = [], 0, "", 2
    for block in text_blocks(paths, LOG_FORMAT, None, bad_rows):
        first_line, line = line, block.end.get("line", 2)
        frame, what = block.frame, block.problem
        bad = frame.select(
            pl.any_horizontal(
                *(pl.col(name).is_null() for name in REQUIRED),
                *(~pl.col(name).is_between(*bounds).fill_null(True) for name, bounds in RANGES.items()),
            ).alias("bad")
        )["bad"]
        if bad.any():
            path = paths[block.end["file"] - ("line" not in block.end)]
            row = bad.arg_max()
            # where the reader has left lines out the number would be wrong, but then there is a problem already
            what = what or f"{path}, line {first_line + row}{_row_problem(frame.row(row, named=True))}"
            if bad_rows == "fail":
                raise DataError(what)
            frame = frame.filter(~bad)
        skipped, problem = skipped + block.skipped + int(bad.sum()), problem or what
        parts.append(frame)
    log = pl.concat(parts).sort("date", "time_ms", maintain_order=True)
    hour = (pl.col("hourmin") // 100).alias("hour")
    return log.with_columns(hour, pl.col("date").alias(GROUP)).drop("date", "hourmin", "time_ms"), skipped, problem


def _row_problem(row: dict) -> str:
    for name in REQUIRED:
        if row[name] is None:
            return f", column {name}: the field is empty"
    name = next(name for name, (low, high) in RANGES.items() if row[name] is not None and not low <= row[name] <= high)
    return f", column {name}: {row[name]} lies outside {RANGES[name][0]} to {RANGES[name][1]}"


def _features(path: Path, text_format: TextFormat, bad_rows: str) -> tuple[pl.DataFrame, int, str]:
    """A table of features by id, the first column, how many bad rows were left out, and what was wrong with one."""
    blocks = list(text_blocks((path,), text_format, None, bad_rows))
    frame = pl.concat([block.frame for block in blocks])
    key = text_format.columns[0].name
    if frame[key].null_count():
        raise DataError(f"{path}: a row has no {key}")
    twice = frame.filter(frame[key].is_duplicated())
    if twice.height:
        raise DataError(f"{path}: {key} {twice[key][0]} has several rows")
    problems = (block.problem for block in blocks if block.problem)
    return frame, sum(block.skipped for block in blocks), next(problems, "")
