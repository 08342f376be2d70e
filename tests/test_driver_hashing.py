"""The driver with fewer rows than ids: maps learned, kept, served and refused."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from sklearn.metrics import roc_auc_score

import dlrm_mlet
from data_utils import Store
from hashing import Request, fit_map, load_maps, method_lookups, method_names, save_maps
from mlet.checkpoint import load_checkpoint
from mlet.models import model_names
from mlet.table_spec import plan_tables
from mlet.tables import EmbeddingTables

BASE = (
    "--data-generation=dataset --data-set=kaggle --arch-sparse-feature-size=4 --arch-mlp-bot=13-8-4 "
    "--arch-mlp-top=8-1 --loss-function=bce --mini-batch-size=64 --print-freq=1000 --metrics-file=run.jsonl "
    "--optimizer=adam --learning-rate=0.01 --processed-data-file=store"
)
HASHED = "--hash-min-rows=50 --hash-compression=4"


def with_base(flags):
    return f"{BASE} {HASHED if '--hash-method' in flags else ''} {flags}"


def run(driver, small_tsv, flags):
    result = driver(with_base(flags), "--raw-data-file", small_tsv)
    assert result.code == 0, result.err
    return result


def refused(driver, small_tsv, flags):
    result = driver(with_base(flags), "--raw-data-file", small_tsv)
    assert result.code == 2 and len(result.err.splitlines()) == 1, result.err
    return result.err


def losses(result):
    return [event["loss"] for event in result.events if event["event"] == "train"]


@given(n=st.integers(2, 300), share=st.floats(0.05, 1), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_tables_read_the_rows_that_a_map_says(n, share, seed):
    """`hashing` and `mlet` do not know one another: both compute a formula, and must come to the same rows."""
    counts = np.random.default_rng(seed).integers(0, 9, n) + (np.arange(n) == 0)
    for method in ("modulo", "universal", "double", "frequency", "frequency-double", "quotient-remainder"):
        id_map = fit_map(method, Request("a", n, max(2, int(share * n)), counts=counts, seed=seed))
        spec = plan_tables({"a": n}, 4, row_maps={"a": dlrm_mlet.row_map_of(id_map)})[0]
        tables = EmbeddingTables([spec], unknown=True)
        for number, lookup in enumerate(id_map.lookups):
            if isinstance(lookup, np.ndarray):
                tables.set_map("a", number, lookup)
        read = [rows.numpy() for _, rows in tables.rows_read(torch.arange(n)[:, None])]
        assert all(np.array_equal(one, other) for one, other in zip(read, id_map.rows_of(np.arange(n)), strict=True))


RULES = ("sgd", "rwsadagrad", "adam")
MLET = "--mlet-inner-dim=6 --nepochs=2 --arch-model=deepfm"
COMPOSED = (
    *((method, f"{more} --optimizer={rule}") for method in method_names() for more in ("", MLET) for rule in RULES),
    *((method, f"--arch-model={model}") for method in ("learned", "quotient-remainder") for model in model_names()),
)
SERVED = [
    *(("modulo", ""), ("cce", MLET), ("learned", MLET)),
    *(pytest.param(*each, marks=pytest.mark.slow) for each in COMPOSED),
]


@pytest.mark.parametrize(("method", "more"), SERVED)
def test_every_method_trains_and_is_served_by_its_onnx_file(driver, small_tsv, method, more):
    """The exported file, with its vocabulary alone, scores raw rows as the trained model does."""
    if method == "graph":
        pytest.importorskip("sknetwork", reason="graph needs scikit-network")
        more += " --hash-option=resolution=1"  # a search takes as long as all the rest
    result = run(driver, small_tsv, f"--hash-method={method} --hash-report --save-onnx=m.onnx {more}")
    event = result.events[-1]
    lines = small_tsv.read_text().splitlines()[1950:2100]
    raw = result.folder / "rows.txt"
    raw.write_text("\n".join(line.split("\t", 1)[1] for line in lines) + "\n")  # without labels
    assert driver(f"--predict={raw} --load-onnx=m.onnx --predictions=scores.txt").code == 0
    scores = np.loadtxt(result.folder / "scores.txt")
    labels = [int(line[0]) for line in lines]
    # the reference's split: the second half of the last day is validation
    assert event["val"]["samples"] == 150
    assert roc_auc_score(labels, scores) == pytest.approx(event["val"]["auc"], abs=1e-6)
    for each in event["hash"].values():
        assert each["rows"] <= each["ids"] / 4 + 1 and each["bytes_after"] < each["bytes_before"]
        assert 0 <= each["largest_share"] <= 1 and 0 <= each["colliding_share"] <= 1
    assert "colliding" in result.out


def test_bytes_hold_rows_and_maps(driver, small_tsv):
    plain = run(driver, small_tsv, "").events[-1]["inference_bytes"]
    modulo = run(driver, small_tsv, "--hash-method=modulo --hash-report").events[-1]
    stored = run(driver, small_tsv, "--hash-method=frequency --hash-report").events[-1]
    gone = sum(4 * 4 * (each["ids"] - each["rows"]) for each in modulo["hash"].values())
    assert modulo["inference_bytes"] == plain - gone
    maps = sum(4 * each["ids"] for each in stored["hash"].values())
    assert stored["inference_bytes"] == plain - gone + maps


@pytest.mark.parametrize("method", ["learned", "frequency", "double", "cce"])
def test_a_map_file_gives_the_same_run(driver, small_tsv, method):
    flags = f"--hash-method={method} --hash-map-file=maps.safetensors"
    first = run(driver, small_tsv, flags)
    again = run(driver, small_tsv, flags)
    without = run(driver, small_tsv, f"--hash-method={method}")
    assert losses(first) == losses(again) == losses(without)
    assert "Hash maps: maps.safetensors" in again.out and "stage 1" not in again.out


def test_learning_only_writes_the_file(driver, small_tsv):
    flags = "--hash-method=learned --hash-map-file=maps.safetensors"
    result = run(driver, small_tsv, f"{flags} --hash-learn-only --hash-dim=2")
    assert "stage 1: a model of width 2" in result.out and not result.events
    maps, about = load_maps(result.folder / "maps.safetensors")
    assert about["history"] == [0.0, 0.5] and about["labels"]
    assert all(id_map.method == "learned" and id_map.nbytes == 4 * id_map.ids for id_map in maps.values())
    run(driver, small_tsv, flags)


def test_a_checkpoint_of_the_history_gives_the_same_maps(driver, small_tsv):
    """Stage 1 is a plain run on the first rows, and may be one of the user's."""
    run(driver, small_tsv, "--train-share=0-0.5 --save-model=history")
    apart = run(driver, small_tsv, "--hash-method=learned --hash-embeddings=history --hash-map-file=a.maps")
    once = run(driver, small_tsv, "--hash-method=learned --hash-map-file=b.maps")
    assert losses(apart) == losses(once)
    one, other = load_maps(apart.folder / "a.maps")[0], load_maps(apart.folder / "b.maps")[0]
    assert {name: m.checksum() for name, m in one.items()} == {name: m.checksum() for name, m in other.items()}


def test_maps_that_python_made_need_to_say_of_what(driver, small_tsv):
    store = Store(run(driver, small_tsv, "--prepare-only").folder / "store")
    maps = {"C3": fit_map("modulo", Request("C3", store.tables["C3"], 5))}
    with open("own", "wb") as file:
        save_maps(file, maps, {})
    message = refused(driver, small_tsv, "--hash-method=modulo --hash-map-file=own")
    assert "does not say what it was made from: asked, history, labels, store" in message


def test_a_checkpoint_that_went_on_from_another_is_no_history(driver, small_tsv):
    run(driver, small_tsv, "--save-model=all")
    run(driver, small_tsv, "--train-share=0-0.1 --load-model=all --save-model=more")
    message = refused(driver, small_tsv, "--hash-method=learned --hash-embeddings=more")
    assert "went on from another checkpoint" in message


def test_an_embedding_from_anywhere(driver, small_tsv):
    """Ids that the file puts at one point share a row; it comes from no labels, so all rows are trained on."""
    first = run(driver, small_tsv, "--prepare-only")
    tables = json.loads((first.folder / "store" / "schema.json").read_text())["tables"]
    groups = {name: np.arange(n) % max(1, n // 4) for name, n in tables.items()}
    points = {name: np.stack([np.cos(g), np.sin(g), g], axis=1).astype(np.float32) for name, g in groups.items()}
    save_file(points, first.folder / "points.safetensors")
    flags = "--hash-method=learned-embedding --hash-embeddings=points.safetensors --hash-map-file=maps"
    result = run(driver, small_tsv, flags)
    assert "it 29/29 of epoch 0" in result.out
    for name, id_map in load_maps(first.folder / "maps")[0].items():
        rows, group = id_map.lookups[0], groups[name]
        counts = Store(first.folder / "store").counts_of(name)[:-1] > 0
        together = [
            len(set(rows[counts & (group == g)])) for g in range(group.max() + 1) if (counts & (group == g)).any()
        ]
        assert np.mean(np.array(together) == 1) > 0.9
    save_file({"C1": points["C1"]}, first.folder / "few.safetensors")
    assert "has no embedding of table C" in refused(
        driver, small_tsv, "--hash-method=learned --hash-embeddings=few.safetensors"
    )


def test_history_is_left_out_of_training(driver, small_tsv):
    """1,800 training rows: half of them teach the map, the others the model."""
    batches = {"": 29, "--hash-method=frequency": 29, "--hash-method=learned": 15, "--train-share=0.9-1": 3}
    for flags, expected in batches.items():
        assert f"it {expected}/{expected} of epoch 0" in run(driver, small_tsv, flags).out
    allowed = run(driver, small_tsv, "--hash-method=learned --hash-history=1 --hash-overlap=allow")
    assert "it 29/29 of epoch 0" in allowed.out.split("stage 1")[1].split("fitted to")[1]
    assert allowed.out.count("Testing at") == 1  # the narrow model is nobody's result
    later = run(driver, small_tsv, "--hash-method=learned --hash-history=0.75-1 --hash-map-file=later")
    assert "it 22/22 of epoch 0" in later.out and load_maps(later.folder / "later")[1]["history"] == [0.75, 1.0]
    shared = "--hash-method=learned --hash-map-file=m --train-share"
    result = driver(with_base(f"{shared}=0.3-1"), "--raw-data-file", small_tsv)
    assert result.code == 2 and "overlaps the rows 0-0.5" in result.err and "stage 1" not in result.out
    assert "Training on the share 0.75-1" in run(driver, small_tsv, "--train-share=0.75-1").out
    run(driver, small_tsv, f"{shared}=0.75-1")


def test_a_map_learned_on_the_rows_trained_on_carries_their_labels(tmp_path, driver):
    """Labels are noise: honest maps learn nothing, leaking ones fit the training rows and are worse on new ones."""
    rng = np.random.default_rng(0)
    rows = 4200
    path = tmp_path / "noise.txt"
    with open(path, "w") as file:
        for _ in range(rows):
            ids = [f"{value:08x}" for value in rng.integers(0, 3000, 26)]
            file.write("\t".join([str(rng.integers(0, 2)), *["1"] * 13, *ids]) + "\n")
    base = (
        f"{BASE} --hash-min-rows=50 --hash-compression=50"
        " --hash-method=learned --hash-option=private=0 --emb-learning-rate-multiplier=5 --nepochs=2"
    )
    results = {}
    for name, flags in (("honest", ""), ("leaking", "--hash-history=1 --hash-overlap=allow")):
        result = driver(f"{base} {flags}", "--raw-data-file", path)
        assert result.code == 0, result.err
        results[name] = losses(result)[-1], result.events[-1]["test"]["logloss"]
    assert results["leaking"][0] < results["honest"][0] - 0.1
    assert results["leaking"][1] > results["honest"][1] + 0.1


def test_hashing_leaves_other_weights_and_the_order_alone(driver, small_tsv):
    states = []
    for name, flags in (("plain", ""), ("hashed", "--hash-method=universal")):
        result = run(driver, small_tsv, f"{flags} --learning-rate=0 --save-model={name}")
        states.append(load_checkpoint(result.folder / name / "last")[0])
    for name, value in states[0].items():
        if not name.startswith("tables."):
            assert value.equal(states[1][name]), name


@pytest.mark.parametrize("method", ["cce", "learned"])
def test_a_resumed_run_is_the_uninterrupted_one(driver, small_tsv, method):
    flags = f"--hash-method={method} --hash-map-file=maps --mlet-inner-dim=6"
    whole = run(driver, small_tsv, f"{flags} --nepochs=3 --save-model=whole")
    run(driver, small_tsv, f"{flags} --nepochs=1 --save-model=part")
    (whole.folder / "maps").unlink()  # the checkpoint has its maps
    resumed = run(driver, small_tsv, f"{flags} --nepochs=3 --resume=part")
    assert "stage 1" not in resumed.out and not (whole.folder / "maps").exists()
    one, other = (load_checkpoint(whole.folder / name / "last")[0] for name in ("whole", "part"))
    assert one.keys() == other.keys() and all(value.equal(other[name]) for name, value in one.items())


def test_clusters_between_epochs_move_ids(driver, small_tsv):
    run(driver, small_tsv, "--hash-method=cce --hash-map-file=maps --nepochs=1 --save-model=one")
    result = run(driver, small_tsv, "--hash-method=cce --hash-map-file=maps --nepochs=2 --save-model=two")
    one, two = (load_checkpoint(result.folder / name / "last")[0] for name in ("one", "two"))
    assert not one["tables.maps.rows0"].equal(two["tables.maps.rows0"])
    start = np.concatenate([m.lookups[0] for m in load_maps(result.folder / "maps")[0].values()])
    assert np.array_equal(one["tables.maps.rows0"].numpy(), start)


@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name in method_names() if method_lookups(name) == 1])
def test_tables_of_few_bits_stand_behind_every_method_of_one_row(driver, small_tsv, method):
    """The ONNX file with 8- and 4-bit tables scores as the quantised model does, and both nearly as the plain one."""
    if method == "graph":
        pytest.importorskip("sknetwork", reason="graph needs scikit-network")
    flags = f"--hash-method={method}"
    run(driver, small_tsv, f"{flags} {MLET} --save-model=m")
    flags = f"{flags} {MLET} --load-model=m --inference-only --save-onnx=q.onnx --quantize-emb-with-bit"
    plain = run(driver, small_tsv, f"{flags}=32").events[-1]
    for bits in (8, 4):
        event = run(driver, small_tsv, f"{flags}={bits}").events[-1]
        assert event["test"]["logloss"] == pytest.approx(plain["test"]["logloss"], abs=0.02)
        assert event["onnx"]["logloss"] == pytest.approx(event["test"]["logloss"], abs=1e-5)
        assert event["inference_bytes"] < plain["inference_bytes"]


@pytest.mark.slow
def test_tables_of_few_bits_stand_behind_maps(driver, small_tsv):
    run(driver, small_tsv, "--save-model=plain")
    run(driver, small_tsv, "--hash-method=learned --hash-map-file=maps --save-model=m")
    flags = "--hash-method=learned --load-model=m --inference-only --save-onnx=q.onnx"
    assert "stage 1" not in run(driver, small_tsv, flags).out
    assert "without --hash-method=modulo" in refused(driver, small_tsv, "--load-model=plain --hash-method=modulo")
    assert "made with --hash-method=learned" in refused(driver, small_tsv, flags.replace("learned", "frequency"))
    plain = run(driver, small_tsv, flags).events[-1]
    for bits in (16, 4):
        event = run(driver, small_tsv, f"{flags} --quantize-emb-with-bit={bits}").events[-1]
        assert event["test"]["auc"] == pytest.approx(plain["test"]["auc"], abs=0.02)
        assert event["onnx"]["auc"] == pytest.approx(event["test"]["auc"], abs=1e-4)
        assert event["inference_bytes"] < plain["inference_bytes"]


BAD = {
    "--hash-method=modulo --hash-min-rows=100000": "no table has more than --hash-min-rows=100000",
    "--hash-method=modulo --hash-option=private=1": "modulo has no option 'private'",
    "--hash-method=frequency --hash-option=private=x": "is no number like 0.5",
    "--hash-method=frequency --hash-option=private=1": "from 0 to below 1",
    "--hash-compression=100": "--hash-compression needs --hash-method",
    "--hash-overlap=allow": "--hash-overlap needs --hash-method",
    "--hash-method=modulo --hash-map-file=same --save-onnx=same": "same is named twice",
    "--hash-method=modulo --hash-map-file=run.jsonl": "is named twice",
    "--hash-method=learned --hash-embeddings=garbage --save-collapsed=garbage": "garbage is named twice",
    "--hash-method=modulo --hash-map-file=none/../garbage": "garbage cannot be read as id maps",
    "--hash-map-file=maps": "--hash-map-file needs --hash-method",
    "--hash-method=learned --hash-history=0": "has no rows to learn from",
    "--hash-method=learned --hash-history=1": "leaves no rows to train on",
    "--hash-method=modulo --hash-embeddings=x": "it is for methods that need one",
    "--hash-method=learned --hash-embeddings=x": "x",
    "--hash-method=modulo --qr-flag": "works without --qr-flag",
    "--hash-method=modulo --weighted-pooling=learned": "plain tables",
    "--hash-method=modulo --hash-learn-only": "name one",
    "--hash-method=modulo --hash-map-file=garbage": "garbage cannot be read as id maps",
    "--train-share=0.5": "FROM-TO",
    "--train-share=0.00001-0.00002": "no training rows in the share",
}


@pytest.mark.parametrize("flags", BAD)
def test_bad_input_is_one_line(driver, small_tsv, tmp_path, flags):
    (tmp_path / "garbage").write_bytes(b"not maps")
    assert BAD[flags] in refused(driver, small_tsv, flags)
    assert (tmp_path / "garbage").read_bytes() == b"not maps" and not (tmp_path / "maps").exists()


def test_a_map_of_other_data_or_other_wishes_is_refused(driver, small_tsv):
    flags = "--hash-method=frequency --hash-map-file=maps"
    result = run(driver, small_tsv, flags)
    before = (result.folder / "maps").read_bytes()
    assert "was made for other data" in refused(driver, small_tsv, f"{flags} --vocabulary-min-count=2")
    assert "made with --hash-compression=4.0" in refused(driver, small_tsv, f"{flags} --hash-compression=5")
    assert "made with --hash-method=frequency" in refused(driver, small_tsv, flags.replace("frequency", "modulo"))
    assert "share None, not [0.0, 0.5]" in refused(driver, small_tsv, f"{flags} --hash-history=0.5")
    assert (result.folder / "maps").read_bytes() == before
    damaged = bytearray(before)
    damaged[-3] ^= 255
    (result.folder / "maps").write_bytes(damaged)
    assert "maps is damaged" in refused(driver, small_tsv, flags)


def test_a_table_that_only_later_rows_fill_is_refused(driver, tmp_path):
    """Bags that are empty in all of the history: there is nothing to learn a map of this table from."""
    rows = 600
    lines = ["label,user,tags,part"]
    for number in range(rows):
        tags = "" if number < 500 else f"t{number}|t{number + 1}"
        lines.append(f"{number % 2},u{number % 100},{tags},{'train' if number < 500 else ('val', 'test')[number % 2]}")
    (tmp_path / "clicks.csv").write_text("\n".join(lines) + "\n")
    schema = {"files": "clicks.csv", "labels": ["label"], "categorical": ["user"], "multi_hot": {"tags": "|"}}
    schema["split"] = {"by": "column", "column": "part"}
    (tmp_path / "clicks.json").write_text(json.dumps(schema))
    flags = with_base("--hash-method=frequency").replace("--data-set=kaggle", "--data-set=schema")
    result = driver(flags, "--raw-data-file", tmp_path / "clicks.json")
    assert result.code == 2 and "table tags: none of its" in result.err
