import os
import resource
import subprocess
import sys

import numpy as np
import pytest
import torch

import data_utils
import sources.text
from data_utils import Store, StoreOptions, Vocabulary, prepare, save_vocabulary
from sources.kaggle import KaggleSource

OPTIONS = StoreOptions("kaggle")


@pytest.fixture
def store(small_tsv, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Store(prepare(KaggleSource(str(small_tsv)), OPTIONS))


def python_ids(path, max_ind_range=-1):
    """Ids by first appearance and dense values, row by row in plain Python."""
    seen = [{} for _ in range(26)]
    labels, dense, ids = [], [], []
    for line in open(path):
        fields = line.rstrip("\n").split("\t")
        labels.append(int(fields[0]))
        dense.append([max(0, int(f or 0)) for f in fields[1:14]])
        values = [int(f or "0", 16) for f in fields[14:]]
        if max_ind_range > 0:
            values = [v % max_ind_range for v in values]
        ids.append([seen[t].setdefault(v, len(seen[t])) for t, v in enumerate(values)])
    return np.array(labels), np.array(dense), np.array(ids), seen


@pytest.mark.parametrize("max_ind_range", [-1, 7, 100])
def test_store_equals_row_by_row_python(small_tsv, tmp_path, monkeypatch, max_ind_range):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sources.text, "BLOCK_BYTES", 100_000)  # several blocks: ids grow across them
    store = Store(prepare(KaggleSource(str(small_tsv)), StoreOptions("kaggle", max_ind_range=max_ind_range)))
    labels, dense, ids, seen = python_ids(small_tsv, max_ind_range)
    batch = next(store.batches(range(len(store)), len(store)))
    assert np.array_equal(batch.ids.numpy(), ids)
    assert np.array_equal(batch.labels[:, 0].numpy(), labels)
    torch.testing.assert_close(batch.dense, torch.log(torch.tensor(dense, dtype=torch.float32) + 1))
    assert list(store.tables.values()) == [len(s) for s in seen]
    start, stop = store.rows_of("train").start, store.rows_of("train").stop
    unknown = np.cumsum([len(s) + 1 for s in seen]) - 1
    counts = np.concatenate([np.bincount(ids[start:stop, t], minlength=len(seen[t])) for t in range(26)])
    assert np.array_equal(np.delete(np.load(store.directory / "counts.npy"), unknown), counts)


def test_sequential_and_chosen_batches(store):
    every = next(store.batches(range(len(store)), 10**6))
    rows = np.array([5, 3, 2000, 3, 7])
    parts = list(store.batches(rows, 2))
    assert [len(p.labels) for p in parts] == [2, 2, 1]
    assert torch.equal(torch.cat([p.ids for p in parts]), every.ids[rows])
    assert torch.equal(torch.cat([p.dense for p in parts]), every.dense[rows])
    later = list(store.batches(rows, 2, start=1))
    assert torch.equal(later[0].ids, parts[1].ids) and len(later) == 2
    val = torch.cat([p.labels for p in store.batches(store.rows_of("val"), 64)])[:, 0]
    assert np.array_equal(val.numpy(), store.labels_of("val"))


def test_training_orders_draw_as_the_reference_does(store):
    train = store.rows_of("train")
    rng = np.random.RandomState(3)
    order = store.training_order("total", rng)
    twin = np.random.RandomState(3)
    assert np.array_equal(order, twin.permutation(np.arange(len(train))))
    twin.permutation(len(train))
    assert rng.randint(10**9) == twin.randint(10**9)

    order = store.training_order("day", np.random.RandomState(3))
    twin = np.random.RandomState(3)
    expected = np.concatenate([twin.permutation(np.arange(a, b)) for a, b in store.split.train_days])
    assert np.array_equal(order, expected)

    rng = np.random.RandomState(3)
    assert store.training_order("none", rng) == train
    assert rng.randint(10**9) == np.random.RandomState(3).randint(10**9)
    with pytest.raises(ValueError, match="choose none, day or total"):
        store.training_order("week", rng)


def test_sub_sampling_drops_that_share_of_negatives_and_no_positive(small_tsv, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = StoreOptions("kaggle", sub_sample_rate=0.75, sub_sample_seed=4)
    store = Store(prepare(KaggleSource(str(small_tsv)), options))
    labels, *_ = python_ids(small_tsv)
    kept = (labels == 1) | (np.random.RandomState(4).uniform(size=len(labels)) >= 0.75)
    assert len(store) == kept.sum()
    assert np.array_equal(next(store.batches(range(len(store)), 10**6)).labels[:, 0].numpy(), labels[kept])
    days = KaggleSource(str(small_tsv)).split(len(labels)).train_days
    assert [list(d) for d in store.split.train_days] == [[kept[:a].sum(), kept[:b].sum()] for a, b in days]
    scores = np.load(str(small_tsv) + ".teacher.npy")
    assert store.best_scores_of("test") is None or len(scores) == len(labels)


def test_a_second_prepare_finds_the_store_and_other_flags_do_not(small_tsv, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = KaggleSource(str(small_tsv))
    first = prepare(source, OPTIONS)
    monkeypatch.setattr(data_utils, "_prepare", None)  # would fail if it were called
    assert prepare(source, OPTIONS) == first
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    other = prepare(source, StoreOptions("kaggle", max_ind_range=10))
    assert other != first and Store(first).schema["options"]["max_ind_range"] == -1


def test_a_named_store_with_other_flags_gets_a_neighbour(small_tsv, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = KaggleSource(str(small_tsv))
    first = prepare(source, OPTIONS, "kaggle_processed.npz")
    assert first.name == "kaggle_processed.npz" and first.is_dir()
    content = {p.name: p.stat().st_mtime_ns for p in first.iterdir()}
    second = prepare(source, StoreOptions("kaggle", max_ind_range=10), "kaggle_processed.npz")
    assert second.parent == first.parent and second.name.startswith("kaggle_processed.npz-")
    assert {p.name: p.stat().st_mtime_ns for p in first.iterdir()} == content
    assert not set(os.listdir(small_tsv.parent)) - {"train.txt", "train.txt.teacher.npy"}  # nothing beside the raw file


def test_changed_raw_data_makes_a_new_store(small_tsv, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    raw = tmp_path / "train.txt"
    raw.write_bytes(small_tsv.read_bytes())
    first = prepare(KaggleSource("train.txt"), OPTIONS)
    raw.write_bytes(b"1" + small_tsv.read_bytes()[1:-9] + small_tsv.read_bytes()[:1] + b"0000000\n")
    os.utime(raw, ns=(1, 1))
    assert prepare(KaggleSource("train.txt"), OPTIONS) != first


def test_a_store_outlives_its_raw_file(small_tsv, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    raw = tmp_path / "train.txt"
    raw.write_bytes(small_tsv.read_bytes())
    first = prepare(KaggleSource("train.txt"), OPTIONS, "store")
    raw.unlink()
    assert prepare(KaggleSource("train.txt"), OPTIONS, "store") == first
    with pytest.raises(ValueError, match="prepared with other flags"):
        prepare(KaggleSource("train.txt"), StoreOptions("kaggle", max_ind_range=5), "store")
    with pytest.raises(FileNotFoundError):
        prepare(KaggleSource("train.txt"), OPTIONS, "elsewhere")


def test_an_npz_of_the_reference_is_refused(small_tsv, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "old.npz", y=np.zeros(3))
    with pytest.raises(ValueError, match="old.npz is a file: name a directory"):
        prepare(KaggleSource(str(small_tsv)), OPTIONS, "old.npz")
    assert (tmp_path / "old.npz").is_file()


def test_an_interrupted_prepare_leaves_no_store(small_tsv, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bad = tmp_path / "train.txt"
    bad.write_bytes(small_tsv.read_bytes() + b"0\tnonsense\n")
    with pytest.raises(sources.DataError, match="line 2101: 2 columns"):
        prepare(KaggleSource("train.txt"), OPTIONS, "store")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".dlrm_store", "train.txt"]
    assert [p.name for p in (tmp_path / ".dlrm_store").iterdir()] == ["checksums.json"]


def test_a_foreign_directory_is_not_overwritten(small_tsv, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1").write_text("years of work")
    with pytest.raises(ValueError, match="thesis"):
        prepare(KaggleSource(str(small_tsv)), OPTIONS, "thesis")
    assert (tmp_path / "thesis" / "chapter1").read_text() == "years of work"


def test_vocabulary_encodes_raw_rows_as_the_store_did(small_tsv, store, tmp_path):
    save_vocabulary(store.directory, tmp_path / "model.vocabulary")
    vocabulary = Vocabulary(tmp_path / "model.vocabulary")
    batches = list(vocabulary.encode_file(small_tsv, rows=1000))
    assert [len(b.ids) for b in batches] == [1000, 1000, 100] and batches[0].labels.shape == (1000, 0)
    dense, ids = torch.cat([b.dense for b in batches]), torch.cat([b.ids for b in batches])
    batch = next(store.batches(range(len(store)), 10**6))
    assert torch.equal(ids, batch.ids) and torch.equal(dense, batch.dense)


def test_a_value_outside_the_vocabulary_becomes_the_unknown_id(small_tsv, store, tmp_path):
    fields = open(small_tsv).readline().rstrip("\n").split("\t")
    fields[14 + 2] = "0badc0de"
    raw = tmp_path / "new.txt"
    raw.write_text("\t".join(fields) + "\n")
    ids = next(Vocabulary(store.directory).encode_file(raw)).ids
    assert ids[0, 2] == store.tables["C3"] and ids[0, 0] == 0


def test_ids_in_counts_only_the_given_rows(store):
    every = next(store.batches(range(len(store)), 10**6)).ids.numpy()
    rows = np.array([9, 4, 100])
    for t, flags in enumerate(store.ids_in(rows, chunk=2)):
        assert np.flatnonzero(flags).tolist() == sorted(set(every[rows, t]))


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"sub_sample_rate": 1.0}, "--data-sub-sample-rate"),
        ({"sub_sample_rate": -0.1}, "--data-sub-sample-rate"),
        ({"max_ind_range": 0}, "--max-ind-range"),
        ({"min_count": 0}, "--vocabulary-min-count"),
        ({"fit": "test"}, "--vocabulary-fit=test: choose from all, train"),
        ({"id_order": "size"}, "--vocabulary-order=size"),
        ({"bad_rows": "mend"}, "--bad-rows=mend"),
    ],
)
def test_options_out_of_range_are_refused(options, flag):
    with pytest.raises(ValueError, match=flag):
        StoreOptions("kaggle", **options)


@pytest.mark.skipif(sys.platform != "linux", reason="the limit on file sizes is a Unix one")
def test_a_full_disk_leaves_nothing_behind(small_tsv, tmp_path):
    script = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000));"
        "import sys, dlrm_mlet;"
        f"sys.exit(dlrm_mlet.main(['--data-generation=dataset', '--raw-data-file={small_tsv}',"
        "'--processed-data-file=store', '--arch-mlp-bot=13-2']))"
    )
    root = os.path.dirname(os.path.abspath(data_utils.__file__))
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=os.environ | {"PYTHONPATH": root}, capture_output=True
    )
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert b"File too large" in done.stderr and b"run again to go on" in done.stderr
    assert not (tmp_path / "store").exists()
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 50_000


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="needs a folder in which nobody can write")
def test_a_place_that_cannot_be_written_is_refused_and_not_waited_for(small_tsv, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError, match="cannot write /proc/store: no new files in its folder"):
        prepare(KaggleSource(str(small_tsv)), OPTIONS, "/proc/store")
    assert capsys.readouterr().out == ""


def test_without_the_raw_file_only_one_store_may_fit(small_tsv, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    raw = tmp_path / "train.txt"
    raw.write_bytes(small_tsv.read_bytes())
    prepare(KaggleSource("train.txt"), OPTIONS, "store")
    raw.write_bytes(small_tsv.read_bytes()[:-1] + b"\n" + small_tsv.read_bytes())
    second = prepare(KaggleSource("train.txt"), OPTIONS, "store")
    assert (
        f"store holds other data, or data prepared with other flags: this store is {second}" in capsys.readouterr().out
    )
    raw.unlink()
    with pytest.raises(ValueError, match=f"store and {second} were prepared from different versions of it: name one"):
        prepare(KaggleSource("train.txt"), OPTIONS, "store")
    assert prepare(KaggleSource("train.txt"), OPTIONS, str(second)) == second


def test_a_cut_store_is_named(store):
    rows = store.directory / "rows.npy"
    rows.write_bytes(rows.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="rows.npy is damaged .*: remove .* and prepare again"):
        Store(store.directory)
