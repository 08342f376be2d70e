"""The study of scripts/model_quality.sh, which says how to run it."""

from __future__ import annotations

import argparse
import sys

from study import Method
from study_flags import data_flags, parse
from study_report import report

TOWER = "--arch-mlp-top=400-400-400-1"
METHODS = (
    Method("dlrm", f"--arch-interaction-op=cat {TOWER}"),  # as BARS has it: concatenation
    Method("wide-deep", f"--arch-model=wide-deep {TOWER}"),
    Method("deepfm", f"--arch-model=deepfm {TOWER}"),
    Method("xdeepfm", f"--arch-model=xdeepfm {TOWER}"),
    Method("dcn", f"--arch-model=dcn {TOWER}"),
    Method("dcn-v2", f"--arch-model=dcn-v2 {TOWER}"),
    Method("nfm", f"--arch-model=nfm {TOWER}"),
    Method("pnn", f"--arch-model=pnn {TOWER}"),
    Method("pnn-outer", f"--arch-model=pnn-outer {TOWER}"),
    Method("autoint", f"--arch-model=autoint {TOWER}"),
)
# table rows are stepped by Adam only when they occur: they need a higher rate than under the benchmarks' dense Adam
BASE = (
    "--data-generation=dataset --arch-sparse-feature-size=10 --loss-function=bce --optimizer=adam --batch-norm "
    "--mini-batch-size=4096 --test-mini-batch-size=8192 --nepochs=30 --early-stop-patience=2 --lr-plateau-factor=0.1 "
    "--emb-init=normal-0.01 --print-freq=1000000"
)
SETTINGS = {
    "frappe": "--learning-rate=0.002 --emb-learning-rate-multiplier=5 --dropout=0.2 --emb-l2=0.001",
    "movielens-1m": "--learning-rate=0.001 --emb-learning-rate-multiplier=5 --dropout=0.2 --emb-l2=0.001",
}


def base_of(flags: argparse.Namespace) -> str:
    """Flags of all runs in the benchmarks' settings; at --scale=smoke one epoch."""
    one_epoch = " --nepochs=1" if flags.scale == "smoke" else ""
    return f"{BASE}{one_epoch} {SETTINGS[flags.dataset]}"


def main() -> int:
    """Run the study on the command line's data set."""
    flags = parse(__doc__, "1 2 3", [method.name for method in METHODS], data_sets=tuple(SETTINGS))
    return report(f"{base_of(flags)} {data_flags(flags)}", METHODS, flags)


if __name__ == "__main__":
    sys.exit(main())
