"""The study of scripts/cross_fit_hash.sh, which says how to run it."""

from __future__ import annotations

import functools
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from metrics_table import result_of
from reproduce_learned_hash import BASE, LEARNED, RIVALS, add_budgets, take_hash_flags
from study import ROOT, Method, Outcome, Study, chosen
from study_flags import data_flags, parse
from study_report import run_study, table

HALVES = {"first": "--hash-history=0-0.5", "second": "--hash-history=0.5-1"}  # that a map is learned from
SECOND_SEED = 1000  # a rival's second model has this much more
DEFAULT = ("modulo", "frequency", "learned")


def methods_of(only: Sequence[str], budgets: Sequence[int], more: str = "") -> list[Method]:
    """Rivals on all rows, and both halves of each learned method, budget by budget; `more` flags for all."""
    methods = []
    for budget in budgets:
        for name in (name for name in (*RIVALS, *LEARNED) if name in only):
            flags = f"--hash-method={name} --hash-compression={budget} {more}".rstrip()
            if name in RIVALS:
                methods.append(Method(f"{name}.{budget}", f"{flags} --hash-history=0"))
            else:
                methods += [Method(f"{name}.{budget}.{half}", f"{flags} {share}") for half, share in HALVES.items()]
    return methods


def cross_fitted(study: Study, outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Pairs of models that score with the mean of both: the halves of learned methods, two seeds of each rival."""
    methods, more = {each.method.name: each.method for each in outcomes}, []
    for name, method in methods.items():
        if name.endswith(".second"):
            continue
        stem, is_half = name.removesuffix(".first"), name.endswith(".first")
        results = {}
        for seed in study.seeds:
            other = (methods[f"{stem}.second"], seed) if is_half else (method, seed + SECOND_SEED)
            if not is_half:
                study.run(method, "", other[1])
            results[seed] = mean_of(study, [(method, seed), other])
        more.append(Outcome(Method(f"{stem}.mean"), "", results))
    return more


def mean_of(study: Study, pair: Sequence[tuple[Method, int]]) -> dict:
    """The result event of two models (method, seed) together, as far as tables of results read it."""
    from mlet.metrics import binary_metrics

    results = [result_of(study.file_of(method, "", seed)) for method, seed in pair]
    paths = [collapsed(study, method, seed) for method, seed in pair]
    metrics = {}
    for split in ("val", "test"):
        both = [scores(study.work / "store", path, split) for path in paths]
        for path, result, (labels, own) in zip(paths, results, both, strict=True):
            if abs(binary_metrics(labels, own)["auc"] - chosen(result)[split]["auc"]) > 1e-6:
                raise ValueError(f"{path} scores otherwise than its run did: remove {study.work} and start anew")
        metrics[split] = binary_metrics(both[0][0], (both[0][1] + both[1][1]) / 2)
    size = sum(result["inference_bytes"] for result in results)
    origin = {key: results[0][key] for key in ("data_sha256", "versions", "machine")}
    return {**metrics, "best": None, "inference_bytes": size, **origin}


def collapsed(study: Study, method: Method, seed: int) -> Path:
    """The inference model of a run at its best validation AUC, as a file."""
    model = study.model_of(method, "", seed)
    path = model / "collapsed.safetensors"
    if not path.exists():
        flags = f"{study.base} {method.flags} --numpy-rand-seed={seed} --inference-only"
        places = f"--load-model={shlex.quote(str(model))} --save-collapsed={shlex.quote(str(path))}"
        study.drive(f"{flags} {places}", path.parent.name)
    return path


@functools.lru_cache(maxsize=4)
def scores(store: Path, model: Path, split: str) -> tuple:
    """Labels and probabilities [rows] of a part of the prepared data."""
    import numpy as np
    import torch

    from data_utils import Store
    from mlet.inference import load_collapsed

    data, inference = Store(store), load_collapsed(model)
    with torch.inference_mode():
        batches = data.batches(data.rows_of(split), 4096)
        found = [inference(batch.dense, batch.ids, batch.offsets)[:, 0].numpy() for batch in batches]
    return data.labels_of(split), np.concatenate(found)


def render(outcomes: Sequence[Outcome]) -> str:
    """A table a budget; differences to its first line."""
    budgets = dict.fromkeys(each.method.name.split(".")[1] for each in outcomes)
    parts = [(budget, [each for each in outcomes if each.method.name.split(".")[1] == budget]) for budget in budgets]
    return "\n\n".join(f"### 1/{budget} of the rows\n\n{table(inside)}" for budget, inside in parts)


def main() -> int:
    """Run the study on the command line's data."""
    sys.path.insert(0, str(ROOT))
    flags = parse(__doc__, "1", [*RIVALS, *LEARNED], DEFAULT, add=add_budgets((10, 100)))
    if not set(flags.only) & set(LEARNED):
        print(f"error: --only names none of {', '.join(LEARNED)}: there is nothing to cross-fit", file=sys.stderr)
        return 2
    methods = methods_of(flags.only, flags.budgets, take_hash_flags(flags))
    return run_study(f"{BASE} {data_flags(flags)}", methods, flags, render, cross_fitted, keep_models=True)


if __name__ == "__main__":
    sys.exit(main())
