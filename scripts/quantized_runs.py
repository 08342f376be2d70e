"""The models of a study with their tables in fewer bits.

A model is trained once more at its chosen setting, this time saved, evaluated with 16, 8 and 4 bits, and removed: only
`jobs` models lie on the disk at a time, however many settings were tried.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from metrics_table import result_of
from study import Method, Outcome, Study, is_done


def bits_of(method: Method) -> tuple[int, ...]:
    """What the tables of a method can be stored in after collapse: integers are for plain tables."""
    return (16,) if "--qr-flag" in method.flags or "--md-flag" in method.flags else (16, 8, 4)


def quantized(study: Study, outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Each outcome in each number of bits, named NAME-16bit and so on. Raises RuntimeError if a run fails."""
    tasks = [(outcome, seed) for outcome in outcomes for seed in study.seeds]
    with ThreadPoolExecutor(study.jobs) as pool:
        waiting = [pool.submit(_evaluate, study, *task) for task in tasks]
        try:
            for future in waiting:
                future.result()
        except BaseException:
            study.close()
            raise
    more = []
    for outcome in outcomes:
        for method in in_fewer_bits(outcome.method):
            files = {seed: study.file_of(method, outcome.setting, seed) for seed in study.seeds}
            results = {seed: result_of(path) for seed, path in files.items()}
            more.append(Outcome(method, outcome.setting, results, files, outcome.tried))
    return more


def in_fewer_bits(method: Method) -> dict[Method, str]:
    """What a method is called in each number of bits, and the flags that evaluate a saved model of it so."""
    evaluate = "--inference-only --quantize-emb-with-bit"
    return {
        Method(f"{method.name}-{bits}bit", method.flags, method.grid): f"{evaluate}={bits}" for bits in bits_of(method)
    }


def _evaluate(study: Study, outcome: Outcome, seed: int) -> None:
    """All numbers of bits of one run."""
    wanted = {
        method: flags
        for method, flags in in_fewer_bits(outcome.method).items()
        if not is_done(study.file_of(method, outcome.setting, seed))
    }
    if not wanted:
        return
    saved = Method(f"{outcome.method.name}-saved", outcome.method.flags)
    model = study.model_of(saved, outcome.setting, seed)
    study.file_of(saved, outcome.setting, seed).unlink(missing_ok=True)  # of a run whose model has gone
    study.run(saved, outcome.setting, seed, f"--save-model={shlex.quote(str(model))}")
    for method, flags in wanted.items():
        study.run(method, outcome.setting, seed, f"--load-model={shlex.quote(str(model))} {flags}")
    shutil.rmtree(model, ignore_errors=True)
    study.file_of(saved, outcome.setting, seed).unlink(missing_ok=True)
