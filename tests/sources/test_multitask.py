import json

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from data_utils import Store, StoreOptions, prepare
from sources import SourceOptions, open_source
from sources.multitask import LABELS, RATES, conditional_probabilities, fitted_bias, make_steps, write_multitask_tsv
from sources.synthetic import BLOCK_ROWS, draw_features, teacher_probabilities, write_criteo_tsv

ROWS = BLOCK_ROWS + 60_000


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("multitask") / "rows.txt"
    write_multitask_tsv(path, ROWS, seed=1)
    return path


@pytest.fixture(scope="module")
def labels(path):
    """bool [rows, 3]."""
    return np.array([[digit == ord("1") for digit in line[:6:2]] for line in path.read_bytes().splitlines()])


@pytest.fixture(scope="module")
def scores(path):
    return np.asarray(teacher_probabilities(path))


def options(tmp_path, rows=300, **settings):
    return SourceOptions(rows, 1, tmp_path / "work", settings={name: str(value) for name, value in settings.items()})


def source_of(tmp_path, rows=300, **settings):
    return open_source("multitask-synthetic", "", options(tmp_path, rows, **settings))


def test_labels_have_their_densities_and_each_implies_the_one_before(labels, scores):
    for k, rate in enumerate(RATES):
        # the biases are fitted on the first block: its error, and that of the drawn labels
        sampling = (rate / ROWS + float(scores[:, k].var()) / BLOCK_ROWS) ** 0.5
        assert labels[:, k].mean() == pytest.approx(rate, abs=4 * sampling), LABELS[k]
        assert scores[:BLOCK_ROWS, k].mean(dtype=float) == pytest.approx(rate, rel=1e-4)
    assert not (labels[:, 1:] & ~labels[:, :-1]).any() and labels[:, 2].sum() > 300
    assert (scores[:, 1:] < scores[:, :-1]).all()


@pytest.mark.parametrize("k", range(3))
def test_labels_are_drawn_from_the_teachers_probabilities(labels, scores, k):
    assert scores.shape == (ROWS, 3) and scores.dtype == np.float32
    for tenth in np.array_split(np.argsort(scores[:, k]), 10):
        p = scores[tenth, k].astype(np.float64)
        assert labels[tenth, k].mean() == pytest.approx(p.mean(), abs=4 * (p * (1 - p)).mean() ** 0.5 / len(p) ** 0.5)
    if k:  # and given the label before, by its conditional probability
        given = labels[:, k - 1]
        p = (scores[given, k] / scores[given, k - 1]).astype(np.float64)
        for half in np.array_split(np.argsort(p), 2):
            deviation = (p[half] * (1 - p[half])).mean() ** 0.5 / len(half) ** 0.5
            assert labels[given, k][half].mean() == pytest.approx(p[half].mean(), abs=4 * deviation)
    assert roc_auc_score(labels[:, k], scores[:, k]) > 0.8


def test_rows_and_click_are_those_of_criteo_synthetic(path, labels, scores, tmp_path):
    write_criteo_tsv(tmp_path / "criteo.txt", ROWS, seed=1)
    lines = [line[:1] + line[5:] for line in path.read_bytes().splitlines(keepends=True)]
    assert b"".join(lines) == (tmp_path / "criteo.txt").read_bytes()
    assert np.array_equal(scores[:, 0], teacher_probabilities(tmp_path / "criteo.txt"))


def test_same_seed_same_bytes_and_a_shorter_file_is_a_prefix(path, scores, tmp_path):
    write_multitask_tsv(tmp_path / "again.txt", BLOCK_ROWS + 10, seed=1)
    assert path.read_bytes().startswith((tmp_path / "again.txt").read_bytes())
    assert np.array_equal(teacher_probabilities(tmp_path / "again.txt"), scores[: BLOCK_ROWS + 10])
    write_multitask_tsv(tmp_path / "other.txt", 100, seed=2)
    assert not set((tmp_path / "other.txt").read_bytes().splitlines()) & set(path.read_bytes().splitlines())


def test_what_the_steps_share_is_as_much_as_asked_for():
    """The correlation of a later step's logit with the click's grows with `shared`; at 1 they are one."""
    features = draw_features(np.random.default_rng([5, 1]))
    found = []
    for shared in (0.0, 0.5, 1.0):
        click, cart, checkout = (
            np.log(p / (1 - p)) for p in conditional_probabilities(make_steps(5, shared), features)
        )
        found.append([np.corrcoef(click, later)[0, 1] for later in (cart, checkout)])
    assert np.abs(found[0]).max() < 0.1 and 0.4 < min(found[1]) < max(found[1]) < 0.7 and min(found[2]) > 0.999


def test_the_bias_meets_its_rate():
    logits, before = np.linspace(-3, 3, 50), np.linspace(0.1, 0.9, 50)
    bias = fitted_bias(logits, before, 0.07)
    assert (before / (1 + np.exp(-logits - bias))).mean() == pytest.approx(0.07, rel=1e-9)


@pytest.mark.parametrize("block_bytes", [4000, 30_000])
def test_reading_goes_on_from_every_blocks_end(tmp_path, monkeypatch, block_bytes):
    monkeypatch.setattr("sources.text.BLOCK_BYTES", block_bytes)
    source = source_of(tmp_path)
    blocks = list(source.blocks())
    whole = pl.concat([block.frame for block in blocks])
    assert whole.height == 300 and whole.columns[:3] == list(LABELS) and whole.width == 3 + 13 + 26 and len(blocks) > 2
    done = 0
    for block in blocks:
        done += block.frame.height
        rest = [later.frame for later in source.blocks(block.end)]
        assert (pl.concat(rest) if rest else whole[300:]).equals(whole[done:])
    lines = [line.split("\t") for line in source.paths[0].read_text().splitlines()]
    for k, label in enumerate(LABELS):
        assert whole[label].to_list() == [int(line[k]) for line in lines]
    assert whole["I2"].to_list() == [max(0, int(line[4])) if line[4] else None for line in lines]
    assert whole["C3"].to_list() == [int(line[18], 16) if line[18] else None for line in lines]


def test_it_is_generated_once_a_setting_and_split_in_row_order(tmp_path):
    source = source_of(tmp_path)
    written = source.paths[0].stat().st_mtime_ns
    assert source_of(tmp_path).paths[0].stat().st_mtime_ns == written
    assert source_of(tmp_path, shared=0.25).paths != source.paths and source.settings == {"shared": 0.5}
    split = source.split(300)
    assert (split.train_days, split.val, split.test) == (((0, 240),), (240, 270), (270, 300))


def test_the_store_knows_each_labels_probability(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = source_of(tmp_path, rows=2000)
    directory = prepare(source, StoreOptions("multitask-synthetic"))
    scores = source.best_auc_scores()
    assert np.array_equal(Store(directory, LABELS).best_scores_of("test"), scores[1800:])
    assert np.array_equal(Store(directory, ["checkout", "click"]).best_scores_of("val"), scores[1600:1800, [2, 0]])
    assert np.array_equal(Store(directory, ["cart"]).best_scores_of("test"), scores[1800:, 1])
    assert np.array_equal(Store(directory).best_scores_of("test"), scores[1800:, 0])
    assert json.loads((directory / "schema.json").read_text())["labels"] == dict.fromkeys(LABELS, 0)


def test_bad_options_are_refused(tmp_path):
    with pytest.raises(ValueError, match="multitask-synthetic is generated"):
        open_source("multitask-synthetic", "train.txt", options(tmp_path))
    for value, message in {"1.5": "give a number from 0 to 1", "-0.1": "from 0 to 1", "x": "is no float"}.items():
        with pytest.raises(ValueError, match=message):
            source_of(tmp_path, shared=value)
    with pytest.raises(ValueError, match="no such option"):
        source_of(tmp_path, rate=0.5)
    with pytest.raises(ValueError, match="rows must be at least 1"):
        write_multitask_tsv(tmp_path / "x.txt", 0)
    with pytest.raises(ValueError, match="9 rows are too few"):
        source_of(tmp_path).split(9)
