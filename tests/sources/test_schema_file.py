"""Every mistake in a schema is one line that names the file, the key and what is allowed."""

import builtins
import json

import pytest
import yaml

from sources.schema_file import read_schema

SCHEMA = {
    "files": "clicks.csv",
    "labels": ["click", "buy"],
    "optional_labels": ["buy"],
    "dense": {"price": "log1p", "age": "standard"},
    "categorical": ["user", "item"],
    "multi_hot": {"tags": "|"},
    "split": {"by": "random", "val": 0.2, "test": 0.1},
}


@pytest.fixture
def folder(tmp_path):
    for name in ("clicks.csv", "b.tsv", "b[1].csv", "b1.csv"):
        (tmp_path / name).touch()
    return tmp_path


def write_schema(folder, name, **changes):
    content = {key: value for key, value in {**SCHEMA, **changes}.items() if value is not None}
    path = folder / name
    path.write_text(json.dumps(content) if name.endswith(".json") else yaml.safe_dump(content))
    return path


@pytest.mark.parametrize("name", ["my.json", "my.yaml"])
def test_defaults_are_filled_in(folder, name):
    path = write_schema(
        folder, name, optional_labels=None, dense=None, multi_hot=None, labels="click", split={"by": "random"}
    )
    assert read_schema(path)[0] == {
        "separator": "",
        "labels": ["click"],
        "optional_labels": [],
        "dense": {},
        "categorical": ["user", "item"],
        "multi_hot": {},
        "split": {"by": "random", "val": 0.1, "test": 0.1, "seed": 123},
    }


def test_patterns_and_plain_names(folder):
    def names(files):
        return [path.name for path in read_schema(write_schema(folder, "my.json", files=files))[1]]

    assert names("*.csv") == ["b1.csv", "b[1].csv", "clicks.csv"]
    assert names("b[1].csv") == ["b[1].csv"]  # a file of that very name comes before the pattern
    assert names(["clicks.csv", "b?.csv"]) == ["clicks.csv", "b1.csv"]
    assert names(str(folder / "b?.csv")) == ["b1.csv"]


BAD_SCHEMAS = [
    ({"label": ["click"]}, "there is no key 'label', did you mean 'labels'?"),
    ({"files": None}, "key 'files' is missing"),
    ({"files": "none_*.csv"}, "files: 'none_*.csv': there is no such file in "),
    ({"files": 5}, "files: 5 is neither a file name nor a list"),
    ({"files": ["clicks.csv", "clicks.csv"]}, "files: clicks.csv is given twice"),
    ({"files": ["clicks.csv", "b.tsv"]}, "files: clicks.csv and b.tsv: give files of one kind"),
    ({"files": "my.json"}, "the name ends in none of .csv, .csv.gz"),
    ({"separator": ",,"}, "separator: ',,' is not one ASCII character"),
    ({"labels": []}, "labels: names no column"),
    ({"labels": [True]}, "labels: True is no column name"),
    ({"labels": {"click": 1}}, "labels: {'click': 1} is no list of column names"),
    ({"optional_labels": ["like"]}, "optional_labels: 'like' is none of the labels click, buy"),
    ({"dense": {"price": "log"}}, "dense: price: 'log' is none of log1p, none, standard"),
    ({"dense": ["price"]}, "dense: ['price'] is not a mapping column -> one of log1p"),
    ({"categorical": [], "multi_hot": {}}, "the model needs at least one table"),
    ({"categorical": ["user", "price"]}, "categorical: column 'price' is named twice (before in dense)"),
    ({"categorical": ["__group"]}, "categorical: the column name '__group' is reserved"),
    ({"multi_hot": {"tags": ""}}, "multi_hot: tags: '' is no separator"),
    ({"split": "time"}, "split: 'time' is not a mapping with the key 'by'"),
    ({"split": {"by": "day"}}, "split: by: 'day' is none of time, random, column"),
    ({"split": {"by": ["time"]}}, "split: by: ['time'] is none of time, random, column"),
    ({"split": {"by": "time"}}, "split: by time: key 'column' is missing"),
    (
        {"split": {"by": "time", "column": "user"}},
        "split: column: column 'user' is named twice (before in categorical)",
    ),
    ({"split": {"by": "random", "column": "ts"}}, "split: by random: there is no key 'column'"),
    ({"split": {"by": "random", "vall": 0.1}}, "split: by random: there is no key 'vall', did you mean 'val'?"),
    ({"split": {"by": "random", "val": 10}}, "split: val: 10 is no share of the rows between 0 and 1"),
    ({"split": {"by": "random", "val": 0.5, "test": 0.5}}, "split: val 0.5 and test 0.5 leave no rows for training"),
    ({"split": {"by": "random", "seed": "x"}}, "split: seed: 'x' is no integer from 0 to 2^32 - 1"),
]


@pytest.mark.parametrize("name", ["my.json", "my.yaml"])
@pytest.mark.parametrize(("change", "message"), BAD_SCHEMAS)
def test_a_mistake_in_the_schema_is_one_line(folder, name, change, message):
    (folder / "my.json").touch()
    path = write_schema(folder, name, **change)
    with pytest.raises(ValueError) as error:
        read_schema(path)
    assert str(error.value).startswith(f"{path}: ") and message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.yaml", "labels: [a\nfiles: b", "line 2: is no YAML: "),
        ("a.yaml", "dense:\n  a: none\n  a: log1p\n", "'a' stands twice in one place"),
        ("a.yaml", "no: 1\n", "a key: False is no column name (text; in YAML put 1, yes, no or null in quotes)"),
        ("a.yaml", "", "None is not a list of keys and their values"),
        ("a.json", '{"files": \n}', "line 2: is no JSON: "),
        ("a.json", '{"files": "a", "files": "b"}', "'files' stands twice in one place"),
        ("a.json", "[1]", "[1] is not a list of keys"),
        ("a.toml", "", "the name of a schema ends in .yaml, .yml or .json"),
        ("a.yaml", "\udcff", "is not UTF-8 text"),
    ],
)
def test_a_schema_that_cannot_be_parsed(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ValueError) as error:
        read_schema(path)
    assert str(error.value).startswith(f"{path}: ") and message in str(error.value) and "\n" not in str(error.value)


def test_without_pyyaml_json_still_works(folder, monkeypatch):
    plain_import = builtins.__import__

    def no_yaml(name, *more):
        if name == "yaml":
            raise ImportError
        return plain_import(name, *more)

    path = write_schema(folder, "my.yaml")
    monkeypatch.setattr(builtins, "__import__", no_yaml)
    with pytest.raises(ValueError, match="my.yaml: a YAML schema needs PyYAML: pip install pyyaml"):
        read_schema(path)
    assert read_schema(write_schema(folder, "my.json"))[1] == (folder / "clicks.csv",)
