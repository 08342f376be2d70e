"""Fixtures. Real data is looked for in $DLRM_MLET_DATA, else in ../shared/data beside the checkout."""

import json
import os
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import dlrm_mlet

ROOT = Path(__file__).resolve().parent.parent
torch.set_num_threads(1)  # the models here are tiny: threads only wait for one another


@pytest.fixture
def real_data():
    """Path of a real data file, or the test is skipped with the reason."""
    folder = Path(os.environ.get("DLRM_MLET_DATA", ROOT.parent / "shared" / "data"))

    def find(name):
        path = folder / name
        if not path.exists():
            pytest.skip(f"real data {name} is not here: set DLRM_MLET_DATA to its folder")
        return path

    return find


@pytest.fixture
def shell_environment():
    """For scripts/*.sh: the Python that runs the tests, so that they set up none of their own."""
    folder = Path(sys.executable).parent
    return os.environ | {"VIRTUAL_ENV": str(folder.parent), "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


@pytest.fixture
def driver(tmp_path, monkeypatch, capsys):
    """Run the driver in a folder of its own: driver("--flag=1 ...", extra=...) -> exit code, output, metrics events."""
    monkeypatch.chdir(tmp_path)

    def run(flags, *more):
        capsys.readouterr()
        try:
            code = dlrm_mlet.main([*shlex.split(flags), *map(str, more)])
        except SystemExit as stop:
            code = stop.code
        output = capsys.readouterr()
        metrics = tmp_path / "run.jsonl"
        events = [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []
        return SimpleNamespace(code=code, out=output.out, err=output.err, events=events, folder=tmp_path)

    return run


@pytest.fixture(scope="session")
def small_tsv(tmp_path_factory):
    """2,100 rows of built-in data in the Criteo format."""
    from sources.synthetic import write_criteo_tsv

    path = tmp_path_factory.mktemp("data") / "train.txt"
    write_criteo_tsv(path, rows=2100, seed=1)
    return path
