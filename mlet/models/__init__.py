"""CTR models built from the same tables, and the register of them.

To add a model: write one file with a subclass of `mlet.models.base.CTRModel` that adds its layers and `logit`, and add
one `register_model` line at the bottom of this file, with the model's own options and their defaults. `--arch-model`,
`--arch-option` and their help list them from then on.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from mlet.table_spec import TableSpec
from mlet.tables import EmbeddingTables


@dataclass(frozen=True)
class _Entry:
    module: str
    class_name: str
    options: Mapping[str, Any]


_MODELS: dict[str, _Entry] = {}


def register_model(name: str, module: str, class_name: str, **options: Any) -> None:
    """Register a model under the name that `--arch-model` takes.

    Args:
        name: as users give it.
        module, class_name: where the class is; imported when it is built.
        options: its own arguments with their defaults: a number, a word, True or False, or a tuple of whole numbers.

    Raises:
        ValueError: the name is taken.
    """
    if name in _MODELS:
        raise ValueError(f"model {name!r} is already registered by {_MODELS[name].module}.{_MODELS[name].class_name}")
    _MODELS[name] = _Entry(module, class_name, options)


def model_names() -> tuple[str, ...]:
    """Names that `--arch-model` takes."""
    return tuple(sorted(_MODELS))


def model_options(name: str) -> Mapping[str, Any]:
    """A model's own options and their defaults."""
    return _entry(name).options


def parse_options(name: str, settings: Sequence[str]) -> dict[str, Any]:
    """`["cross_layers=2"]` -> {"cross_layers": 2}, each value of its default's type; a tuple is written 16-16.

    Raises:
        ValueError: the model has no such option, or a value is not of its type.
    """
    known, parsed = model_options(name), {}
    for setting in settings:
        option, _, text = setting.partition("=")
        if option not in known:
            has = ", ".join(known) or "none"
            raise ValueError(f"--arch-option={setting}: {name} has no option {option!r} (it has: {has})")
        try:
            parsed[option] = _parse(text, known[option])
        except ValueError:
            like = option_text(known[option])
            raise ValueError(f"--arch-option={setting}: {text!r} is not a value like {like}") from None
    return parsed


def option_text(value: Any) -> str:
    """An option's value as users write it."""
    return "-".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _parse(text: str, default: Any) -> Any:
    if isinstance(default, bool):
        return {"true": True, "false": False}[text.lower()] if text.lower() in ("true", "false") else int("")
    if isinstance(default, tuple):
        return tuple(int(word) for word in text.split("-"))
    return type(default)(text)


def _entry(name: str) -> _Entry:
    if name not in _MODELS:
        raise ValueError(f"model {name!r} is not known; choose from {', '.join(model_names())}")
    return _MODELS[name]


def build_model(name: str, tables: EmbeddingTables, **arguments: Any) -> nn.Module:
    """Build a model around its tables, weights unset. ValueError for an unknown name or sizes that do not fit."""
    entry = _entry(name)
    model = getattr(importlib.import_module(entry.module), entry.class_name)(tables, **arguments)
    model.model_name = name
    return model


def model_from_config(config: dict) -> nn.Module:
    """Rebuild a model from what its `config()` returned, weights unset."""
    options = dict(config["tables"])
    tables = EmbeddingTables([TableSpec(**spec) for spec in options.pop("specs")], **options)
    return build_model(config["model"], tables, **config["arguments"])


register_model("dlrm", "mlet.models.dlrm", "DLRM", interaction="dot", itself=False)
register_model("wide-deep", "mlet.models.wide_deep", "WideDeep")
register_model("deepfm", "mlet.models.deepfm", "DeepFM")
register_model("xdeepfm", "mlet.models.xdeepfm", "XDeepFM", cin_widths=(16, 16))
register_model("dcn", "mlet.models.dcn", "DCN", cross_layers=3)
register_model("dcn-v2", "mlet.models.dcn", "DCNv2", cross_layers=3)
register_model("nfm", "mlet.models.nfm", "NFM")
register_model("pnn", "mlet.models.pnn", "InnerPNN")
register_model("pnn-outer", "mlet.models.pnn", "OuterPNN")
register_model("autoint", "mlet.models.autoint", "AutoInt", attention_layers=2, attention_heads=2, head_width=16)
