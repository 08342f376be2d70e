"""CTR models built from the same tables, and the register of them.

To add a model: write one file with a class that takes (tables, **its own plain arguments), has `config()`,
`initialize(rng, seed, mlet_init)`, `vectors_to_probability(dense, vectors)` and `forward(dense, ids, offsets)`, and
add one `register_model` line at the bottom of this file. `--arch-model` and its help list it from then on.
"""

from __future__ import annotations

import importlib
from typing import Any

from torch import nn

from mlet.table_spec import TableSpec
from mlet.tables import EmbeddingTables

_MODELS: dict[str, tuple[str, str]] = {}


def register_model(name: str, module: str, class_name: str) -> None:
    """Register a model under the name that `--arch-model` takes. Raises ValueError on a duplicate."""
    if name in _MODELS:
        raise ValueError(f"model {name!r} is already registered by {'.'.join(_MODELS[name])}")
    _MODELS[name] = (module, class_name)


def model_names() -> tuple[str, ...]:
    """Names that `--arch-model` takes."""
    return tuple(sorted(_MODELS))


def build_model(name: str, tables: EmbeddingTables, **arguments: Any) -> nn.Module:
    """Build a model around its tables, weights unset. ValueError for an unknown name or sizes that do not fit."""
    if name not in _MODELS:
        raise ValueError(f"model {name!r} is not known; choose from {', '.join(model_names())}")
    module, class_name = _MODELS[name]
    model = getattr(importlib.import_module(module), class_name)(tables, **arguments)
    model.model_name = name
    return model


def model_from_config(config: dict) -> nn.Module:
    """Rebuild a model from what its `config()` returned, weights unset."""
    options = dict(config["tables"])
    tables = EmbeddingTables([TableSpec(**spec) for spec in options.pop("specs")], **options)
    return build_model(config["model"], tables, **config["arguments"])


register_model("dlrm", "mlet.models.dlrm", "DLRM")
