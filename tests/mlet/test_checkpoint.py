"""Checkpoints: exact round trips, interrupted and full-disk writes, every kind of damage."""

import json
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from mlet import checkpoint
from mlet.checkpoint import link_checkpoint, load_checkpoint, save_checkpoint

DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.complex128),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    *(torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(dtype, tmp_path):
    tensors = {
        "some": torch.tensor([[0, 1, 1], [1, 0, 1]]).to(dtype),
        "scalar": torch.tensor(1).to(dtype),
        "empty": torch.zeros(0, 3).to(dtype),
    }
    save_checkpoint(tmp_path / "ckpt", tensors, {})
    loaded, _ = load_checkpoint(tmp_path / "ckpt")
    assert list(loaded) == list(tensors)
    for name, tensor in tensors.items():
        assert (loaded[name].dtype, loaded[name].shape) == (dtype, tensor.shape)
        assert bytes(loaded[name].untyped_storage()) == bytes(tensor.untyped_storage())


def test_views(tmp_path):
    flat = torch.arange(12.0)
    complex_row = torch.tensor([1 + 2j, 3 - 4j])
    tensors = {
        "flat": flat,
        "tied": flat,
        "first half": flat[:6].reshape(2, 3),
        "transposed": flat.reshape(3, 4).t(),
        "expanded": torch.ones(1).expand(5),
        "conjugate": complex_row.conj(),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    save_checkpoint(tmp_path / "ckpt", tensors, {})
    loaded, _ = load_checkpoint(tmp_path / "ckpt")
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name], tensor.detach())
    assert loaded["tied"] is loaded["flat"]
    loaded["first half"].zero_()  # merely overlapped: apart now
    assert torch.equal(loaded["flat"], flat)
    assert "tied" not in load_file(tmp_path / "ckpt" / checkpoint.TENSORS)


def test_slices_of_a_flat_table_are_not_copied(tmp_path):
    flat = torch.arange(12.0)
    tensors = {"a": flat[:4], "b": flat[4:], "again": flat[4:], "none": flat[4:4]}
    stored, aliases = checkpoint._storable(tensors)
    assert [stored[name].data_ptr() for name in "ab"] == [flat.data_ptr(), flat[4:].data_ptr()]
    assert aliases == {"again": "b"}
    save_checkpoint(tmp_path / "ckpt", tensors, {})
    loaded, _ = load_checkpoint(tmp_path / "ckpt")
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


def test_loaded_values_may_be_changed_in_place(tmp_path):
    save_checkpoint(tmp_path / "ckpt", {"a": torch.zeros(3)}, {"b": np.zeros(3)})
    tensors, state = load_checkpoint(tmp_path / "ckpt")
    tensors["a"].add_(1)
    state["b"] += 1
    again, state_again = load_checkpoint(tmp_path / "ckpt")
    assert torch.equal(again["a"], torch.zeros(3)) and not state_again["b"].any()
    save_checkpoint(tmp_path / "ckpt", tensors, state)  # over the very file that they are mapped from
    again, state_again = load_checkpoint(tmp_path / "ckpt")
    assert torch.equal(again["a"], torch.ones(3)) and state_again["b"].all()
    assert torch.equal(tensors["a"], torch.ones(3))


def test_files_are_readable_by_others(tmp_path):
    state = {"epoch": 3, "best": math.inf, "m": torch.zeros(1)}
    save_checkpoint(tmp_path / "ckpt", {"w": torch.ones(2)}, state)
    assert sorted(os.listdir(tmp_path / "ckpt")) == ["checkpoint.json", "tensors.safetensors"]
    with safe_open(tmp_path / "ckpt" / "tensors.safetensors", "np") as file:
        assert sorted(file.keys()) == ["$state/state['m']", "w"]

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    text = (tmp_path / "ckpt" / "checkpoint.json").read_text()
    assert json.loads(text, parse_constant=refuse)["state"]["epoch"] == 3


@pytest.mark.parametrize("name", ["$state/x", "__metadata__"])
def test_reserved_names(tmp_path, name):
    with pytest.raises(ValueError, match="is reserved"):
        save_checkpoint(tmp_path / "ckpt", {name: torch.ones(1)}, {})


def test_failed_save_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    save_checkpoint(tmp_path / "ckpt", {"a": torch.zeros(3)}, {"epoch": 1})

    def fail(*_):
        raise RuntimeError("in the middle")

    monkeypatch.setattr(checkpoint, "_fingerprint", fail)  # the tensors are written, the JSON is not
    with pytest.raises(RuntimeError, match="in the middle"):
        save_checkpoint(tmp_path / "ckpt", {"a": torch.ones(3)}, {"epoch": 2})
    monkeypatch.undo()
    tensors, state = load_checkpoint(tmp_path / "ckpt")
    assert state == {"epoch": 1} and torch.equal(tensors["a"], torch.zeros(3))
    assert os.listdir(tmp_path) == ["ckpt"]


def test_full_disk_and_death_between_renames(tmp_path):
    """Both in one process, as importing torch takes seconds: the disk is full, later the process dies."""
    path = tmp_path / "ckpt"
    save_checkpoint(path, {"a": torch.zeros(3)}, {"epoch": 1})
    code = """
import os, resource, sys, torch
from mlet.checkpoint import save_checkpoint
unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, unlimited[1]))
try:
    save_checkpoint(sys.argv[1], {"a": torch.ones(100_000)}, {"epoch": 2})
except OSError as error:
    print(error, sorted(os.listdir(os.path.dirname(sys.argv[1]))), flush=True)
resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
rename = os.rename
os.rename = lambda a, b: os._exit(9) if str(a).endswith(".tmp") else rename(a, b)
save_checkpoint(sys.argv[1], {"a": torch.ones(3)}, {"epoch": 3})
"""
    command = [sys.executable, "-c", code, str(path)]
    run = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120)
    assert run.returncode == 9
    assert run.stdout.startswith(f"cannot write {path}/tensors.safetensors: ")
    assert run.stdout.endswith("File too large (os error 27) ['ckpt']\n")
    assert not path.exists()
    tensors, state = load_checkpoint(path)
    assert state == {"epoch": 1} and torch.equal(tensors["a"], torch.zeros(3))


def test_what_is_no_checkpoint(tmp_path):
    with pytest.raises(ValueError, match=f"the checkpoint {tmp_path}/no does not exist"):
        load_checkpoint(tmp_path / "no")
    (tmp_path / "model.pt").write_bytes(pickle.dumps({"state_dict": {}}))
    with pytest.raises(ValueError, match="model.pt is a file; checkpoints of dlrm_s_pytorch.py cannot be"):
        load_checkpoint(tmp_path / "model.pt")
    with pytest.raises(ValueError, match="model.pt: it is a file"):
        save_checkpoint(tmp_path / "model.pt", {}, {})
    with pytest.raises(ValueError, match="has no checkpoint.json: it is no checkpoint, or its writing was"):
        load_checkpoint(tmp_path)
    with pytest.raises(ValueError, match="has no checkpoint.json, so it is not ours"):
        save_checkpoint(tmp_path, {}, {})


def edit_json(folder: Path, change) -> None:
    content = json.loads((folder / "checkpoint.json").read_text())
    change(content)
    (folder / "checkpoint.json").write_text(json.dumps(content))


def edit_tensors(folder: Path, change) -> None:
    path = folder / "tensors.safetensors"
    path.write_bytes(change(path.read_bytes()))


def forge_tensors(folder: Path) -> None:
    """Damaged in a way that the checksum does not show."""
    edit_tensors(folder, lambda content: b"\xff" * len(content))
    edit_json(folder, lambda c: c.update(file=checkpoint._fingerprint(folder / "tensors.safetensors")))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda f: (f / "checkpoint.json").write_text('{"format": "mle'),
            "checkpoint.json is damaged: Unterminated",
        ),
        (lambda f: (f / "checkpoint.json").write_bytes(b"\xff\xfe"), "checkpoint.json is damaged: "),
        (
            lambda f: (f / "checkpoint.json").write_text("[]"),
            "checkpoint.json does not describe a checkpoint",
        ),
        (lambda f: edit_json(f, lambda c: c.pop("format")), "checkpoint.json does not describe a checkpoint"),
        (lambda f: edit_json(f, lambda c: c.update(version=2)), "has format version 2, not 1"),
        (
            lambda f: edit_json(f, lambda c: c.pop("file")),
            "checkpoint.json and tensors.safetensors do not fit",
        ),
        (lambda f: edit_json(f, lambda c: c.update(tensors=["b"])), "do not fit"),
        (lambda f: edit_json(f, lambda c: c.update(state={"$tensor": "b"})), "do not fit"),
        (lambda f: (f / "tensors.safetensors").unlink(), "tensors.safetensors is missing"),
        (lambda f: edit_tensors(f, lambda c: c[:-1]), "tensors.safetensors is damaged: its size"),
        (
            lambda f: edit_tensors(f, lambda c: c[:-1] + b"\xff"),
            "tensors.safetensors is damaged: its size or checksum",
        ),
        (forge_tensors, "do not fit"),
    ],
)
def test_damage_is_named(tmp_path, damage, message):
    save_checkpoint(tmp_path / "ckpt", {"a": torch.zeros(3)}, {"m": torch.zeros(1)})
    load_checkpoint(tmp_path / "ckpt")
    damage(tmp_path / "ckpt")
    with pytest.raises(ValueError, match=message) as error:
        load_checkpoint(tmp_path / "ckpt")
    assert str(tmp_path / "ckpt") in str(error.value)


def test_a_linked_checkpoint_is_the_same_and_stays_when_the_source_is_replaced(tmp_path):
    save_checkpoint(tmp_path / "last", {"w": torch.ones(3)}, {"step": 1})
    link_checkpoint(tmp_path / "last", tmp_path / "best")
    inodes = {(tmp_path / name / checkpoint.TENSORS).stat().st_ino for name in ("last", "best")}
    assert len(inodes) == 1
    save_checkpoint(tmp_path / "last", {"w": torch.zeros(3)}, {"step": 2})
    tensors, state = load_checkpoint(tmp_path / "best")
    assert torch.equal(tensors["w"], torch.ones(3)) and state == {"step": 1}
    link_checkpoint(tmp_path / "last", tmp_path / "best")
    assert load_checkpoint(tmp_path / "best")[1] == {"step": 2}


def test_linking_falls_back_to_copying(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("no links here")

    monkeypatch.setattr("os.link", refuse)
    save_checkpoint(tmp_path / "last", {"w": torch.ones(3)}, {"step": 1})
    link_checkpoint(tmp_path / "last", tmp_path / "best")
    assert torch.equal(load_checkpoint(tmp_path / "best")[0]["w"], torch.ones(3))
