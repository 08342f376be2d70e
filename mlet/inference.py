"""From the trained model to the inference model: every W1 W2 becomes one table; saved as safetensors, loaded back.

Legend: n rows, K inner dimension, d stored width.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mlet.embedding import collapse_rows
from mlet.files import atomic_file
from mlet.models import build_model, model_from_config
from mlet.tables import EmbeddingTables

FORMAT = "mlet-collapsed-1"
METADATA_KEY = "mlet"


@torch.no_grad()
def collapse_tables(tables: EmbeddingTables) -> EmbeddingTables:
    """Return single-layer tables with the same outputs; learned pooling weights are folded into the rows.

    Tables that are single-layer and float32 already are returned as they are. Otherwise the new rows are computed in
    chunks: beside the old tables nothing but the new ones needs memory.

    Raises:
        ValueError: a collapsed row is not finite, naming the table.
    """
    if tables.is_collapsed:
        return tables
    single = EmbeddingTables(
        [replace(spec, inner_dim=0) for spec in tables.specs],
        unknown=tables.unknown,
        padding=tables.padding,
        mode=tables.mode,
    ).to(next(tables.parameters()).device)
    for old, new in zip(tables.parts(), single.parts(), strict=True):
        spec, rows = tables.specs[old.table], old.counted_rows + tables.special_rows
        source, target = old.group.part(old.index, rows), new.group.part(new.index, rows)
        row_weight = None
        if old.group.pooling_weight is not None:
            first = int(old.group.first_row[old.index])
            row_weight = old.group.pooling_weight[first : first + rows, 0]
        projection = old.group.inner_projection
        w2 = torch.eye(spec.width, device=source.device) if projection is None else projection[old.index]
        try:
            collapse_rows(source, w2, target, row_weight)
        except ValueError as error:
            raise ValueError(f"table {spec.name}: {error}") from None
        if old.group.projection is not None:
            new.group.projection[new.index] = old.group.projection[old.index]
    single.maps = tables.maps
    return single


@torch.no_grad()
def collapse(model: nn.Module) -> nn.Module:
    """Return the inference model of a trained one, in eval mode: same outputs, single-layer tables.

    The trained model stays as it is. What needs no change (MLPs are copied, single-layer tables are not) is shared.
    """
    tables = collapse_tables(model.tables)
    inference = build_model(model.model_name, tables, **model.config())
    inference.to(next(model.parameters()).device)
    if model.wide is not None:
        inference.wide = collapse_tables(model.wide)
    others = {name: value for name, value in model.state_dict().items() if not name.startswith(("tables.", "wide."))}
    inference.load_state_dict(others, strict=False)
    return inference.eval()


def full_config(model: nn.Module) -> dict:
    """Everything but the weights, JSON-ready: `mlet.models.model_from_config` rebuilds the model from it."""
    tables = model.tables
    return {
        "model": model.model_name,
        "tables": {
            "specs": [asdict(spec) for spec in tables.specs],
            "unknown": tables.unknown,
            "padding": tables.padding,
            "mode": tables.mode,
            "weighted": tables.weighted,
        },
        "arguments": model.config(),
    }


def inference_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of a collapsed model, one tensor a table part (views, nothing is copied).

    `table.C1` [n + special rows, d]; quotient-remainder tables `table.C1.quotient` and `table.C1.remainder`;
    mixed-dimension projections `projection.C1` [d, D]; first-order weights `wide.C1` [n + special rows, tasks]; stored
    row maps `map.C1` [n], and `map.C1.1` of a second lookup; then the other layers by their module names.
    """
    for kind, tables in zip(("table", "wide"), model.table_sets, strict=False):
        for part in tables.parts():
            spec, group = tables.specs[part.table], part.group
            if group.inner_projection is not None or group.pooling_weight is not None:
                raise ValueError(f"table {spec.name} is not collapsed")
            suffix = "" if part.name == "rows" else f".{part.name}"
            yield f"{kind}.{spec.name}{suffix}", group.part(part.index, part.counted_rows + tables.special_rows)
            if group.projection is not None:
                yield f"projection.{spec.name}{suffix}", group.projection.data[part.index]
    for spec in model.tables.specs:
        for number, lookup in enumerate(spec.lookups):
            if lookup.stored:
                suffix = f".{number}" if number else ""
                yield f"map.{spec.name}{suffix}", model.tables.maps.view(spec, number)
    for name, value in model.state_dict().items():
        if not name.startswith(("tables.", "wide.")):
            yield name, value


def save_collapsed(model: nn.Module, path: str | Path) -> None:
    """Write a collapsed model as safetensors, its configuration in the file's metadata.

    Raises:
        ValueError: the model is not collapsed. OSError: the path cannot be written; an older file there stays.
    """
    tensors = {name: value.detach().cpu() for name, value in inference_tensors(model)}
    # one entry, because safetensors writes several in a random order: equal models shall be equal files
    metadata = {METADATA_KEY: json.dumps({"format": FORMAT, "config": full_config(model)})}
    with atomic_file(path) as file:
        try:
            save_file(tensors, file.name, metadata)
        except SafetensorError as error:
            raise OSError(f"cannot write {path}: {error}") from None


def is_collapsed(path: str | Path) -> bool:
    """Whether `save_collapsed` wrote this file."""
    try:
        with safe_open(str(path), framework="pt") as file:
            return METADATA_KEY in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


@torch.no_grad()
def load_collapsed(path: str | Path) -> nn.Module:
    """Rebuild the model that `save_collapsed` wrote. Raises ValueError if the file is not one, or is damaged."""
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get(METADATA_KEY, "{}"))
            if metadata.get("format") != FORMAT:
                raise ValueError(f"{path} is not a collapsed model of this project (format {metadata.get('format')})")
            model = model_from_config(metadata["config"])
            for name, target in inference_tensors(model):
                target.copy_(file.get_tensor(name))
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read as safetensors: {error}") from None
    return model.eval()
