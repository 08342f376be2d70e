"""Inference model -> ONNX, proven in onnxruntime before it gets its final name.

Inputs: `dense` float32 [batch, dense], unless there are no dense features; `ids` int64 [batch, one-hot tables]; for
each multi-hot table `ids_<table>` int64 [batch, hot], short bags padded with the table's last row. Output:
`probability` float32 [batch, tasks], one column a label in the order of --tasks, which the driver puts in the metadata.
An id outside its table reads the table's last row (the unknown or the padding row): it never reads another table.

Legend: B batch, T tables, S tasks (1 unless several labels are trained).
"""

from __future__ import annotations

import copy
import json
import logging
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mlet.files import scratch_directory
from mlet.interaction import PairwiseDots
from mlet.quantize import ExportedQuantizedTables, QuantizedTables

TOLERANCE = 1e-5
PROTOBUF_LIMIT_BYTES = 1_900_000_000  # protobuf itself ends at 2 GiB; beyond this the weights go beside the file
METADATA_KEY = "mlet"


class ExportedDots(nn.Module):
    """`PairwiseDots` that cuts the rows of the products apart and joins the kept pieces: a Split and a Concat.

    A Gather along the last axis copies number by number in onnxruntime, which took a quarter of a whole batch's time.
    """

    def __init__(self, dots: PairwiseDots) -> None:
        super().__init__()
        self.lead, vectors = dots.lead, dots.vectors
        pieces = []
        for row in range(vectors):  # of each row of products the front is kept, the rest is not
            count = row + int(dots.itself)
            pieces += [(count, True), (vectors - count, False)]
        self.sizes, self.kept = zip(*[piece for piece in pieces if piece[0]], strict=True)

    def forward(self, every: Tensor) -> Tensor:
        """As `PairwiseDots`."""
        pieces = torch.bmm(every, every.transpose(1, 2)).flatten(1).split(self.sizes, dim=1)
        kept = [piece for piece, keep in zip(pieces, self.kept, strict=True) if keep]
        return torch.cat([every[:, 0]] * self.lead + kept, dim=1)


def exported_form(module: nn.Module) -> nn.Module:
    """A model with the same weights (shared, not copied) in operations that ONNX has and onnxruntime is fast at."""
    if isinstance(module, QuantizedTables):
        return ExportedQuantizedTables(module)
    if isinstance(module, PairwiseDots):
        return ExportedDots(module)
    twin = copy.copy(module)
    twin._modules = {name: None if child is None else exported_form(child) for name, child in module._modules.items()}
    return twin


class ServingModel(nn.Module):
    """A collapsed model as it is exported.

    Args:
        model: the inference model, see `mlet.inference.collapse`.
        multi_hot: for each table, whether it takes bags of ids. Needs tables built with padding=True.
        has_dense: whether the data has dense features; without any, the graph has no input `dense`.

    Shapes:
        the tensors that `input_names` lists, in order -> [B, S].
    """

    def __init__(self, model: nn.Module, multi_hot: Sequence[bool], has_dense: bool = True) -> None:
        super().__init__()
        tables = model.tables
        if any(multi_hot) and not tables.padding:
            raise ValueError("multi-hot tables are padded with a zero row, and these tables have none")
        if not tables.special_rows:
            raise ValueError("tables without an unknown or padding row cannot be served: ids outside them have no row")
        self.model, self.multi_hot, self.has_dense = exported_form(model), tuple(multi_hot), has_dense
        self.register_buffer("last_row", torch.tensor(last_rows(tables)), persistent=False)

    @property
    def input_names(self) -> list[str]:
        """Names of the graph's inputs, in order."""
        bags = [f"ids_{s.name}" for s, multi in zip(self.model.tables.specs, self.multi_hot, strict=True) if multi]
        return ["dense"] * self.has_dense + ["ids"] * (not all(self.multi_hot)) + bags

    def forward(self, *inputs: Tensor) -> Tensor:
        """Probability [B, S]."""
        dense, inputs = (inputs[0], inputs[1:]) if self.has_dense else (inputs[0].new_empty(0), inputs)
        if not any(self.multi_hot):
            looked_up = self.model.look_up(self._inside(inputs[0], self.last_row))
            return self.model.vectors_to_probability(dense, *looked_up)
        rest = iter(inputs)
        one_hot = None if all(self.multi_hot) else next(rest)
        per_table, column = [], 0
        for t, multi in enumerate(self.multi_hot):
            if multi:
                ids = next(rest)
            else:
                ids = one_hot[:, column : column + 1]
                column += 1
            per_table.append(self._inside(ids, self.last_row[t]))
        return self.model.vectors_to_probability(dense, *self.model.look_up_padded(per_table))

    @staticmethod
    def _inside(ids: Tensor, last_row: Tensor) -> Tensor:
        return torch.where((ids < 0) | (ids > last_row), last_row, ids)

    def inputs_of(self, dense: Tensor, ids: Tensor, offsets: Tensor | None) -> dict[str, Tensor]:
        """The graph's inputs for a batch in the trainer's form (see `sources.Batch`)."""
        multi_hot = {s.name: multi for s, multi in zip(self.model.tables.specs, self.multi_hot, strict=True)}
        named = graph_inputs(dense, ids, offsets, multi_hot, self.last_row.tolist())
        return {name: named[name] for name in self.input_names}


def last_rows(tables: nn.Module) -> list[int]:
    """For each table the last of its ids: the padding row, else the unknown one."""
    return [spec.rows + tables.special_rows - 1 for spec in tables.specs]


def graph_inputs(
    dense: Tensor, ids: Tensor, offsets: Tensor | None, multi_hot: Mapping[str, bool], padding: Sequence[int]
) -> dict[str, Tensor]:
    """What an exported graph may take, by input name, for a batch in the trainer's form (see `sources.Batch`).

    Args:
        dense, ids, offsets: the batch.
        multi_hot: for each table, in order, whether it takes bags.
        padding: for each table, the id that fills up short bags.
    """
    named, one_hot = {"dense": dense}, []
    for t, (table, multi) in enumerate(multi_hot.items()):
        bags = ids[:, t : t + 1] if offsets is None else _rectangle(ids, offsets, t, len(dense), padding[t])
        if multi:
            named[f"ids_{table}"] = bags
        else:
            one_hot.append(bags)
    if one_hot:
        named["ids"] = ids if offsets is None and len(one_hot) == ids.shape[1] else torch.cat(one_hot, dim=1)
    return named


def _rectangle(ids: Tensor, offsets: Tensor, table: int, batch: int, padding: int) -> Tensor:
    """The bags of one table as [B, longest bag], short ones filled up with `padding`."""
    bounds = offsets[table * batch : (table + 1) * batch + 1]
    lengths = bounds.diff()
    hot = max(1, int(lengths.max()))
    place = torch.arange(hot)
    filled = place < lengths[:, None]
    out = torch.full((batch, hot), padding)
    out[filled] = ids[(bounds[:-1, None] + place)[filled]]
    return out


def export_onnx(
    model: nn.Module,
    path: str | Path,
    samples: Sequence[tuple[Tensor, Tensor, Tensor | None]],
    multi_hot: Sequence[bool],
    metadata: dict | None = None,
) -> float:
    """Write a collapsed model as ONNX and prove it in onnxruntime; only a proven file gets its final name.

    Args:
        model: the inference model, on the CPU; its tables may be quantised.
        path: target; weights above 1.9 GB go to `path`.data beside it.
        samples: at least two batches (dense, ids, offsets) of real rows, of different sizes.
        multi_hot: see `ServingModel`.
        metadata: JSON-ready, stored in the file under "mlet".

    Returns:
        The largest absolute difference seen between the file in onnxruntime and `model` itself.

    Raises:
        ValueError: an output differs by more than 1e-5, or fewer than two batch sizes are given.
        OSError: the path cannot be written; an older file there stays.
    """
    path = Path(os.path.realpath(path))
    if len({len(dense) for dense, _, _ in samples}) < 2:
        raise ValueError("the export is checked at two batch sizes: give samples of different sizes")
    serving = ServingModel(model, multi_hot, has_dense=samples[0][0].shape[1] > 0).eval()
    with scratch_directory(path) as folder:
        draft = folder / path.name
        _write_onnx(serving, draft, serving.inputs_of(*max(samples, key=lambda s: len(s[0]))), metadata or {})
        worst = check_onnx(draft, model, ((sample, serving.inputs_of(*sample)) for sample in samples))
        for file in sorted(folder.iterdir(), reverse=True):  # the weights first, then the graph that names them
            file.replace(path.with_name(file.name))
    return worst


def _write_onnx(serving: ServingModel, path: Path, example: dict[str, Tensor], metadata: dict) -> None:
    batch = torch.export.Dim("batch")
    shapes = [
        {0: batch} if name in ("dense", "ids") else {0: batch, 1: torch.export.Dim(name.replace("ids_", "hot_", 1))}
        for name in serving.input_names
    ]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter's notices about its own internals
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            serving,
            tuple(_traceable(name, tensor) for name, tensor in example.items()),
            input_names=serving.input_names,
            output_names=["probability"],
            dynamic_shapes={"inputs": tuple(shapes)},
            dynamo=True,
            verbose=False,
        )
    program.model.metadata_props[METADATA_KEY] = json.dumps(metadata)
    weights = sum(tensor.numel() * tensor.element_size() for tensor in serving.state_dict().values())
    program.save(str(path), external_data=weights > PROTOBUF_LIMIT_BYTES)


def _traceable(name: str, example: Tensor) -> Tensor:
    """An example of size one along a dynamic axis would fix that axis in the graph: show the exporter two."""
    axes = (0,) if name in ("dense", "ids") else (0, 1)
    for axis in axes:
        if example.shape[axis] == 1:
            example = torch.cat([example, example], dim=axis)
    return example


def check_onnx(path: str | Path, model: nn.Module, samples: Iterable[tuple[tuple, dict[str, Tensor]]]) -> float:
    """Largest absolute difference between a model and its file in onnxruntime. Raises ValueError above 1e-5.

    Each sample is given twice: as the model takes it, and as the graph does.
    """
    session = open_session(path)
    worst = 0.0
    for batch, inputs in samples:
        with torch.no_grad():
            expected = model(*batch).numpy()
        worst = max(worst, float(np.abs(run_session(session, inputs) - expected).max()))
    if not worst <= TOLERANCE:
        raise ValueError(f"{path}: onnxruntime differs from the model by {worst:.2e}, more than {TOLERANCE:.0e}")
    return worst


def open_session(path: str | Path, threads: int = 0):  # noqa: ANN201 (imported here so that training runs without it)
    """An onnxruntime session on the CPU. Raises ValueError if the file is missing or is no ONNX model.

    Args:
        path: the file.
        threads: 0 leaves their number to onnxruntime.
    """
    import onnxruntime

    if not Path(path).is_file():
        raise ValueError(f"{path}: no such ONNX file")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # as OMP_WAIT_POLICY in the driver: spinning threads slow one another down where cores are shared
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises classes of its own that share no base
        raise ValueError(f"{path} cannot be loaded by onnxruntime: {str(error).splitlines()[0]}") from None


def run_session(session, inputs: Mapping[str, Tensor]) -> np.ndarray:  # noqa: ANN001
    """Probabilities [B, S] of a batch in the form of `graph_inputs`, which may name more than the graph takes."""
    named = {given.name: inputs[given.name].numpy() for given in session.get_inputs()}
    return session.run(["probability"], named)[0]


def score_onnx(
    path: str | Path,
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor, Tensor | None]],
    multi_hot: Sequence[bool],
) -> np.ndarray:
    """Probabilities, [N] or of several tasks [N, S], of an exported file for batches (dense, ids, offsets), which are
    read one at a time.

    `model` is the one that was exported: it knows the graph's inputs.
    """
    session = open_session(path)
    named = {spec.name: multi for spec, multi in zip(model.tables.specs, multi_hot, strict=True)}
    padding = last_rows(model.tables)
    scores = np.concatenate([run_session(session, graph_inputs(*batch, named, padding)) for batch in batches])
    return scores[:, 0] if scores.shape[1] == 1 else scores


def metadata_of(session) -> dict:  # noqa: ANN001
    """What `export_onnx` was given as metadata; empty for a file of other origin."""
    return json.loads(session.get_modelmeta().custom_metadata_map.get(METADATA_KEY, "{}"))


def vocabulary_path(path: str | Path) -> Path:
    """Where the vocabulary of an exported file lies: beside it, `model.onnx.vocabulary` for model.onnx."""
    return Path(f"{path}.vocabulary")
