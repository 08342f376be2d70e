"""The measurements of scripts/bench_inference.sh, which says how to run it.

Each contestant is a process of its own, so that thread pools and allocators do not meet; it sleeps while another one
runs. The parent asks them in turn, in every round and for every batch size: ratios are taken within a round, so that
other load on the machine hits both sides alike. Where cores are shared, the CPU seconds are the steadier figure.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the driver does, for every contestant

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
# the tables of Criteo Kaggle, those over half a million rows cut to that
ROWS = [1460, 583, 500_000, 500_000, 305, 24, 12_517, 633, 3, 93_145, 5683, 500_000, 3194]
ROWS += [27, 14_992, 500_000, 10, 5652, 2173, 4, 500_000, 18, 15, 286_181, 105, 142_572]
POOL = 32_768  # distinct rows that the batches are cut from: 54 MB of table rows at 26 tables and d = 16
SECONDS = 0.5  # a block: one contestant, one batch size, one round
CLONE = "git clone https://github.com/facebookresearch/dlrm && git -C dlrm checkout 090956e"
Score = Callable[[int], np.ndarray]  # batch number -> probabilities
Prepare = Callable[[np.ndarray, np.ndarray, int], tuple[Score, int]]


def main() -> None:
    """Build and export once, let the contestants take turns, print a table, write work/inference.csv."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reference", default="", help="checkout of facebookresearch/dlrm")
    parser.add_argument("--reference-python", default=sys.executable)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS, help="rows of each table")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 128, 2048, 8192])
    parser.add_argument("--dim", type=int, default=16)
    parser.add_argument("--bottom", default="13-512-256-64-16")
    parser.add_argument("--top", default="512-256-1")
    parser.add_argument("--skew", type=float, default=1.0, help="id = rows * u^skew, u uniform")
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--worker", default="", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    flags.threads = flags.threads or len(os.sched_getaffinity(0))
    if flags.worker:
        serve(flags)
        return
    if flags.reference and not Path(flags.reference, "dlrm_s_pytorch.py").is_file():
        print(f"error: {flags.reference} holds no dlrm_s_pytorch.py; get it with: {CLONE}", file=sys.stderr)
        sys.exit(2)
    flags.work.mkdir(parents=True, exist_ok=True)
    write_inputs(flags)
    names = ["onnx fp32", "onnx 8-bit tables", "torch collapsed", "onnx MLPs alone"]
    workers = {name: start(name, sys.executable) for name in names}
    if flags.reference:
        workers["reference"] = start("reference", flags.reference_python)
    check_scores(workers)
    report(measure(workers, flags), flags, workers)


# ---------------------------------------------------------------------------------------------- the parent's side


def write_inputs(flags: argparse.Namespace) -> None:
    """The model once, in every form that a contestant reads, and the rows that batches are cut from."""
    sys.path.insert(0, str(ROOT))
    import torch

    from mlet.export import export_onnx
    from mlet.inference import collapse, inference_tensors, save_collapsed
    from mlet.models import build_model
    from mlet.quantize import quantize_tables
    from mlet.table_spec import plan_tables
    from mlet.tables import EmbeddingTables

    bottom, top = ([int(width) for width in text.split("-")] for text in (flags.bottom, flags.top))
    specs = plan_tables({f"C{t + 1}": rows for t, rows in enumerate(flags.rows)}, flags.dim)
    model = build_model("dlrm", EmbeddingTables(specs, unknown=True, padding=True), bottom=bottom, top=top)
    model.initialize(np.random.RandomState(0), 0, "normal")
    with torch.no_grad():  # the initial 1/sqrt(n) is so small that a wrong table would not show in the scores
        model.tables.units[0].rows.weight.uniform_(-0.3, 0.3)
    model = collapse(model)
    rng = np.random.default_rng(1)
    dense = np.log1p(rng.exponential(10, (POOL, bottom[0]))).astype(np.float32)
    ids = np.stack([(n * rng.random(POOL) ** flags.skew).astype(np.int64) for n in flags.rows], axis=1)
    np.savez(flags.work / "pool.npz", dense=dense, ids=ids)
    save_collapsed(model, flags.work / "model.safetensors")
    if flags.reference:  # its python may lack safetensors
        np.savez(flags.work / "tensors.npz", **{name: t.detach().numpy() for name, t in inference_tensors(model)})
    samples = [(torch.from_numpy(dense[:n]), torch.from_numpy(ids[:n]), None) for n in (128, 2)]
    one_hot = [False] * len(flags.rows)
    export_onnx(model, flags.work / "fp32.onnx", samples, one_hot)
    write_mlps(model, flags.work / "mlps.onnx", torch)
    quantize_tables(model, 8)
    export_onnx(model, flags.work / "int8.onnx", samples, one_hot)


def write_mlps(model, path: Path, torch) -> None:  # noqa: ANN001
    """The floor: bottom and top MLP side by side, nothing between them. Its result means nothing."""

    class Mlps(torch.nn.Module):
        """Two MLPs that do not wait for one another."""

        def forward(self, dense, top):  # noqa: ANN001, ANN202
            """Both outputs."""
            return model.bottom(dense), model.top(top)

    batch = torch.export.Dim("batch")
    inputs = torch.zeros(2, model.bottom[0].in_features), torch.zeros(2, model.top[0].in_features)
    names = {"input_names": ["dense", "top"], "output_names": ["bottom", "probability"]}
    program = torch.onnx.export(
        Mlps().eval(), inputs, dynamic_shapes=({0: batch}, {0: batch}), dynamo=True, verbose=False, **names
    )
    program.save(str(path))


def start(name: str, python: str) -> subprocess.Popen:
    """A contestant's process; it answers one line of JSON to each line of JSON."""
    command = [python, str(Path(__file__).resolve()), "--worker", name, *sys.argv[1:]]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def ask(worker: subprocess.Popen, **request: object) -> dict:
    """One request, one answer."""
    try:
        worker.stdin.write(json.dumps(request) + "\n")
        worker.stdin.flush()
        return json.loads(worker.stdout.readline())
    except (BrokenPipeError, ValueError):
        sys.exit(f"error: this process failed: {' '.join(worker.args)}")


def check_scores(workers: dict[str, subprocess.Popen]) -> None:
    """All measure the same model: the same scores to 1e-5, with 8-bit tables to 0.05."""
    scores = {name: np.array(ask(worker, scores=512)["scores"]) for name, worker in workers.items()}
    exact = scores["torch collapsed"]
    for name, got in scores.items():
        if name == "onnx MLPs alone":
            continue
        difference = np.abs(got - exact).max()
        print(f"{name}: scores of 512 rows differ by at most {difference:.1e} (their std: {exact.std():.2f})")
        if not difference <= (0.05 if "8-bit" in name else 1e-5):
            sys.exit(f"error: {name} is not the same model")


def measure(workers: dict[str, subprocess.Popen], flags: argparse.Namespace) -> list[dict]:
    """Rows a second of every contestant, batch size and round; the order turns with each round."""
    results, names = [], list(workers)
    for batch in flags.batches:
        for name in names:
            ask(workers[name], batch=batch, seconds=SECONDS / 2)  # warm-up
        for turn in range(flags.rounds):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                speeds = ask(workers[name], batch=batch, seconds=SECONDS)
                results.append({"batch": batch, "contestant": name, "round": turn, **speeds})
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()
    return results


def report(results: list[dict], flags: argparse.Namespace, workers: dict[str, subprocess.Popen]) -> None:
    """Medians, and within-round ratios to the reference with their spread."""
    with open(flags.work / "inference.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(results[0]))
        writer.writeheader()
        writer.writerows(results)
    base = "reference" if flags.reference else "torch collapsed"
    print(f"\n| batch | contestant | rows/s | times the {base} (min-max) | rows per CPU second | times the {base} |")
    print("|---|---|---|---|---|---|")
    for batch in flags.batches:
        mine = [result for result in results if result["batch"] == batch]
        for name in workers:
            median, ratios = compare(mine, name, base, "rows_per_second")
            cpu_median, cpu_ratios = compare(mine, name, base, "rows_per_cpu_second")
            spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
            cpu = f"{cpu_median:,.0f} | {statistics.median(cpu_ratios):.2f}"
            print(f"| {batch} | {name} | {median:,.0f} | {spread} | {cpu} |")
    sizes = {name: (flags.work / f"{name}.onnx").stat().st_size / 1e6 for name in ("fp32", "int8")}
    print(
        f"\nMedians of {flags.rounds} rounds, {flags.threads} threads, {sum(flags.rows):,} rows of d={flags.dim}. "
        f"ONNX file: fp32 {sizes['fp32']:.1f} MB, 8-bit tables {sizes['int8']:.1f} MB. "
        f"Each round: {flags.work / 'inference.csv'}"
    )


def compare(results: list[dict], name: str, base: str, key: str) -> tuple[float, list[float]]:
    """Median of a contestant, and its ratios to the base round by round."""
    own, other = ([r[key] for r in results if r["contestant"] == one] for one in (name, base))
    return statistics.median(own), [a / b for a, b in zip(own, other, strict=True)]


# ------------------------------------------------------------------------------------------------- a contestant


def serve(flags: argparse.Namespace) -> None:
    """Answer requests until the parent closes the pipe."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what a library prints is no answer
    prepare = {"reference": reference, "torch collapsed": torch_collapsed}.get(flags.worker, onnx_file)(flags)
    pool = np.load(flags.work / "pool.npz")
    prepared: dict[int, tuple[Score, int]] = {}

    def ready(batch: int) -> tuple[Score, int]:
        if batch not in prepared:
            prepared[batch] = prepare(pool["dense"], pool["ids"], batch)
        return prepared[batch]

    for line in sys.stdin:
        request = json.loads(line)
        if "scores" in request:
            answer = {"scores": ready(request["scores"])[0](0).ravel().tolist()}
        else:
            answer = run_block(*ready(request["batch"]), request["batch"], request["seconds"])
        print(json.dumps(answer), file=answers, flush=True)


def run_block(score: Score, batches: int, batch: int, seconds: float) -> dict[str, float]:
    """Rows a second, and a second of CPU time of all threads, over at least `seconds` and three batches."""
    done, began, cpu_began = 0, time.perf_counter(), time.process_time()
    while True:
        score(done % batches)
        done += 1
        elapsed = time.perf_counter() - began
        if elapsed > seconds and done >= 3:
            cpu = time.process_time() - cpu_began
            rows = done * batch
            return {"rows_per_second": round(rows / elapsed, 1), "rows_per_cpu_second": round(rows / cpu, 1)}


def cut(batch: int) -> Iterator[slice]:
    """The batches' places in the pool, at most 1024 of them."""
    return (slice(k * batch, (k + 1) * batch) for k in range(min(1024, POOL // batch)))


def onnx_file(flags: argparse.Namespace) -> Prepare:
    """An exported file in onnxruntime, opened as --predict does."""
    sys.path.insert(0, str(ROOT))
    from mlet.export import open_session

    file = {"onnx fp32": "fp32", "onnx 8-bit tables": "int8", "onnx MLPs alone": "mlps"}[flags.worker]
    session = open_session(flags.work / f"{file}.onnx", flags.threads)
    inputs = {given.name: given.shape for given in session.get_inputs()}

    def prepare(dense: np.ndarray, ids: np.ndarray, batch: int) -> tuple[Score, int]:
        named = {"dense": dense, "ids": ids}
        if "top" in inputs:
            named["top"] = np.random.default_rng(2).random((POOL, inputs["top"][1]), np.float32)
        feeds = [{name: np.ascontiguousarray(named[name][place]) for name in inputs} for place in cut(batch)]
        return lambda k: session.run(["probability"], feeds[k])[0], len(feeds)

    return prepare


def torch_collapsed(flags: argparse.Namespace) -> Prepare:
    """`mlet.inference.load_collapsed` under inference_mode."""
    sys.path.insert(0, str(ROOT))
    import torch

    from mlet.inference import load_collapsed

    torch.set_num_threads(flags.threads)
    model = load_collapsed(flags.work / "model.safetensors")

    def prepare(dense: np.ndarray, ids: np.ndarray, batch: int) -> tuple[Score, int]:
        feeds = [(torch.from_numpy(dense[place]), torch.from_numpy(ids[place])) for place in cut(batch)]

        def score(k: int) -> np.ndarray:
            with torch.inference_mode():
                return model(*feeds[k]).numpy()

        return score, len(feeds)

    return prepare


def reference(flags: argparse.Namespace) -> Prepare:
    """The forward pass of the reference's DLRM_Net, its own input form made beforehand (its loader does that)."""
    checkout = str(Path(flags.reference).resolve())
    sys.argv = ["dlrm_s_pytorch.py"]  # it reads the command line
    sys.path.insert(0, checkout)
    import torch
    from dlrm_s_pytorch import DLRM_Net

    torch.set_num_threads(flags.threads)
    tensors = np.load(flags.work / "tensors.npz")
    bottom, top = ([int(width) for width in text.split("-")] for text in (flags.bottom, flags.top))
    vectors = len(flags.rows) + 1
    top = [flags.dim + vectors * (vectors - 1) // 2, *top]
    sizes = [np.array(widths) for widths in (flags.rows, bottom, top)]
    net = DLRM_Net(flags.dim, *sizes, "dot", sigmoid_bot=-1, sigmoid_top=len(top) - 2, loss_function="bce").eval()
    with torch.no_grad():
        for t, rows in enumerate(flags.rows):
            net.emb_l[t].weight.copy_(torch.from_numpy(tensors[f"table.C{t + 1}"][:rows]))
        for own, layers in (("bottom", net.bot_l), ("top", net.top_l)):
            for name, parameter in layers.named_parameters():
                parameter.copy_(torch.from_numpy(tensors[f"{own}.{name}"]))

    def prepare(dense: np.ndarray, ids: np.ndarray, batch: int) -> tuple[Score, int]:
        offsets = torch.arange(batch).repeat(ids.shape[1], 1)
        feeds = [
            (torch.from_numpy(dense[place]), offsets, torch.from_numpy(np.ascontiguousarray(ids[place].T)))
            for place in cut(batch)
        ]

        def score(k: int) -> np.ndarray:
            with torch.no_grad():
                return net(*feeds[k]).numpy()

        return score, len(feeds)

    return prepare


if __name__ == "__main__":
    main()
