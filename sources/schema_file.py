"""Reads and checks the schema of `sources.schema`. Every mistake is one line: the file, the key, what is allowed."""

from __future__ import annotations

import difflib
import glob
import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from sources import GROUP, TRANSFORMS, DataError
from sources.table import table_kind

KEYS = ("files", "separator", "labels", "optional_labels", "dense", "categorical", "multi_hot", "split")
REQUIRED = ("files", "labels", "split")
SPLIT_KEYS = {
    "time": ("by", "column", "val", "test"),
    "random": ("by", "val", "test", "seed"),
    "column": ("by", "column"),
}


class _Mistake(ValueError):
    """Something wrong inside the schema; the file's name is put before it."""


def read_schema(path: Path) -> tuple[dict[str, Any], tuple[Path, ...]]:
    """The schema with all its keys but `files`, JSON-ready, and the raw files.

    Raises:
        ValueError: a mistake in the schema, a missing file, or no PyYAML. OSError: the schema cannot be read.
    """
    try:
        given = _mapping(_load(path), "", "a list of keys and their values")
        _known_keys(given, KEYS, "")
        for key in REQUIRED:
            if key not in given:
                raise _Mistake(f"key {key!r} is missing")
        paths = _files(given["files"], path.parent)
        schema = {
            "separator": _separator(given.get("separator", "")),
            "labels": _names(given["labels"], "labels"),
            "optional_labels": _names(given.get("optional_labels", []), "optional_labels"),
            "dense": _dense(given.get("dense", {})),
            "categorical": _names(given.get("categorical", []), "categorical"),
            "multi_hot": _multi_hot(given.get("multi_hot", {}), table_kind(paths[0]) == ".parquet"),
            "split": _split(given["split"]),
        }
        _check_columns(schema)
    except (_Mistake, DataError) as mistake:
        raise ValueError(f"{path}: {mistake}") from None
    return schema, paths


def _load(path: Path) -> Any:
    """The content of a YAML or JSON file, in which no key stands twice."""
    if path.suffix.lower() not in (".yaml", ".yml", ".json"):
        raise _Mistake("the name of a schema ends in .yaml, .yml or .json")
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix.lower() == ".json":
            return json.loads(text, object_pairs_hook=_no_key_twice)
    except json.JSONDecodeError as error:
        raise _Mistake(f"line {error.lineno}: is no JSON: {error.msg}") from None
    except UnicodeDecodeError:
        raise _Mistake("is not UTF-8 text") from None
    try:
        import yaml
    except ImportError:
        raise ValueError(f"{path}: a YAML schema needs PyYAML: pip install pyyaml (or write it as .json)") from None
    return _load_yaml(text, yaml)


def _load_yaml(text: str, yaml: ModuleType) -> Any:
    class Loader(yaml.SafeLoader):
        """Refuses a key that stands twice, of which YAML would take the last."""

    def mapping(loader: Any, node: Any) -> dict[Any, Any]:
        return _no_key_twice(loader.construct_pairs(node, deep=True))

    Loader.add_constructor("tag:yaml.org,2002:map", mapping)
    try:
        return yaml.load(text, Loader)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise _Mistake(f"{line}is no YAML: {error.problem}") from None
    except RecursionError:
        raise _Mistake("is nested too deeply") from None
    except yaml.YAMLError as error:
        raise _Mistake(f"is no YAML: {str(error).splitlines()[0]}") from None


def _no_key_twice(pairs: Sequence[tuple[Any, Any]]) -> dict[Any, Any]:
    keys = [str(key) for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise _Mistake(f"{key!r} stands twice in one place")
    return {key if isinstance(key, str) else _column(key, "a key"): value for key, value in pairs}


def _mapping(value: Any, key: str, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _Mistake(f"{key + ': ' if key else ''}{_shown(value)} is not {what}")
    return value


def _known_keys(given: dict[str, Any], known: Sequence[str], where: str) -> None:
    for key in given:
        if key not in known:
            close = difflib.get_close_matches(key, known, 1)
            hint = f", did you mean {close[0]!r}?" if close else ""
            raise _Mistake(f"{where}there is no key {key!r}{hint} (there are: {', '.join(known)})")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _column(value: Any, key: str) -> str:
    if not isinstance(value, str) or not value.strip() or value != value.strip() or "\n" in value:
        raise _Mistake(f"{key}: {_shown(value)} is no column name (text; in YAML put 1, yes, no or null in quotes)")
    if value == GROUP:
        raise _Mistake(f"{key}: the column name {value!r} is reserved")
    return value


def _names(value: Any, key: str) -> list[str]:
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list):
        raise _Mistake(f"{key}: {_shown(value)} is no list of column names")
    return [_column(name, key) for name in values]


def _separator(value: Any) -> str:
    if value == "":
        return value
    if not isinstance(value, str) or len(value) != 1 or not value.isascii() or value in '"\r\n':
        raise _Mistake(f'separator: {_shown(value)} is not one ASCII character other than a quote (a tab: "\\t")')
    return value


def _dense(value: Any) -> dict[str, str]:
    dense = _mapping(value, "dense", f"a mapping column -> one of {', '.join(TRANSFORMS)}")
    for name, transform in dense.items():
        _column(name, "dense")
        if transform not in TRANSFORMS:
            raise _Mistake(f"dense: {name}: {_shown(transform)} is none of {', '.join(TRANSFORMS)}")
    return dense


def _multi_hot(value: Any, is_parquet: bool) -> dict[str, str]:
    cells = _mapping(value, "multi_hot", "a mapping column -> separator between the values of a cell")
    for name, separator in cells.items():
        _column(name, "multi_hot")
        if not isinstance(separator, str) or (not separator and not is_parquet) or "\n" in separator:
            raise _Mistake(
                f'multi_hot: {name}: {_shown(separator)} is no separator (text such as "|"; "": Parquet only)'
            )
    return cells


def _split(value: Any) -> dict[str, Any]:
    split = _mapping(value, "split", "a mapping with the key 'by'")
    by = split.get("by")
    if not isinstance(by, str) or by not in SPLIT_KEYS:
        raise _Mistake(f"split: by: {_shown(by)} is none of {', '.join(SPLIT_KEYS)}")
    _known_keys(split, SPLIT_KEYS[by], f"split: by {by}: ")
    checked = {"by": by}
    if by != "random":
        if "column" not in split:
            raise _Mistake(f"split: by {by}: key 'column' is missing")
        checked["column"] = _column(split["column"], "split: column")
    if by == "column":
        return checked
    for part in ("val", "test"):
        checked[part] = share = split.get(part, 0.1)
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < 1:
            raise _Mistake(f"split: {part}: {_shown(share)} is no share of the rows between 0 and 1, such as 0.1")
    if checked["val"] + checked["test"] >= 0.999999:
        raise _Mistake(f"split: val {checked['val']} and test {checked['test']} leave no rows for training")
    if by == "random":
        checked["seed"] = seed = split.get("seed", 123)
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
            raise _Mistake(f"split: seed: {_shown(seed)} is no integer from 0 to 2^32 - 1")
    return checked


def _check_columns(schema: dict[str, Any]) -> None:
    """No column has two uses."""
    if not schema["labels"]:
        raise _Mistake("labels: names no column")
    if not schema["categorical"] and not schema["multi_hot"]:
        raise _Mistake("categorical: names no column, and there is no multi_hot: the model needs at least one table")
    uses = [(name, key) for key in ("labels", "dense", "categorical", "multi_hot") for name in schema[key]]
    if "column" in schema["split"]:
        uses.append((schema["split"]["column"], "split: column"))
    first: dict[str, str] = {}
    for name, key in uses:
        if name in first:
            raise _Mistake(f"{key}: column {name!r} is named twice (before in {first[name]})")
        first[name] = key
    for name in schema["optional_labels"]:
        if name not in schema["labels"]:
            raise _Mistake(f"optional_labels: {name!r} is none of the labels {', '.join(schema['labels'])}")


def _files(value: Any, folder: Path) -> tuple[Path, ...]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise _Mistake(f"files: {_shown(value)} is neither a file name nor a list of file names")
    paths: list[Path] = []
    for name in names:
        plain = folder / name
        found = [plain] if plain.exists() else [folder / match for match in sorted(glob.glob(name, root_dir=folder))]
        if not found:
            raise _Mistake(f"files: {name!r}: there is no such file in {folder.absolute()}")
        paths += found
    for path in paths:
        if path.is_dir():
            raise _Mistake(f"files: {path} is a folder")
        if table_kind(path) != table_kind(paths[0]):
            raise _Mistake(f"files: {paths[0].name} and {path.name}: give files of one kind")
        if paths.count(path) > 1:
            raise _Mistake(f"files: {path.name} is given twice")
    return tuple(paths)
