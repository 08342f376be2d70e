"""A training state as a directory: `tensors.safetensors`, and `checkpoint.json` for all else. Never pickle.

Tensors and NumPy arrays anywhere in the state lie in the safetensors file too, under the prefix `$state/`. In
the JSON tree {"$tensor": name} or {"$array": name} stands for them, {"$float": "inf"} for a float that JSON
does not know, and {"$dict": {...}} for a dict with such keys of its own.
"""

import json
import math
import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mlet.files import atomic_directory, recover_directory
from mlet.training_state import pack_optimizer, restore_rng, rng_state, unpack_optimizer

__all__ = [
    "MARKER",
    "TENSORS",
    "link_checkpoint",
    "load_checkpoint",
    "pack_optimizer",
    "restore_rng",
    "rng_state",
    "save_checkpoint",
    "unpack_optimizer",
]

MARKER = "checkpoint.json"
TENSORS = "tensors.safetensors"
_FORMAT = "mlet checkpoint"
_VERSION = 1
_PREFIX = "$state/"


def save_checkpoint(directory: str | Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Writes a checkpoint, or leaves the old one as it was.

    Arguments:
        directory: an older checkpoint there is replaced, anything else is refused
        tensors: dense, of any dtype and device; one tensor under several names is stored once and loaded as
            one, views that merely overlap are stored apart
        state: tree of dict (keys: str), list, tuple (becomes a list), str, int, float, bool, None, tensors,
            NumPy arrays and scalars (become Python scalars)

    Raises:
        TypeError: anything else in the tree (names its place), or a tensor that is not dense
        ValueError: the name of a tensor is reserved, or `directory` is not ours, see `atomic_directory`
        OSError: the disk refuses
    """
    for name in tensors:
        if name.startswith(_PREFIX) or name == "__metadata__":
            raise ValueError(f"the tensor name {name!r} is reserved")
    found = dict(tensors)
    tree = _encode(state, "state", found)
    stored, aliases = _storable(found)
    with atomic_directory(directory, marker=MARKER) as folder:
        try:
            save_file(stored, folder / TENSORS, metadata={"format": "pt"})
        except SafetensorError as error:
            raise OSError(f"cannot write {Path(directory, TENSORS)}: {error}") from error
        content = {
            "format": _FORMAT,
            "version": _VERSION,
            "file": _fingerprint(folder / TENSORS),
            "tensors": list(tensors),
            "aliases": aliases,
            "complex": [name for name in stored if found[name].is_complex()],
            "state": tree,
        }
        (folder / MARKER).write_text(json.dumps(content, allow_nan=False), encoding="utf-8")


def link_checkpoint(source: str | Path, target: str | Path) -> None:
    """Makes `target` the same checkpoint as `source` without writing the tensors again (a hard link where possible).

    Safe because a checkpoint's files are never changed in place, only replaced. Raises as `save_checkpoint` does.
    """
    with atomic_directory(target, marker=MARKER) as folder:
        for name in (TENSORS, MARKER):
            try:
                os.link(Path(source, name), folder / name)
            except OSError:  # a file system without hard links
                shutil.copyfile(Path(source, name), folder / name)


def load_checkpoint(
    directory: str | Path, device: str | torch.device = "cpu"
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `save_checkpoint` wrote: (tensors on `device`, state with its tensors on the CPU).

    On the CPU they are private memory maps of the file: read when touched, free to be changed in place.

    Raises:
        ValueError: no checkpoint is there, or it is incomplete, damaged or of another version; names the file
    """
    content = read_description(Path(directory))
    path = Path(directory, TENSORS)
    if not path.is_file():
        raise ValueError(f"{path} is missing")
    try:
        if _fingerprint(path) != content["file"]:
            raise ValueError(f"{path} is damaged: its size or checksum differs from the one in {MARKER}")
        read = _reader(path, content, device)
        tensors = {name: read(name) for name in content["tensors"]}
        return tensors, _decode(content["state"], _reader(path, content, "cpu"))
    except (SafetensorError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{directory} is damaged: {MARKER} and {TENSORS} do not fit: {error}") from error


def read_description(folder: Path) -> dict[str, Any]:
    """What is said of a checkpoint, its "state" as it is stored, without its tensors; raises as `load_checkpoint`."""
    recover_directory(folder)
    if not folder.exists():
        raise ValueError(f"the checkpoint {folder} does not exist")
    if not folder.is_dir():
        raise ValueError(
            f"{folder} is a file; checkpoints of dlrm_s_pytorch.py cannot be loaded here: "
            "retrain, or convert its state_dict to safetensors"
        )
    path = folder / MARKER
    if not path.is_file():
        raise ValueError(f"{folder} has no {MARKER}: it is no checkpoint, or its writing was interrupted")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise ValueError(f"{path} does not describe a checkpoint")
    if content.get("version") != _VERSION:
        raise ValueError(f"{path} has format version {content.get('version')}, not {_VERSION}")
    return content


def _reader(path: Path, content: dict[str, Any], device: str | torch.device) -> Callable[[str], Tensor]:
    """A function from the name of a tensor to the tensor; aliases give the same object."""
    file = safe_open(path, framework="pt", device=str(device))
    loaded: dict[str, Tensor] = {}

    def read(name: str) -> Tensor:
        name = content["aliases"].get(name, name)
        if name not in loaded:
            tensor = file.get_tensor(name)
            loaded[name] = torch.view_as_complex(tensor) if name in content["complex"] else tensor
        return loaded[name]

    return read


def _fingerprint(path: Path) -> dict[str, int]:
    size, checksum = 0, 0
    with open(path, "rb") as file:
        while chunk := file.read(1 << 22):
            size, checksum = size + len(chunk), zlib.crc32(chunk, checksum)
    return {"bytes": size, "crc32": checksum}


def _storable(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(contiguous tensors that do not overlap, other name -> name of the same tensor); copies if need be."""
    stored: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    seen: dict[tuple, tuple[str, Tensor]] = {}  # keeps temporaries alive: a freed address would be seen again
    spans: dict[tuple, list[tuple[int, int]]] = {}
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
            kind = f"{tensor.layout}, {tensor.dtype}, {tensor.device}"
            raise TypeError(f"the tensor {name!r} is not dense, or has no values: {kind}")
        tensor = tensor.detach().resolve_conj().resolve_neg()
        view = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() > 0 and view in seen:
            aliases[name] = seen[view][0]
            continue
        seen[view] = (name, tensor)
        tensor = (torch.view_as_real(tensor) if tensor.is_complex() else tensor).contiguous()
        taken = spans.setdefault((tensor.device, tensor.untyped_storage().data_ptr()), [])
        start, stop = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
        if tensor.numel() == 0 or any(start < end and begin < stop for begin, end in taken):
            tensor = tensor.clone()
        else:
            taken.append((start, stop))
        stored[name] = tensor
    return stored, aliases


def _encode(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    """The JSON form of a state tree; its tensors and arrays are added to `tensors`. Raises TypeError."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, (Tensor, np.ndarray)):
        kind = "$tensor" if isinstance(value, Tensor) else "$array"
        tensors[_PREFIX + place] = value if kind == "$tensor" else _tensor_of(value, place)
        return {kind: _PREFIX + place}
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": repr(float(value))}
    if isinstance(value, (list, tuple)):
        return [_encode(item, f"{place}[{i}]", tensors) for i, item in enumerate(value)]
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{place} has the key {key!r}: keys must be str")
        tree = {key: _encode(item, f"{place}[{key!r}]", tensors) for key, item in value.items()}
        return {"$dict": tree} if any(key.startswith("$") for key in tree) else tree
    if value is None or isinstance(value, (str, int, float)):
        return value
    raise TypeError(f"{place} is a {type(value).__name__}, which a checkpoint cannot hold")


def _tensor_of(array: np.ndarray, place: str) -> Tensor:
    try:
        return torch.from_numpy(np.require(array, array.dtype.newbyteorder("="), ["C", "W"]))
    except TypeError as error:
        raise TypeError(f"{place} is an array of {array.dtype}, which a checkpoint cannot hold") from error


def _decode(value: Any, read: Callable[[str], Tensor]) -> Any:
    """The inverse of `_encode`."""
    if isinstance(value, list):
        return [_decode(item, read) for item in value]
    if not isinstance(value, dict):
        return value
    kind, inner = next(iter(value.items()), ("", None))
    if kind == "$tensor":
        return read(inner)
    if kind == "$array":
        return read(inner).numpy()
    if kind == "$float":
        return float(inner)
    return {key: _decode(item, read) for key, item in (inner if kind == "$dict" else value).items()}
