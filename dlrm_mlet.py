"""Train a CTR model with multi-layer embeddings (MLET), collapse it, export it to ONNX and prove the file.

    bash scripts/demo.sh                                    # built-in data, single layer against MLET

    python dlrm_mlet.py --data-generation=dataset --data-set=kaggle --raw-data-file=train.txt \\
        --arch-sparse-feature-size=16 --arch-mlp-bot=13-512-256-64-16 --arch-mlp-top=512-256-1 \\
        --loss-function=bce --round-targets=True --learning-rate=0.1 --mini-batch-size=128 --print-freq=1024 \\
        --mlet-inner-dim=64 --save-onnx=model.onnx --metrics-file=run.jsonl

    python dlrm_mlet.py --predict=test.txt --load-onnx=model.onnx --predictions=scores.txt

Flags that Meta's `dlrm_s_pytorch.py` has keep their names, defaults and behaviour; `--help` lists all. The file reads
from top to bottom: flags, data, model, training, evaluation, inference model and export, scoring, main.

Legend: B batch, M dense features, T tables, n rows of a table, d embedding dimension, K MLET inner dimension, S tasks.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import math
import os
import platform
import re
import resource
import sys
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

# Threads that wait for one another by spinning make a step tens of times slower as soon as another process wants a
# core (4 ms become 140 ms on 2 cores); sleeping costs next to nothing. Read once, when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

try:
    import torch
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    what_to_do = "source .venv/bin/activate (scripts/demo.sh makes it), or pip install -r requirements.txt"
    print(f"error: {sys.executable} has no torch: {what_to_do}", file=sys.stderr)
    sys.exit(2)
import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from tqdm import tqdm

import data_utils
import hashing
import mlet
from datastore.provenance import commit_of, machine
from datastore.schema import FITS, ID_ORDERS, read_schema
from hashing.cce import recluster
from hashing.report import collision_report
from mlet import checkpoint, export, memory, quantize
from mlet.analysis import spectra
from mlet.boundary import EpochBoundary
from mlet.by_frequency import counts_of_rows, frequency_report, quality_by_count, rarest_counts
from mlet.controls import MaskedCrossTerm
from mlet.cuda_graph import CapturedBackward
from mlet.embedding import initial_projection
from mlet.files import atomic_file, check_writable, recover_directory
from mlet.free_memory import available_bytes, runtime_bytes
from mlet.id_dropout import drop_ids
from mlet.inference import collapse, full_config, inference_tensors, is_collapsed, load_collapsed, save_collapsed
from mlet.initialize import row_bound, set_unknown_rows
from mlet.metrics import MetricsFile, reference_metrics
from mlet.models import build_model, model_from_config, model_names, model_options, option_text, parse_options
from mlet.models.base import BOTTOM_ENDS
from mlet.models.dlrm import INTERACTIONS
from mlet.models.heads import TASK_HEADS
from mlet.table_spec import QR_OPERATIONS, RowMap, TableSpec, plan_tables
from mlet.tables import EmbeddingTables, row_groups
from mlet.tasks import Tasks, masked_loss
from mlet.training_state import pack_optimizer, restore_rng, rng_state, unpack_optimizer
from optim import build_optimizer, optimizer_names
from optim.combined import Combined
from optim.penalty import add_row_penalty
from optim.row_clip import clip_row_gradients
from optim.row_decay import RowDecay
from optim.row_rate import KINDS, RowRate
from optim.schedule import learning_rate_scale, scale_rates, warmup_decay
from sources import Batch, Source, SourceOptions, open_source, source_names
from sources.prefetch import prefetch
from sources.random import RandomData

# ------------------------------------------------------------------------------------------------------- 1. flags

DROPPED_FLAGS = {
    "--dataset-multiprocessing": "the raw file is read in one streaming pass that uses all cores; leave it out",
    "--local_rank": "this driver is one process; for several GPUs build the model on TorchRec",
    "--dist-backend": "this driver is one process; for several GPUs build the model on TorchRec",
    "--sync-dense-params": "one process on one device has nothing to synchronise; leave it out",
    "--plot-compute-graph": "export with --save-onnx and open the file in a graph viewer such as Netron",
    "--mlperf-bin-loader": "the prepared store is binary and memory-mapped already; leave it out",
    "--mlperf-bin-shuffle": "training rows are shuffled singly: use --data-randomize=total",
    "--data-trace-file": "the reference's driver never reads it; use --data-set=criteo-synthetic for realistic ids",
    "--data-trace-enable-padding": "see --data-trace-file",
}

# flags that may differ between a run and the run that resumes it: they do not change what is learned
FREE_ON_RESUME = """nepochs print_freq print_time print_wall_time print_precision test_freq test_mini_batch_size
    num_workers test_num_workers debug_mode enable_profiling tensor_board_filename metrics_file save_model load_model
    resume save_collapsed save_onnx mlperf_logging mlperf_acc_threshold mlperf_auc_threshold processed_data_file
    raw_data_file memory_map use_gpu cuda_graph prepare_only spectra frequency_report early_stop_patience hash_map_file
    hash_embeddings hash_learn_only hash_report hash_history_file hash_dim hash_seed""".split()


ROOT = Path(__file__).resolve().parent
STORES = Path(".dlrm_store")  # of prepared data that --processed-data-file gives no place
OVERLAP = "maps carry its labels, which ruins the model; name older rows, or say --hash-overlap=allow"
HASH_DIM = 4  # of --hash-dim, where no map file has another

# arguments of dlrm that have flags of their own, as in the reference: (flag, default)
DLRM_FLAGS = {"interaction": ("--arch-interaction-op", "dot"), "itself": ("--arch-interaction-itself", False)}


class OneLineParser(argparse.ArgumentParser):
    """argparse, but a bad value is one line and exit code 2, without the usage text of a hundred flags."""

    def error(self, message: str) -> None:
        self.exit(2, f"{self.prog}: error: {message}\n")


class Dropped(argparse.Action):
    """A flag of the reference that has no meaning here: refused with what to use instead."""

    def __call__(self, parser: argparse.ArgumentParser, _n: object, _v: object, option_string: str = "") -> None:
        parser.error(f"{option_string} is not supported: {DROPPED_FLAGS[option_string]}")


def parse_flags(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse and check the command line."""
    parser = OneLineParser(
        description="Train DLRM with multi-layer embeddings, collapse and export it.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    groups = (
        add_model_flags,
        add_mlet_flags,
        add_hash_flags,
        add_data_flags,
        add_task_flags,
        add_training_flags,
        add_row_flags,
        add_run_flags,
        add_io_flags,
    )
    for add_group in groups:
        add_group(parser)
    for flag in DROPPED_FLAGS:
        parser.add_argument(flag, nargs="?", action=Dropped, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    flags = parser.parse_args(arguments)
    try:
        check_flags(flags)
    except ValueError as error:
        parser.error(str(error))
    return flags


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("model (as in the DLRM reference)").add_argument
    add("--arch-model", choices=model_names(), default="dlrm",
        help="which CTR model; for those other than dlrm --arch-mlp-top is the deep tower (input width computed), "
        "and --arch-mlp-bot turns the dense features into one more vector")  # fmt: skip
    add("--arch-option", type=named_value, action="append", default=[], metavar="NAME=VALUE",
        help=f"an option of the model, may be repeated: {options_help(model_names(), model_options)}")  # fmt: skip
    add("--batch-norm", **boolean(), help="batch normalisation in the hidden layers of the MLPs")
    add("--dropout", type=number(0, 0.99), default=0.0, help="share dropped in the hidden layers of the MLPs")
    add("--arch-sparse-feature-size", type=at_least(1), default=2, help="embedding dimension d, after collapse")
    add("--arch-embedding-size", type=dashed_ints, default="4-3-2", help="rows per table, random data only")
    add("--arch-mlp-bot", type=dashed_ints, default="4-3-2", help="bottom MLP widths; a data set replaces the first")
    add("--arch-mlp-bot-end", choices=BOTTOM_ENDS, default="relu",
        help="last layer of the bottom MLP: linear keeps the dense features where d is small, whose d ReLU outputs may "
        "all die")  # fmt: skip
    add("--arch-mlp-top", type=dashed_ints, default="4-2-1", help="top MLP widths without the input width")
    add("--arch-interaction-op", choices=INTERACTIONS, default="dot", help="interaction of the vectors")
    add("--arch-interaction-itself", **boolean(), help="dot products of each vector with itself, too")
    add("--weighted-pooling", choices=("fixed", "learned"), default=None, help="pooling weight per row: 1, or learned")
    add("--activation-function", choices=("relu",), default="relu", help="activation of the MLPs")
    add("--loss-function", choices=("mse", "bce", "wbce"), default="mse", help="loss; wbce weighs the classes")
    add("--loss-weights", type=dashed_floats, default="1.0-1.0", help="wbce: weights of class 0 and class 1")
    add("--loss-threshold", type=number(0, 1), default=0.0, help="t > 0 clamps the probability to [t, 1-t]")
    add("--round-targets", **boolean(), help="random data: labels rounded to 0 or 1")
    add("--qr-flag", **boolean(), help="quotient-remainder tables (arXiv 1909.02107)")
    add("--qr-threshold", type=at_least(0), default=200, help="for tables of more rows than this")
    add("--qr-operation", choices=QR_OPERATIONS, default="mult", help="how quotient and remainder combine")
    add("--qr-collisions", type=at_least(1), default=4, help="rows of the remainder part")
    add("--md-flag", **boolean(), help="mixed-dimension tables (arXiv 1909.11810)")
    add("--md-threshold", type=at_least(0), default=200, help="for tables of more rows than this")
    add("--md-temperature", type=number(0), default=0.3, help="alpha of the power rule")
    add("--md-round-dims", **boolean(), help="round the dimensions to powers of two")


def add_mlet_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("multi-layer embeddings (arXiv 2006.05623, 2309.15881)").add_argument
    add("--mlet-inner-dim", type=at_least(0), default=0, metavar="K", help="train tables as W1[n,K] W2[K,d]; 0: off")
    add("--mlet-init", default="normal", help="initial W2: normal (std 0.25), normal-<std>, scaled, xavier, orthogonal")
    add("--mlet-min-rows", type=at_least(0), default=0, metavar="N", help="smaller tables stay single-layer")
    add("--mlet-w2-rate-multiplier", type=number(0), default=1.0, metavar="X",
        help="rate of W2 = X times --learning-rate; 0: a fixed random W2 (a control)")  # fmt: skip
    add("--mlet-cross-term", choices=("full", "masked"), default="full",
        help="masked: a control, W1 and W2 are trained but tables move by their own rows alone (slow)")  # fmt: skip
    add("--spectra", **boolean(), help="write the tables' singular values to --metrics-file at each evaluation")


def add_hash_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("fewer rows than ids (learned maps: arXiv 2203.15837)").add_argument
    add("--hash-method", choices=("none", *hashing.method_names()), default="none", help="how ids come to share rows")
    add("--hash-compression", type=number(1), default=10.0, metavar="C", help="a table of n ids gets n/C rows")
    add("--hash-min-rows", type=at_least(0), default=200, metavar="N", help="only tables of more ids than this")
    add("--hash-option", type=named_value, action="append", default=[], metavar="NAME=VALUE",
        help="an option of the method, may be repeated: "
        f"{options_help(hashing.method_names(), hashing.method_options)}")  # fmt: skip
    add(
        "--hash-map-file",
        default="",
        metavar="FILE",
        help="maps are written there; if it exists, they are read instead",
    )
    add("--hash-history", type=history_range, default=None, metavar="SHARE",
        help="first share of the training rows, or FROM-TO: maps are learned from it, the model from the rest; "
        "default 0.5 for maps that need an embedding, which carries labels; else 0: counts of all")  # fmt: skip
    add("--hash-history-file", default="", metavar="RAW",
        help="raw rows of older days, in the data set's format, that maps are learned from instead: the model then "
        "trains on all training rows; RAW may hold none of them, nor rows of validation and test")  # fmt: skip
    add("--hash-dim", type=at_least(1), default=None, metavar="D",
        help="width of the model that learns the embedding; default 4, or as --hash-map-file has it")  # fmt: skip
    add("--hash-seed", type=at_least(0), default=None, metavar="SEED",
        help="seed of the maps; default --numpy-rand-seed, or as --hash-map-file has it")  # fmt: skip
    add("--hash-embeddings", default="", metavar="PATH",
        help="take the embedding from a checkpoint, trained with its own --train-share, or from a safetensors file: "
        "that of --save-collapsed, or [ids, width] a table, rows in the order of ids; labels of the training rows "
        "must not be in it")  # fmt: skip
    add("--hash-overlap", choices=("refuse", "allow"), default="refuse",
        help="allow: train on rows whose labels the map has learned, too (it ruins the model; a control)")  # fmt: skip
    add("--hash-learn-only", **boolean(), help="write --hash-map-file and stop")
    add("--hash-report", **boolean(), help="print ids, rows, collisions and bytes of each table")


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("data").add_argument
    add("--data-generation", choices=("random", "dataset"), default="random", help="random batches, or a data set")
    add("--data-set", choices=source_names(), default="kaggle", help="format of the raw data")
    add("--raw-data-file", default="", metavar="PATH",
        help="raw data: file, folder or prefix, as the data set has it (the synthetic ones: none)")  # fmt: skip
    add("--processed-data-file", default="", metavar="DIR", help="prepared store; default: .dlrm_store/<key>")
    add("--data-randomize", choices=("total", "day", "none"), default="total", help="shuffle the training rows")
    add("--train-share", type=share_range, default=None, metavar="FROM-TO",
        help="train on a part of the training rows in file order, such as 0.5-1; default: all, less --hash-history"
    )  # fmt: skip
    add("--max-ind-range", type=int, default=-1, help="raw ids modulo this; -1: off")
    add("--data-sub-sample-rate", type=number(0, 1), default=0.0, help="share of negatives dropped while preparing")
    add("--data-option", type=named_value, action="append", default=[], metavar="NAME=VALUE",
        help="an option of the data set, such as split=day for avazu; may be repeated")  # fmt: skip
    add("--bad-rows", choices=("fail", "skip"), default="fail", help="raw rows that cannot be read: stop, or count")
    add("--vocabulary-min-count", type=at_least(1), default=1, help="ids seen less often share the unknown id")
    add("--vocabulary-fit", choices=FITS, default="all", help="rows that ids and their least count come from")
    add("--vocabulary-order", choices=ID_ORDERS, default="appearance", help="ids by first appearance or by frequency")
    add("--prepare-only", **boolean(), help="prepare the store, print where it is, and stop")
    add("--memory-map", **boolean(), help="always on here: the store is memory-mapped; results do not depend on it")
    add("--num-workers", type=at_least(0), default=0, help="> 0: read training batches in a background thread")
    add("--test-num-workers", type=at_least(-1), default=-1, help="the same for evaluation; -1: as --num-workers")
    add("--synthetic-rows", type=at_least(14), default=400_000, help="criteo- and multitask-synthetic: rows")
    add("--synthetic-seed", type=at_least(0), default=0, help="the same: seed of the data")
    add = parser.add_argument_group("random data").add_argument
    add("--data-size", type=at_least(1), default=1, help="samples")
    add("--num-batches", type=at_least(-1), default=0, help="training batches an epoch; 0 or -1: all")
    add("--num-indices-per-lookup", type=at_least(1), default=10, help="most ids a bag")
    add("--num-indices-per-lookup-fixed", **boolean(), help="exactly that many, less duplicates")
    add("--rand-data-dist", choices=("uniform", "gaussian"), default="uniform", help="distribution of the ids")
    add("--rand-data-min", type=number(), default=0.0, help="gaussian: smallest id")
    add("--rand-data-max", type=number(), default=1.0, help="gaussian: largest id")
    add("--rand-data-mu", type=number(), default=-1.0, help="gaussian: mean; -1: middle of min and max")
    add("--rand-data-sigma", type=number(0), default=1.0, help="gaussian: standard deviation")


def add_task_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("labels (several: one model, one output each)").add_argument
    add("--tasks", default="", metavar="LABEL,...",
        help="label columns to train on; default: the data set's first. Several share tables and bottom MLP and have a "
        "head each; a label that a row lacks counts neither in its loss nor in its metrics")  # fmt: skip
    add("--task-weights", type=comma_floats, default=None, metavar="X,...",
        help="weights of the tasks' losses, and of their metrics in the mean that checkpoints are chosen by; default: 1"
    )  # fmt: skip
    add("--task-heads", choices=TASK_HEADS, default="towers",
        help="towers: a top MLP (deep part) a task; mmoe: experts, which are its hidden layers, mixed by a gate a task "
        "(Ma et al., KDD 2018), and a linear layer a task")  # fmt: skip
    add("--mmoe-experts", type=at_least(1), default=4, metavar="N", help="experts of --task-heads=mmoe")


def add_training_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("training").add_argument
    add("--mini-batch-size", type=at_least(1), default=1, help="samples a batch")
    add("--nepochs", type=at_least(0), default=1, help="passes over the training rows")
    add("--learning-rate", type=number(0), default=0.01, help="rate of all parameters")
    add("--optimizer", choices=optimizer_names(), default="sgd", help="update rule")
    add("--early-stop-patience", type=at_least(0), default=0, metavar="N",
        help="stop after N evaluations in a row without a better validation AUC; 0: never")  # fmt: skip
    add("--lr-plateau-factor", type=number(0, 1), default=1.0, metavar="X",
        help="multiply all rates with X at each evaluation without a better validation AUC")  # fmt: skip
    add("--lr-num-warmup-steps", type=at_least(0), default=0, help="linear warm-up, in optimizer steps")
    add("--lr-decay-start-step", type=at_least(0), default=0, help="first step of the quadratic decay")
    add("--lr-num-decay-steps", type=at_least(0), default=0, help="steps of the quadratic decay; 0: none")
    add("--mlperf-grad-accum-iter", type=at_least(1), default=1, help="batches whose mean gradient makes one step")
    add("--numpy-rand-seed", type=at_least(0), default=123, help="seed of weights, random data and shuffling")
    add("--use-gpu", **boolean(), help="train on the first CUDA device, if there is one")
    add("--cuda-graph", choices=("auto", "off"), default="auto",
        help="with --use-gpu: launch forward and backward of whole one-hot batches as one CUDA graph")  # fmt: skip
    add("--precision", choices=("fp32", "bf16"), default="fp32",
        help="of the dense layers' arithmetic in training; weights and evaluation stay fp32")  # fmt: skip
    add("--emb-precision", choices=("fp32", "bf16"), default="fp32",
        help="of the tables in training; bf16 is rounded stochastically, optimizer state stays fp32")  # fmt: skip
    add(
        "--compile",
        **boolean(),
        help="torch.compile for the dense layers: takes a minute and a C++ compiler at the start",
    )
    add("--inference-only", **boolean(), help="evaluate (and export) without training")
    add("--quantize-mlp-with-bit", type=int, choices=quantize.MLP_BITS, default=32, help="inference: MLPs")
    add("--quantize-emb-with-bit", type=int, choices=quantize.TABLE_BITS, default=32, help="inference: tables")


def add_row_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("training of the tables' rows").add_argument
    add("--emb-optimizer", choices=("same", *optimizer_names()), default="same",
        help="update rule of the tables' rows (W1 with MLET, first-order weights too); same: --optimizer")  # fmt: skip
    add("--adam-row-steps", **boolean(),
        help="adam on rows: correct a row's moments by the number of its own updates, not of all steps")  # fmt: skip
    add("--emb-learning-rate-multiplier", type=number(0), default=1.0, metavar="X",
        help="rate of the tables' rows (W1 with MLET; first-order weights too) = X times --learning-rate")  # fmt: skip
    add("--emb-lr-frequency", choices=("none", *KINDS), default="none",
        help="rate of a row by its frequency (arXiv 2505.05605 and rivals): rare ones move less, or more")  # fmt: skip
    add("--emb-lr-counts", choices=("online", "data"), default="online",
        help="frequencies: lookups counted while training, or those of the training rows from the start")  # fmt: skip
    add("--emb-lr-halflife", type=number(0), default=0.0, metavar="STEPS", help="online: old lookups fade; 0: never")
    add("--emb-lr-power", type=number(0), default=0.1, help="p of tail-decrease and tail-increase")
    add("--emb-reinit", choices=("none", "epoch", "epoch-w2"), default="none",
        help="draw tables (-w2: W2, too) and their state anew for each further epoch (arXiv 2407.01607)")  # fmt: skip
    add("--emb-reinit-min-rows", type=at_least(0), default=0, metavar="N", help="only tables of at least N ids")
    add("--emb-reinit-max-count", type=at_least(0), default=0, metavar="N",
        help="only rows whose ids occur at most N times in the training rows, together where they share it; 0: all"
    )  # fmt: skip
    add("--emb-init", default="uniform",
        help="initial rows: uniform (up to 1/sqrt(n)), uniform-<scale> (times that) or normal-<std>")  # fmt: skip
    add("--emb-l2", type=number(0), default=0.0, metavar="X",
        help="L2 penalty X/2 |row|^2 on the rows (W1's with MLET) that a batch reads, once a step")  # fmt: skip
    add("--emb-weight-decay", type=number(0), default=0.0, metavar="X",
        help="decoupled decay: rows that a batch reads lose the share X times their rate, once a step (AdamW)"
    )  # fmt: skip
    add("--emb-idle-decay", type=number(0), default=0.0, metavar="ALPHA",
        help="a row that was not read for I steps loses the share min(1, ALPHA I) when it is (AdamAR, arXiv 2511.06374)"
    )  # fmt: skip
    add("--emb-idle-decay-at", choices=("update", "lookup"), default="update",
        help="take --emb-idle-decay with a row's update, as the paper writes it, or before the model reads the row"
    )  # fmt: skip
    add("--emb-clip", type=number(0), default=0.0, metavar="R",
        help="clip each row's gradient to its lookups times its norm times R (CowClip, arXiv 2204.06240); 0: off"
    )  # fmt: skip
    add("--emb-clip-floor", type=number(0), default=1e-5, metavar="ZETA",
        help="--emb-clip takes a row's norm for at least R sqrt(D) ZETA")  # fmt: skip
    add("--emb-id-dropout", type=number(0, 1), default=0.0, metavar="P",
        help="in training replace each id with its table's unknown id with probability P, which trains that row"
    )  # fmt: skip


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("progress, evaluation, profiling").add_argument
    add("--print-freq", type=at_least(1), default=1, help="batches between two progress lines")
    add("--test-freq", type=int, default=-1, help="batches between two evaluations; a data set also has one an epoch")
    add("--test-mini-batch-size", type=int, default=-1, help="samples an evaluation batch; -1: --mini-batch-size")
    add("--print-time", **boolean(), help="milliseconds a batch in the progress lines (else -1)")
    add("--print-wall-time", **boolean(), help="time of day in the progress lines")
    add("--print-precision", type=at_least(0), default=5, help="digits of printed tensors")
    add("--debug-mode", **boolean(), help="print model, data and weights; show tracebacks of errors")
    add("--enable-profiling", **boolean(), help="write torch.profiler tables and a trace of the first 1000 batches")
    add("--frequency-report", **boolean() | {"type": report_moment, "const": "end", "metavar": "True|False|epoch"},
        help="test quality by how often the ids of a row were seen in training; epoch: validation at each epoch's end, "
        "by the row's rarest id, too")  # fmt: skip
    add("--tensor-board-filename", default=None, metavar="DIR", help="write TensorBoard events there")
    add("--mlperf-logging", **boolean(),
        help="also print recall, precision, F1 and average precision (of the first task) at each test")  # fmt: skip
    add("--mlperf-acc-threshold", type=number(0, 1), default=0.0, help="stop when the test accuracy exceeds this share")
    add("--mlperf-auc-threshold", type=number(0, 1), default=0.0, help="stop when the test AUC exceeds this")


def add_io_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("checkpoints, export, scoring").add_argument
    add("--save-model", default="", metavar="DIR", help="save DIR/last and DIR/best (by validation AUC)")
    add("--load-model", default="", metavar="DIR", help="weights of DIR/best (else DIR/last, or of DIR itself)")
    add("--resume", default="", metavar="DIR", help="go on where DIR/last stands, and save there")
    add("--save-collapsed", default="", metavar="FILE", help="inference model as safetensors, vocabulary beside it")
    add("--save-onnx", nargs="?", const="dlrm_s_pytorch.onnx", default="", metavar="FILE",
        help="inference model as ONNX, checked in onnxruntime, vocabulary beside it")  # fmt: skip
    add("--metrics-file", default=None, metavar="FILE", help="JSON lines: train, eval and result events")
    add("--predict", default="", metavar="RAW", help="score raw rows (labels optional) with --load-onnx; no training")
    add("--load-onnx", default="", metavar="FILE", help="exported model for --predict; its vocabulary lies beside it")
    add("--predictions", default="", metavar="FILE",
        help="--predict writes one probability a line there; of several --tasks one each, tab-separated")  # fmt: skip


def options_help(names: Sequence[str], options_of: Callable[[str], Mapping[str, object]]) -> str:
    """The options that each model or hash method has of its own, with their defaults."""
    texts = []
    for name in names:
        options = [f"{option}={option_text(default)}" for option, default in options_of(name).items()]
        texts += [f"{name}: {', '.join(options)}"] if options else []
    return "; ".join(texts)


def boolean() -> dict:
    """`--flag`, `--flag=True` and `--flag=False` (the reference's type=bool took every word for true)."""
    return {"type": parse_boolean, "nargs": "?", "const": True, "default": False, "metavar": "True|False"}


def named_value(text: str) -> str:
    """name=value, as it is."""
    if not text.partition("=")[0] or "=" not in text:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME=VALUE")
    return text


def parse_boolean(text: str) -> bool:
    values = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if text.lower() not in values:
        raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")
    return values[text.lower()]


def report_moment(text: str) -> str:
    """--frequency-report: "end", "epoch" (each epoch's end and the end), or nothing."""
    if text.lower() in ("end", "epoch"):
        return text.lower()
    try:
        return "end" if parse_boolean(text) else ""
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text!r} is none of True, False, end and epoch") from None


def at_least(low: int) -> Callable[[str], int]:
    """A whole number not below `low`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if value < low:
            raise argparse.ArgumentTypeError(f"{value} is below {low}")
        return value

    return parse


def number(low: float = -math.inf, high: float = math.inf) -> Callable[[str], float]:
    """A finite number in [low, high]."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if not math.isfinite(value) or not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} lies outside {low} to {high}")
        return value

    return parse


def share_range(text: str) -> list[float]:
    """0.5-1 -> [0.5, 1.0], ascending within 0 to 1."""
    bounds = [number(0, 1)(word) for word in re.split("(?<![eE])-", text)]  # the minus of 1e-1 parts nothing
    if len(bounds) != 2 or bounds[0] >= bounds[1]:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form FROM-TO, such as 0.5-1")
    return bounds


def history_range(text: str) -> list[float]:
    """0.5 -> [0, 0.5], 0.5-1 -> [0.5, 1]; 0 is no range."""
    if re.search("(?<![eE])-", text):
        return share_range(text)
    return [0.0, share] if (share := number(0, 1)(text)) else []


def dashed_ints(text: str) -> list[int]:
    """13-512-16 -> [13, 512, 16], each at least 1."""
    return [at_least(1)(word) for word in text.split("-")]


def dashed_floats(text: str) -> list[float]:
    return [number(0)(word) for word in text.split("-")]


def comma_floats(text: str) -> list[float]:
    return [number(0)(word) for word in text.split(",")]


def check_flags(flags: argparse.Namespace) -> None:
    """Combinations that cannot work, one sentence each."""
    if len(flags.loss_weights) != 2:
        raise ValueError(f"--loss-weights needs two numbers, got {len(flags.loss_weights)}")
    if flags.test_mini_batch_size == 0 or flags.test_mini_batch_size < -1:
        raise ValueError(f"--test-mini-batch-size={flags.test_mini_batch_size}: give a positive number, or -1")
    if flags.loss_threshold >= 0.5:
        raise ValueError(
            f"--loss-threshold={flags.loss_threshold} would make every probability the same: choose it below 0.5"
        )
    check_architecture(flags)
    check_tasks(flags)
    check_model_options(flags)
    check_hashing(flags)
    if flags.weighted_pooling == "learned" and flags.emb_precision != "fp32":
        raise ValueError("--weighted-pooling=learned works on tables in fp32 only: leave out --emb-precision")
    if flags.weighted_pooling and (flags.qr_flag or flags.md_flag or flags.hash_method != "none"):
        raise ValueError("--weighted-pooling works on plain tables: leave out --qr-flag, --md-flag and --hash-method")
    two_rows = flags.hash_method != "none" and hashing.method_lookups(flags.hash_method) > 1
    tricks = [flag for flag, given in (("--qr-flag", flags.qr_flag), ("--md-flag", flags.md_flag),
              (f"--hash-method={flags.hash_method}", two_rows), ("--use-gpu", flags.use_gpu)) if given]  # fmt: skip
    if flags.quantize_emb_with_bit in (4, 8) and tricks:
        raise ValueError(f"--quantize-emb-with-bit: 4 and 8 bits need plain tables on the CPU: leave out {tricks[0]}")
    if not flags.inference_only and (flags.quantize_emb_with_bit, flags.quantize_mlp_with_bit) != (32, 32):
        raise ValueError("--quantize-emb-with-bit and --quantize-mlp-with-bit need --inference-only")
    if flags.save_onnx and flags.quantize_mlp_with_bit != 32:
        raise ValueError("--save-onnx writes MLPs in fp32: leave out --quantize-mlp-with-bit (tables may be quantised)")
    if flags.save_collapsed and (flags.quantize_emb_with_bit, flags.quantize_mlp_with_bit) != (32, 32):
        raise ValueError("--save-collapsed writes fp32 models: leave out the --quantize flags, or use --save-onnx")
    if flags.resume and flags.load_model:
        raise ValueError("--resume and --load-model name two starting points: give one")
    if flags.resume and flags.inference_only:
        raise ValueError("--resume goes on training: for evaluation use --load-model with --inference-only")
    if bool(flags.predict) != bool(flags.load_onnx) or bool(flags.predict) != bool(flags.predictions):
        raise ValueError("scoring needs all of --predict RAW --load-onnx FILE --predictions OUT")


def check_architecture(flags: argparse.Namespace) -> None:
    """What would otherwise be refused only after the data is prepared, which can take hours."""
    check_mlet(flags)
    row_bound(flags.emb_init, 1)
    if flags.spectra and flags.quantize_emb_with_bit in (4, 8):
        raise ValueError("--spectra needs tables of floats: leave out --quantize-emb-with-bit")
    if flags.save_model and flags.mlperf_grad_accum_iter > 1 and (flags.dropout or flags.batch_norm):
        if flags.test_freq > 0 and flags.test_freq % flags.mlperf_grad_accum_iter:
            raise ValueError(
                f"--test-freq={flags.test_freq} would save within the {flags.mlperf_grad_accum_iter} batches of a "
                "step, from where --dropout and --batch-norm cannot go on exactly: give a multiple"
            )
    if flags.batch_norm and flags.mini_batch_size == 1 and not flags.inference_only:
        raise ValueError("--batch-norm needs batches: one sample has no variance; give a larger --mini-batch-size")
    if flags.data_generation == "random" and (flags.early_stop_patience or flags.lr_plateau_factor != 1):
        raise ValueError("--early-stop-patience and --lr-plateau-factor look at validation, which random data has not")
    for name in ("spectra", "frequency_report"):
        if getattr(flags, name) and not flags.metrics_file:
            raise ValueError(f"--{name.replace('_', '-')} writes to --metrics-file: name one")
    if flags.frequency_report and flags.data_generation == "random":
        raise ValueError("--frequency-report needs --data-generation=dataset: it counts ids in a store")
    if flags.train_share and flags.data_generation == "random":
        raise ValueError("--train-share needs --data-generation=dataset")
    check_row_flags(flags)
    if flags.emb_lr_counts == "data" and flags.data_generation == "random":
        raise ValueError("--emb-lr-counts=data needs --data-generation=dataset: random ids are not counted beforehand")
    learning_rate_scale(1, flags.learning_rate, *schedule_options(flags))
    if flags.prepare_only and flags.data_generation == "random":
        raise ValueError("--prepare-only needs --data-generation=dataset: random data is not prepared")
    if len(flags.arch_mlp_bot) < 2:
        raise ValueError("--arch-mlp-bot needs two widths at least, of the dense features and of their vector")
    if flags.arch_mlp_top[-1] != 1:
        raise ValueError(f"--arch-mlp-top ends in width {flags.arch_mlp_top[-1]}, a probability needs 1")
    if flags.quantize_emb_with_bit == 4 and flags.arch_sparse_feature_size % 2:
        raise ValueError("--quantize-emb-with-bit=4 packs two numbers a byte: --arch-sparse-feature-size must be even")


def check_mlet(flags: argparse.Namespace) -> None:
    """What a product of two matrices cannot be, and what the masked control cannot go with."""
    try:
        initial_projection(1, 1, flags.mlet_init, np.random.default_rng(0))
    except ValueError as error:
        raise ValueError(f"--mlet-init={flags.mlet_init!r}: {error}") from None
    if 0 < flags.mlet_inner_dim < flags.arch_sparse_feature_size and not flags.md_flag:
        raise ValueError(
            f"--mlet-inner-dim={flags.mlet_inner_dim} is below --arch-sparse-feature-size="
            f"{flags.arch_sparse_feature_size}: the tables would be of lower rank than they are wide"
        )
    if flags.mlet_cross_term == "masked":
        if not flags.mlet_inner_dim:
            raise ValueError("--mlet-cross-term=masked needs --mlet-inner-dim")
        tricks = flags.qr_flag or flags.md_flag or flags.weighted_pooling
        if tricks or flags.mlet_min_rows or flags.emb_precision != "fp32":
            raise ValueError(
                "--mlet-cross-term=masked works on plain fp32 tables: leave out --qr-flag, --md-flag, "
                "--weighted-pooling, --mlet-min-rows and --emb-precision"
            )
        if flags.emb_l2:
            raise ValueError(
                "--emb-l2 penalises W1 with MLET, which --mlet-cross-term=masked does not serve: leave it out"
            )


def check_row_flags(flags: argparse.Namespace) -> None:
    """Combinations around what is done to the tables' rows in training that cannot work."""
    names = ("emb_weight_decay", "emb_idle_decay", "emb_clip", "emb_id_dropout", "emb_reinit_max_count")
    given = ["--" + name.replace("_", "-") for name in names if getattr(flags, name)]
    masked = flags.mlet_cross_term == "masked"
    cures = {"--emb-lr-frequency": flags.emb_lr_frequency, "--emb-reinit": flags.emb_reinit}
    for cure in (flag for flag, value in cures.items() if value != "none"):
        if flags.emb_precision != "fp32":
            raise ValueError(f"{cure} works without --emb-precision=bf16")
        if masked:
            raise ValueError(f"{cure} works without --mlet-cross-term=masked")
    if (flags.emb_weight_decay or flags.emb_idle_decay) and flags.emb_precision != "fp32":
        raise ValueError(f"{given[0]} works without --emb-precision=bf16: rows would be rounded twice")
    if masked and (flags.emb_weight_decay or flags.emb_idle_decay or flags.emb_clip):
        raise ValueError(
            f"{given[0]} changes W1 with MLET, which --mlet-cross-term=masked does not serve: leave it out"
        )
    frequency, counts = flags.emb_lr_frequency, flags.emb_lr_counts
    for flag, is_given, is_used, needed in (
        ("--emb-idle-decay-at", flags.emb_idle_decay_at != "update", flags.emb_idle_decay, "--emb-idle-decay"),
        ("--emb-clip-floor", flags.emb_clip_floor != 1e-5, flags.emb_clip, "--emb-clip"),
        ("--emb-lr-counts", counts != "online", frequency != "none", "--emb-lr-frequency"),
        ("--emb-lr-power", flags.emb_lr_power != 0.1, frequency.startswith("tail"), "--emb-lr-frequency=tail-..."),
        ("--emb-lr-halflife", flags.emb_lr_halflife, frequency != "none" and counts == "online",
         "--emb-lr-frequency, and lookups counted online"),
        ("--emb-reinit-min-rows", flags.emb_reinit_min_rows, flags.emb_reinit != "none", "--emb-reinit"),
        ("--emb-reinit=epoch-w2", flags.emb_reinit == "epoch-w2", flags.mlet_inner_dim, "--mlet-inner-dim"),
    ):  # fmt: skip
        if is_given and not is_used:
            raise ValueError(f"{flag} needs {needed}")
    if flags.emb_id_dropout and flags.data_generation == "random":
        raise ValueError("--emb-id-dropout needs --data-generation=dataset: random data has no unknown ids")
    if flags.adam_row_steps and rule_of_rows(flags) != "adam":
        raise ValueError("--adam-row-steps needs --optimizer=adam, or --emb-optimizer=adam")
    if flags.emb_reinit_max_count:
        if flags.emb_reinit != "epoch":
            raise ValueError("--emb-reinit-max-count needs --emb-reinit=epoch: other rows are kept, and with them W2")
        if flags.data_generation == "random":
            raise ValueError("--emb-reinit-max-count needs --data-generation=dataset: it counts ids in a store")


def check_tasks(flags: argparse.Namespace) -> None:
    """Labels and heads that cannot be; whether the data set has the labels is seen when it is opened."""
    names, weights = task_names(flags), flags.task_weights
    if flags.tasks and flags.data_generation == "random":
        raise ValueError(f"--tasks={flags.tasks} needs --data-generation=dataset: random data has one label")
    for name in names:
        if not name or names.count(name) > 1:
            raise ValueError(f"--tasks={flags.tasks}: {f'label {name} is named twice' if name else 'a name is empty'}")
    if len(names) < 2:
        for name, default in {"task_weights": None, "task_heads": "towers", "mmoe_experts": 4}.items():
            if getattr(flags, name) != default:
                raise ValueError(f"--{name.replace('_', '-')} is for several tasks: name them with --tasks=LABEL,LABEL")
    if flags.mmoe_experts != 4 and flags.task_heads != "mmoe":
        raise ValueError("--mmoe-experts needs --task-heads=mmoe")
    if weights is None:
        return
    if len(weights) != len(names):
        raise ValueError(f"--task-weights has {len(weights)} weights for {len(names)} tasks ({', '.join(names)})")
    if not any(weights):
        raise ValueError("--task-weights are all 0: nothing would be trained")


def task_names(flags: argparse.Namespace) -> tuple[str, ...]:
    """The labels that --tasks names; none: the data set's first."""
    return tuple(name.strip() for name in flags.tasks.split(",")) if flags.tasks else ()


def head_arguments(flags: argparse.Namespace) -> dict:
    """The model's plain arguments that say how many outputs it has, and what makes them."""
    tasks = max(1, len(task_names(flags)))
    return {"tasks": tasks, "task_heads": flags.task_heads, "mmoe_experts": flags.mmoe_experts}


def check_hashing(flags: argparse.Namespace) -> None:
    """Combinations around --hash-method that cannot work."""
    method = flags.hash_method
    if method == "none":
        unused = {"hash_map_file": "", "hash_embeddings": "", "hash_option": [], "hash_learn_only": False}
        unused |= {"hash_history": None, "hash_compression": 10.0, "hash_min_rows": 200, "hash_dim": None}
        unused |= {"hash_history_file": "", "hash_seed": None}
        for name, default in (unused | {"hash_overlap": "refuse"}).items():
            if getattr(flags, name) != default:
                raise ValueError(f"--{name.replace('_', '-')} needs --hash-method")
        return
    hashing.parse_options(method, flags.hash_option)
    needs = hashing.method_needs(method)
    if flags.data_generation == "random":
        raise ValueError(f"--hash-method={method} needs --data-generation=dataset: random ids have no history")
    if flags.qr_flag or flags.mlet_cross_term == "masked":
        raise ValueError("--hash-method works without --qr-flag and --mlet-cross-term=masked: leave them out")
    if method == "cce" and (flags.md_flag or flags.emb_precision != "fp32"):
        raise ValueError("--hash-method=cce moves rows between epochs: leave out --md-flag and --emb-precision")
    if flags.hash_learn_only and not flags.hash_map_file:
        raise ValueError("--hash-learn-only writes --hash-map-file: name one")
    if flags.hash_embeddings and ("vectors" not in needs or flags.hash_history is not None):
        raise ValueError(
            "--hash-embeddings brings embedding and history: it is for methods that need one, without --hash-history"
        )
    if flags.hash_history_file:
        check_history_file(flags, needs)
    elif "vectors" in needs and not history_of(flags) and not flags.hash_embeddings:
        raise ValueError(
            f"--hash-method={method} with --hash-history=0 has no rows to learn from: give a share of the training rows"
        )
    if history_of(flags) == [0, 1] and flags.hash_overlap == "refuse" and not flags.hash_learn_only:
        raise ValueError("--hash-history=1 leaves no rows to train on: give a smaller share, or --hash-overlap=allow")


def check_history_file(flags: argparse.Namespace, needs: Sequence[str]) -> None:
    """What cannot go with --hash-history-file."""
    if flags.hash_history is not None or flags.hash_embeddings:
        raise ValueError("--hash-history-file is the whole history: leave out --hash-history and --hash-embeddings")
    if not needs:
        raise ValueError(f"--hash-method={flags.hash_method} learns nothing: leave out --hash-history-file")
    if not flags.raw_data_file:
        raise ValueError("--hash-history-file needs --raw-data-file: generated data has no older days")


def history_of(flags: argparse.Namespace) -> list[float] | None:
    """Share FROM, TO of the training rows that maps are learned from.

    None: all are counted and labels play no part, or they come from elsewhere.
    """
    if flags.hash_history_file:
        return None
    if flags.hash_history is not None:
        return flags.hash_history or None
    return [0.0, 0.5] if "vectors" in hashing.method_needs(flags.hash_method) else None


def check_model_options(flags: argparse.Namespace) -> None:
    """Options that the model does not have are refused, never ignored."""
    given, by_flag = parse_options(flags.arch_model, flags.arch_option), interaction_arguments(flags)
    for option, (flag, default) in DLRM_FLAGS.items():
        if by_flag[option] != default and (flags.arch_model != "dlrm" or option in given):
            raise ValueError(f"{flag} is for --arch-model=dlrm, and is given once: leave it out")
    width = model_width(flags)
    with torch.device("meta"):  # what the model's constructor would refuse only after the data is prepared
        tables = EmbeddingTables(plan_tables({"a": 1, "b": 1}, width))
        arguments = head_arguments(flags) | model_arguments(flags)
        build_model(flags.arch_model, tables, bottom=[1, width], top=flags.arch_mlp_top, **arguments)


def interaction_arguments(flags: argparse.Namespace) -> dict:
    """Arguments of dlrm that have flags of their own."""
    return {"interaction": flags.arch_interaction_op, "itself": flags.arch_interaction_itself}


def model_arguments(flags: argparse.Namespace) -> dict:
    """The model's own plain arguments."""
    by_flag = interaction_arguments(flags) if flags.arch_model == "dlrm" else {}
    return by_flag | parse_options(flags.arch_model, flags.arch_option)


def warn(text: str) -> None:
    """One line on the error stream; the run goes on."""
    print(f"dlrm_mlet.py: warning: {text}", file=sys.stderr)


def check_bottom(flags: argparse.Namespace, dense: int) -> None:
    """The bottom MLP must end as wide as the tables' vectors; without dense features there is none."""
    width = model_width(flags)
    if dense and flags.arch_mlp_bot[-1] != width:
        raise ValueError(
            f"--arch-mlp-bot ends in width {flags.arch_mlp_bot[-1]}, but the tables' vectors are {width} wide "
            f"(--arch-sparse-feature-size={flags.arch_sparse_feature_size})"
        )
    if dense and flags.arch_mlp_bot[0] != dense:  # as in the reference, which says nothing
        begin = flags.arch_mlp_bot[0]
        warn(f"--arch-mlp-bot begins with {begin}, the data has {dense} dense features: {dense} it is")


def model_width(flags: argparse.Namespace) -> int:
    """Width D of the tables' vectors as the model sees them."""
    return plan_tables({"any": 10**6}, flags.arch_sparse_feature_size, **table_options(flags))[0].dim


def schedule_options(flags: argparse.Namespace) -> tuple[int, int, int]:
    """Warm-up steps, first decay step, decay steps."""
    return flags.lr_num_warmup_steps, flags.lr_decay_start_step, flags.lr_num_decay_steps


def test_batch_size(flags: argparse.Namespace) -> int:
    """Samples an evaluation batch; without a flag of its own that of training."""
    return flags.test_mini_batch_size if flags.test_mini_batch_size > 0 else flags.mini_batch_size


def table_options(flags: argparse.Namespace) -> dict:
    """The plain arguments of `plan_tables`."""
    return {
        "inner_dim": flags.mlet_inner_dim,
        "mlet_min_rows": flags.mlet_min_rows,
        "qr_collisions": flags.qr_collisions if flags.qr_flag else 0,
        "qr_operation": flags.qr_operation,
        "qr_threshold": flags.qr_threshold,
        "md_temperature": flags.md_temperature if flags.md_flag else None,
        "md_threshold": flags.md_threshold,
        "md_round_dims": flags.md_round_dims,
    }


# -------------------------------------------------------------------------------------------------------- 2. data


@dataclass
class Data:
    """What the rest of the driver knows of the data, whatever it is."""

    dense: int  # M
    tables: dict[str, int]  # name -> n
    multi_hot: list[bool]
    lookups: float  # mean ids of a sample over all tables
    train_samples: int
    splits: tuple[str, ...]
    train_batches: Callable[[int], Iterator[Batch]]  # from a batch number on
    eval_batches: Callable[[str], Iterator[Batch]]
    tasks: Tasks = Tasks(("click",))
    store: data_utils.Store | None = None
    train_rows: np.ndarray | range | None = None  # store rows in training order
    checksum: str | None = None
    key: str | None = None  # of the store
    maps: dict[str, hashing.IdMap] = field(default_factory=dict)  # of the tables that have fewer rows than ids
    maps_about: dict | None = None  # what the maps were learned from, see `learn_maps`


def open_data(flags: argparse.Namespace, rng: np.random.RandomState) -> Data:
    """Prepare if needed, open, and draw the training order from the main generator, as the reference does."""
    if flags.data_generation == "random":
        return open_random_data(flags)
    store = open_store(flags)
    test_workers = flags.num_workers if flags.test_num_workers < 0 else flags.test_num_workers

    def eval_batches(split: str) -> Iterator[Batch]:
        batches = store.batches(store.rows_of(split), test_batch_size(flags))
        return prefetch(batches) if test_workers else batches

    data = Data(
        dense=len(store.schema["dense"]),
        tables=store.tables,
        multi_hot=store.multi_hot,
        lookups=store.lookups,
        train_samples=0,
        splits=("val", "test"),
        train_batches=lambda _start: iter(()),
        eval_batches=eval_batches,
        tasks=Tasks(store.labels, tuple(flags.task_weights or ())),
        store=store,
        checksum=store.schema["source"]["sha256"],
        key=store.schema["key"],
    )
    return with_training_rows(flags, data, store.training_order(flags.data_randomize, rng))


def with_training_rows(flags: argparse.Namespace, data: Data, rows: np.ndarray | range) -> Data:
    """The same data, trained on these rows of the store, in this order."""

    def train_batches(start: int) -> Iterator[Batch]:
        batches = data.store.batches(rows, flags.mini_batch_size, start)
        return prefetch(batches) if flags.num_workers else batches

    return replace(data, train_rows=rows, train_samples=len(rows), train_batches=train_batches)


def part_of(data: Data, share: Sequence[float]) -> np.ndarray:
    """The training rows of a part FROM-TO of the training part in file order, in training order."""
    first, stop = data.store.split.train_days[0][0], data.store.split.train_days[-1][1]
    low, high = (first + round(bound * (stop - first)) for bound in share)
    rows = np.asarray(data.train_rows)
    rows = rows[(rows >= low) & (rows < high)]
    if not len(rows):
        raise ValueError(f"no training rows in the share {share[0]:g}-{share[1]:g} of {stop - first} rows")
    return rows


def open_store(flags: argparse.Namespace) -> data_utils.Store:
    """The prepared data that the flags name, prepared now if it is not yet."""
    source = open_raw(flags, flags.raw_data_file)
    check_bottom(flags, len(source.layout.dense))
    for name in task_names(flags):
        if name not in source.layout.labels:
            known = ", ".join(source.layout.labels)
            raise ValueError(f"--tasks={flags.tasks}: {flags.data_set} has no label column {name} (it has: {known})")
    store_options = data_utils.StoreOptions(
        flags.data_set,
        flags.max_ind_range,
        flags.data_sub_sample_rate,
        flags.numpy_rand_seed,
        flags.vocabulary_min_count,
        flags.vocabulary_fit,
        flags.vocabulary_order,
        flags.bad_rows,
    )
    directory = data_utils.prepare(source, store_options, flags.processed_data_file)
    store = data_utils.Store(directory, task_names(flags))
    for name in store.labels:
        if store.schema["labels"][name] == len(store):  # it would be served, untrained
            raise ValueError(f"the label {name} is unknown in all {len(store)} rows of {store.directory}: leave it out")
    print(f"Data: {store.directory}, {store.summary()}")
    return store


def open_raw(flags: argparse.Namespace, path: str) -> Source:
    """Raw data in the format of --data-set."""
    settings = dict(option.split("=", 1) for option in flags.data_option)
    options = SourceOptions(flags.synthetic_rows, flags.synthetic_seed, STORES, flags.bad_rows, settings)
    return open_source(flags.data_set, path, options)


def open_random_data(flags: argparse.Namespace) -> Data:
    """Random batches: the same in every epoch, and in evaluation (which has a generator of its own)."""
    if flags.raw_data_file:
        warn("--raw-data-file is not read: it needs --data-generation=dataset")
    check_bottom(flags, flags.arch_mlp_bot[0])
    data = RandomData(
        flags.arch_mlp_bot[0],
        flags.arch_embedding_size,
        data_size=flags.data_size,
        num_batches=max(0, flags.num_batches),
        batch_size=flags.mini_batch_size,
        lookups=flags.num_indices_per_lookup,
        lookups_fixed=flags.num_indices_per_lookup_fixed,
        round_targets=flags.round_targets,
        distribution=flags.rand_data_dist,
        low=flags.rand_data_min,
        high=flags.rand_data_max,
        mu=flags.rand_data_mu,
        sigma=flags.rand_data_sigma,
        seed=flags.numpy_rand_seed,
    )
    most = flags.num_indices_per_lookup
    one_hot = most == 1 and flags.num_indices_per_lookup_fixed
    one_hot = one_hot and flags.rand_data_dist == "uniform"

    def train_batches(start: int) -> Iterator[Batch]:
        return prefetch(data.batches(start)) if flags.num_workers else data.batches(start)

    return Data(
        dense=flags.arch_mlp_bot[0],
        tables={f"T{t}": n for t, n in enumerate(flags.arch_embedding_size)},
        multi_hot=[not one_hot] * len(flags.arch_embedding_size),
        lookups=len(flags.arch_embedding_size) * (most if flags.num_indices_per_lookup_fixed else (1 + most) / 2),
        train_samples=data.rows,
        splits=("test",),
        train_batches=train_batches,
        eval_batches=lambda _split: data.batches(),
    )


# -------------------------------------------------------------------------------- 3. fewer rows than ids, which rows


def add_maps(flags: argparse.Namespace, data: Data, device: torch.device) -> tuple[Data, dict | None]:
    """The data with its tables' row maps, less the rows that those were learned from; and what --hash-report says."""
    if flags.hash_method == "none":
        return choose_rows(flags, data, {"history": None, "labels": False}), None
    path = os.path.realpath(flags.hash_map_file) if flags.hash_map_file else ""
    if path and Path(path).is_relative_to(os.path.realpath(data.store.directory)):
        raise ValueError(f"{flags.hash_map_file} lies inside the prepared data {data.store.directory}: choose another")
    if flags.resume or flags.load_model:
        maps, about = maps_of_checkpoint(flags, data)
    elif path and Path(path).exists():
        maps, about = hashing.load_maps(path)
        check_maps(flags, data, maps, about, flags.hash_map_file)
        print(f"Hash maps: {flags.hash_map_file}, {len(maps)} tables")
    else:
        maps, about = learn_maps(flags, data, device)
        torch.manual_seed(flags.numpy_rand_seed)  # dropout is to be drawn as if the maps had come from a file
        if path:
            with atomic_file(path) as file:
                hashing.save_maps(file, maps, about)
            print(f"Hash maps: written to {flags.hash_map_file}")
    report = report_maps(flags, data, maps) if flags.hash_report else None
    data = replace(data, maps=maps, maps_about=about)
    return (data if flags.hash_learn_only else choose_rows(flags, data, about)), report


def choose_rows(flags: argparse.Namespace, data: Data, about: dict) -> Data:
    """Leave out of training what the maps were learned from; --train-share decides where it is given."""
    share = training_share(flags, about)
    if share is None:
        return data
    rows = part_of(data, share)
    what = f"the share {share[0]:g}-{share[1]:g} of the training rows"
    print(f"Training on {what}: {len(rows)} of {len(data.train_rows)}")
    return with_training_rows(flags, data, rows)


def training_share(flags: argparse.Namespace, about: dict) -> Sequence[float] | None:
    """The share of the training rows that is trained on, None for all. ValueError where maps leave none, or overlap."""
    share, history = flags.train_share, about["history"]
    if history is not None and flags.hash_overlap == "refuse":
        low, high = history
        if share is None:
            share = [high, 1.0] if high < 1 else [0.0, low]
            if share[0] >= share[1]:
                raise ValueError("the maps were learned from all training rows: none is left (see --train-share)")
        elif about["labels"] and share[0] < high and low < share[1]:
            raise ValueError(
                f"--train-share={share[0]:g}-{share[1]:g} overlaps the rows {low:g}-{high:g} that the maps come from: "
                "maps carry their labels, which ruins the model; choose other rows, or --hash-overlap=allow"
            )
    return share


def learn_maps(flags: argparse.Namespace, data: Data, device: torch.device) -> tuple[dict[str, hashing.IdMap], dict]:
    """Fit the maps of all tables that are large enough. Returns them and what they come from."""
    method, needs, vectors = flags.hash_method, hashing.method_needs(flags.hash_method), None
    large = {name: n for name, n in data.tables.items() if n > flags.hash_min_rows}
    if not large:
        raise ValueError(f"--hash-method={method}: no table has more than --hash-min-rows={flags.hash_min_rows} ids")
    past, history = open_past(flags, data)
    if flags.hash_embeddings:
        vectors, history = given_vectors(flags.hash_embeddings, data, list(large))
    rows = part_of(past, history) if history else past.train_rows
    about = {"store": data.key, "history": history, "labels": "vectors" in needs and history is not None}
    about |= {"asked": asked_of_maps(flags), "learned": origin_of(flags)}
    if not flags.hash_learn_only and (share := training_share(flags, about)):
        part_of(data, share)  # both refuse now what they would refuse after hours of learning
    counts = dict(zip(data.tables, past.store.counts_in(rows), strict=True)) if needs else {}
    for name in large if needs else ():
        if not counts[name][:-1].any():
            raise ValueError(
                f"table {name}: none of its {large[name]} ids occurs in the history that maps are learned from: choose "
                "another --hash-history or --hash-history-file, or leave the table out with --hash-min-rows"
            )
    if "vectors" in needs and vectors is None:
        vectors = learn_vectors(flags, past, rows, device)
    print(f"Hash maps: method {method}, {len(large)} tables" + (f", fitted to {len(rows)} rows" if needs else ""))
    maps = {}
    for t, (name, n) in enumerate(data.tables.items()):
        if name in large:
            request = hashing.Request(
                name,
                ids=n,
                rows=max(hashing.least_rows(method), round(n / flags.hash_compression)),
                counts=counts[name][:-1] if needs else None,
                vectors=vectors[name] if vectors else None,
                neighbours=past.store.neighbours_of(name, rows) if "neighbours" in needs else None,
                seed=(map_seed(flags) * 4099 + t) % (1 << 32),
            )
            maps[name] = hashing.fit_map(method, request, **hashing.parse_options(method, flags.hash_option))
    return maps, about


def open_past(flags: argparse.Namespace, data: Data) -> tuple[Data, list[float] | None]:
    """The rows that may teach the maps, ordered by the maps' seed; and which share of the training rows is history.

    The share is None where no training row's label gets into the maps.
    """
    store, history = data.store, history_of(flags)
    if flags.hash_history_file:
        source = open_raw(flags, flags.hash_history_file)
        same = data_utils.source_checksum(source.paths, STORES) == data.checksum
        if same and flags.hash_overlap == "refuse":
            raise ValueError(f"--hash-history-file={flags.hash_history_file} is the run's own data: {OVERLAP}")
        store = data_utils.Store(data_utils.prepare_history(source, data.store.directory), task_names(flags))
        print(f"History: {store.directory}, {len(store)} rows of {flags.hash_history_file}")
        history = [0.0, 1.0] if same or overlaps(flags, data, store) else None
    order = store.training_order(flags.data_randomize, np.random.RandomState(map_seed(flags)))
    return replace(data, store=store, train_rows=order), history


def overlaps(flags: argparse.Namespace, data: Data, history: data_utils.Store) -> bool:
    """Whether half of the history's rows or more are trained or tested on, too. Fewer may be by chance: a warning."""
    trained = part_of(data, flags.train_share) if flags.train_share else data.train_rows
    rows = np.concatenate([trained, *(data.store.rows_of(split) for split in data.splits)])
    share = data_utils.share_among(history, data.store, np.sort(rows))
    if share >= 0.5 and flags.hash_overlap == "refuse":
        what = f"{share:.0%} of --hash-history-file={flags.hash_history_file} are rows of this run"
        raise ValueError(f"{what}: {OVERLAP}")
    if share >= 0.01:
        warn(f"{share:.0%} of the history are rows of this run, too")
    return share >= 0.5


def map_seed(flags: argparse.Namespace) -> int:
    """Of everything that is drawn while maps are learned."""
    return flags.numpy_rand_seed if flags.hash_seed is None else flags.hash_seed


def asked_of_maps(flags: argparse.Namespace) -> dict:
    """The flags that a map file answers to."""
    method = flags.hash_method
    options = {**hashing.method_options(method), **hashing.parse_options(method, flags.hash_option)}
    return {
        "--hash-method": method,
        "--hash-compression": flags.hash_compression,
        "--hash-min-rows": flags.hash_min_rows,
        "--hash-option": options,
    }


def origin_of(flags: argparse.Namespace) -> dict:
    """How maps are learned, beside `asked_of_maps`; files by their checksums, None where a flag plays no part.

    A map file answers to those of the flags that are given, see `check_origin`.
    """
    embeddings, history = Path(flags.hash_embeddings), ()
    if embeddings.is_dir():
        embeddings = find_checkpoint(flags.hash_embeddings, "best", "last") / checkpoint.TENSORS
    if flags.hash_history_file:
        history = open_raw(flags, flags.hash_history_file).paths
    has_stage_1 = "vectors" in hashing.method_needs(flags.hash_method) and not flags.hash_embeddings
    return {
        "--hash-dim": (flags.hash_dim or HASH_DIM) if has_stage_1 else None,
        "--hash-seed": map_seed(flags),
        "--hash-history-file": data_utils.source_checksum(history, STORES) if history else None,
        "--hash-embeddings": data_utils.source_checksum([embeddings], STORES) if flags.hash_embeddings else None,
    }


def maps_of_checkpoint(flags: argparse.Namespace, data: Data) -> tuple[dict[str, hashing.IdMap], dict]:
    """The maps that a checkpoint was trained with: they are among its tensors, and no file of maps is needed."""
    source = (
        find_checkpoint(flags.resume, "last") if flags.resume else find_checkpoint(flags.load_model, "best", "last")
    )
    tensors, state = checkpoint.load_checkpoint(source)
    check_same_data(source, state, data)
    about, first, maps = state.get("maps"), {}, {}
    if not about:
        raise ValueError(f"{source} was trained without --hash-method={flags.hash_method}: give the same flags")
    for config in state["model"]["tables"]["specs"]:
        spec = TableSpec(**config)
        if spec.row_map is None:
            continue
        lookups = []
        for number, formula in enumerate(spec.row_map.formulas):
            if formula is None:
                start = first.get(number, 0)
                first[number] = start + spec.rows
                lookups.append(tensors[f"tables.maps.rows{number}"][start : first[number]].numpy())
            else:
                multiplier, shift, divisor, rows = formula
                lookups.append(hashing.Formula(rows, multiplier, shift, divisor))
        sizes, method = spec.row_map.part_rows, about["asked"]["--hash-method"]
        maps[spec.name] = hashing.IdMap(spec.rows, tuple(lookups), sizes, method, spec.row_map.operation)
    check_maps(flags, data, maps, about, source)
    print(f"Hash maps: {source}, {len(maps)} tables")
    return maps, about


def check_maps(
    flags: argparse.Namespace, data: Data, maps: dict[str, hashing.IdMap], about: dict, path: str | Path
) -> None:
    """Maps from a file must be of this data, and of what the flags ask for."""
    if missing := {"store", "history", "labels", "asked"} - about.keys():
        raise ValueError(
            f"{path} does not say what it was made from: {', '.join(sorted(missing))} is missing in `about`"
        )
    if about["store"] != data.key:
        raise ValueError(f"{path} was made for other data, or data prepared with other flags: its ids do not fit")
    for name, id_map in maps.items():
        if data.tables.get(name) != id_map.ids:
            raise ValueError(f"{path}: its map of table {name} has {id_map.ids} ids, the data {data.tables.get(name)}")
    for flag, asked in asked_of_maps(flags).items():
        if about["asked"][flag] != asked:
            raise ValueError(f"{path} was made with {flag}={about['asked'][flag]}, this run asks for {asked}")
    if flags.hash_history is not None and about["history"] != history_of(flags):
        raise ValueError(f"{path} was learned from the share {about['history']}, not {history_of(flags)}")
    check_origin(flags, about.get("learned", {}), path)


def check_origin(flags: argparse.Namespace, saved: dict, path: str | Path) -> None:
    """Maps from a file must have been learned as the flags say that are given; others do not matter to it."""
    try:
        asked = origin_of(flags)
    except FileNotFoundError:
        if flags.resume or flags.load_model:
            return  # a checkpoint has its maps; what they were learned from may be gone
        raise
    for flag, value in asked.items():
        given = getattr(flags, flag[2:].replace("-", "_"))
        if given in (None, ""):
            continue
        if flag not in saved:
            raise ValueError(f"{path} is too old to say its {flag}: leave the flag out, or learn the maps again")
        if saved[flag] != value:
            with_what = f"with {'another' if isinstance(value, str) else saved[flag]}"
            made = "without one" if saved[flag] is None else with_what
            raise ValueError(f"{path}: this run asks for {flag}={given}, but its maps were learned {made}")


def learn_vectors(
    flags: argparse.Namespace, data: Data, rows: np.ndarray, device: torch.device
) -> dict[str, np.ndarray]:
    """Stage 1: one epoch of the same model, as narrow as --hash-dim and with a row for each id, on the history."""
    width, seed = flags.hash_dim or HASH_DIM, map_seed(flags)
    print(f"Hash maps, stage 1: a model of width {width} on {len(rows)} rows of history")
    changed = {
        **{"arch_sparse_feature_size": width, "arch_mlp_bot": [*flags.arch_mlp_bot[:-1], width], "nepochs": 1},
        **{"mlet_inner_dim": 0, "md_flag": False, "hash_method": "none", "emb_precision": "fp32", "compile": False},
        **{"emb_lr_frequency": "none", "emb_idle_decay": 0.0, "emb_clip": 0.0, "emb_id_dropout": 0.0},
        **{"save_model": "", "resume": "", "metrics_file": None, "tensor_board_filename": None, "spectra": False},
        **{"early_stop_patience": 0, "mlperf_acc_threshold": 0.0, "mlperf_auc_threshold": 0.0, "test_freq": -1},
        **{"enable_profiling": False, "inference_only": False, "num_batches": 0, "numpy_rand_seed": seed},
    }
    low = argparse.Namespace(**{**vars(flags), **changed})
    history = replace(with_training_rows(low, data, rows), splits=())  # nobody wants to know how good it is
    check_memory(low, history, device)
    rng = np.random.RandomState(seed)
    data.store.training_order(flags.data_randomize, rng)  # weights as a run of its own on these rows would draw them
    torch.manual_seed(seed)
    model = make_model(low, history, rng).to(device)
    Trainer(low, history, model, device, rng).fit()
    return vectors_of(model)


def vectors_of(model: nn.Module) -> dict[str, np.ndarray]:
    """The vectors [n, D] of each table's ids. Raises ValueError where ids share rows."""
    tables, vectors = collapse(model).tables, {}
    for part in tables.parts():
        spec, group = tables.specs[part.table], part.group
        if not spec.is_plain:
            raise ValueError(f"table {spec.name} has fewer rows than ids: an embedding of all its ids is needed")
        rows = group.part(part.index, part.counted_rows)
        rows = rows if group.projection is None else rows @ group.projection.data[part.index]
        vectors[spec.name] = rows.float().cpu().numpy()
    return vectors


def file_vectors(path: str, data: Data) -> dict[str, np.ndarray]:
    """The vectors of ids in a file of --save-collapsed, or in one of somebody's own with a tensor a table."""
    if is_collapsed(path):
        folder = export.vocabulary_path(path)
        if folder.is_dir() and read_schema(folder)["key"] != data.key:
            raise ValueError(f"{path} was trained on other data, or data prepared with other flags: its ids do not fit")
        return vectors_of(load_collapsed(path))
    try:
        return {table: values.float().numpy() for table, values in load_file(path).items()}
    except SafetensorError as error:
        raise ValueError(f"{path} is neither a checkpoint nor a safetensors file: {error}") from None


def given_vectors(path: str, data: Data, tables: Sequence[str]) -> tuple[dict[str, np.ndarray], list[float] | None]:
    """The embedding that --hash-embeddings names, and the share of the training rows whose labels are in it."""
    if Path(path).is_file():
        vectors = file_vectors(path, data)
        for table in tables:
            if table not in vectors:
                raise ValueError(f"{path} has no embedding of table {table} (it has: {', '.join(sorted(vectors))})")
        return vectors, None
    source = find_checkpoint(path, "best", "last")
    tensors, state = checkpoint.load_checkpoint(source)
    check_same_data(source, state, data)
    model = model_from_config(state["model"])
    load_weights(model, tensors, source)
    if state["flags"].get("load_model"):
        raise ValueError(f"{source} went on from another checkpoint: which rows' labels are in it is not known")
    if state["flags"].get("hash_method", "none") != "none":
        raise ValueError(f"{source} was trained with --hash-method: an embedding of all ids is needed")
    return vectors_of(model), state["flags"].get("train_share") or [0.0, 1.0]


def report_maps(flags: argparse.Namespace, data: Data, maps: dict[str, hashing.IdMap]) -> dict:
    """Print a table of what the maps cost and save, by accesses of the training part."""
    width, report = flags.arch_sparse_feature_size, {}
    print(f"{'table':>12} {'ids':>10} {'rows':>10} {'colliding':>9} {'largest':>9} {'MB before':>10} {'MB after':>10}")
    for name, id_map in maps.items():
        each = report[name] = collision_report(id_map, data.store.counts_of(name)[:-1], width)
        print(
            f"{name:>12} {each['ids']:>10} {each['rows']:>10} {each['colliding_share']:>9.2%} "
            f"{each['largest_share']:>9.2%} {each['bytes_before'] / 1e6:>10.2f} {each['bytes_after'] / 1e6:>10.2f}"
        )
    return report


def recluster_tables(
    model: nn.Module,
    maps: Collection[str],
    counts: Sequence[np.ndarray],
    optimizer: torch.optim.Optimizer,
    seed: int,
    epoch: int,
) -> None:
    """--hash-method=cce between two epochs: ids with like vectors get a row in common, see `hashing.cce.recluster`."""
    tables = model.tables
    for t, spec in enumerate(tables.specs):
        if spec.name not in maps:
            continue
        parts = [part for part in tables.parts() if part.table == t]
        stored = [part.group.part(part.index, part.counted_rows) for part in parts]
        w2 = [None if p.group.inner_projection is None else p.group.inner_projection.data[p.index] for p in parts]
        served = [rows if m is None else rows @ m for rows, m in zip(stored, w2, strict=True)]
        numbers = tuple(tables.maps.view(spec, number).cpu().numpy() for number in range(len(parts)))
        before = hashing.IdMap(spec.rows, numbers, spec.row_map.part_rows, "cce", about={"reclustered": epoch - 1})
        after, new = recluster(before, [rows.cpu().numpy() for rows in served], counts[t][:-1], seed + t)
        for number, (rows, matrix) in enumerate(zip(stored, w2, strict=True)):
            tables.set_map(spec.name, number, after.lookups[number])
            wanted = torch.from_numpy(new[number]).to(rows)
            rows.copy_(wanted if matrix is None else wanted @ torch.linalg.pinv(matrix))
        for part, rows in zip(parts, stored, strict=True):  # their state is of rows that meant something else
            first = int(part.group.first_row[part.index])
            forget(optimizer, part.group.weight, slice(first, first + len(rows)))


# ------------------------------------------------------------------------------------------------------- 4. model


def make_model(flags: argparse.Namespace, data: Data, rng: np.random.RandomState) -> nn.Module:
    """Build the model and draw its weights."""
    model = empty_model(flags, data)
    model.initialize(rng, flags.numpy_rand_seed, flags.mlet_init, flags.emb_init)
    if model.masked is not None:
        model.masked.initialize(flags.numpy_rand_seed, flags.mlet_init, flags.emb_init)
    for table, id_map in data.maps.items():
        for number, lookup in enumerate(id_map.lookups):
            if isinstance(lookup, np.ndarray):
                model.tables.set_map(table, number, lookup)
    return model


def empty_model(flags: argparse.Namespace, data: Data) -> nn.Module:
    """The model without its weights."""
    options, masked = table_options(flags), flags.mlet_cross_term == "masked"
    options |= {"row_maps": {table: row_map_of(id_map) for table, id_map in data.maps.items()}}
    specs = plan_tables(data.tables, flags.arch_sparse_feature_size, **options | ({"inner_dim": 0} if masked else {}))
    bottom = [data.dense, *flags.arch_mlp_bot[1:]] if data.dense else []
    tables = EmbeddingTables(
        specs,
        unknown=data.store is not None,
        padding=data.store is None or any(data.multi_hot),
        weighted=flags.weighted_pooling == "learned",
        storage=torch.bfloat16 if flags.emb_precision == "bf16" else torch.float32,
    )
    model = build_model(
        flags.arch_model,
        tables,
        bottom=bottom,
        top=flags.arch_mlp_top,
        loss_threshold=flags.loss_threshold,
        batch_norm=flags.batch_norm,
        dropout=flags.dropout,
        bottom_end=flags.arch_mlp_bot_end,
        **head_arguments(flags),
        **model_arguments(flags),
    )
    model.masked = MaskedCrossTerm(tables, flags.mlet_inner_dim) if masked else None
    return model


def row_map_of(id_map: hashing.IdMap) -> RowMap:
    """A map as the tables take it; stored row numbers come apart."""
    formulas = tuple(
        None if isinstance(each, np.ndarray) else (each.multiplier, each.shift, each.divisor, each.rows)
        for each in id_map.lookups
    )
    return RowMap(id_map.part_rows, formulas, id_map.combine)


def rule_of_rows(flags: argparse.Namespace) -> str:
    """The update rule of the tables' rows."""
    return flags.optimizer if flags.emb_optimizer == "same" else flags.emb_optimizer


def make_optimizer(flags: argparse.Namespace, model: nn.Module) -> torch.optim.Optimizer:
    """One rule for all parameters, or one for the tables' rows and one for the others."""

    def build(rule: str, groups: list[dict]) -> torch.optim.Optimizer:
        options = {"row_steps": True} if rule == "adam" and flags.adam_row_steps else {}
        return build_optimizer(rule, groups, flags.learning_rate, rounding_seed=flags.numpy_rand_seed, **options)

    groups, rows = parameter_groups(flags, model), set(row_parameters(model))
    if rule_of_rows(flags) == flags.optimizer:
        return build(flags.optimizer, groups)
    of_rows = [group for group in groups if group["params"][0] in rows]
    others = [group for group in groups if group["params"][0] not in rows]
    return Combined([build(flags.optimizer, others), build(rule_of_rows(flags), of_rows)])


def row_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The tables' rows and pooling weights."""
    return [p for group in row_groups(model) for p in (group.weight, group.pooling_weight) if p is not None]


def parameter_groups(flags: argparse.Namespace, model: nn.Module) -> list[dict]:
    """Everything else, the tables' rows and W2, each with its rate; one group where rates and rules are the same."""
    rate, of_rows, of_w2 = flags.learning_rate, flags.emb_learning_rate_multiplier, flags.mlet_w2_rate_multiplier
    groups, rows = row_groups(model), row_parameters(model)
    w2 = [group.inner_projection for group in groups if group.inner_projection is not None]
    if of_w2 == 0:
        for parameter in w2:
            parameter.requires_grad_(False)
    if of_rows == of_w2 == 1 and rule_of_rows(flags) == flags.optimizer:
        return [{"params": list(model.parameters())}]
    apart = {*rows, *w2}
    rest = [p for p in model.parameters() if p not in apart]
    by_rate = [(rest, rate), (rows, rate * of_rows), (w2 if of_w2 else [], rate * of_w2)]
    return [{"params": parameters, "lr": each} for parameters, each in by_rate if parameters]


def make_row_rates(
    flags: argparse.Namespace, data: Data, model: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[nn.Module, RowRate]:
    """The rates by frequency that --emb-lr-frequency asks for, by group of rows; the optimizer takes them."""
    rates: dict[nn.Module, RowRate] = {}
    if flags.emb_lr_frequency == "none" or flags.inference_only:
        return rates
    given = {}
    if flags.emb_lr_counts == "data":
        counts = [torch.from_numpy(each) for each in data.store.counts_in(data.train_rows)]
        given = {group: total for tables in model.table_sets for group, total in tables.row_counts(counts).items()}
    for group in row_groups(model):
        rates[group] = RowRate(
            flags.emb_lr_frequency,
            group.first_row.tolist(),
            len(group.weight),
            halflife=flags.emb_lr_halflife,
            counts=given.get(group),
            online=not given,
            power=flags.emb_lr_power,
            device=group.weight.device,
        )
        optimizer.set_row_rate(group.weight, rates[group])
    return rates


def set_row_decays(flags: argparse.Namespace, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Let rows decay as --emb-weight-decay and --emb-idle-decay ask; the optimizer keeps what that needs."""
    if flags.emb_weight_decay or flags.emb_idle_decay:
        for group in row_groups(model):
            optimizer.set_row_decay(group.weight, RowDecay(flags.emb_weight_decay, flags.emb_idle_decay))


def reinitialize(
    flags: argparse.Namespace,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    epoch: int,
    counts: Sequence[np.ndarray] | None,
) -> None:
    """Draw tables anew, as before the first epoch but with other numbers, and forget their optimizer state (MEDA).

    Everything behind the tables stays, and W2 unless asked for. First-order weights start at zero again. With `counts`,
    those of each table's ids in the training rows, rows that they read more than --emb-reinit-max-count times stay.
    """
    seed = (flags.numpy_rand_seed + 0x9E3779B9 * epoch) % (1 << 32)
    drawn = rows_to_draw(flags, model, counts)
    kept = {group: group.weight.data[~chosen] for group, chosen in drawn.items()}
    matrices = {p: p.detach().clone() for group in drawn for p in projections_of(group)}
    model.initialize_tables(np.random.RandomState(seed), seed, flags.mlet_init, flags.emb_init)
    for group, chosen in drawn.items():
        group.weight.data[~chosen] = kept[group]
        forget(optimizer, group.weight, chosen)
        new = chosen[group.first_row] & (flags.emb_reinit == "epoch-w2")
        for p in projections_of(group):
            p.data[~new] = matrices[p][~new]
            forget(optimizer, p, new)


def projections_of(group: nn.Module) -> list[nn.Parameter]:
    """W2 and the mixed-dimension projection of a group of tables, [P, ...] each, where it has them."""
    return [p for p in (group.inner_projection, group.projection) if p is not None]


def rows_to_draw(
    flags: argparse.Namespace, model: nn.Module, counts: Sequence[np.ndarray] | None
) -> dict[nn.Module, torch.Tensor]:
    """Which rows of each group --emb-reinit draws anew: bool [R]."""
    drawn = {group: torch.zeros_like(group.weight[:, 0], dtype=torch.bool) for group in row_groups(model)}
    for tables in model.table_sets:
        for part in tables.parts():
            if model.tables.specs[part.table].rows >= flags.emb_reinit_min_rows:
                first = int(part.group.first_row[part.index])
                drawn[part.group][first : first + part.counted_rows + tables.special_rows] = True
        if counts is not None:
            for group, total in tables.row_counts([torch.from_numpy(each) for each in counts]).items():
                drawn[group] &= total <= flags.emb_reinit_max_count
    return drawn


def forget(optimizer: torch.optim.Optimizer, parameter: torch.Tensor, rows: slice | torch.Tensor) -> None:
    """Zero what the optimizer knows of some rows of a parameter."""
    for value in optimizer.state.get(parameter, {}).values():
        if torch.is_tensor(value) and len(value) == len(parameter):
            value[rows] = 0


def make_loss(flags: argparse.Namespace, device: torch.device) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Mean loss of probabilities [B, 1] and labels [B, 1]; of several tasks [B, S] their weighted sum."""
    several = len(task_names(flags)) > 1
    task_weights = torch.tensor(flags.task_weights or [1.0] * max(1, len(task_names(flags))), device=device)
    if flags.loss_function == "mse":
        squares = functools.partial(nn.functional.mse_loss, reduction="none")
        return masked_loss(squares, task_weights) if several else nn.functional.mse_loss
    weights = torch.tensor(flags.loss_weights, dtype=torch.float64, device=device)

    def cross_entropies(probability: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        # torch refuses NaN here with an error (on CUDA an assertion that ends the process): it shall be seen as a loss
        is_nan = probability.isnan()
        losses = nn.functional.binary_cross_entropy(probability.masked_fill(is_nan, 0.5), label, reduction="none")
        if flags.loss_function == "wbce":
            losses = weights[label.long()] * losses
        return losses.masked_fill(is_nan, math.nan)

    if several:
        return masked_loss(cross_entropies, task_weights)
    return lambda probability, label: cross_entropies(probability, label).mean()


def bill_of_run(flags: argparse.Namespace, data: Data, device: torch.device, **changed: object) -> memory.Bill:
    """What a run with these flags, some of them changed, needs in memory. Nothing is allocated."""
    flags = argparse.Namespace(**{**vars(flags), **changed})
    if "max_ind_range" in changed:
        data = replace(data, tables={name: min(rows, flags.max_ind_range) for name, rows in data.tables.items()})
    if data.dense:
        flags.arch_mlp_bot = [*flags.arch_mlp_bot[:-1], model_width(flags)]
    with torch.device("meta"):
        model = empty_model(flags, data)
    on_cpu = device.type == "cpu"
    counters = (flags.emb_lr_frequency != "none") + (flags.emb_idle_decay > 0)  # float32 and int32, one a row each
    return memory.bill_of(
        model,
        dense_width=data.dense,
        lookups=data.lookups,
        batch_size=flags.mini_batch_size,
        eval_batch_size=test_batch_size(flags),
        accumulate=flags.mlperf_grad_accum_iter,
        optimizer=memory.StateSize(row_copies=0) if flags.inference_only else flags.optimizer,
        table_optimizer=state_of_rows(flags),
        unknown_is_mean=data.store is not None,
        other=4 * counters * sum(len(group.weight) for group in row_groups(model)),
        runtime=runtime_bytes() if on_cpu else memory.CUDA_RUNTIME_BYTES,
    )


def state_of_rows(flags: argparse.Namespace) -> memory.StateSize | str:
    """What the update rule of the tables' rows keeps."""
    if flags.inference_only:
        return memory.StateSize(row_copies=0)
    rule = rule_of_rows(flags)
    return replace(memory.STATE_SIZES["adam"], per_row=1) if rule == "adam" and flags.adam_row_steps else rule


def bills_after_changes(flags: argparse.Namespace, data: Data, device: torch.device) -> dict[str, memory.Bill | None]:
    """Flags that could shrink a run -> its bill with them; None: not known before the data is prepared again."""
    k, width, largest = flags.mlet_inner_dim, flags.arch_sparse_feature_size, max(data.tables.values())
    changes = {f"--mlet-inner-dim={value}": {"mlet_inner_dim": value} for value in (k // 2, 0) if k}
    if width > 1:
        half = f"--arch-sparse-feature-size={width // 2}"
        if data.dense:
            half += " with as wide an end of --arch-mlp-bot"
        changes[half] = {"arch_sparse_feature_size": width // 2}
    if flags.weighted_pooling != "learned":
        changes["--emb-precision=bf16"] = {"emb_precision": "bf16"}
    flag = "--optimizer" if flags.emb_optimizer == "same" else "--emb-optimizer"
    changes |= {f"{flag}={rule}": {flag[2:].replace("-", "_"): rule} for rule in ("rwsadagrad", "sgd")}
    if flags.mini_batch_size > 1:
        changes[f"--mini-batch-size={flags.mini_batch_size // 2}"] = {"mini_batch_size": flags.mini_batch_size // 2}
    if data.store is not None and largest > 1 and not data.maps:
        changes[f"--max-ind-range={largest // 2}"] = {"max_ind_range": largest // 2}
    bills = {text: bill_of_run(flags, data, device, **change) for text, change in changes.items()}
    if data.store is not None and not (data.maps or flags.qr_flag or flags.weighted_pooling):
        tenth = {
            name: hashing.Request(name, n, n // 10)
            for name, n in data.tables.items()
            if n > flags.hash_min_rows >= 0 and n >= 10
        }
        fewer = replace(data, maps={name: hashing.fit_map("modulo", request) for name, request in tenth.items()})
        bills["--hash-method=modulo (a tenth of the rows)"] = bill_of_run(flags, fewer, device)
    return bills | ({"a larger --vocabulary-min-count": None} if data.store is not None else {})


def check_memory(flags: argparse.Namespace, data: Data, device: torch.device) -> None:
    """Print what the run needs; ValueError, with the flags that would help, where it cannot fit."""
    bill, available = bill_of_run(flags, data, device), available_bytes(device)
    print(bill.line(available))
    on_cpu = device.type == "cpu"
    where = "memory" if on_cpu else "GPU memory"
    memory.check_fits(bill, available, lambda: bills_after_changes(flags, data, device), where)
    if not on_cpu:  # the model is drawn on the CPU and moves from there
        on_host = replace(bill, optimizer=0, gradients=0, activations=0, collapsed=0, runtime=runtime_bytes())
        memory.check_fits(on_host, available_bytes(torch.device("cpu")), where="main memory")


def make_forward_loss(flags: argparse.Namespace, model: nn.Module, loss: Callable) -> Callable[[Batch], torch.Tensor]:
    """The mean loss of a batch; with --compile everything behind the tables is one compiled function."""

    def behind_tables(labels: torch.Tensor, dense: torch.Tensor, *looked_up: torch.Tensor) -> torch.Tensor:
        probability = model.vectors_to_probability(dense, *looked_up).float()
        with torch.autocast(labels.device.type, enabled=False):  # CUDA's refuses a loss of probabilities
            return loss(probability, labels)

    compiled = torch.compile(behind_tables, dynamic=False) if flags.compile else behind_tables

    def forward_loss(batch: Batch) -> torch.Tensor:
        # another shape, as the last batch may have, would be compiled anew, which takes longer than the batch
        whole = len(batch.labels) == flags.mini_batch_size
        looked_up = model.look_up(batch.ids, batch.offsets)
        return (compiled if whole else behind_tables)(batch.labels, batch.dense, *looked_up)

    return forward_loss


# ---------------------------------------------------------------------------------------------------- 5. training


class NonFiniteLossError(ArithmeticError):
    """The loss became NaN or infinite."""


@dataclass
class Progress:
    """Where training stands; saved in checkpoints. Plain counters run from the last progress line."""

    epoch: int = 0
    iteration: int = 0  # batches of this epoch that are done
    loss_sum: float = 0.0
    samples: int = 0
    batches: int = 0
    seconds: float = 0.0
    train_seconds: float = 0.0
    train_samples: int = 0
    best_test_accuracy: float = 0.0  # percent
    best_test_auc: float = 0.0
    best: dict | None = None  # the evaluation with the best validation AUC
    evaluations_since_best: int = 0
    last_metrics: dict = field(default_factory=dict)  # split -> metrics at the last evaluation


class Trainer:
    """The training loop: steps, progress lines, evaluations, checkpoints."""

    def __init__(
        self,
        flags: argparse.Namespace,
        data: Data,
        model: nn.Module,
        device: torch.device,
        rng: np.random.RandomState,
    ) -> None:
        self.flags, self.data, self.model, self.device, self.rng = flags, data, model, device, rng
        self.forward_loss = make_forward_loss(flags, model, make_loss(flags, device))
        # a cache of cast weights would outlive a step that is captured in a CUDA graph
        is_bf16 = flags.precision == "bf16"
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=is_bf16, cache_enabled=device.type == "cpu")
        self.optimizer = make_optimizer(flags, model)
        self.row_parameters = [group.weight for group in row_groups(model)]
        self.row_rates = make_row_rates(flags, data, model, self.optimizer)
        set_row_decays(flags, model, self.optimizer)
        # first-order weights are not clipped, as in CowClip's code
        self.clipped = set(row_groups(model.tables)) if flags.emb_clip else set()
        self.unknown_by_dropout = flags.emb_id_dropout > 0  # also once a model that was trained so is loaded
        self.schedule = warmup_decay(self.optimizer, *schedule_options(flags))
        self.progress = Progress()
        batches = math.ceil(data.train_samples / flags.mini_batch_size)
        # progress lines count to --num-batches even where the data ends before, as the reference's do
        self.batches_shown = flags.num_batches if flags.num_batches > 0 else batches
        self.batches_per_epoch = min(self.batches_shown, batches)
        self.boundary = EpochBoundary(self.batches_per_epoch, device)
        self.metrics_file = MetricsFile(flags.metrics_file, append=bool(flags.resume))
        self.board = open_board(flags.tensor_board_filename)
        self.save_to = flags.save_model or without_checkpoint_name(flags.resume)
        self.stopped = False
        # which ids have been trained (one bool array a table), known up to this sample of the training order
        self.trained = [np.zeros(rows, bool) for rows in data.tables.values()]
        self._trained_upto = 0
        self._batches_to_count: list[tuple[torch.Tensor, torch.Tensor | None]] = []
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        self._bad_iteration = torch.tensor(-1, device=device)
        self._captured = CapturedBackward(self._loss_and_backward, model.parameters()) if self._can_capture() else None

    def fit(self) -> None:
        """Train to the last epoch, or until a threshold is reached."""
        done = self.progress.epoch * self.batches_per_epoch + self.progress.iteration
        total = self.flags.nepochs * self.batches_per_epoch
        with (
            profiling(self.flags.enable_profiling) as profiler,
            tqdm(total=total, initial=done, unit="it", disable=None, file=sys.stderr, mininterval=1.0) as bar,
        ):
            while self.progress.epoch < self.flags.nepochs and not self.stopped:
                self.model.train()
                self._fit_epoch(bar, profiler)
        self._count_training_time()

    def _fit_epoch(self, bar: tqdm, profiler: torch.profiler.profile | None) -> None:
        progress = self.progress
        began = time.perf_counter()
        if progress.epoch and not progress.iteration:
            self._renew_tables()
        batches = self.data.train_batches(progress.iteration)
        with contextlib.closing(batches):
            for batch in batches:
                if progress.iteration >= self.batches_per_epoch or self.stopped:
                    break
                self._step(batch)
                progress.iteration += 1
                bar.update()
                if profiler:
                    profiler.step()
                tested, printed = self._test_is_due(), self._print_is_due()
                at_end = progress.iteration == self.batches_per_epoch
                if tested or printed or at_end:
                    progress.seconds += time.perf_counter() - began
                    self._report_boundary()
                    if tested or printed:
                        self._print_progress(bar)
                    if tested or (at_end and self.data.store is not None and self.data.splits):
                        self.evaluate_and_save()
                    elif at_end and self.save_to:
                        self._stop_if_non_finite()
                        self.save(is_best=False)
                    began = time.perf_counter()
        progress.seconds += time.perf_counter() - began
        if not self.stopped:
            progress.epoch, progress.iteration = progress.epoch + 1, 0

    @functools.cached_property
    def train_counts(self) -> list[np.ndarray]:
        """How often each id of each table occurs in the rows that are trained on, see `Store.counts_in`."""
        return self.data.store.counts_in(self.data.train_rows)

    def _renew_tables(self) -> None:
        """What happens to tables between two epochs."""
        flags, epoch = self.flags, self.progress.epoch
        if flags.hash_method == "cce":
            seed = flags.numpy_rand_seed
            recluster_tables(self.model, self.data.maps, self.train_counts, self.optimizer, seed, epoch)
        if flags.emb_reinit != "none":
            reinitialize(flags, self.model, self.optimizer, epoch, self._counts_to_keep())

    def _counts_to_keep(self) -> list[np.ndarray] | None:
        """Counts of each table's ids that --emb-reinit-max-count looks at; of the unknown id, how often it is read."""
        flags = self.flags
        if not flags.emb_reinit_max_count:
            return None
        counts = [each.copy() for each in self.train_counts]
        for each in counts:
            each[-1] += round(flags.emb_id_dropout * each[:-1].sum())
        return counts

    def _print_is_due(self) -> bool:
        done = self.progress.iteration
        return done % self.flags.print_freq == 0 or done == self.batches_shown

    def _test_is_due(self) -> bool:
        done, every = self.progress.iteration, self.flags.test_freq
        return every > 0 and (done % every == 0 or done == self.batches_shown)

    def _step(self, batch: Batch) -> None:
        """One batch: forward, backward and, if the accumulation is complete, one update."""
        flags, progress = self.flags, self.progress
        if flags.emb_id_dropout:
            batch = self._with_dropped_ids(batch)
        batch, samples = to_device(batch, self.device), len(batch.labels)
        if flags.emb_idle_decay and flags.emb_idle_decay_at == "lookup":
            for group, rows in self._rows_read(batch.ids, batch.offsets):
                self.optimizer.decay_idle_rows(group.weight, rows)
        if self._captured and samples == flags.mini_batch_size:
            loss = self._captured(batch.dense, batch.ids, batch.labels)
        else:
            share = samples / self._samples_of_group(progress.iteration)
            loss = self._loss_and_backward(batch.dense, batch.ids, batch.labels, batch.offsets, share)
        self._note_non_finite(loss)
        if flags.emb_clip or (self.row_rates and flags.emb_lr_counts == "online"):
            self._batches_to_count.append((batch.ids, batch.offsets))
        group_is_full = (progress.iteration + 1) % flags.mlperf_grad_accum_iter == 0
        if group_is_full or progress.iteration + 1 == self.batches_per_epoch:
            add_row_penalty(self.row_parameters, flags.emb_l2)
            self._use_lookups()
            if self.model.masked is not None:
                self.model.masked.before_step()
            self.optimizer.step()
            if self.model.masked is not None:
                self.model.masked.after_step()
            if any(schedule_options(flags)):
                self.schedule.step()
            self.optimizer.zero_grad()
        self._loss_sum += loss * samples
        self.boundary.add(progress.iteration, loss, samples)
        progress.samples += samples
        progress.batches += 1

    def _loss_and_backward(
        self,
        dense: torch.Tensor,
        ids: torch.Tensor,
        labels: torch.Tensor,
        offsets: torch.Tensor | None = None,
        share: float = 1.0,
    ) -> torch.Tensor:
        """The mean loss of a batch, whose gradients, times `share`, are added to the parameters'."""
        with self.autocast:
            loss = self.forward_loss(Batch(dense, ids, offsets, labels))
        (loss if share == 1 else loss * share).backward()
        self._mask_bad_gradients(loss.detach())
        return loss.detach()

    def _can_capture(self) -> bool:
        """Whether every whole batch does the same on the device: no bags, no accumulation, no control of gradients."""
        flags = self.flags
        plain = flags.mlperf_grad_accum_iter == 1 and self.model.masked is None and not any(self.data.multi_hot)
        return plain and self.device.type == "cuda" and flags.cuda_graph == "auto"

    def _with_dropped_ids(self, batch: Batch) -> Batch:
        """The batch as --emb-id-dropout shows it to the model, drawn anew in each epoch."""
        where = (self.flags.numpy_rand_seed, self.progress.epoch, self.progress.iteration)
        unknown = list(self.data.tables.values())  # id n of n
        return batch._replace(ids=drop_ids(batch.ids, batch.offsets, unknown, self.flags.emb_id_dropout, where))

    def _rows_read(self, ids: torch.Tensor, offsets: torch.Tensor | None) -> Iterator[tuple[nn.Module, torch.Tensor]]:
        """The rows [L] that a batch reads in each group of all tables, as often as it reads them."""
        for tables in self.model.table_sets:
            yield from tables.rows_read(ids, offsets)

    def _use_lookups(self) -> None:
        """Let --emb-clip and rates by frequency see the lookups of this step, of all its batches and hashes at once.

        Not batch by batch: a checkpoint within the step would hold lookups that a resumed run counts again.
        """
        read: dict[nn.Module, list[torch.Tensor]] = {}
        for ids, offsets in self._batches_to_count:
            for group, rows in self._rows_read(ids, offsets):
                read.setdefault(group, []).append(rows)
        for group, parts in read.items():
            rows = torch.cat(parts)
            if group in self.clipped:
                clip_row_gradients(group.weight, rows, self.flags.emb_clip, self.flags.emb_clip_floor)
            if group in self.row_rates:
                self.row_rates[group].count(rows)
        self._batches_to_count.clear()

    def _samples_of_group(self, iteration: int) -> int:
        """Samples of the accumulation group of a batch: n batches weigh as one batch of n times the size would."""
        size, group = self.flags.mini_batch_size, self.flags.mlperf_grad_accum_iter
        first = iteration - iteration % group
        last = min(first + group, self.batches_per_epoch)
        return min(last * size, self.data.train_samples) - first * size

    def _note_non_finite(self, loss: torch.Tensor) -> None:
        """Remember the first bad iteration on the device; on the CPU it is read at once, for free."""
        if self.device.type == "cpu":
            if not math.isfinite(loss):
                self._bad_iteration.fill_(self.progress.iteration + 1)
                self._stop_if_non_finite()
            return
        is_first = (self._bad_iteration < 0) & ~torch.isfinite(loss)
        self._bad_iteration.copy_(torch.where(is_first, self.progress.iteration + 1, self._bad_iteration))

    def _mask_bad_gradients(self, loss: torch.Tensor) -> None:
        """On CUDA nothing waits for the loss: once one was bad, no update may reach the weights until it is read."""
        if self.device.type == "cpu":
            return
        good = (self._bad_iteration < 0) & torch.isfinite(loss)
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                values = parameter.grad._values() if parameter.grad.is_sparse else parameter.grad
                values.copy_(torch.where(good, values, 0))

    def _stop_if_non_finite(self) -> None:
        bad = int(self._bad_iteration)
        if bad < 0:
            return
        saved = Path(self.save_to, "last") if self.save_to else None
        kept = f"the last checkpoint is {saved}" if saved and saved.exists() else "no checkpoint was saved"
        raise NonFiniteLossError(
            f"the loss is not finite at iteration {bad} of epoch {self.progress.epoch}; {kept}; try a smaller "
            "--learning-rate"
        )

    def _print_progress(self, bar: tqdm) -> None:
        """The reference's progress line, which people's log parsers read, and the train event."""
        flags, progress = self.flags, self.progress
        self._stop_if_non_finite()
        loss = float(self._loss_sum) / progress.samples
        per_batch = 1000 * progress.seconds / progress.batches if flags.print_time else -1
        wall_time = time.strftime(" (%H:%M)") if flags.print_wall_time else ""
        tqdm.write(
            f"Finished training it {progress.iteration}/{self.batches_shown} of epoch {progress.epoch}, "
            f"{per_batch:.2f} ms/it, loss {loss:.6f}{wall_time}",
            file=sys.stdout,
        )
        sys.stdout.flush()
        speed = progress.samples / max(progress.seconds, 1e-9)
        bar.set_postfix_str(f"{speed:.0f} samples/s, loss {loss:.4f}", refresh=False)
        where = {"epoch": progress.epoch, "iteration": progress.iteration}
        self.metrics_file.write("train", **where, loss=loss, samples_per_second=speed)
        self._board("Train/Loss", loss)
        self._count_training_time()
        self._loss_sum.zero_()

    def _report_boundary(self) -> None:
        """How the training loss went from the last epoch's end into this epoch, once enough of it is done."""
        self._stop_if_non_finite()
        found = self.boundary.take()
        if found is None:
            return
        epoch, jump = self.progress.epoch, found["jump_percent"]
        text = f"{found['last']:.6f} -> {found['first']:.6f}" + (f" ({jump:+.2f} %)" if jump is not None else "")
        count = f"last and first {found['batches']} batches"
        tqdm.write(f"Loss from epoch {epoch - 1} to {epoch}, {count}: {text}", file=sys.stdout)
        # at the window's end wherever it is read: a resumed run writes the same event
        self.metrics_file.write("boundary", epoch=epoch, iteration=found["batches"], **found)
        self._board("Train/BoundaryJump", jump)

    def _count_training_time(self) -> None:
        progress = self.progress
        progress.train_seconds += progress.seconds
        progress.train_samples += progress.samples
        progress.samples, progress.batches, progress.seconds = 0, 0, 0.0

    def _board(self, name: str, value: float | None) -> None:
        if self.board and value is not None:
            step = self.progress.epoch * self.batches_per_epoch + self.progress.iteration
            self.board.add_scalar(name, value, step)

    def evaluate_and_save(self) -> None:
        """Evaluate, save checkpoints, see whether a threshold is reached."""
        flags, progress = self.flags, self.progress
        self._stop_if_non_finite()
        where = f"{progress.iteration}/{self.batches_shown} of epoch {progress.epoch}"
        tqdm.write(f"Testing at - {where},", file=sys.stdout)
        is_best = self.evaluate()
        self._react_to_plateau(is_best)
        if self.save_to:
            self.save(is_best)
        for name, limit, reached in (
            ("accuracy", flags.mlperf_acc_threshold, progress.best_test_accuracy / 100),
            ("auc", flags.mlperf_auc_threshold, progress.best_test_auc),
        ):
            if 0 < limit < reached:
                tqdm.write(f"MLPerf testing {name} threshold {limit} reached, stop training", file=sys.stdout)
                self.stopped = True
        self.model.train()

    def _react_to_plateau(self, is_best: bool) -> None:
        """Lower the rates, or stop, where validation is not better than ever."""
        flags, progress = self.flags, self.progress
        progress.evaluations_since_best = 0 if is_best else progress.evaluations_since_best + 1
        if is_best:
            return
        if flags.lr_plateau_factor != 1:
            scale_rates(self.optimizer, self.schedule, flags.lr_plateau_factor)
        if 0 < flags.early_stop_patience <= progress.evaluations_since_best:
            count = progress.evaluations_since_best
            tqdm.write(f"No better validation AUC in {count} evaluations, stop training", file=sys.stdout)
            self.stopped = True

    def evaluate(self) -> bool:
        """Metrics of every split, printed and written; returns whether validation was better than ever."""
        flags, progress = self.flags, self.progress
        results = evaluate(self.model, self.data, self.device)
        tasks = self.data.tasks
        metrics = {split: tasks.metrics(*result) for split, result in results.items()}
        warn_of_one_score(results)
        # the reference's own line looks at no more test batches than there are training batches (--num-batches)
        part = [values[: self.batches_shown * test_batch_size(flags)] for values in results["test"]]
        test = metrics["test"] if len(part[0]) == metrics["test"]["samples"] else tasks.metrics(*part)
        progress.last_metrics = metrics
        progress.best_test_accuracy = max(progress.best_test_accuracy, test["accuracy"] or 0.0)
        progress.best_test_auc = max(progress.best_test_auc, test["auc"] or 0.0)
        where = {"epoch": progress.epoch, "iteration": progress.iteration}
        for split, values in metrics.items():
            self.metrics_file.write("eval", split=split, **where, **values)
        if flags.spectra:
            self.metrics_file.write("spectrum", **where, tables=spectra(self.model, self.unknown_trained()))
        if flags.frequency_report == "epoch" and progress.iteration == self.batches_per_epoch:
            self._report_by_frequency(*results["val"])
        for name, value in (("Test/Acc", (test["accuracy"] or 0.0) / 100), ("Test/AUC", test["auc"])):
            self._board(name, value)
        self._board("Val/AUC", metrics["val"]["auc"] if "val" in metrics else None)
        for split in metrics:
            for name, values in metrics[split].get("tasks", {}).items():
                self._board(f"{split.capitalize()}/AUC/{name}", values["auc"])
        reference = {"accuracy": test["accuracy"] or 0.0}
        if flags.mlperf_logging:
            _, _, *of_first_task = next(tasks.known(*part))
            reference = reference_metrics(*of_first_task)
        print_metrics(metrics, progress, reference)
        is_best = "val" in metrics and is_better(metrics["val"], progress.best and progress.best["val"])
        if is_best:
            progress.best = where | metrics
        return is_best

    @functools.cached_property
    def _rarest_of_val(self) -> np.ndarray:
        """How often the rarest id of each validation row occurs in the rows that are trained on."""
        return rarest_counts(counts_of_split(self, "val", self.samples_reached()))

    def _report_by_frequency(self, labels: np.ndarray, scores: np.ndarray) -> None:
        """Validation quality at an epoch's end, by the row's rarest id."""
        where = {"epoch": self.progress.epoch, "iteration": self.progress.iteration, "split": "val"}
        of_task = {}
        for name, rows, *pair in self.data.tasks.known(labels, scores):
            of_task[name] = report = quality_by_count(*pair, self._rarest_of_val[rows])
            task = f"{name}/" if len(self.data.tasks) > 1 else ""
            for number, part in enumerate(report["bins"], 1):  # from the rarest up
                self._board(f"Val/AUC/{task}decile-{number}", part["auc"])
        if len(of_task) == 1:
            self.metrics_file.write("frequency", **where, rarest=report)
        else:
            self.metrics_file.write(
                "frequency", **where, tasks={name: {"rarest": each} for name, each in of_task.items()}
            )

    def save(self, is_best: bool) -> None:
        """Write DIR/last, and DIR/best where validation says so."""
        progress, accumulate = self.progress, self.flags.mlperf_grad_accum_iter
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        progress.loss_sum = float(self._loss_sum)
        epoch, iteration = self._position(progress.epoch, progress.iteration)
        position = vars(progress) | {"epoch": epoch, "iteration": iteration - iteration % accumulate}
        state = {
            "flags": vars(self.flags),
            "data_sha256": self.data.checksum,
            "store": self.data.key,
            "trained": [np.packbits(flags) for flags in self.update_trained()],
            "model": full_config(self.model),
            "unknown_by_dropout": self.unknown_by_dropout,
            "tasks": vars(self.data.tasks),
            "maps": self.data.maps_about,
            "row_rates": [rate.state_dict() for rate in self.row_rates.values()],
            "boundary": self.boundary.state_dict(),
            "progress": position,
            "optimizer": pack_optimizer(self.optimizer, names),
            "schedule": self.schedule.state_dict() | {"lr_lambdas": None},
            "generators": rng_state(self.rng),
        }
        Path(self.save_to).mkdir(parents=True, exist_ok=True)
        checkpoint.save_checkpoint(Path(self.save_to, "last"), self.model.state_dict(), state)
        if is_best:
            checkpoint.link_checkpoint(Path(self.save_to, "last"), Path(self.save_to, "best"))

    def unknown_trained(self) -> list[str]:
        """Tables whose unknown row the data, or --emb-id-dropout, trains."""
        if self.data.store is None:
            return []
        return list(self.data.tables) if self.unknown_by_dropout else self.data.store.schema["trained_unknown"]

    def update_trained(self) -> list[np.ndarray]:
        """Mark the ids of the samples trained since the last call; later epochs bring no new ones."""
        reached = self.samples_reached()
        if self.data.store is not None and reached > self._trained_upto:
            new = self.data.store.ids_in(self.data.train_rows[self._trained_upto : reached])
            self.trained = [old | flags for old, flags in zip(self.trained, new, strict=True)]
            self._trained_upto = reached
        return self.trained

    def samples_reached(self) -> int:
        batches = self.batches_per_epoch if self.progress.epoch else self.progress.iteration
        return min(batches * self.flags.mini_batch_size, self.data.train_samples)

    def release(self) -> int:
        """Let optimizer state and gradients go; returns the bytes of parameters, row maps, counters and state."""
        self.optimizer.zero_grad()
        tensors = [*self.model.parameters(), *self.model.tables.maps.buffers()]
        for state in self.optimizer.state.values():
            tensors += [value for value in state.values() if torch.is_tensor(value)]
        tensors += [rate.counts for rate in self.row_rates.values()]
        self.optimizer = self.schedule = None
        self.row_rates = {}
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def resume(self, directory: str) -> None:
        """Take up the state of DIR/last, after checking that this run is the one that was saved."""
        source = find_checkpoint(directory, "last")
        tensors, state = checkpoint.load_checkpoint(source)
        check_same_flags(source, state["flags"], self.flags)
        check_same_data(source, state, self.data)
        load_weights(self.model, tensors, source)
        self.trained = unpack_trained(state, self.data)
        self.unknown_by_dropout |= state.get("unknown_by_dropout", False)
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        unpack_optimizer(self.optimizer, state["optimizer"], names)
        for rate, saved in zip(self.row_rates.values(), state.get("row_rates", []), strict=True):
            rate.load_state_dict(saved)
        if "boundary" in state:  # not in older checkpoints
            self.boundary.load_state_dict(state["boundary"])
        self.schedule.load_state_dict(state["schedule"] | {"lr_lambdas": [None] * len(self.optimizer.param_groups)})
        restore_rng(self.rng, state["generators"])
        self.progress = Progress(**state["progress"])
        self._loss_sum.fill_(self.progress.loss_sum)
        self._trained_upto = self.samples_reached()
        self.stopped = 0 < self.flags.early_stop_patience <= self.progress.evaluations_since_best
        self.metrics_file.cut(self._is_done)
        if self.flags.save_model and Path(source.parent, "best").is_dir() and not Path(self.save_to, "best").is_dir():
            Path(self.save_to).mkdir(parents=True, exist_ok=True)
            checkpoint.link_checkpoint(source.parent / "best", Path(self.save_to, "best"))
        already = "; it had stopped early" if self.stopped else ""
        print(f"Resumed from {source}: epoch {self.progress.epoch}, iteration {self.progress.iteration}{already}")

    def _is_done(self, event: dict) -> bool:
        """Whether a metrics event lies before the position that training goes on from."""
        if "iteration" not in event:
            return False
        done = self._position(event["epoch"], event["iteration"])
        return done <= (self.progress.epoch, self.progress.iteration)

    def _position(self, epoch: int, iteration: int) -> tuple[int, int]:
        """Where training goes on after this batch: an epoch's end is the next one's beginning."""
        return (epoch + 1, 0) if iteration == self.batches_per_epoch else (epoch, iteration)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on the device; CUDA fetches it from pinned memory, so that the processor goes on meanwhile."""
    if device.type == "cpu":
        return batch
    return Batch(*(None if part is None else part.pin_memory().to(device, non_blocking=True) for part in batch))


def open_board(directory: str | None):  # noqa: ANN201 (the type comes from an extra)
    """A TensorBoard writer, or None without --tensor-board-filename."""
    if not directory:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ValueError("--tensor-board-filename needs TensorBoard: pip install tensorboard") from None
    return SummaryWriter(directory)


@contextlib.contextmanager
def profiling(enabled: bool) -> Iterator[torch.profiler.profile | None]:
    """Profile the first 1000 batches: two tables and a Chrome trace in the current folder, named as the reference's."""
    if not enabled:
        yield None
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch wants warm-up batches; a run of a few batches has none to spare
        window = torch.profiler.schedule(wait=0, warmup=0, active=1000, repeat=1)
    with torch.profiler.profile(record_shapes=True, schedule=window) as profiler:
        yield profiler
    stem = f"dlrm_mlet{datetime.now().isoformat(sep='_')}"
    for suffix, by_shape in (("_shape", True), ("_total", False)):
        table = profiler.key_averages(group_by_input_shape=by_shape).table(sort_by="self_cpu_time_total")
        Path(f"{stem}{suffix}.prof").write_text(table)
    profiler.export_chrome_trace(f"{stem}.json")
    print(f"Profile: {stem}_total.prof, {stem}_shape.prof, {stem}.json")


# -------------------------------------------------------------------------------------------------- 6. evaluation


@torch.inference_mode()
def evaluate(
    model: nn.Module, data: Data, device: torch.device, splits: tuple[str, ...] = ()
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Labels and probabilities of all rows of each split, or of those named: [N], of several tasks [N, S].

    No training generator is touched.
    """
    model.eval()
    results = {}
    for split in splits or data.splits:
        labels, scores = [], []
        for batch in data.eval_batches(split):
            batch = to_device(batch, device)
            scores.append(model(batch.dense, batch.ids, batch.offsets).float().cpu().numpy())
            labels.append(batch.labels.cpu().numpy())
        both = np.concatenate(labels), np.concatenate(scores)
        results[split] = both if len(data.tasks) > 1 else (both[0][:, 0], both[1][:, 0])
        if not np.isfinite(results[split][1]).all():
            raise NonFiniteLossError(
                "the model's probabilities are not finite: training diverged; try a smaller --learning-rate"
            )
    return results


def warn_of_one_score(results: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Say where every row of a split gets the same probability: AUC 0.5 alone does not tell that training is lost."""
    for split, (_, scores) in results.items():
        if len(scores) > 1 and not np.ptp(scores, axis=0).any():
            warn(f"all {len(scores)} {split} rows have one score, {scores.flat[0]:.4g}: try a smaller --learning-rate")


def evaluate_by_frequency(model: nn.Module, trainer: Trainer) -> dict:
    """Test metrics by how often ids occur in the rows trained on (with --inference-only: in all that could be)."""
    data = trainer.data
    upto = data.train_samples if trainer.flags.inference_only else trainer.samples_reached()
    labels, scores = evaluate(model, data, trainer.device, ("test",))["test"]
    of_rows = counts_of_split(trainer, "test", upto)
    if len(data.tasks) == 1:
        return frequency_report(labels, scores, of_rows, data.tables)
    known = [each for each in data.tasks.known(labels, scores) if each[1].any()]
    return {"tasks": {name: frequency_report(*pair, of_rows[rows], data.tables) for name, rows, *pair in known}}


def counts_of_split(trainer: Trainer, split: str, upto: int) -> np.ndarray:
    """How often each id of a split's rows occurs in the first `upto` samples of the training order: [N, T]."""
    data = trainer.data
    counts = data.store.counts_in(data.train_rows[:upto])
    batches = ((batch.ids, batch.offsets) for batch in data.eval_batches(split))
    return counts_of_rows(batches, counts, len(data.store.rows_of(split)))


def is_better(metrics: dict, best: dict | None) -> bool:
    """Higher validation AUC; lower logloss where there is no AUC."""
    if best is None:
        return True
    if metrics["auc"] is None or best["auc"] is None:
        return (metrics["logloss"] or math.inf) < (best["logloss"] or math.inf)
    return metrics["auc"] > best["auc"]


def shown(value: float | None) -> str:
    """A metric with five digits; AUC and NE of one class are undefined."""
    return "undefined" if value is None else f"{value:.5f}"


def quality_text(values: dict) -> str:
    """Metrics in a line; a task without labels has none."""
    accuracy = "undefined" if values["accuracy"] is None else f"{values['accuracy']:.3f} %"
    quality = ", ".join(f"{name} {shown(values[name])}" for name in ("auc", "logloss", "ne"))
    return f"{quality}, accuracy {accuracy}, {values['samples']} samples"


def print_metrics(metrics: dict, progress: Progress, reference: dict) -> None:
    """The reference's line on the test split, then one line a split over all its rows, and one a task of several."""
    line = f" accuracy {reference['accuracy']:3.3f} %, best {progress.best_test_accuracy:3.3f} %"
    if "recall" in reference:
        values = {name: math.nan if value is None else value for name, value in reference.items()}
        line = (
            f"recall {values['recall']:.4f}, precision {values['precision']:.4f}, f1 {values['f1']:.4f}, "
            f"ap {values['ap']:.4f}, auc {values['roc_auc']:.4f}, best auc {progress.best_test_auc:.4f},{line}"
        )
    lines = [line]
    for split, values in metrics.items():
        lines.append(f" {split}: {quality_text(values)}")
        lines += [f"  {split}, {task}: {quality_text(each)}" for task, each in values.get("tasks", {}).items()]
    tqdm.write("\n".join(lines), file=sys.stdout)
    sys.stdout.flush()


# --------------------------------------------------------------------------------- 7. inference model and export


def load_weights(model: nn.Module, tensors: dict[str, torch.Tensor], source: Path) -> None:
    """Copy a checkpoint's tensors into the model; ValueError names the first that does not fit."""
    own = model.state_dict()
    for name in [*own, *tensors]:
        if name not in own or name not in tensors:
            raise ValueError(f"{source} does not fit this model: {name} is only in one of them; give the same flags")
        if own[name].shape != tensors[name].shape:
            shapes = f"{tuple(tensors[name].shape)} there, {tuple(own[name].shape)} here"
            raise ValueError(f"{source} does not fit this model: {name} is {shapes}; give the same flags")
    model.load_state_dict(tensors)


def find_checkpoint(directory: str, *names: str) -> Path:
    """The first of DIR/<name> that exists, else DIR itself."""
    for path in (Path(directory, name) for name in names):
        recover_directory(path)  # a process may have died between moving the old one aside and the new one in
        if path.is_dir():
            return path
    return Path(directory)


def without_checkpoint_name(directory: str) -> str:
    """DIR of DIR, DIR/last and DIR/best."""
    return str(Path(directory).parent) if Path(directory).name in ("last", "best") else directory


def check_same_flags(source: Path, saved: dict, flags: argparse.Namespace) -> None:
    """A run is resumed with the flags that it was begun with, but for those that do not change what it computes."""
    for name, value in saved.items():
        now = getattr(flags, name, None)
        if name not in FREE_ON_RESUME and now != value:
            flag = "--" + name.replace("_", "-")
            raise ValueError(f"{source} was trained with {flag}={value}, this run has {now}: resume the same run")


def check_same_data(source: Path, state: dict, data: Data) -> None:
    """Ids are numbers of one store: with another one the same id means something else."""
    if (state["data_sha256"], state["store"]) != (data.checksum, data.key):
        raise ValueError(f"{source} was trained on other data, or data prepared with other flags: its ids do not fit")


def check_same_tasks(source: Path, state: dict, data: Data) -> None:
    """Tasks are part of what is learned: a head of another label would load, and score something else."""
    first = next(iter(data.store.schema["labels"])) if data.store else data.tasks.names[0]
    # checkpoints of older versions do not say, and have one task
    saved = Tasks(**state.get("tasks", {"names": (state["flags"].get("tasks") or first,)}))
    for flag, there, here in (
        ("--tasks", saved.names, data.tasks.names),
        ("--task-weights", saved.weights, data.tasks.weights),
    ):
        if tuple(there) != here:
            there, here = (",".join(f"{each}" for each in values) for values in (there, here))
            raise ValueError(f"{source} was trained with {flag}={there}, this run has {here}: give the same flags")


def check_same_model(source: Path, saved: dict, own: dict) -> None:
    """Weights of another model may have the same shapes: they would load, and score nonsense."""
    if saved["model"] != own["model"]:
        raise ValueError(f"{source} holds --arch-model={saved['model']}, this run has {own['model']}")
    arguments = {"bottom_end": "relu"} | saved["arguments"]  # what a checkpoint had before there was a choice
    for there, here in ((arguments, own["arguments"]), (saved["tables"], own["tables"])):
        for name in there.keys() & here.keys():  # a checkpoint of an older version may lack some
            if json.dumps(there[name]) != json.dumps(here[name]):
                what = "its tables differ" if name == "specs" else f"{name} is {there[name]} there, {here[name]} here"
                raise ValueError(f"{source} does not fit this model: {what}; give the same flags")


def unpack_trained(state: dict, data: Data) -> list[np.ndarray]:
    """Which ids the checkpoint's training has reached."""
    packed = zip(state["trained"], data.tables.values(), strict=True)
    return [np.unpackbits(bits, count=rows).astype(bool) for bits, rows in packed]


def load_model(trainer: Trainer, directory: str) -> None:
    """Weights of a checkpoint (DIR/best, else DIR/last, else DIR itself)."""
    source = find_checkpoint(directory, "best", "last")
    tensors, state = checkpoint.load_checkpoint(source)
    check_same_data(source, state, trainer.data)
    check_same_tasks(source, state, trainer.data)
    check_same_model(source, state["model"], full_config(trainer.model))
    load_weights(trainer.model, tensors, source)
    trainer.trained = unpack_trained(state, trainer.data)
    trainer.unknown_by_dropout |= state.get("unknown_by_dropout", False)
    saved = state["progress"]
    if trainer.flags.inference_only:
        trainer.progress.epoch, trainer.progress.iteration = saved["epoch"], saved["iteration"]
    print(f"Loaded {source}: saved at epoch {saved['epoch']}, iteration {saved['iteration']}")


def save_inference_model(flags: argparse.Namespace, data: Data, model: nn.Module) -> dict | None:
    """Write what --save-collapsed and --save-onnx ask for, the vocabulary beside each.

    Returns the quality on the test split of an ONNX file with quantised tables. An fp32 file is not scored again: it is
    proven equal to the model that was just evaluated, and a pass over a large test split takes long.
    """
    model = model.cpu()
    if data.store is not None:
        for path in filter(None, (flags.save_collapsed, flags.save_onnx)):
            data_utils.save_vocabulary(data.store.directory, export.vocabulary_path(path))
    if flags.save_collapsed:
        save_collapsed(model, flags.save_collapsed)
        print(f"Collapsed model: {flags.save_collapsed}")
    if flags.save_onnx:
        batches = data.eval_batches("test")
        first = next(batches)
        batches.close()
        samples = [(first.dense, first.ids, first.offsets), one_row(first)]
        bits = flags.quantize_emb_with_bit
        metadata = {"config": full_config(model), "store": data.key, "table_bits": bits, "tasks": data.tasks.names}
        worst = export.export_onnx(model, flags.save_onnx, samples, data.multi_hot, metadata)
        print(f"ONNX model: {flags.save_onnx}, onnxruntime differs by at most {worst:.1e}")
        if bits != 32 and data.store is not None:
            return score_quantized_file(flags.save_onnx, bits, data, model)
    return None


def score_quantized_file(path: str, bits: int, data: Data, model: nn.Module) -> dict:
    """AUC and logloss on the test split of an exported file in onnxruntime, and its bytes."""
    batches = ((batch.dense, batch.ids, batch.offsets) for batch in data.eval_batches("test"))
    scores = export.score_onnx(path, model, batches, data.multi_hot)
    metrics = data.tasks.metrics(data.store.labels_of("test"), scores)
    size = sum(os.path.getsize(file) for file in (path, f"{path}.data") if os.path.exists(file))
    quality = f"auc {shown(metrics['auc'])}, logloss {shown(metrics['logloss'])}"
    print(f"ONNX model with {bits}-bit tables: test {quality}, {size} bytes")
    of_tasks = {"tasks": metrics["tasks"]} if "tasks" in metrics else {}
    return {"table_bits": bits, "auc": metrics["auc"], "logloss": metrics["logloss"], "bytes": size, **of_tasks}


def one_row(batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """The first sample of a batch, doubled where the batch has no other: a second batch size for the export check."""
    size = len(batch.labels)
    chosen = torch.tensor([0]) if size > 1 else torch.tensor([0, 0])
    dense = batch.dense[chosen]
    if batch.offsets is None:
        return dense, batch.ids[chosen], None
    bags = batch.offsets[:-1].view(-1, size)[:, chosen].flatten().tolist()
    ends = batch.offsets[1:].view(-1, size)[:, chosen].flatten().tolist()
    ids = [batch.ids[start:end] for start, end in zip(bags, ends, strict=True)]
    lengths = torch.tensor([len(part) for part in ids])
    return dense, torch.cat(ids), nn.functional.pad(lengths.cumsum(0), (1, 0))


# ----------------------------------------------------------------------------------------------------- 8. scoring


def predict(flags: argparse.Namespace) -> None:
    """Score raw rows with nothing but the ONNX file and the vocabulary beside it."""
    check_output_paths(flags)
    session = export.open_session(flags.load_onnx)
    folder = export.vocabulary_path(flags.load_onnx)
    if not folder.is_dir():
        raise ValueError(f"{folder} is missing: --predict needs the vocabulary that was saved beside the ONNX file")
    vocabulary = data_utils.Vocabulary(folder)
    metadata = export.metadata_of(session)
    if metadata.get("store") != vocabulary.schema["key"]:
        raise ValueError(f"{folder} is not the vocabulary that {flags.load_onnx} was trained with")
    names = [given.name for given in session.get_inputs()]
    padding = [rows + 1 for rows in vocabulary.schema["tables"].values()]
    multi_hot = dict.fromkeys(vocabulary.layout.tables, False) | dict.fromkeys(vocabulary.layout.multi_hot, True)
    rows = 0
    with atomic_file(flags.predictions, "w") as out:
        for batch in vocabulary.encode_file(flags.predict):
            inputs = export.graph_inputs(batch.dense, batch.ids, batch.offsets, multi_hot, padding)
            scores = session.run(["probability"], {name: inputs[name].numpy() for name in names})[0]
            out.writelines("\t".join(f"{score:.9g}" for score in row) + "\n" for row in scores)
            rows += len(scores)
    tasks = metadata.get("tasks", ())
    columns = f" of {', '.join(tasks)}, tab-separated" if len(tasks) > 1 else ""
    print(f"Predictions: {flags.predictions}, {rows} rows{columns}")


# -------------------------------------------------------------------------------------------------------- 9. main


def run(flags: argparse.Namespace) -> None:
    """prepare -> build -> train -> evaluate -> collapse -> export."""
    commit_of(ROOT)  # now, for the result: the checkout may move on while the run trains
    check_output_paths(flags)
    check_checkpoints(flags)
    np.set_printoptions(precision=flags.print_precision)
    torch.set_printoptions(precision=flags.print_precision)
    torch.manual_seed(flags.numpy_rand_seed)
    rng = np.random.RandomState(flags.numpy_rand_seed)
    device = choose_device(flags.use_gpu)
    if flags.precision == "bf16" and not flags.inference_only and not computes_in_bf16(device):
        warn("no bf16 arithmetic here: --precision=bf16 will be slower")

    if flags.prepare_only:
        open_store(flags)
        return
    data, hash_report = add_maps(flags, open_data(flags, rng), device)
    if flags.hash_learn_only:
        return
    check_memory(flags, data, device)
    model = make_model(flags, data, rng)
    if flags.debug_mode:
        print_debug(model, data)
    trainer = Trainer(flags, data, model.to(device), device, rng)
    if flags.load_model:
        load_model(trainer, flags.load_model)
    if flags.resume:
        trainer.resume(flags.resume)
    print("time/loss/accuracy (if enabled):")
    if not flags.inference_only:
        trainer.fit()
        if data.store is not None and not trainer.progress.last_metrics:
            trainer.evaluate_and_save()
        if flags.debug_mode:
            print_weights("updated parameters (weights and bias):", model)

    train_bytes = trainer.release()
    if data.store is not None:
        trained = trainer.trained if flags.inference_only else trainer.update_trained()
        for tables in model.table_sets:
            set_unknown_rows(tables, trained, keep=trainer.unknown_trained())
    inference = collapse(model)
    trainer.model = model = None  # the uncollapsed tables may be most of the memory
    bits = flags.quantize_emb_with_bit, flags.quantize_mlp_with_bit
    inference_bytes = quantize.bytes_of(inference_tensors(inference), *bits)
    if flags.inference_only:
        print("Testing for inference only")
        quantize.quantize_mlps(inference, flags.quantize_mlp_with_bit)
        quantize.quantize_tables(inference, flags.quantize_emb_with_bit)
        trainer.model = inference
        trainer.evaluate()
    by_frequency = evaluate_by_frequency(inference, trainer) if flags.frequency_report else None
    onnx = save_inference_model(flags, data, inference) if flags.save_collapsed or flags.save_onnx else None
    sizes = {"train_bytes": train_bytes, "inference_bytes": inference_bytes}
    write_result(flags, data, trainer, **sizes, onnx=onnx, by_frequency=by_frequency, hash=hash_report)


def check_output_paths(flags: argparse.Namespace) -> None:
    """Fail now rather than after a long run where something cannot be written, or would overwrite something else."""
    exported = [path for path in (flags.save_collapsed, flags.save_onnx) if path]
    read_maps = bool(flags.hash_map_file) and os.path.exists(os.path.realpath(flags.hash_map_file))
    new_maps = "" if read_maps else flags.hash_map_file
    for path in filter(None, [flags.metrics_file, flags.predictions, new_maps, *exported]):
        check_writable(path)
    for path in exported:
        check_writable(export.vocabulary_path(path), directory=True, marker=data_utils.SCHEMA)
    if flags.save_model:
        for name in ("last", "best"):
            check_writable_checkpoint(Path(flags.save_model), name)
        check_takes_no_place(flags)
    inputs = ["raw_data_file", "processed_data_file", "load_model", "predict", "load_onnx", "hash_embeddings"]
    inputs += ["hash_history_file", *(["hash_map_file"] if read_maps else [])]
    named = {f"--{name.replace('_', '-')}": getattr(flags, name) for name in inputs}
    taken = {os.path.realpath(path): flag for flag, path in named.items() if path}
    outputs = [("--hash-map-file", new_maps), ("--metrics-file", flags.metrics_file)]
    outputs += [("--predictions", flags.predictions), ("--save-model", flags.save_model)]
    for flag, path in (("--save-collapsed", flags.save_collapsed), ("--save-onnx", flags.save_onnx)):
        outputs += [(flag, path), (f"the vocabulary beside {flag}", path and export.vocabulary_path(path))]
    for flag, path in ((flag, path) for flag, path in outputs if path):
        place = os.path.realpath(path)
        if place in taken:
            raise ValueError(f"{path} is named twice: by {taken[place]} and {flag}")
        taken[place] = flag


def check_takes_no_place(flags: argparse.Namespace) -> None:
    """A run that begins anew shall not take the place of another's checkpoints, which may be days of training."""
    resumed = flags.resume and os.path.realpath(without_checkpoint_name(flags.resume))
    if flags.inference_only or os.path.realpath(flags.save_model) == resumed:
        return
    for name in ("best", "last"):
        if (Path(flags.save_model) / name).exists():
            raise ValueError(
                f"{Path(flags.save_model) / name} is the checkpoint of an earlier run: go on with "
                f"--resume={flags.save_model}, name another --save-model, or remove it"
            )


def check_checkpoints(flags: argparse.Namespace) -> None:
    """What is resumed or loaded is there, and of the same flags: not found out after hours of preparing data."""
    if flags.load_model:
        checkpoint.read_description(find_checkpoint(flags.load_model, "best", "last"))
    if flags.resume:
        source = find_checkpoint(flags.resume, "last")
        state = checkpoint.read_description(source).get("state", {})  # what it lacks is missed when it is loaded
        check_same_flags(source, state.get("flags", {}), flags)


def check_writable_checkpoint(directory: Path, name: str) -> None:
    if directory.exists():
        check_writable(directory / name, directory=True, marker=checkpoint.MARKER)
    else:
        check_writable(directory, directory=True)


def choose_device(use_gpu: bool) -> torch.device:
    """The first CUDA device if asked for and there is one; as in the reference, the CPU otherwise."""
    if use_gpu and torch.cuda.is_available():
        print("Using 1 GPU(s)...")
        return torch.device("cuda", 0)
    if use_gpu:
        warn("--use-gpu is given, but torch sees no CUDA device")
    print("Using CPU...")
    return torch.device("cpu")


def computes_in_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 numbers itself; elsewhere torch converts them one by one."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return any(torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def print_debug(model: nn.Module, data: Data) -> None:
    """Architecture, first batch and initial weights."""
    print(f"model arch:\n{model}")
    print("data (inputs and targets), first mini-batch:")
    batches = data.train_batches(0)
    print(next(batches))
    batches.close()
    print_weights("initial parameters (weights and bias):", model)


def print_weights(title: str, model: nn.Module) -> None:
    print(title)
    for name, parameter in model.named_parameters():
        print(name, parameter.detach().cpu().numpy())


def write_result(
    flags: argparse.Namespace,
    data: Data,
    trainer: Trainer,
    *,
    train_bytes: int,
    inference_bytes: int,
    **more: dict | None,
) -> None:
    """Print the summary and write the result event; `more` is added to it as it is."""
    progress = trainer.progress
    speed = progress.train_samples / progress.train_seconds if progress.train_seconds else None
    print(
        f"Training state {train_bytes / 1e6:.2f} MB, inference model {inference_bytes / 1e6:.2f} MB"
        + (f", {speed:.0f} samples/s" if speed else "")
    )
    if data.store:
        print(f"Measured on {data.store.summary()}")
    best_scores = data.store.best_scores_of("test") if data.store else None
    teacher = None
    if best_scores is not None:
        teacher = data.tasks.metrics(data.store.labels_of("test"), best_scores)
        for name, values in {"": teacher, **teacher.get("tasks", {})}.items():
            quality = f"auc {shown(values['auc'])}, logloss {shown(values['logloss'])}"
            print(f"The planted teacher itself on test{f', {name}' if name else ''}: {quality}")
    trainer.metrics_file.write(
        "result",
        config=vars(flags),
        versions={
            "dlrm_mlet": mlet.__version__,
            "commit": commit_of(ROOT),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
        machine=machine(trainer.device),
        data_sha256=data.checksum,
        data=data.store.describe() if data.store else None,
        seed=flags.numpy_rand_seed,
        test=progress.last_metrics.get("test"),
        val=progress.last_metrics.get("val"),
        best=progress.best,
        teacher=teacher,
        train_seconds=progress.train_seconds,
        train_samples_per_second=speed,
        peak_rss_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        train_bytes=train_bytes,
        inference_bytes=inference_bytes,
        **more,
    )
    trainer.metrics_file.close()


def one_line(error: Exception) -> str:
    """What an error says, in one line; the system's own begin with their file instead of a number."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror.lower()}"
    return " ".join(str(error).split())


def main(arguments: list[str] | None = None) -> int:
    """Run; bad input, a full disk or a non-finite loss end in one line and exit code 2."""
    flags = parse_flags(arguments)
    torch.sparse.check_sparse_tensor_invariants.disable()  # the default; said aloud, torch does not warn about it
    try:
        predict(flags) if flags.predict else run(flags)
    except (ValueError, OSError, NonFiniteLossError) as error:
        if flags.debug_mode:
            raise
        print(f"dlrm_mlet.py: error: {one_line(error)}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if flags.debug_mode or not any(
            text in str(error) for text in ("allocate memory", "out of memory", "overflowed")
        ):
            raise
        reason = (
            "not enough memory for tables and optimizer state: reduce the tables' rows, --mlet-inner-dim or "
            "--arch-sparse-feature-size"
        )
        print(f"dlrm_mlet.py: error: {reason} ({str(error).splitlines()[0][:200]})", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        is_saved = flags.save_model and Path(flags.save_model, "last").exists()
        saved = f"; --resume={flags.save_model} goes on from its last checkpoint" if is_saved else ""
        print(f"dlrm_mlet.py: interrupted{saved}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
