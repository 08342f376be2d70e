"""Worker of scripts/bench_train.py and scripts/bench_growth.py: one program's step on batches drawn beforehand.

    python scripts/bench_step.py '{"program": "ours", ...}'

builds the model, warms up, writes a line {"ready": true, ...} and then, for each line on stdin with a number of steps,
a line {"seconds": ..., "gpu_mb": ...}. It runs in the Python of the program that it measures, and imports that program
and nothing else of this project: the reference's modules have the same names as ours.

Legend: B batch, M dense features, T tables, H ids a bag, L = T * B * H lookups.
"""

from __future__ import annotations

import json
import os
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

Step = Callable[[int], None]  # takes the number of a batch
Drawn = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # dense [B, M], ids [T, B, H], labels [B, 1]


def main() -> None:
    """Build, say ready, then run blocks of steps as they are asked for."""
    spec = json.loads(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a program prints of itself is none of the answers
    torch.manual_seed(1)
    batches = list(drawn_batches(spec["batches"]))
    cuda = bool(spec["use_gpu"]) and torch.cuda.is_available()
    if spec["use_gpu"] and not cuda:
        sys.exit("--use-gpu is given, but torch sees no CUDA device")
    build = {"reference": reference_step, "ours": our_step, "fbgemm": fbgemm_step}[spec["program"]]
    step = build(spec, batches, torch.device("cuda", 0) if cuda else torch.device("cpu"))
    count = len(batches)
    del batches  # each program holds them in its own format

    def block(steps: int) -> dict:
        if cuda:
            torch.cuda.synchronize()
        began = time.perf_counter()
        for number in range(steps):
            step(number % count)
        if cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "gpu_mb": torch.cuda.max_memory_allocated() / 1e6 if cuda else 0}

    def answer(values: dict) -> None:
        print(json.dumps(values), file=answers, flush=True)

    block(spec["warm_up"])
    answer({"ready": True, "threads": torch.get_num_threads(), "torch": torch.__version__})
    for line in sys.stdin:
        answer(block(int(line)))


def drawn_batches(path: str) -> Iterator[Drawn]:
    """The parent's batches."""
    with np.load(path) as data:
        dense, ids, labels = (torch.from_numpy(data[name]) for name in ("dense", "ids", "labels"))
    for number in range(len(dense)):
        yield dense[number], ids[number].long(), labels[number]


def widths(text: str) -> np.ndarray:
    """13-512-16 -> [13, 512, 16]"""
    return np.array([int(word) for word in text.split("-")])


# ------------------------------------------------------------------------------------------------- the reference


def reference_step(spec: dict, batches: list[Drawn], device: torch.device) -> Step:
    """The reference's own model, loss and optimizers, called as its loop calls them."""
    sys.path.insert(0, spec["checkout"])
    sys.argv[1:] = []
    import dlrm_s_pytorch as reference

    shape, use_gpu = spec["shape"], device.type == "cuda"
    reference.ext_dist.init_distributed(local_rank=-1, use_gpu=use_gpu, backend="")
    tables, bottom = np.array(shape["tables"]), widths(shape["bottom"])
    vectors = len(tables) + 1
    top = np.concatenate([[vectors * (vectors - 1) // 2 + bottom[-1]], widths(shape["top"])])
    ndevices = 1 if use_gpu else -1
    np.random.seed(1)
    # the wrappers of its loop read these two module variables
    reference.args = Namespace(loss_function="bce", data_generation="dataset")
    reference.dlrm = reference.DLRM_Net(
        shape["dim"], tables, bottom, top, arch_interaction_op="dot", sigmoid_top=top.size - 2, ndevices=ndevices
    ).to(device)
    optimizer = reference_optimizer(reference, spec)
    scheduler = reference.LRPolicyScheduler(optimizer, 0, 0, 0)
    batches = [reference_batch(batch) for batch in batches]

    def step(number: int) -> None:
        dense, offsets, ids, labels = batches[number]
        output = reference.dlrm_wrap(dense, offsets, ids, use_gpu, device, ndevices=ndevices)
        loss = reference.loss_fn_wrap(output, labels, use_gpu, device)
        loss.detach().cpu().numpy()  # its loop reads every loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()

    return step


def reference_optimizer(reference: Any, spec: dict) -> torch.optim.Optimizer:
    """What its --optimizer names."""
    rules = {
        "sgd": torch.optim.SGD,
        "adagrad": torch.optim.Adagrad,
        "rwsadagrad": reference.RowWiseSparseAdagrad.RWSAdagrad,
    }
    return rules[spec["optimizer"]](reference.dlrm.parameters(), lr=spec["rate"])


def reference_batch(batch: Drawn) -> tuple[torch.Tensor, torch.Tensor, Any, torch.Tensor]:
    """As its loaders give them: offsets [T, B]; ids [T, B] of a data set, a list of T rows of random bags."""
    dense, ids, labels = batch
    tables, samples, hot = ids.shape
    offsets = torch.arange(0, samples * hot, hot).repeat(tables, 1)
    flat = ids.reshape(tables, -1)
    return dense, offsets, flat.contiguous() if hot == 1 else [row.clone() for row in flat], labels


# ---------------------------------------------------------------------------------------------------------- ours


def make_trainer(spec: dict, flags: list[str], device: torch.device) -> Any:
    """Our driver's Trainer, put together as its `run` does."""
    sys.path.insert(0, spec["root"])
    import dlrm_mlet as driver

    torch.sparse.check_sparse_tensor_invariants.disable()
    options = driver.parse_flags(flags)
    rng = np.random.RandomState(1)
    data = driver.open_data(options, rng)
    model = driver.make_model(options, data, rng)
    trainer = driver.Trainer(options, data, model.to(device), device, rng)
    model.train()
    return trainer


def our_step(spec: dict, batches: list[Drawn], device: torch.device) -> Step:
    """The step of our driver's own loop."""
    trainer = make_trainer(spec, spec["flags"], device)
    batches = [our_batch(batch) for batch in batches]

    def step(number: int) -> None:
        trainer._step(batches[number])

    return step


def our_batch(batch: Drawn) -> tuple:
    """`sources.Batch`: one-hot ids [B, T]; bags as ids [L] and offsets [T * B + 1]."""
    from sources import Batch

    dense, ids, labels = batch
    if ids.shape[2] == 1:
        return Batch(dense, ids[:, :, 0].t().contiguous(), None, labels)
    return Batch(dense, *flat_bags(ids), labels)


def flat_bags(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[T, B, H] -> all ids [L], table 0 first, and where each bag begins [T * B + 1]."""
    tables, samples, hot = ids.shape
    return ids.flatten(), torch.arange(0, (tables * samples + 1) * hot, hot)


# -------------------------------------------------------------------------------------------------------- FBGEMM


def fbgemm_step(spec: dict, batches: list[Drawn], device: torch.device) -> Step:
    """FBGEMM's tables, updated inside the backward pass, under our dense net and optimizer."""
    tables = fbgemm_tables(spec, device)
    shape = spec["shape"]
    # our own tables are built of one row each: the model is here for what lies behind them
    rows = f"--arch-embedding-size={'-'.join('1' for _ in shape['tables'])}"
    trainer = make_trainer(spec, [*spec["flags"], rows], device)
    model, optimizer = trainer.model, trainer.optimizer
    loss_of = sys.modules["dlrm_mlet"].make_loss(trainer.flags, device)  # what make_trainer has imported
    batches = [(dense, *flat_bags(ids), labels) for dense, ids, labels in batches]

    def step(number: int) -> None:
        dense, ids, offsets, labels = (part.to(device) for part in batches[number])
        vectors = tables(ids, offsets).view(len(dense), len(shape["tables"]), shape["dim"])
        loss = loss_of(model.vectors_to_probability(dense, vectors), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def fbgemm_tables(spec: dict, device: torch.device) -> torch.nn.Module:
    """Table-batched embedding bags with the exact row-wise update of the cell's optimizer."""
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
        ComputeDevice,
        EmbeddingLocation,
        SplitTableBatchedEmbeddingBagsCodegen,
    )

    rules = {"sgd": EmbOptimType.EXACT_SGD, "rwsadagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD}
    place = (EmbeddingLocation.HOST, ComputeDevice.CPU)
    if device.type == "cuda":
        place = (EmbeddingLocation.DEVICE, ComputeDevice.CUDA)
    shape = spec["shape"]
    tables = SplitTableBatchedEmbeddingBagsCodegen(
        [(rows, shape["dim"], *place) for rows in shape["tables"]],
        optimizer=rules[spec["optimizer"]],
        learning_rate=spec["rate"],
        device=device,
    )
    for rows, weight in zip(shape["tables"], tables.split_embedding_weights(), strict=True):
        weight.uniform_(-(rows**-0.5), rows**-0.5)
    return tables


if __name__ == "__main__":
    main()
