"""Memory of collapse and export. Each case runs in a process of its own, whose peak memory is its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

COLLAPSE = """
import json, resource, sys
import torch
from mlet.inference import collapse_tables
from mlet.table_spec import plan_tables
from mlet.tables import EmbeddingTables

rows, inner, dim = 6_000_000, 64, 8
tables = EmbeddingTables(plan_tables({"t": rows}, dim, inner_dim=inner))
for part in tables.parts():
    part.group.weight.data.fill_(0.5)
    part.group.inner_projection.data.fill_(0.25)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
single = collapse_tables(tables)
vector = single(torch.tensor([[rows - 1]])).flatten().tolist()
print(json.dumps({"w1": rows * inner * 4, "out": rows * dim * 4, "grown": peak() - before, "vector": vector}))
"""

EXPORT = """
import json, resource, sys
import torch
from mlet.inference import collapse
from mlet.export import export_onnx
from mlet.models import build_model
from mlet.table_spec import plan_tables
from mlet.tables import EmbeddingTables

rows = 34_000_000
tables = EmbeddingTables(plan_tables({"small": 10, "t": rows}, 16), unknown=True)
model = build_model("dlrm", tables, bottom=(3, 16), top=(4, 1))
for parameter in model.parameters():
    parameter.data.fill_(0.01)
tables.units[0].rows.weight.data[-2:] = 0.3
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
ids = torch.tensor([[10, rows - 1], [0, rows], [3, 5]])
dense = torch.rand(3, 3)
worst = export_onnx(collapse(model), sys.argv[1], [(dense, ids, None), (dense[:2], ids[:2], None)], [False, False])
print(json.dumps({"worst": worst, "table": rows * 64, "grown": peak() - before}))
"""


def run(script, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_collapse_needs_memory_for_the_result_alone():
    """So that a table of more than half of memory collapses: the rows are computed in chunks of 64 MB."""
    result = run(COLLAPSE)
    assert result["grown"] < result["out"] + 0.15 * result["w1"]
    assert result["vector"] == pytest.approx([64 * 0.5 * 0.25] * 8)


@pytest.mark.slow
def test_a_table_over_two_gigabytes_exports_with_external_data(tmp_path):
    result = run(EXPORT, tmp_path / "m.onnx")
    assert result["worst"] < 1e-6
    assert (tmp_path / "m.onnx.data").stat().st_size > result["table"] > 2**31
    assert (tmp_path / "m.onnx").stat().st_size < 2**20
    # onnxruntime maps the weights, which counts as resident memory: the exporter itself may copy little
    assert result["grown"] < 1.3 * result["table"]
