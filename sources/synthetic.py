"""Planted click data in the raw Criteo Kaggle format, with a known best AUC.

Usage:
    python -m sources.synthetic --rows 400000 --seed 1 --out train.txt

writes `train.txt` (label, 13 integers, 26 hexadecimal categoricals, tab separated) and
`train.txt.teacher.npy` (the click probability of each row), then prints rows, label rate and the teacher's
AUC and logloss over all rows: no model can beat them except by luck.

The teacher is a factorisation machine over the informative tables. All it knows of an id is a point u in
RANK dimensions, hashed from seed, table and id; 1 is the vector of ones:

    logit = bias + a sum_c weight_c log(1 + integer_c) + b <1, sum_t u_t> + c sum_{s<t} <u_s, u_t>

so a one-hot linear model misses the pairs. Missing and negative integers count as 0, a missing categorical
has u = 0. On the first block each table's points have mean 0; a, b and c give the terms their TERM_SHARES.

Rows are drawn in blocks of BLOCK_ROWS, each from its own generator, and no distribution depends on the
number of rows: a shorter file is a prefix of a longer one with the same seed (and the same NumPy). Ids follow
power laws over the full Criteo table sizes: about as many distinct ones are seen as in as many real rows.

Legend: n rows of a block, M integer columns, T tables.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from sklearn.metrics import log_loss, roc_auc_score

BLOCK_ROWS = 65_536
LABEL_RATE = 0.25
RANK = 3  # at most 4: a point takes 16 bits a dimension from one hash of 64
SPREAD = 1.48  # standard deviation of the logit if its terms were uncorrelated
TERM_SHARES = (0.20, 0.15, 0.65)  # of the variance: integers, ids, pairs of ids
FIELD_CHARACTERS = 10  # a tab, then a sign and eight digits, or eight hexadecimal digits
TEACHER_SUFFIX = ".teacher.npy"
ID_BITS = 24  # of a token's 32; the others tell the tables apart
_MULTIPLIERS = 0x85EBCA6B, 0xC2B2AE35  # of the tokens' hash (MurmurHash3's last steps)
_INVERSES = tuple(pow(multiplier, -1, 1 << 32) for multiplier in _MULTIPLIERS)


class Dense(NamedTuple):
    """Criteo's shape of one integer column, and the teacher's weight of log(1 + value)."""

    missing: float  # share of rows
    zero: float  # share of the present values that are at most 0
    quantile_99: float
    maximum: int
    weight: float


class Table(NamedTuple):
    """Criteo's shape of one categorical column: id i has a probability ~ (i + shift) ** -exponent."""

    ids: int  # in the full data set of 45,840,617 rows
    exponent: float
    shift: float
    missing: float  # share of rows
    informative: bool


INTEGER_COLUMNS = (
    Dense(0.4449, 0.444, 44, 5_775, 0.10), Dense(0.0, 0.279, 2_298, 257_675, 0.02),
    Dense(0.1909, 0.007, 364, 65_535, -0.05), Dense(0.1938, 0.066, 45, 969, -0.05),
    Dense(0.0478, 0.019, 284_256, 23_159_456, -0.05), Dense(0.252, 0.064, 1_575, 431_037, -0.10),
    Dense(0.0475, 0.255, 200, 56_311, 0.10), Dense(0.0011, 0.112, 48, 6_047, -0.05),
    Dense(0.0475, 0.031, 1_248, 29_019, 0.0), Dense(0.4449, 0.476, 3, 11, 0.20),
    Dense(0.0475, 0.267, 23, 231, 0.20), Dense(0.7722, 0.741, 15, 4_008, 0.10),
    Dense(0.1938, 0.064, 76, 7_393, -0.10),
)  # fmt: skip
TABLES = (
    Table(1_460, 1.95, 0.89, 0.0, True), Table(583, 1.96, 6.83, 0.0, True),
    Table(10_131_227, 1.005, 1.18, 0.0392, False), Table(2_202_608, 1.125, 2.12, 0.0392, True),
    Table(305, 2.44, 0.69, 0.0, False), Table(24, 4.0, 3.5, 0.1373, False),
    Table(12_517, 1.37, 45.1, 0.0, False), Table(633, 2.24, 0.87, 0.0, False),
    Table(3, 2.73, 0.48, 0.0, False), Table(93_145, 1.14, 0.23, 0.0, True),
    Table(5_683, 1.51, 26.4, 0.0, True), Table(8_351_593, 1.022, 1.43, 0.0392, False),
    Table(3_194, 1.355, 17.8, 0.0, True), Table(27, 4.0, 6.2, 0.0, False),
    Table(14_992, 1.63, 32.9, 0.0, False), Table(5_461_306, 1.068, 2.18, 0.0392, False),
    Table(10, 1.06, 0.35, 0.0, False), Table(5_652, 1.74, 14.1, 0.0, True),
    Table(2_173, 1.29, 0.09, 0.4135, True), Table(4, 0.47, 0.34, 0.4135, False),
    Table(7_046_547, 1.04, 1.72, 0.0392, False), Table(18, 4.0, 3.5, 0.8172, False),
    Table(15, 3.11, 3.25, 0.0, False), Table(286_181, 1.26, 3.06, 0.0392, True),
    Table(105, 4.0, 7.0, 0.4135, False), Table(142_572, 1.20, 2.17, 0.4135, True),
)  # fmt: skip
NEGATIVE_COLUMN = 1  # I2, the only one with values below zero
NEGATIVE_COLUMN_LOW_SHARES = (0.648, 0.349, 0.003)  # of 0, -1, -2 among its values that are at most 0
# Columns with the same share are missing in the same rows, as most of them are in Criteo.
MISSING_SHARES = sorted({column.missing for column in (*INTEGER_COLUMNS, *TABLES)})


class Teacher(NamedTuple):
    """Everything that a seed fixes for all rows."""

    keys: np.ndarray  # uint64 [T], of the hashes
    centres: np.ndarray  # float32 [T, RANK], taken off the hashed points
    scales: np.ndarray  # float32 [3], of the integer, id and pair terms
    bias: np.float32


class Features(NamedTuple):
    """The features of some consecutive rows."""

    integers: np.ndarray  # int64 [n, M]; 0 where missing
    integers_present: np.ndarray  # bool [n, M]
    ids: np.ndarray  # int64 [n, T], 0 is the most frequent; -1 where missing


def write_criteo_tsv(path: str | os.PathLike[str], rows: int, seed: int = 0) -> None:
    """Write planted rows to `path` and their click probabilities to `path`.teacher.npy, float32 [rows].

    Both are written under temporary names in the same folder and renamed when complete, the rows last. The
    memory needed does not depend on `rows`. Raises ValueError on fewer than one row, a negative seed or a
    path that cannot be a file, OSError when writing fails; an unfinished write leaves no file.
    """
    if rows < 1 or seed < 0:
        raise ValueError(f"rows must be at least 1 and seed at least 0, got rows {rows}, seed {seed}")
    write_pair(path, (rows,), _blocks(rows, seed))


def write_pair(
    path: str | os.PathLike[str], shape: tuple[int, ...], blocks: Iterator[tuple[bytes, np.ndarray]]
) -> None:
    """Write blocks of text and their probabilities, float32 `shape`, to the two files of `write_criteo_tsv`."""
    final = Path(path), Path(f"{os.fspath(path)}{TEACHER_SUFFIX}")
    if not final[0].parent.is_dir() or (final[0].exists() and not final[0].is_file()):
        raise ValueError(f"cannot write {final[0]}: its folder does not exist, or it is no regular file")
    aside = [name.with_name(f".{name.name}.{os.getpid()}.tmp") for name in final]
    try:
        with open(aside[0], "wb") as text_file, open(aside[1], "wb") as teacher_file:
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(teacher_file, header)
            for text, probabilities in blocks:
                text_file.write(text)
                teacher_file.write(probabilities.astype("<f4").tobytes())
        final[0].unlink(missing_ok=True)  # old rows beside new probabilities would pass for a pair
        os.replace(aside[1], final[1])
        os.replace(aside[0], final[0])
    finally:
        for name in aside:
            name.unlink(missing_ok=True)


def teacher_probabilities(path: str | os.PathLike[str]) -> np.ndarray:
    """Return the probabilities of the rows of `path`, float32 [rows] or [rows, labels], memory-mapped."""
    return np.load(f"{os.fspath(path)}{TEACHER_SUFFIX}", mmap_mode="r")


def _blocks(rows: int, seed: int) -> Iterator[tuple[bytes, np.ndarray]]:
    """Yield the text of consecutive rows and their click probabilities, float32 [n]."""
    teacher = make_teacher(seed)
    for index, start in enumerate(range(0, rows, BLOCK_ROWS)):
        generator = np.random.default_rng([seed, 1 + index])
        features = draw_features(generator)
        logits = (_terms(teacher.keys, teacher.centres, features) * teacher.scales).sum(axis=1)
        probabilities = 1 / (1 + np.exp(-logits - teacher.bias))
        labels = generator.random(BLOCK_ROWS) < probabilities
        kept = slice(0, min(BLOCK_ROWS, rows - start))
        yield format_rows(labels[kept], Features(*(part[kept] for part in features))), probabilities[kept]


def make_teacher(seed: int) -> Teacher:
    """Draw the teacher, then fit its centres, its scales and its bias (to LABEL_RATE) on the first block."""
    keys = np.random.default_rng([seed, 0]).integers(0, 2**64, len(TABLES), dtype=np.uint64)
    features = draw_features(np.random.default_rng([seed, 1]))
    columns = zip(keys, features.ids.T, strict=True)
    centres = np.stack([hashed_points(key, ids[ids >= 0]).mean(axis=0) for key, ids in columns])
    terms = _terms(keys, centres, features)
    scales = fitted_scales(terms)
    logits = (terms * scales).sum(axis=1)
    bias = 0.0
    for _ in range(30):  # a contraction: the error falls by at least half each time
        rate = (1 / (1 + np.exp(-logits - bias))).mean()
        bias += np.log(LABEL_RATE / (1 - LABEL_RATE)) - np.log(rate / (1 - rate))
    return Teacher(keys, centres, scales, np.float32(bias))


def fitted_scales(terms: np.ndarray) -> np.ndarray:
    """Scales float32 [3] that give the terms of a block's logits [n, 3] their shares of the variance."""
    return (SPREAD * np.sqrt(TERM_SHARES) / terms.std(axis=0)).astype(np.float32)


def draw_features(generator: np.random.Generator) -> Features:
    """Draw one block of rows."""
    absent = {share: generator.random(BLOCK_ROWS) < share for share in MISSING_SHARES}
    present = np.stack([~absent[column.missing] for column in INTEGER_COLUMNS], axis=1)
    integers = np.stack([_draw_integers(generator, column) for column in INTEGER_COLUMNS], axis=1)
    low = generator.choice([0, -1, -2], BLOCK_ROWS, p=NEGATIVE_COLUMN_LOW_SHARES)
    integers[:, NEGATIVE_COLUMN] += low * (integers[:, NEGATIVE_COLUMN] == 0)
    ids = np.stack([np.where(absent[t.missing], -1, _draw_ids(generator, t)) for t in TABLES], axis=1)
    return Features(integers * present, present, ids)


def _draw_integers(generator: np.random.Generator, column: Dense) -> np.ndarray:
    """Draw values >= 0, int64 [BLOCK_ROWS]: 1 + value is log-normal, through the column's two quantiles."""
    zero, high = (NormalDist().inv_cdf(share) for share in (column.zero, 0.99))
    scale = (np.log1p(column.quantile_99) - np.log(2)) / (high - zero)
    logs = np.log(2) + scale * (generator.standard_normal(BLOCK_ROWS) - zero)
    return np.minimum(np.expm1(np.maximum(logs, 0)), column.maximum).astype(np.int64)


def _draw_ids(generator: np.random.Generator, table: Table) -> np.ndarray:
    """Draw ids, int64 [BLOCK_ROWS], by inverting the integral of the table's power law."""
    power = 1 - table.exponent
    first, last = table.shift**power, (table.ids + table.shift) ** power
    ranks = (first + generator.random(BLOCK_ROWS) * (last - first)) ** (1 / power) - table.shift
    return np.clip(ranks, 0, table.ids - 1).astype(np.int64)


def _terms(keys: np.ndarray, centres: np.ndarray, features: Features) -> np.ndarray:
    """Return the integer, id and pair terms of the logit before scaling, float32 [n, 3]."""
    weights = np.array([column.weight for column in INTEGER_COLUMNS], dtype=np.float32)
    return terms_of(features, weights, lambda t, ids: hashed_points(keys[t], ids) - centres[t])


def terms_of(features: Features, weights: np.ndarray, points_of: Callable[[int, np.ndarray], np.ndarray]) -> np.ndarray:
    """The same for weights [M] of the integers and points [n, RANK] of the ids [n] of a table by its number."""
    logs = np.log1p(np.maximum(features.integers, 0)).astype(np.float32)
    total = np.zeros((len(logs), RANK), dtype=np.float32)
    squares = np.zeros(len(logs), dtype=np.float32)
    for t, (table, ids) in enumerate(zip(TABLES, features.ids.T, strict=True)):
        if table.informative:
            points = points_of(t, ids) * (ids >= 0)[:, None]
            total += points
            squares += (points * points).sum(axis=1)
    pairs = ((total * total).sum(axis=1) - squares) / 2
    return np.stack([(logs * weights).sum(axis=1), total.sum(axis=1), pairs], axis=1)


def hashed_points(key: np.uint64, ids: np.ndarray) -> np.ndarray:
    """Return the points of ids, float32 [n, RANK], uniform in a cube, each dimension with variance 1.

    Hashed (splitmix64) rather than stored, so that a table of ten million ids needs no memory.
    """
    bits = key + ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    parts = (bits ^ (bits >> np.uint64(31))).astype("<u8").view("<u2").reshape(-1, 4)[:, :RANK]
    return (parts - np.float32(32767.5)) * np.float32(12**0.5 / 65536)


def planted_points(seed: int, table: int, tokens: np.ndarray) -> np.ndarray:
    """What the teacher knows of the ids of one table: their centred points, float32 [n, RANK].

    Ids with near points are alike to it: clusters of these are the best maps to fewer rows that there can be.

    Args:
        seed: of the data. table: 0 for the first categorical column. tokens: its raw values as numbers, uint32 [n]; 0
            (a missing value) has the point 0, as all ids of a table that says nothing.
    """
    mixed = tokens.astype(np.uint32)  # the steps of `_tokens`, backwards
    mixed = (mixed ^ (mixed >> np.uint32(16))) * np.uint32(_INVERSES[1])
    mixed = (mixed ^ (mixed >> np.uint32(13)) ^ (mixed >> np.uint32(26))) * np.uint32(_INVERSES[0])
    mixed = mixed ^ (mixed >> np.uint32(16))
    ids = (mixed - (np.uint32(table) << np.uint32(ID_BITS))).astype(np.int64) - 1
    teacher = make_teacher(seed)
    points = hashed_points(teacher.keys[table], ids) - teacher.centres[table]
    return (points * ((tokens > 0) & TABLES[table].informative)[:, None]).astype(np.float32)


def format_rows(labels: np.ndarray, features: Features) -> bytes:
    """Return the rows as text: fields are laid out at full width, then unused (zero) bytes are dropped.

    Labels bool [n], or several a row [n, labels]: these come first.
    """
    n, integers = features.integers.shape
    fields = np.zeros((n, integers + features.ids.shape[1], FIELD_CHARACTERS), dtype=np.uint8)
    fields[:, :, 0] = ord("\t")
    fields[:, :integers, 1:] = _decimal(features.integers) * features.integers_present[:, :, None]
    fields[:, integers:, 2:] = _hexadecimal(_tokens(features.ids)) * (features.ids >= 0)[:, :, None]
    line_ends = np.full(n, ord("\n"), dtype=np.uint8)
    digits = np.full((n, 2 * (labels.size // n) - 1), ord("\t"), dtype=np.uint8)  # with tabs between
    digits[:, ::2] = ord("0") + labels.reshape(n, -1)
    page = np.column_stack([digits, fields.reshape(n, -1), line_ends])
    return page[page != 0].tobytes()


def _decimal(values: np.ndarray) -> np.ndarray:
    """Return decimal characters, uint8 [n, M, 9]: a sign and eight digits, 0 where a place is not used."""
    characters = np.zeros((*values.shape, FIELD_CHARACTERS - 1), dtype=np.uint8)
    characters[..., 0] = np.where(values < 0, ord("-"), 0)
    rest = np.abs(values).astype(np.uint32)
    characters[..., -1] = ord("0") + rest % 10
    for place in range(characters.shape[-1] - 2, 0, -1):
        rest //= 10
        characters[..., place] = np.where(rest > 0, ord("0") + rest % 10, 0)
    return characters


def _tokens(ids: np.ndarray) -> np.ndarray:
    """Return tokens, uint32 [n, T], by a bijective hash: no two ids share one, and none reads as missing."""
    tables = np.arange(ids.shape[1], dtype=np.uint32) << np.uint32(ID_BITS)
    mixed = tables + (ids + 1).astype(np.uint32)
    mixed = (mixed ^ (mixed >> np.uint32(16))) * np.uint32(_MULTIPLIERS[0])
    mixed = (mixed ^ (mixed >> np.uint32(13))) * np.uint32(_MULTIPLIERS[1])
    return mixed ^ (mixed >> np.uint32(16))


def _hexadecimal(tokens: np.ndarray) -> np.ndarray:
    """Return lower-case hexadecimal characters, uint8 [n, T, 8]."""
    pairs = np.frombuffer(b"".join(b"%02x" % byte for byte in range(256)), dtype=np.uint8).reshape(256, 2)
    octets = tokens.astype(">u4").view(np.uint8).reshape(*tokens.shape, 4)
    return pairs[octets].reshape(*tokens.shape, 8)


def _summary(path: str) -> str:
    """Return rows, label rate and the teacher's quality over all rows; holds a label and a score a row."""
    scores = teacher_probabilities(path)
    with open(path, "rb") as file:
        labels = np.fromiter((line[0] == ord("1") for line in file), dtype=bool, count=len(scores))
    auc = f"{roc_auc_score(labels, scores):.4f}" if 0 < labels.mean() < 1 else "undefined (one class)"
    logloss = log_loss(labels, scores, labels=[False, True])
    return f"rows {len(labels)}, label rate {labels.mean():.4f}, teacher AUC {auc}, logloss {logloss:.4f}"


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m sources.synthetic", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, required=True, help="number of rows, at least 1")
    parser.add_argument("--seed", type=int, default=0, help="fixes teacher and rows (default 0)")
    parser.add_argument("--out", required=True, help="file to write; its folder must exist")
    arguments = parser.parse_args(argv)
    try:
        write_criteo_tsv(arguments.out, arguments.rows, arguments.seed)
        print(_summary(arguments.out))
    except (ValueError, OSError) as error:
        print(f"sources.synthetic: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
