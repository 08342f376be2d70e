"""`--data-set=multitask-synthetic`: planted rows with three labels of a funnel, click, cart and checkout.

The rows, and the label click, are those of `criteo-synthetic` with the same seed: 13 integers and 26 categoricals, ids
by power laws with many rare ones, so that models overfit from the second epoch on as they do on real data. A cart is
possible only after a click, a checkout only after a cart, and each step has a planted teacher of its own:

    P(click|x) = s(l_1),   P(cart|x) = P(click|x) s(l_2),   P(checkout|x) = P(cart|x) s(l_3)

with s the sigmoid and the l_k logits of the form in `sources.synthetic`. Over all rows 25 %, 2.5 % and 0.4 % of the
labels are 1 (RATES; within sampling error, since the biases are fitted to the first block). All three are known in
every row, and so are their exact probabilities.

An id's points u_k for the later steps have the share `--data-option shared` (0.5) of their variance in common with its
point for the click: u_k = sqrt(shared) u_1 + sqrt(1 - shared) v_k; so have the weights of the integers. With 1 the
steps are one task, with 0 a model can learn nothing of one from another.

Split: in the order of the rows, which are drawn alike: 80 % training part, 10 % validation, 10 % test.

Legend: n rows of a block, M integer columns, T tables.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from sources import Block, DataError, Groups, Layout, Position, SourceOptions, Split, take_settings
from sources.kaggle import CRITEO_FORMAT, CRITEO_LAYOUT
from sources.synthetic import (
    BLOCK_ROWS,
    INTEGER_COLUMNS,
    LABEL_RATE,
    TABLES,
    Features,
    Teacher,
    draw_features,
    fitted_scales,
    format_rows,
    hashed_points,
    make_teacher,
    teacher_probabilities,
    terms_of,
    write_pair,
)
from sources.text import Column, TextFormat, text_blocks

GENERATOR_VERSION = 1  # raise it when the generator's rows change, so that no older file passes for the new one
LABELS = ("click", "cart", "checkout")
RATES = (LABEL_RATE, 0.025, 0.004)
SETTINGS = {"shared": 0.5}
FORMAT = TextFormat(
    columns=(*(Column(label, "label") for label in LABELS), *CRITEO_FORMAT.columns[1:]),
    separator=CRITEO_FORMAT.separator,
)


class Step(NamedTuple):
    """What decides on one label, given the one before it."""

    own: Teacher  # the points and scales of this step; its bias is that of a row whose label before is 1
    weights: np.ndarray  # float32 [M], of the integers
    shared: float  # share of the points' variance that comes from the first step's; 0 for the first step itself


class MultitaskSource:
    """`--data-set=multitask-synthetic`: written as text into the store folder on first use, then read from there.

    Raises:
        ValueError: a raw path is given, though this data is generated; or `shared` outside 0 to 1.
    """

    layout = Layout(LABELS, CRITEO_LAYOUT.dense, CRITEO_LAYOUT.tables)

    def __init__(self, raw_data_file: str, options: SourceOptions) -> None:
        if raw_data_file:
            raise ValueError(f"--raw-data-file={raw_data_file}: multitask-synthetic is generated: leave it out")
        self.settings: dict[str, Any] = take_settings(options.settings, SETTINGS)
        shared, rows, seed = self.settings["shared"], options.synthetic_rows, options.synthetic_seed
        if not 0 <= shared <= 1:
            raise ValueError(f"--data-option=shared={shared}: give a number from 0 to 1")
        name = f"multitask-synthetic-v{GENERATOR_VERSION}-{rows}-{seed}-{shared:g}.txt"
        path = Path(options.work_folder) / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_multitask_tsv(path, rows, seed, shared)
        self.paths: tuple[Path, ...] = (path,)

    def blocks(self, start: Position | None = None) -> Iterator[Block]:
        """Rows in file order."""
        return _blocks_of_text(self.paths[0], start, FORMAT)

    def split(self, rows: int, groups: Groups | None = None) -> Split:
        """Eight tenths, one tenth, one tenth."""
        if rows < 10:
            raise DataError(f"{self.paths[0]}: {rows} rows are too few for training, validation and test")
        val, test = rows * 8 // 10, rows * 9 // 10
        return Split(((0, val),), (val, test), (test, rows), "in row order: 80 % train, 10 % val, 10 % test")

    def best_auc_scores(self) -> np.ndarray:
        """The planted probability of each label of each raw row, float32 [rows, 3]."""
        return teacher_probabilities(self.paths[0])

    @staticmethod
    def scoring_blocks(path: Path, settings: dict[str, Any]) -> Iterator[Block]:
        """Rows with or without the three labels, decided by the first line."""
        return _blocks_of_text(path, None, TextFormat(FORMAT.columns, FORMAT.separator, optional=LABELS))


def _blocks_of_text(path: Path, start: Position | None, text_format: TextFormat) -> Iterator[Block]:
    for block in text_blocks((path,), text_format, start):
        yield block._replace(frame=block.frame.with_columns(pl.col(tuple(CRITEO_LAYOUT.dense)).clip(lower_bound=0)))


def write_multitask_tsv(path: Path, rows: int, seed: int = 0, shared: float = 0.5) -> None:
    """Write planted rows to `path` and their probabilities to `path`.teacher.npy, float32 [rows, 3].

    As `sources.synthetic.write_criteo_tsv`, with three labels in front of each row. The same rows, seed and share give
    the same bytes; fewer rows give a prefix.
    """
    if rows < 1 or seed < 0:
        raise ValueError(f"rows must be at least 1 and seed at least 0, got rows {rows}, seed {seed}")
    write_pair(path, (rows, len(LABELS)), _drawn_blocks(rows, seed, shared))


def _drawn_blocks(rows: int, seed: int, shared: float) -> Iterator[tuple[bytes, np.ndarray]]:
    """Yield the text of consecutive rows and their probabilities, float32 [n, 3]."""
    steps = make_steps(seed, shared)
    for index, start in enumerate(range(0, rows, BLOCK_ROWS)):
        generator = np.random.default_rng([seed, 1 + index])
        features = draw_features(generator)
        labels = np.ones((BLOCK_ROWS, len(steps)), bool)
        probabilities = np.ones((BLOCK_ROWS, len(steps)), np.float32)
        for k, given in enumerate(conditional_probabilities(steps, features)):
            labels[:, k] = labels[:, max(0, k - 1)] & (generator.random(BLOCK_ROWS) < given)
            probabilities[:, k] = probabilities[:, max(0, k - 1)] * given
        kept = slice(0, min(BLOCK_ROWS, rows - start))
        yield format_rows(labels[kept], Features(*(part[kept] for part in features))), probabilities[kept]


def conditional_probabilities(steps: list[Step], features: Features) -> Iterator[np.ndarray]:
    """P(click|x), P(cart|click, x), P(checkout|cart, x), each float32 [n]."""
    for step in steps:
        logits = (_terms(step, steps[0], features) * step.own.scales).sum(axis=1)
        yield 1 / (1 + np.exp(-logits - step.own.bias))


def _terms(step: Step, first: Step, features: Features) -> np.ndarray:
    """The three terms of a step's logit before scaling, float32 [n, 3]."""

    def points_of(table: int, ids: np.ndarray) -> np.ndarray:
        own = hashed_points(step.own.keys[table], ids) - step.own.centres[table]
        if not step.shared:
            return own
        click = hashed_points(first.own.keys[table], ids) - first.own.centres[table]
        return np.float32(step.shared**0.5) * click + np.float32((1 - step.shared) ** 0.5) * own

    return terms_of(features, step.weights, points_of)


def make_steps(seed: int, shared: float) -> list[Step]:
    """Draw the teachers; the later ones' scales and biases are fitted on the first block, as the first one's are."""
    weights = np.array([column.weight for column in INTEGER_COLUMNS], dtype=np.float32)
    steps = [Step(make_teacher(seed), weights, 0.0)]
    features = draw_features(np.random.default_rng([seed, 1]))
    before = next(conditional_probabilities(steps, features)).astype(np.float64)  # P(the label before | x)
    for k in range(1, len(LABELS)):
        keys = np.random.default_rng([seed, 0, k]).integers(0, 2**64, len(TABLES), dtype=np.uint64)
        columns = zip(keys, features.ids.T, strict=True)
        centres = np.stack([hashed_points(key, ids[ids >= 0]).mean(axis=0) for key, ids in columns])
        mixed = (shared**0.5 * weights + (1 - shared) ** 0.5 * np.roll(weights, 4 * k)).astype(np.float32)
        step = Step(Teacher(keys, centres, np.ones(3, np.float32), np.float32(0)), mixed, shared)
        terms = _terms(step, steps[0], features)
        scales = fitted_scales(terms)
        logits = (terms * scales).sum(axis=1).astype(np.float64)
        bias = fitted_bias(logits, before, RATES[k])
        before = before / (1 + np.exp(-logits - bias))
        steps.append(step._replace(own=Teacher(keys, centres, scales, np.float32(bias))))
    return steps


def fitted_bias(logits: np.ndarray, before: np.ndarray, rate: float) -> float:
    """The bias for which the mean of before * sigmoid(logits + bias) is `rate`, by bisection."""
    low, high = -40.0, 40.0
    for _ in range(60):
        middle = (low + high) / 2
        too_high = (before / (1 + np.exp(-logits - middle))).mean() > rate
        low, high = (low, middle) if too_high else (middle, high)
    return (low + high) / 2
