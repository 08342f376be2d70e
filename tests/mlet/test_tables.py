import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlet.initialize import initialize_tables, set_unknown_rows
from mlet.table_spec import PRIME, RowMap, mixed_dimensions, plan_tables
from mlet.tables import EmbeddingTables

ROWS = {"a": 4, "b": 50, "c": 300, "d": 7, "e": 1000}
# beside plain tables: a stored map, modulo, a universal hash with a division; all in one unit
ONE_LOOKUP = {
    "b": RowMap((9,), (None,)),
    "c": RowMap((40,), ((1, 0, 1, 40),)),
    "e": RowMap((90,), ((77_777, 5, 3, 90),)),
}
SHARED = {"c": RowMap((40,), ((31, 7, 1, 40), (1_000_003, 2, 1, 40))), "e": RowMap((60,), (None, (5, 0, 1, 60)))}
APART = {
    "b": RowMap((6, 5), (None, (3, 1, 1, 5)), "mult"),
    "c": RowMap((8, 40), ((1, 0, 40, 8), (1, 0, 1, 40)), "mult"),
    "e": RowMap((70, 30), (None, None), "mult"),
}
ASIDE = {name: RowMap(each.part_rows, each.formulas, "concat") for name, each in APART.items()}
VARIANTS = {
    "plain": {},
    "mlet": {"inner_dim": 32},
    "mlet narrow": {"inner_dim": 3},
    "mlet for large tables": {"inner_dim": 16, "mlet_min_rows": 100},
    "qr mult": {"qr_collisions": 4, "qr_threshold": 20},
    "qr add": {"qr_collisions": 3, "qr_threshold": 20, "qr_operation": "add"},
    "qr concat": {"qr_collisions": 4, "qr_threshold": 20, "qr_operation": "concat"},
    "qr mult mlet": {"qr_collisions": 4, "qr_threshold": 20, "inner_dim": 12},
    "qr concat mlet": {"qr_collisions": 4, "qr_threshold": 20, "qr_operation": "concat", "inner_dim": 12},
    "md": {"md_temperature": 0.3, "md_threshold": 20},
    "md rounded mlet": {"md_temperature": 0.5, "md_threshold": 20, "md_round_dims": True, "inner_dim": 12},
    "hashed": {"row_maps": ONE_LOOKUP},
    "hashed mlet": {"row_maps": ONE_LOOKUP, "inner_dim": 12},
    "hashed md": {"row_maps": ONE_LOOKUP, "md_temperature": 0.3, "md_threshold": 20},
    "two hashes, shared rows": {"row_maps": SHARED},
    "two hashes, shared rows, mlet for large tables": {"row_maps": SHARED, "inner_dim": 12, "mlet_min_rows": 400},
    "two parts multiplied": {"row_maps": APART, "inner_dim": 12},
    "two parts aside": {"row_maps": ASIDE},
}


def make(variant, seed=0, **options):
    tables = EmbeddingTables(plan_tables(ROWS, 8, **VARIANTS[variant]), unknown=True, padding=True, **options)
    initialize_tables(tables, np.random.RandomState(seed), seed, "normal")
    return fill_maps(tables)


def fill_maps(tables):
    """Stored maps like those that a hash method makes."""
    for spec in tables.specs:
        for number, lookup in enumerate(spec.lookups):
            if lookup.stored:
                rows = np.random.default_rng(number).integers(0, lookup.rows, spec.rows, np.int32)
                tables.set_map(spec.name, number, rows)
    return tables


def row_of(tables, spec, number, i):
    """The row of its part that one lookup of an id reads, by Python's own arithmetic."""
    lookup = spec.lookups[number]
    if i >= spec.rows:
        return spec.parts[lookup.part] + i - spec.rows
    if spec.collisions:
        return i // spec.collisions if number == 0 else i % spec.collisions
    if spec.row_map is None:
        return i
    if spec.row_map.formulas[number] is None:
        return int(tables.maps.view(spec, number)[i])
    a, b, q, m = spec.row_map.formulas[number]
    return (a * i + b) % PRIME // q % m


COMBINE = {"mult": torch.mul, "add": torch.add, "concat": lambda a, b: torch.cat([a, b], -1)}


def stored(tables, table, part):
    """Full-size rows [rows, d] of one part, projections multiplied out."""
    for p in tables.parts():
        if p.table == table and p.name == part:
            rows = p.group.part(p.index, p.counted_rows + tables.special_rows)
            if p.group.pooling_weight is not None:
                first = int(p.group.first_row[p.index])
                rows = rows * p.group.pooling_weight[first : first + len(rows)]
            for matrix in (p.group.inner_projection, p.group.projection):
                rows = rows if matrix is None else rows @ matrix[p.index]
            return rows
    raise KeyError(part)


def twin(tables, bags):
    """Vectors [B, T, D] by Python loops: bags[t][b] is a list of ids."""
    out = []
    for t, spec in enumerate(tables.specs):
        vectors = []
        for bag in bags[t]:
            pooled = []
            for number, lookup in enumerate(spec.lookups):
                rows = stored(tables, t, lookup.part)
                total = torch.zeros(rows.shape[1])
                for i in bag:
                    total = total + rows[row_of(tables, spec, number, i)]
                pooled.append(total / max(1, len(bag)) if tables.mode == "mean" else total)
            vectors.append(pooled[0] if len(pooled) == 1 else COMBINE[spec.combination](*pooled))
        out.append(torch.stack(vectors))
    return torch.stack(out, dim=1).detach()


def jagged(bags):
    flat = [i for table in bags for bag in table for i in bag]
    lengths = [len(bag) for table in bags for bag in table]
    return torch.tensor(flat, dtype=torch.long), torch.tensor([0, *np.cumsum(lengths)])


def draw_bags(rng, batch, lengths):
    return [[rng.integers(0, n + 1, rng.choice(lengths)).tolist() for _ in range(batch)] for n in ROWS.values()]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_one_hot_bags_and_padded_bags_equal_a_loop(variant, mode):
    tables = make(variant, mode=mode)
    rng = np.random.default_rng(0)
    one_hot = draw_bags(rng, 6, [1])
    one_hot[0][0], one_hot[4][5] = [ROWS["a"]], [ROWS["e"] - 1]  # an unknown id, the largest id
    ids = torch.tensor([[bag[0] for bag in table] for table in one_hot]).T
    torch.testing.assert_close(tables(ids), twin(tables, one_hot), atol=1e-6, rtol=1e-5)

    bags = draw_bags(rng, 6, [0, 1, 2, 5])
    bags[2][3] = []
    expected = twin(tables, bags)
    torch.testing.assert_close(tables(*jagged(bags)), expected, atol=1e-6, rtol=1e-5)

    padded = []
    for (_, n), table in zip(ROWS.items(), bags, strict=True):
        hot = max(1, *map(len, table))
        padded.append(torch.tensor([bag + [n + 1] * (hot - len(bag)) for bag in table]))
    torch.testing.assert_close(tables.forward_padded(padded), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_equal_those_of_the_dense_product(variant):
    """Row gradients of every part and projection, against autograd through full matrices."""
    tables = make(variant)
    ids = torch.randint(0, 4, (16, len(ROWS)), generator=torch.Generator().manual_seed(1))
    weight = torch.randn(16, len(ROWS), tables.dim, generator=torch.Generator().manual_seed(2))
    (tables(ids) * weight).sum().backward()
    got = {name: p.grad.to_dense() if p.grad.is_sparse else p.grad for name, p in tables.named_parameters()}
    for parameter in tables.parameters():
        parameter.grad = None
    total = 0
    for t, spec in enumerate(tables.specs):
        full = {}
        for p in (p for p in tables.parts() if p.table == t):
            first = int(p.group.first_row[p.index])
            rows = p.group.weight[first : first + p.counted_rows]
            for matrix in (p.group.inner_projection, p.group.projection):
                rows = rows if matrix is None else rows @ matrix[p.index]
            full[p.name] = rows
        read = [
            full[lookup.part][[row_of(tables, spec, number, i) for i in ids[:, t].tolist()]]
            for number, lookup in enumerate(spec.lookups)
        ]
        vector = read[0] if len(read) == 1 else COMBINE[spec.combination](*read)
        total = total + (vector * weight[:, t]).sum()
    total.backward()
    for name, parameter in tables.named_parameters():
        torch.testing.assert_close(got[name], parameter.grad, atol=1e-5, rtol=1e-4, msg=name)


def test_learned_pooling_weights():
    tables = make("mlet", weighted=True)
    for unit in tables.units:
        torch.nn.init.uniform_(unit.rows.pooling_weight, 0.5, 2.0)
    bags = draw_bags(np.random.default_rng(1), 5, [1, 3])
    out = tables(*jagged(bags))
    torch.testing.assert_close(out, twin(tables, bags), atol=1e-6, rtol=1e-5)
    out.sum().backward()
    assert tables.units[0].rows.pooling_weight.grad.is_sparse


def test_weighted_pooling_with_composed_tables_is_refused():
    for variant in ("qr mult", "md"):
        with pytest.raises(ValueError, match="weighted pooling works on plain tables only"):
            make(variant, weighted=True)


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v != "plain"])
def test_options_leave_the_main_generator_where_plain_tables_leave_it(variant):
    def state_after(name):
        rng = np.random.RandomState(5)
        dim = 8 if "qr concat" not in variant else 16  # which doubles the width that the model sees
        plan = plan_tables(ROWS, 8, **VARIANTS[name]) if name != "plain" else plan_tables(ROWS, dim)
        initialize_tables(EmbeddingTables(plan, unknown=True), rng, 5, "normal")
        return rng.get_state()[1:3]

    plain, other = state_after("plain"), state_after(variant)
    assert np.array_equal(plain[0], other[0]) and plain[1] == other[1]


def test_plain_rows_are_the_legacy_generators_draws():
    tables = make("plain", seed=9)
    rng = np.random.RandomState(9)
    for part, n in zip(tables.parts(), ROWS.values(), strict=True):
        expected = rng.uniform(-np.sqrt(1 / n), np.sqrt(1 / n), (n, 8)).astype(np.float32)
        assert np.array_equal(part.group.part(part.index, n).numpy(), expected)


def test_tables_that_stay_single_layer_keep_their_draws():
    plain, mixed = make("plain", seed=3), make("mlet for large tables", seed=3)
    for a, b in zip(plain.parts(), mixed.parts(), strict=True):
        if b.group.inner_projection is None:
            assert torch.equal(a.group.part(a.index, a.counted_rows), b.group.part(b.index, b.counted_rows))


@pytest.mark.parametrize("operation", ["mult", "add", "concat"])
def test_composed_rows_start_with_the_spread_of_a_plain_row(operation):
    plan = plan_tables({"t": 10_000}, 16, qr_collisions=100, qr_operation=operation)
    tables = EmbeddingTables(plan)
    initialize_tables(tables, np.random.RandomState(0), 0, "normal")
    vectors = tables(torch.arange(10_000)[:, None])
    assert vectors.std().item() == pytest.approx((3 * 10_000) ** -0.5, rel=0.05)


@pytest.mark.parametrize("variant", VARIANTS)
def test_unknown_rows_become_the_mean_of_the_trained_rows(variant):
    tables = make(variant)
    trained = [np.random.default_rng(t).random(n) < 0.5 for t, n in enumerate(ROWS.values())]
    trained[3][:] = False
    set_unknown_rows(tables, trained)
    for t, spec in enumerate(tables.specs):
        for part, counted in spec.parts.items():
            rows = stored(tables, t, part)
            numbers = [number for number, lookup in enumerate(spec.lookups) if lookup.part == part]
            read = {row_of(tables, spec, number, i) for i in np.flatnonzero(trained[t]) for number in numbers}
            expected = rows[sorted(read)].mean(dim=0) if read else torch.zeros(rows.shape[1])
            torch.testing.assert_close(rows[counted], expected, atol=1e-6, rtol=1e-5)
            assert not rows[counted + 1].any()  # the padding row stays zero


def test_unknown_row_of_added_parts_is_the_mean_of_the_parts():
    tables = make("qr add")
    set_unknown_rows(tables, [np.ones(n, bool) for n in ROWS.values()])
    quotient = stored(tables, 4, "quotient")
    torch.testing.assert_close(quotient[-2], quotient[:-2].mean(dim=0))


@given(
    rows=st.lists(st.integers(1, 10**7), min_size=1, max_size=8),
    temperature=st.floats(0, 1),
    base=st.integers(1, 128),
    power=st.booleans(),
)
@settings(max_examples=50)
def test_mixed_dimensions_lie_between_one_and_the_base_and_fall_with_rows(rows, temperature, base, power):
    widths = mixed_dimensions(rows, temperature, base, power)
    assert all(1 <= width <= base for width in widths)
    by_rows = [width for _, width in sorted(zip(rows, widths, strict=True), key=lambda pair: (pair[0], -pair[1]))]
    assert by_rows == sorted(by_rows, reverse=True)


def test_mixed_dimensions_by_hand():
    # d_i = 16 (10 / n)^0.5: 16, 5.06, 1.6, 0.5
    assert mixed_dimensions([10, 100, 1000, 10_000], 0.5, 16, False) == [16, 5, 2, 1]
    assert mixed_dimensions([10, 100, 1000, 10_000], 0.5, 16, True) == [16, 4, 2, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"qr_collisions": 4, "md_temperature": 0.3}, "cannot share a table"),
        ({"qr_collisions": 4, "qr_operation": "max"}, "operation 'max'"),
        ({"md_temperature": -1.0}, "is negative"),
        ({"inner_dim": -1}, "negative"),
    ],
)
def test_plans_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        plan_tables(ROWS, 8, **options)


def test_empty_tables_are_refused():
    with pytest.raises(ValueError, match="table x: 0 rows"):
        plan_tables({"x": 0}, 4)
    with pytest.raises(ValueError, match="tables must exist"):
        EmbeddingTables([])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("form", ["one-hot", "bags"])
def test_rows_read_are_those_with_a_gradient_and_counts_add_up(variant, form):
    """Reading a batch's rows one after the other is counting its ids and spreading the counts."""
    tables = make(variant)
    bags = draw_bags(np.random.default_rng(3), 6, [1] if form == "one-hot" else [0, 2, 3])
    batch = jagged(bags) if form == "bags" else (torch.tensor([[bag[0] for bag in table] for table in bags]).T, None)
    read = {}
    for group, rows in tables.rows_read(*batch):
        read[group] = read.get(group, 0) + torch.bincount(rows, minlength=len(group.weight)).float()
    of_ids = [
        torch.bincount(torch.tensor([i for bag in table for i in bag], dtype=torch.long), minlength=n + 1)
        for table, n in zip(bags, ROWS.values(), strict=True)
    ]
    assert all(torch.equal(total, read[group]) for group, total in tables.row_counts(of_ids).items())
    tables(*batch).square().sum().backward()
    for group, counts in read.items():
        touched = group.weight.grad.coalesce().indices()[0]
        assert torch.equal(counts.nonzero()[:, 0], touched)
