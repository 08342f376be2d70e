"""The driver with maps that are learned from rows of their own, and maps that say how they were learned."""

import gzip
import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from test_driver_hashing import losses, refused, run

import dlrm_mlet
from hashing import load_maps, save_maps
from mlet.inference import load_collapsed


@pytest.fixture
def older(small_tsv, tmp_path):
    """900 rows that come before those of `newer`."""
    path = tmp_path / "older.txt"
    path.write_text("".join(small_tsv.read_text().splitlines(keepends=True)[:900]))
    return path


@pytest.fixture
def newer(small_tsv, tmp_path):
    """1,200 rows, 1,032 of them for training."""
    path = tmp_path / "newer.txt"
    path.write_text("".join(small_tsv.read_text().splitlines(keepends=True)[900:]))
    return path


def checksums(path):
    return {name: id_map.checksum() for name, id_map in load_maps(path)[0].items()}


@pytest.mark.parametrize("method", ["learned", "frequency", "graph"])
def test_maps_of_a_file_are_those_of_the_same_rows_in_the_store(driver, small_tsv, older, method):
    """Counts, vectors and neighbours."""
    if method == "graph":
        pytest.importorskip("sknetwork", reason="graph needs scikit-network")
    flags = f"--hash-method={method} --data-randomize=none --hash-learn-only"
    from_file = "--hash-history-file=older.txt --hash-overlap=allow"
    folder = run(driver, small_tsv, f"{flags} {from_file} --hash-map-file=file.maps").folder
    run(driver, small_tsv, f"{flags} --hash-history=0.5 --hash-map-file=share.maps")
    assert checksums(folder / "file.maps") == checksums(folder / "share.maps")


@pytest.mark.parametrize("method", ["learned", "frequency"])
def test_the_model_trains_on_all_its_rows(driver, newer, older, method):
    result = run(driver, newer, f"--hash-method={method} --hash-history-file=older.txt --hash-map-file=maps")
    assert "it 17/17 of epoch 0" in result.out and "900 rows of older.txt" in result.out and not result.err
    about = load_maps(result.folder / "maps")[1]
    assert about["history"] is None and not about["labels"] and len(about["learned"]["--hash-history-file"]) == 64


def test_rows_of_the_run_in_the_history_are_noticed(driver, small_tsv, newer, older):
    """Whatever the file is called or packed as: the rows are compared."""
    flags = "--hash-method=learned --hash-learn-only --hash-history-file"
    message = refused(driver, small_tsv, f"{flags}=older.txt --hash-map-file=a")
    assert "100% of --hash-history-file=older.txt are rows of this run" in message
    with gzip.open(older.parent / "newer.gz", "wb") as file:
        file.write(newer.read_bytes())
    assert "100% of --hash-history-file=newer.gz" in refused(driver, newer, f"{flags}=newer.gz --hash-map-file=a")
    mixed = older.read_text().splitlines(keepends=True) + newer.read_text().splitlines(keepends=True)[:100]
    (older.parent / "mixed.txt").write_text("".join(mixed))
    warned = run(driver, newer, f"{flags}=mixed.txt --hash-map-file=b")
    assert "warning: 10% of the history are rows of this run, too" in warned.err
    run(driver, small_tsv, f"{flags}=older.txt --hash-map-file=d --train-share=0.5-1")  # nor trained on, nor tested
    run(driver, small_tsv, f"{flags}=older.txt --hash-map-file=c --hash-overlap=allow")
    assert "learned from all training rows" in refused(driver, small_tsv, "--hash-method=learned --hash-map-file=c")


def test_values_that_the_run_does_not_know_are_left_out(driver, newer, older):
    known = older.read_text().splitlines()
    fields = [line.split("\t") for line in known[:300]]
    strange = ["\t".join([*row[:14], *(f"{0xE0000000 + n:08x}" for n in range(26))]) for row in fields]
    (older.parent / "more.txt").write_text("\n".join(known + strange) + "\n")
    flags = "--hash-method=frequency --hash-learn-only"
    run(driver, newer, f"{flags} --hash-history-file=older.txt --hash-map-file=a")
    run(driver, newer, f"{flags} --hash-history-file=more.txt --hash-map-file=b")
    assert checksums(older.parent / "a") == checksums(older.parent / "b")
    (older.parent / "strange.txt").write_text("\n".join(strange) + "\n")
    message = refused(driver, newer, "--hash-method=learned --hash-history-file=strange.txt")
    assert "none of its" in message and "--hash-history-file" in message


def test_a_checkpoint_needs_no_history(driver, newer, older):
    flags = "--hash-method=learned --hash-history-file=older.txt --hash-dim=2"
    whole = run(driver, newer, f"{flags} --nepochs=2 --save-model=whole")
    run(driver, newer, f"{flags} --nepochs=1 --save-model=part")
    assert "was learned" not in run(driver, newer, f"{flags} --load-model=part --inference-only").out
    other = older.read_text().splitlines(keepends=True)
    (older.parent / "other.txt").write_text("".join(other[1:]))
    changed = flags.replace("older.txt", "other.txt")
    assert "learned with another" in refused(driver, newer, f"{changed} --nepochs=2 --resume=part")
    older.unlink()
    for store in older.parent.glob("store.history-*"):
        shutil.rmtree(store)
    resumed = run(driver, newer, f"{flags} --nepochs=2 --resume=part")
    assert resumed.events[-1]["test"] == whole.events[-1]["test"]


def test_a_map_file_says_how_it_was_learned(driver, newer, older):
    """Asked for in another way it is refused; where nothing is asked it is taken, whatever the model's seed."""
    flags = "--hash-method=learned --hash-map-file=maps"
    learned = "--hash-history-file=older.txt --hash-dim=2 --hash-seed=7"
    result = run(driver, newer, f"{flags} {learned} --hash-learn-only")
    for again in ("", learned, "--numpy-rand-seed=5"):
        assert "stage 1" not in run(driver, newer, f"{flags} {again} --nepochs=0").out
    (older.parent / "other.txt").write_text(older.read_text() * 2)
    (older.parent / "x.safetensors").write_bytes(b"anything")
    for asked, says in {
        "--hash-dim=3": "asks for --hash-dim=3, but its maps were learned with 2",
        "--hash-seed=8": "asks for --hash-seed=8, but its maps were learned with 7",
        "--hash-history-file=other.txt": "learned with another",
        "--hash-embeddings=x.safetensors": "learned without one",
        "--hash-history=0.5": "was learned from the share None, not [0.0, 0.5]",
    }.items():
        assert says in refused(driver, newer, f"{flags} {asked}")
    maps, about = load_maps(result.folder / "maps")
    about.pop("learned")  # as older versions wrote it
    with open(result.folder / "maps", "wb") as file:
        save_maps(file, maps, about)
    run(driver, newer, f"{flags} --nepochs=0")
    assert "maps is too old to say its --hash-dim" in refused(driver, newer, f"{flags} --hash-dim=2")


def test_the_seed_of_maps_stands_apart(driver, small_tsv):
    """Maps by --hash-seed are those of a run with that seed; the model's own draws are not touched."""
    flags = "--hash-method=learned --hash-learn-only --dropout=0.2"
    folder = run(driver, small_tsv, f"{flags} --hash-map-file=a --numpy-rand-seed=7").folder
    run(driver, small_tsv, f"{flags} --hash-map-file=b --hash-seed=7")
    run(driver, small_tsv, f"{flags} --hash-map-file=c")
    assert checksums(folder / "a") == checksums(folder / "b") != checksums(folder / "c")
    trained = "--hash-method=learned --dropout=0.2 --hash-seed=7"
    one = run(driver, small_tsv, trained)
    other = run(driver, small_tsv, f"{trained} --hash-map-file=b")
    assert losses(one) == losses(other)


def test_an_inference_model_as_embedding(driver, small_tsv):
    """A --save-collapsed file gives what its tables give under their own names."""
    flags = "--hash-method=learned --hash-learn-only"
    folder = run(driver, small_tsv, "--mlet-inner-dim=6 --md-flag --save-collapsed=model.safetensors").folder
    tables = json.loads((folder / "store" / "schema.json").read_text())["tables"]
    saved, plain = load_file(folder / "model.safetensors"), {}
    for name, n in tables.items():
        plain[name] = saved[f"table.{name}"][:n] @ saved.get(f"projection.{name}", np.eye(4, dtype=np.float32))
    save_file(plain, folder / "plain.safetensors")
    run(driver, small_tsv, f"{flags} --hash-embeddings=model.safetensors --hash-map-file=a")
    run(driver, small_tsv, f"{flags} --hash-embeddings=plain.safetensors --hash-map-file=b")
    assert checksums(folder / "a") == checksums(folder / "b")
    assert load_collapsed(folder / "model.safetensors").tables.specs[0].name in plain
    other = "--vocabulary-order=frequency --hash-embeddings=model.safetensors"
    assert "its ids do not fit" in refused(driver, small_tsv, f"{flags} --hash-map-file=c {other}")
    plain["C3"][5] = np.nan
    save_file(plain, folder / "plain.safetensors")
    message = refused(driver, small_tsv, "--hash-method=learned --hash-embeddings=plain.safetensors")
    assert "table C3: the embedding of id 5 is not finite" in message
    run(driver, small_tsv, "--hash-method=modulo --save-collapsed=few.safetensors")
    message = refused(driver, small_tsv, "--hash-method=learned --hash-embeddings=few.safetensors")
    assert "has fewer rows than ids" in message


def test_shares_in_any_notation():
    assert dlrm_mlet.history_range("1e-1") == [0, 0.1] and dlrm_mlet.history_range("0") == []
    assert dlrm_mlet.history_range("1e-1-5E-1") == dlrm_mlet.share_range("0.1-0.5") == [0.1, 0.5]


BAD = {
    "--hash-method=learned --hash-history-file={raw}": "is the run's own data",
    "--hash-method=frequency --hash-history-file={raw}": "is the run's own data",
    "--hash-method=learned --hash-history-file=empty.txt": "empty.txt: the file is empty",
    "--hash-method=learned --hash-history-file=table.csv": "table.csv",
    "--hash-method=learned --hash-history-file=absent.txt": "absent.txt",
    "--hash-method=learned --hash-history-file=.": "is a directory",
    "--hash-method=learned --hash-history-file=older.txt --hash-history=0.5": "is the whole history",
    "--hash-method=learned --hash-history-file=older.txt --hash-embeddings=x": "is the whole history",
    "--hash-method=modulo --hash-history-file=older.txt": "modulo learns nothing",
    "--hash-history-file=older.txt": "--hash-history-file needs --hash-method",
    "--hash-seed=3": "--hash-seed needs --hash-method",
    "--hash-method=learned --hash-history-file=older.txt --save-onnx=older.txt": "is named twice",
    "--hash-method=modulo --hash-map-file=store/maps": "lies inside the prepared data",
    "--hash-method=learned --hash-history=1e-": "is not a number",
}


@pytest.mark.parametrize("flags", BAD)
def test_bad_input_is_one_line(driver, small_tsv, older, flags):
    run(driver, small_tsv, "--prepare-only")
    (older.parent / "empty.txt").write_text("")
    (older.parent / "table.csv").write_text("a,b,c\n1,2,3\n")
    before = older.read_bytes()
    assert BAD[flags] in refused(driver, small_tsv, flags.replace("{raw}", str(small_tsv)))
    assert older.read_bytes() == before and not (older.parent / "store" / "maps").exists()


def test_the_own_data_as_history_is_a_control(driver, small_tsv):
    flags = f"--hash-method=learned --hash-map-file=maps --hash-history-file={small_tsv}"
    result = run(driver, small_tsv, f"{flags} --hash-overlap=allow")
    assert "it 29/29 of epoch 0" in result.out and load_maps(result.folder / "maps")[1]["labels"]
    assert "learned from all training rows" in refused(driver, small_tsv, "--hash-method=learned --hash-map-file=maps")


def test_history_has_the_label_that_is_trained(driver, newer, older):
    """Named, or the data set's first: the same maps."""
    flags = "--hash-method=learned --hash-history-file=older.txt --hash-learn-only"
    folder = run(driver, newer, f"{flags} --hash-map-file=first.maps").folder
    run(driver, newer, f"{flags} --tasks=click --hash-map-file=named.maps")
    assert checksums(folder / "first.maps") == checksums(folder / "named.maps")
