import inspect
import resource

import numpy as np
import pytest
import torch

import optim
from mlet import memory
from mlet.free_memory import available_bytes, cgroup_free, runtime_bytes, size_text
from mlet.inference import collapse
from mlet.initialize import set_unknown_rows
from mlet.memory import STATE_SIZES, Bill, StateSize, bill_of, check_fits
from mlet.models import build_model
from mlet.table_spec import RowMap, plan_tables
from mlet.tables import EmbeddingTables

ROWS = {"a": 4, "b": 50, "c": 300, "d": 7}
VARIANTS = {
    "plain": {},
    "mlet": {"inner_dim": 32},
    "mlet for large tables": {"inner_dim": 16, "mlet_min_rows": 100},
    "qr": {"qr_collisions": 4, "qr_threshold": 20},
    "qr concat mlet": {"qr_collisions": 4, "qr_threshold": 20, "qr_operation": "concat", "inner_dim": 12},
    "md": {"md_temperature": 0.3, "md_threshold": 20},
    "md mlet": {"md_temperature": 0.5, "md_threshold": 20, "inner_dim": 12},
    "hashed mlet": {"row_maps": {"b": RowMap((9,), (None,)), "c": RowMap((70, 6), (None, None))}, "inner_dim": 12},
    "weighted": {},
    "weighted mlet": {"inner_dim": 12},
}
RULES = [rule for rule in optim.optimizer_names() if rule in STATE_SIZES]


def make(variant="plain", device="cpu", rows=ROWS, dim=8, **options):
    with torch.device(device):
        specs = plan_tables(rows, dim, **VARIANTS.get(variant, {}), **options)
        tables = EmbeddingTables(specs, unknown=True, padding=True, weighted=variant.startswith("weighted"))
        return build_model("dlrm", tables, bottom=[3, 5, specs[0].dim], top=[6, 1])


def bill(model, batch_size=4, optimizer="sgd", **more):
    return bill_of(model, dense_width=3, lookups=4, batch_size=batch_size, optimizer=optimizer, **more)


def large(inner_dim=0, rows=10**9, optimizer="sgd", **more):
    model = make(device="meta", rows={f"t{t}": rows for t in range(26)}, inner_dim=inner_dim)
    return bill(model, optimizer=optimizer, **more)


def bytes_of(tensors):
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameter_bytes_are_those_of_the_built_model(variant):
    model, predicted = make(variant), bill(make(variant, "meta"))
    named = dict(model.named_parameters())
    of_tables = {name for name in named if name.split(".")[-1] in ("weight", "pooling_weight") and "tables" in name}
    matrices = {name for name in named if name.endswith("projection")}
    assert predicted.tables == bytes_of(named[name] for name in of_tables)
    assert predicted.projections == bytes_of(named[name] for name in matrices)
    others = [named[name] for name in named.keys() - of_tables - matrices]
    buffers = [buffer for name, buffer in model.named_buffers() if not name.startswith("tables.")]
    assert predicted.dense == bytes_of(others) + bytes_of(buffers)
    assert predicted.model == bytes_of(named.values()) + bytes_of(buffers)


@pytest.mark.parametrize("variant", VARIANTS)
def test_inference_bytes_are_those_of_the_collapsed_model(variant):
    model = make(variant)
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    served = collapse(model)
    predicted = bill(make(variant, "meta"))
    maps = bytes_of(served.tables.maps.buffers())
    assert predicted.inference_tables == bytes_of(served.tables.parameters()) + maps
    assert predicted.other == maps == (4 * (50 + 2 * 300) if variant == "hashed mlet" else 0)
    new = predicted.inference_tables - maps if served.tables is not model.tables else 0
    assert predicted.collapsed == new + predicted.dense


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("variant", ["mlet", "weighted mlet"])
def test_optimizer_state_is_what_a_step_leaves(rule, variant):
    model = make(variant)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    optimizer = optim.build_optimizer(rule, model.parameters(), 0.01)
    model(torch.rand(4, 3), torch.zeros(4, 4, dtype=torch.int64)).sum().backward()
    optimizer.step()
    kept = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    assert bill(make(variant, "meta"), optimizer=rule).optimizer == bytes_of(v for v in kept if v.dim())


def test_adam_keeps_two_numbers_a_weight():
    model = make("mlet")
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
        parameter.grad = torch.zeros_like(parameter)
    optimizer = torch.optim.Adam(model.parameters())
    optimizer.step()
    kept = [value for state in optimizer.state.values() for value in state.values() if value.dim()]
    assert bill(make("mlet", "meta"), optimizer="adam").optimizer == bytes_of(kept)


def test_table_rule_of_its_own_and_unknown_rule():
    model = make("mlet", "meta")
    rows = sum(memory.row_groups(model)[0].weight.shape[:1])
    dense = bill(model, optimizer=StateSize(per_dense=2)).optimizer
    assert bill(model, optimizer="adam", table_optimizer="rwsadagrad").optimizer == dense + 4 * rows
    assert bill(model, optimizer="brand-new").optimizer == bill(model, optimizer="adam").optimizer


def test_half_precision_tables_count_half():
    model = make("mlet", "meta")
    for group in memory.row_groups(model):
        group.weight = torch.nn.Parameter(group.weight.data.bfloat16())
    assert bill(model).tables * 2 == bill(make("mlet", "meta")).tables


def test_saved_activations_are_exact():
    """One MLP layer behind the tables: its input, and the sigmoid's output."""
    with torch.device("meta"):
        tables = EmbeddingTables(plan_tables({"a": 9, "b": 9}, 8))
        model = build_model("dlrm", tables, bottom=[], top=[1], interaction="cat")
    assert sorted(memory._saved_sizes(model, 0, 32)) == [32 * 4, 32 * 16 * 4]


def test_step_memory_grows_with_batch_and_lookups():
    model = make("mlet", "meta")
    few, many = bill(model, batch_size=1000), bill(model, batch_size=2000)
    assert many.activations == pytest.approx(2 * few.activations, rel=0.01)
    assert many.gradients > few.gradients and many.tables == few.tables
    multi_hot = bill_of(model, dense_width=3, lookups=40, batch_size=1000, optimizer="sgd")
    assert multi_hot.gradients > few.gradients and multi_hot.activations > few.activations
    assert bill(model, batch_size=1000, accumulate=3).gradients > few.gradients
    assert bill(model, batch_size=10, eval_batch_size=10**5).activations > few.activations


def test_peak_is_the_worse_of_training_and_collapse():
    assert large(64, rows=10**6).collapse_peak > large(64, rows=10**6).training_peak
    adagrad = large(64, rows=10**6, optimizer="adagrad")
    assert adagrad.total == adagrad.training_peak > adagrad.collapse_peak
    assert "when the tables are collapsed" in str(large(64, rows=10**6))
    assert "when" not in str(adagrad)


def test_unknown_rows_are_averaged_in_chunks_of_the_known_size():
    assert inspect.signature(set_unknown_rows).parameters["chunk"].default == memory.MEAN_CHUNK_ROWS
    model = make("mlet", "meta")
    assert bill(model).collapse_scratch == 0 < bill(model, unknown_is_mean=True).collapse_scratch


def test_huge_model_is_refused_without_allocation():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    huge = large(64)
    with pytest.raises(ValueError, match=r"needs about \d+\.\d+ TB of memory, 8.00 GB are available \(tables 6.66 TB"):
        check_fits(huge, 8 * 10**9)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB; torch's own modules


def test_nothing_is_refused_that_fits_or_is_not_known():
    def never():
        raise AssertionError("remedies are worked out for a refusal only")

    check_fits(large(), None, never)
    check_fits(large(rows=10), 10**10, never)


def test_hints_name_only_what_helps_best_first():
    needed = large(64, rows=10**7, optimizer="adagrad")
    remedies = {
        "--mlet-inner-dim=32": large(32, rows=10**7, optimizer="adagrad"),
        "--optimizer=sgd": large(64, rows=10**7),
        "--mini-batch-size=2": large(64, rows=10**7, optimizer="adagrad", batch_size=2),
        "--mlet-inner-dim=0": large(0, rows=10**7),
        "a larger --vocabulary-min-count": None,
    }
    with pytest.raises(ValueError) as refusal:
        check_fits(needed, 20 * 10**9, lambda: remedies, "GPU memory")
    advice = str(refusal.value).split("what would shrink it: ")[1]
    flags = [hint.split(" (")[0] for hint in advice.split("), ")]
    assert flags == ["--mlet-inner-dim=0", "--mlet-inner-dim=32", "--optimizer=sgd", "a larger --vocabulary-min-count"]
    assert advice.count("fits") == 1
    assert "GPU memory" in str(refusal.value)


def test_table_hints_are_left_out_where_tables_are_small():
    small = large(rows=10, batch_size=10**6)
    remedies = {"--mini-batch-size=1000": large(rows=10, batch_size=1000), "fewer ids": None}
    texts = memory.remedy_texts(small, 10**9, remedies)
    assert len(texts) == 1 and texts[0].startswith("--mini-batch-size=1000 (") and texts[0].endswith(", fits)")


def test_line():
    sizes = {"projections": 100_000, "dense": 2_000_000, "gradients": 10**8, "activations": 110_000_000}
    known = Bill(
        tables=4_100_000_000,
        optimizer=60_000_000,
        inference_tables=1_030_000_000,
        collapsed=0,
        runtime=500_000_000,
        **sizes,
    )
    assert known.line(22_100_000_000) == (
        "Memory: tables 4.10 GB (inference 1.03 GB), optimizer state 60.0 MB, dense layers 2.1 MB, "
        "activations and gradients 0.21 GB, runtime 0.50 GB; peak about 4.87 GB of 22.10 GB available"
    )


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 kB"), (4200, "4 kB"), (2_140_000, "2.1 MB"), (10**9, "1.00 GB"), (3 * 10**12, "3.00 TB")]
)
def test_size_text(count, text):
    assert size_text(count) == text


@pytest.mark.parametrize(("batch_size", "lookups"), [(0, 4), (1, -1)])
def test_impossible_batches_are_refused(batch_size, lookups):
    with pytest.raises(ValueError, match="too small"):
        bill_of(make(), dense_width=3, lookups=lookups, batch_size=batch_size, optimizer="sgd")


def test_available_bytes_is_a_plausible_number():
    available = available_bytes(torch.device("cpu"))
    assert available is None or 10**7 < available < 10**15
    assert runtime_bytes() > 10**7
    assert available_bytes(torch.device("meta")) is None


def write_group(folder, names, limit, used, cache):
    folder.mkdir(parents=True)
    for name, value in zip(names, (limit, used), strict=True):
        (folder / name).write_text(f"{value}\n")
    (folder / "memory.stat").write_text(f"inactive_file {cache}\ntotal_inactive_file {cache}\n")


def test_cgroup_version_2_takes_the_tightest_limit_of_all_parents(tmp_path):
    names, mount, groups = ("memory.max", "memory.current"), tmp_path / "cgroup", tmp_path / "groups"
    write_group(mount / "a", names, 1000, 700, 50)
    write_group(mount / "a" / "b", names, "max", 600, 50)
    groups.write_text("0::/a/b\n")
    assert cgroup_free(groups, mount) == 350
    groups.write_text("0::/elsewhere\n")
    assert cgroup_free(groups, mount) is None


def test_cgroup_version_1(tmp_path):
    names, mount = ("memory.limit_in_bytes", "memory.usage_in_bytes"), tmp_path / "cgroup"
    groups = tmp_path / "groups"
    groups.write_text("5:cpuset:/\n4:memory:/not/mounted/here\n0::/\n")
    write_group(mount / "memory", names, 2000, 2500, 100)
    assert cgroup_free(groups, mount) == 0
    (mount / "memory" / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert cgroup_free(groups, mount) is None
    assert cgroup_free(tmp_path / "missing", mount) is None


def test_meta_and_real_model_give_the_same_bill():
    real, meta = make("qr concat mlet"), make("qr concat mlet", "meta")
    assert bill(real, optimizer="adagrad") == bill(meta, optimizer="adagrad")
    assert np.isfinite(bill(meta).total)
