import os
import re
import tracemalloc
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix, hstack
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from sources import synthetic
from sources.synthetic import BLOCK_ROWS, INTEGER_COLUMNS, TABLES, teacher_probabilities, write_criteo_tsv

ROWS = BLOCK_ROWS + 6_000
INTEGERS = [f"I{i}" for i in range(1, 14)]
TOKENS = [f"C{i}" for i in range(1, 27)]
SCHEMA = {"label": pl.Int8} | dict.fromkeys(INTEGERS, pl.Int64) | dict.fromkeys(TOKENS, pl.String)
ROW = re.compile(rb"[01](\t(-?(0|[1-9][0-9]*))?){13}(\t([0-9a-f]{8})?){26}")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("synthetic") / "train.txt"
    write_criteo_tsv(path, ROWS, seed=1)
    return path


@pytest.fixture(scope="module")
def frame(path):
    return pl.read_csv(path, separator="\t", has_header=False, schema=SCHEMA)


def listing(folder):
    return sorted(file.name for file in folder.iterdir())


def test_every_row_has_the_raw_format(path):
    text = path.read_bytes()
    assert text.endswith(b"\n")
    rows = text.split(b"\n")[:-1]
    assert len(rows) == ROWS
    assert [row for row in rows if not ROW.fullmatch(row)] == []
    assert b"\t00000000" not in text  # read as missing


@settings(deadline=None, max_examples=50)
@given(
    st.booleans(),
    st.lists(st.none() | st.integers(-99_999_999, 99_999_999), min_size=13, max_size=13),
    st.lists(st.none() | st.integers(0, 10_131_226), min_size=26, max_size=26),
)
def test_fields_read_back_as_what_was_formatted(label, integers, ids):
    features = synthetic.Features(
        np.array([[value or 0 for value in integers]]),
        np.array([[value is not None for value in integers]]),
        np.array([[-1 if i is None else i for i in ids]]),
    )
    fields = synthetic.format_rows(np.array([label]), features).decode().rstrip("\n").split("\t")
    assert fields[0] == str(int(label))
    assert fields[1:14] == ["" if value is None else str(value) for value in integers]
    assert [field == "" for field in fields[14:]] == [i is None for i in ids]


def test_no_two_ids_share_a_token():
    ids = np.stack([np.arange(10_000)] * len(TABLES), axis=1)
    tokens = synthetic._tokens(ids)
    assert len(np.unique(tokens)) == tokens.size


def test_same_rows_and_seed_give_the_same_bytes(path, tmp_path):
    again = tmp_path / "again.txt"
    write_criteo_tsv(again, ROWS, seed=1)
    assert again.read_bytes() == path.read_bytes()
    assert Path(f"{again}.teacher.npy").read_bytes() == Path(f"{path}.teacher.npy").read_bytes()


def test_a_shorter_file_is_a_prefix_of_a_longer_one(path, tmp_path):
    text, teacher = path.read_bytes(), teacher_probabilities(path)
    for rows in (1, 500, BLOCK_ROWS + 1):
        short = tmp_path / f"{rows}.txt"
        write_criteo_tsv(short, rows, seed=1)
        assert text.startswith(short.read_bytes())
        assert np.array_equal(teacher_probabilities(short), teacher[:rows])


def test_blocks_and_seeds_differ(path, tmp_path):
    rows = path.read_bytes().split(b"\n")
    assert rows[:100] != rows[BLOCK_ROWS : BLOCK_ROWS + 100]
    other = tmp_path / "other.txt"
    write_criteo_tsv(other, 100, seed=2)
    assert not set(other.read_bytes().split(b"\n")[:-1]) & set(rows)


def test_missing_shares_and_joint_gaps(frame):
    for name, column in zip(INTEGERS + TOKENS, INTEGER_COLUMNS + TABLES, strict=True):
        deviation = (column.missing * (1 - column.missing) / ROWS) ** 0.5
        assert frame[name].null_count() / ROWS == pytest.approx(column.missing, abs=4 * deviation), name
    assert (frame["C3"].is_null() == frame["C12"].is_null()).all()
    assert not (frame["C3"].is_null() == frame["C6"].is_null()).all()


def test_integer_columns_have_criteos_zeros_and_tails(frame):
    for name, column in zip(INTEGERS, INTEGER_COLUMNS, strict=True):
        values = frame[name].drop_nulls().to_numpy()
        assert (values <= 0).mean() == pytest.approx(column.zero, abs=0.01), name
        assert np.quantile(values, 0.99) == pytest.approx(column.quantile_99, rel=0.1, abs=1), name
        assert values.max() <= column.maximum
        assert name == "I2" or values.min() == 0
    assert (frame["I2"] == -1).mean() == pytest.approx(0.0975, abs=0.005)
    assert 0 < (frame["I2"] == -2).mean() < 0.002


def test_ids_follow_power_laws_with_many_rare_ids(frame):
    counts = {name: frame[name].drop_nulls().value_counts(sort=True)["count"].to_numpy() for name in TOKENS}
    for name, table in zip(TOKENS, TABLES, strict=True):
        assert len(counts[name]) <= table.ids
        assert counts[name][0] > ROWS / 200, name  # the most frequent id
    # distinct ids of Criteo's first 80,000 rows
    for name, distinct in {"C3": 35_121, "C12": 33_161, "C16": 27_933, "C4": 20_754, "C7": 7_227}.items():
        assert len(counts[name]) == pytest.approx(distinct * (ROWS / 80_000) ** 0.9, rel=0.2), name
    assert (counts["C3"] == 1).mean() > 0.75
    assert ((counts["C7"] >= 5) & (counts["C7"] <= 50)).mean() > 0.15
    assert sum(map(len, counts.values())) == pytest.approx(200_000, rel=0.2)


def test_labels_are_drawn_from_the_teachers_probabilities(path, frame):
    labels, scores = frame["label"].to_numpy(), teacher_probabilities(path)
    assert scores.dtype == np.float32
    assert scores.shape == (ROWS,)
    assert isinstance(scores, np.memmap)
    assert scores.mean() == pytest.approx(0.25, abs=0.005)
    for tenth in np.array_split(np.argsort(scores), 10):
        expected = float(scores[tenth].mean())
        deviation = (expected * (1 - expected) / len(tenth)) ** 0.5
        assert labels[tenth].mean() == pytest.approx(expected, abs=4 * deviation)


def test_missing_and_negative_values_count_as_zero():
    missing = synthetic.Features(np.full((1, 13), -2), np.ones((1, 13), bool), np.full((1, 26), -1))
    teacher = synthetic.make_teacher(seed=1)
    assert synthetic._terms(teacher.keys, teacher.centres, missing).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_every_seeds_teacher_is_about_as_good(tmp_path, seed):
    path = tmp_path / "train.txt"
    write_criteo_tsv(path, 30_000, seed)
    labels = np.array([row[0] == ord("1") for row in path.read_bytes().split(b"\n")[:-1]])
    assert roc_auc_score(labels, teacher_probabilities(path)) == pytest.approx(0.82, abs=0.015)
    assert labels.mean() == pytest.approx(0.25, abs=0.015)


def test_a_one_hot_linear_model_falls_clearly_short_of_the_teacher(path, frame):
    train, test = slice(0, ROWS * 6 // 7), slice(ROWS * 6 // 7, ROWS)
    labels = frame["label"].to_numpy()
    logs = np.log1p(frame.select(pl.col(INTEGERS).fill_null(0).clip(lower_bound=0)).to_numpy())
    one_hot = OneHotEncoder(min_frequency=5, handle_unknown="infrequent_if_exist")
    informative = [name for name, table in zip(TOKENS, TABLES, strict=True) if table.informative]
    tokens = one_hot.fit_transform(frame.select(pl.col(informative).fill_null("")).to_numpy())
    features = csr_matrix(hstack([csr_matrix(StandardScaler().fit_transform(logs)), tokens]))
    model = LogisticRegression(C=0.03, tol=1e-3).fit(features[train], labels[train])
    linear = roc_auc_score(labels[test], model.decision_function(features[test]))
    teacher = roc_auc_score(labels[test], teacher_probabilities(path)[test])
    assert 0.58 < linear < teacher - 0.1


def test_memory_is_that_of_two_blocks(tmp_path):
    tracemalloc.start()
    write_criteo_tsv(tmp_path / "train.txt", 4 * BLOCK_ROWS)  # 131 MB at the peak; the whole text is 64 MB
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 150e6


def test_an_interrupted_write_leaves_what_was_there(tmp_path, monkeypatch):
    def interrupted(rows, seed):
        yield b"1\n", np.zeros(1, np.float32)
        assert len(listing(tmp_path)) == before + 2  # under other names
        raise KeyboardInterrupt

    monkeypatch.setattr(synthetic, "_blocks", interrupted)
    path, before = tmp_path / "train.txt", 0
    with pytest.raises(KeyboardInterrupt):
        write_criteo_tsv(path, 2)
    assert listing(tmp_path) == []
    monkeypatch.undo()
    write_criteo_tsv(path, 2)
    old, before = path.read_bytes(), 2
    monkeypatch.setattr(synthetic, "_blocks", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_criteo_tsv(path, 2, seed=5)
    assert listing(tmp_path) == ["train.txt", "train.txt.teacher.npy"]
    assert path.read_bytes() == old


def test_a_file_is_replaced(tmp_path):
    path = tmp_path / "train.txt"
    write_criteo_tsv(path, 30)
    write_criteo_tsv(str(path), 20, seed=4)
    assert listing(tmp_path) == ["train.txt", "train.txt.teacher.npy"]
    assert len(path.read_bytes().splitlines()) == len(teacher_probabilities(str(path))) == 20


@pytest.mark.parametrize(
    "name, rows, seed, message",
    [
        ("a.txt", 0, 0, "rows must be at least 1 .* got rows 0"),
        ("a.txt", -5, 0, "got rows -5"),
        ("a.txt", 1, -1, "seed at least 0, got .* seed -1"),
        ("none/a.txt", 1, 0, "cannot write .*none/a.txt"),
        (".", 1, 0, "cannot write"),
        ("pipe", 1, 0, "cannot write .*pipe"),
    ],
)
def test_bad_values_are_refused(tmp_path, name, rows, seed, message):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match=message):
        write_criteo_tsv(tmp_path / name, rows, seed)
    assert listing(tmp_path) == ["pipe"]


def test_command_line_prints_the_teachers_quality(tmp_path, capsys):
    assert synthetic.main(["--rows", "3000", "--seed", "7", "--out", str(tmp_path / "t.txt")]) == 0
    scores = teacher_probabilities(tmp_path / "t.txt")
    labels = [int(row[:1]) for row in (tmp_path / "t.txt").read_bytes().splitlines()]
    assert capsys.readouterr().out == (
        f"rows 3000, label rate {np.mean(labels):.4f}, teacher AUC {roc_auc_score(labels, scores):.4f}, "
        f"logloss {log_loss(labels, scores):.4f}\n"
    )


def test_command_line_of_one_row_says_that_auc_is_undefined(tmp_path, capsys):
    assert synthetic.main(["--rows", "1", "--out", str(tmp_path / "t.txt")]) == 0
    assert "teacher AUC undefined (one class)" in capsys.readouterr().out


@pytest.mark.parametrize("rows, out", [("0", "t.txt"), ("5", "none/t.txt")])
def test_command_line_refuses_in_one_line(tmp_path, capsys, rows, out):
    assert synthetic.main(["--rows", rows, "--out", str(tmp_path / out)]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("sources.synthetic: ")
    assert output.err.count("\n") == 1


@given(st.integers(0, 25), st.lists(st.integers(0, 10_000_000), min_size=1, max_size=50), st.integers(0, 2))
@settings(max_examples=20, deadline=None)
def test_planted_points_are_what_the_teacher_uses(table, ids, seed):
    """From the raw value back to the id: tokens are a bijection."""
    ids = np.array(ids)
    every = np.zeros((len(ids), len(TABLES)), np.int64)
    every[:, table] = ids
    tokens = synthetic._tokens(every)[:, table]
    points = synthetic.planted_points(seed, table, np.append(tokens, np.uint32(0)))
    teacher = synthetic.make_teacher(seed)
    expected = synthetic.hashed_points(teacher.keys[table], ids) - teacher.centres[table]
    assert np.array_equal(points[:-1], expected * TABLES[table].informative)
    assert not points[-1].any()
