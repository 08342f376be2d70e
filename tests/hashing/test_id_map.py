import json
import struct
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from hashing.id_map import PRIME, Formula, IdMap, load_maps, save_maps, universal

IDS = 40


def stored(rows=7, ids=IDS):
    return np.arange(ids) * 5 % rows


def maps():
    """A formula, a stored lookup, two lookups in one part, and two parts, one by formula and one stored."""
    return {
        "by formula": IdMap(IDS, (Formula(9, 3, 4, 2),), (9,), "modulo"),
        "stored": IdMap(IDS, (stored(),), (7,), "frequency", about={"seed": 3, "options": {"private": 0.5}}),
        "shared.0": IdMap(IDS, (stored(), stored(6)), (7,), "double", "concat"),
        "mixed": IdMap(IDS, (Formula(5), stored()), (5, 7), "quotient-remainder", "mult"),
    }


def write(path, content, about=None):
    with open(path, "wb") as file:
        save_maps(file, content, about or {})
    return path


@given(
    rows=st.integers(1, 1000),
    multiplier=st.integers(1, PRIME - 1),
    shift=st.integers(0, PRIME - 1),
    divisor=st.integers(1, 50),
    ids=st.lists(st.integers(0, PRIME - 1), min_size=1, max_size=20),
)
def test_formula_is_the_arithmetic_of_whole_numbers(rows, multiplier, shift, divisor, ids):
    expected = [(multiplier * i + shift) % PRIME // divisor % rows for i in ids]  # Python's integers do not overflow
    assert Formula(rows, multiplier, shift, divisor)(np.array(ids)).tolist() == expected


def test_formula_takes_small_integer_types():
    ids = np.array([1, 2, 100], np.int8)
    wide = Formula(1000, PRIME - 1, 5)(ids.astype(np.int64))
    assert np.array_equal(Formula(1000, PRIME - 1, 5)(ids), wide)


@pytest.mark.parametrize("rows", [2, 7, 64])
def test_universal_hash_makes_a_pair_collide_with_chance_one_over_m(rows):
    draw = np.random.default_rng(0)
    first, second = draw.integers(0, 10**6, (2, 50))
    second = np.where(first == second, second + 1, second)
    seeds = 400
    collisions = np.mean([universal(rows, (s, 0))(first) == universal(rows, (s, 0))(second) for s in range(seeds)])
    assert collisions == pytest.approx(1 / rows, abs=6 * np.sqrt(1 / rows / (seeds * 50)))


def test_universal_hash_fills_rows_evenly_and_depends_on_its_seed():
    loads = np.bincount(universal(100, (1, 0))(np.arange(100_000)), minlength=100)
    assert loads.min() > 500 and loads.max() < 2000
    assert universal(100, (1, 0)) == universal(100, (1, 0))
    assert len({universal(100, seed) for seed in product(range(4), range(3))}) == 12


@given(n=st.integers(1, 60), m=st.integers(1, 60), seed=st.integers(0, 9))
def test_rows_of_are_the_stored_numbers(n, m, seed):
    rows = np.random.default_rng(seed).integers(0, m, n)
    id_map = IdMap(n, (rows, Formula(m)), (m, m), "any")
    ids = np.random.default_rng(seed + 1).integers(0, n, 30)
    first, second = id_map.rows_of(ids)
    assert np.array_equal(first, rows[ids]) and np.array_equal(second, ids % m)
    assert id_map.rows == 2 * m and id_map.rows_by_lookup == (m, m)


def test_row_numbers_are_stored_in_four_bytes_and_formulas_in_none():
    everything = maps()
    assert all(
        lookup.dtype == np.int32 and lookup.flags.c_contiguous
        for each in everything.values()
        for lookup in each.lookups
        if isinstance(lookup, np.ndarray)
    )
    assert [each.nbytes for each in everything.values()] == [0, 4 * IDS, 8 * IDS, 4 * IDS]
    assert IdMap(2, (np.array([0, 1 << 31]),), ((1 << 31) + 1,), "any").lookups[0].dtype == np.int64


@pytest.mark.parametrize(
    "arguments",
    [
        {"ids": 0},
        {"ids": PRIME},
        {"lookups": ()},
        {"part_rows": ()},
        {"part_rows": (0,)},
        {"part_rows": (7, 7)},
        {"part_rows": (6,)},
        {"lookups": (stored(ids=IDS - 1),)},
        {"lookups": (stored() - 1,)},
        {"lookups": (Formula(8),)},
        {"combine": "max"},
    ],
    ids=str,
)
def test_a_map_that_does_not_fit_together_is_refused(arguments):
    fitting = {"ids": IDS, "lookups": (stored(),), "part_rows": (7,), "method": "any"}
    with pytest.raises(ValueError):
        IdMap(**(fitting | arguments))


def test_save_and_load(tmp_path):
    written = maps()
    read, about = load_maps(write(tmp_path / "maps", written, {"history": "2024", "rows": [1, 2]}))
    assert about == {"history": "2024", "rows": [1, 2]}
    assert list(read) == list(written)
    ids = np.arange(IDS)
    for name, before in written.items():
        after = read[name]
        for old, new in zip(before.lookups, after.lookups, strict=True):
            assert type(old) is type(new) and (old == new if isinstance(old, Formula) else old.dtype == new.dtype)
        assert all(np.array_equal(a, b) for a, b in zip(before.rows_of(ids), after.rows_of(ids), strict=True))
        assert (after.ids, after.part_rows, after.method) == (before.ids, before.part_rows, before.method)
        assert (after.combine, after.about) == (before.combine, before.about)
        assert after.checksum() == before.checksum()


def test_maps_of_formulas_alone_and_no_maps_at_all(tmp_path):
    only = {"t": IdMap(IDS, (Formula(9),), (9,), "modulo")}
    assert load_maps(write(tmp_path / "a", only))[0]["t"].lookups == (Formula(9),)
    assert load_maps(write(tmp_path / "b", {}, {"x": 1})) == ({}, {"x": 1})


def test_checksum_tells_maps_apart():
    changed = stored()
    changed[3] = (changed[3] + 1) % 7
    some = [
        IdMap(IDS, (stored(),), (7,), "any"),
        IdMap(IDS, (changed,), (7,), "any"),
        IdMap(IDS, (stored(),), (8,), "any"),
        IdMap(IDS, (stored(),), (7,), "any", "mult"),
        IdMap(IDS, (Formula(7),), (7,), "any"),
        IdMap(IDS, (Formula(7, shift=1),), (7,), "any"),
    ]
    assert len({each.checksum() for each in some}) == len(some)
    assert some[0].checksum() == IdMap(IDS, (stored().astype(np.int16),), (7,), "another name").checksum()


@settings(max_examples=40)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_changed_bit_of_the_row_numbers_is_found(tmp_path_factory, place, bit):
    path = write(tmp_path_factory.mktemp("maps") / "maps", maps())
    content = bytearray(path.read_bytes())
    start = 8 + struct.unpack("<Q", content[:8])[0]  # safetensors: length of the header, header, tensors
    content[start + int(place * (len(content) - start))] ^= 1 << bit
    path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        load_maps(path)
    assert "\n" not in str(caught.value)


def test_a_file_cut_short_is_found(tmp_path):
    path = write(tmp_path / "maps", maps())
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match=str(path)):
        load_maps(path)


def other_files(folder):
    (folder / "text").write_text("1\t0\t0\n" * 50)
    (folder / "empty").write_bytes(b"")
    save_file({"weight": np.zeros(3, np.float32)}, folder / "model")
    save_file({"weight": np.zeros(3, np.float32)}, folder / "later", {"hashing": json.dumps({"format": "id maps 9"})})
    save_file({"weight": np.zeros(3, np.float32)}, folder / "broken", {"hashing": "{"})
    return ["text", "empty", "model", "later", "broken"]


def test_files_of_something_else_are_refused_in_one_line(tmp_path):
    for name in other_files(tmp_path):
        with pytest.raises(ValueError, match=str(tmp_path / name)) as caught:
            load_maps(tmp_path / name)
        assert "\n" not in str(caught.value)
