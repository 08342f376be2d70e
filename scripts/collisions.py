"""How alike are the ids that a map lets share a row: mean cosine between an id's vector and the others' together.

The vectors are the planted ones where data is generated, else those of a model with a row an id, trained on all rows
with the first seed. One number a map: the mean over accesses to ids that collide, in all of its tables.
"""

from __future__ import annotations

import json
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from study import ROOT, Method, Outcome, Study

FOUND = "likeness.json"  # in WORK: method -> likeness


def likeness(study: Study, outcomes: Sequence[Outcome], planted: Path | None) -> dict[str, float]:
    """Method name -> likeness, of the outcomes that have maps and of those of earlier calls. NaN: nothing collides.

    Args:
        study: its first seed's maps are looked at; they are fitted once more where they are not there.
        outcomes: of the study.
        planted: file of the planted vectors, or None.

    Raises RuntimeError if a map cannot be fitted.
    """
    path = study.work / FOUND
    found = json.loads(path.read_text()) if path.exists() else {}
    missing = [
        each.method for each in outcomes if "--hash-method" in each.method.flags and each.method.name not in found
    ]
    if missing:
        vectors = vectors_of(planted or reference(study))
        with ThreadPoolExecutor(study.jobs) as pool:
            maps = list(pool.map(lambda method: fitted(study, method), missing))
        found |= {method.name: of_map(study, each, vectors) for method, each in zip(missing, maps, strict=True)}
        path.write_text(json.dumps(found))
    return found


def fitted(study: Study, method: Method) -> Path:
    """The file of a method's maps with the first seed."""
    path = study.work / "maps" / f"{method.name}.safetensors"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        flags = f"{study.base} {method.flags} --numpy-rand-seed={study.seeds[0]}"
        study.drive(f"{flags} --hash-learn-only --hash-map-file={shlex.quote(str(path))}", f"maps of {method.name}")
    return path


def reference(study: Study) -> Path:
    """The file of a collapsed model with a row an id."""
    path = study.work / "reference.safetensors"
    if not path.exists():
        flags = f"{study.base} --numpy-rand-seed={study.seeds[0]}"
        study.drive(f"{flags} --save-collapsed={shlex.quote(str(path))}", "the model with a row an id")
    return path


def vectors_of(path: Path) -> dict[str, np.ndarray]:
    """Table -> vectors [n, d], of a collapsed model or of a file with a tensor a table."""
    sys.path.insert(0, str(ROOT))
    from safetensors.numpy import load_file

    from dlrm_mlet import vectors_of as of_model
    from mlet.inference import is_collapsed, load_collapsed

    return of_model(load_collapsed(path)) if is_collapsed(path) else load_file(path)


def of_map(study: Study, path: Path, vectors: Mapping[str, np.ndarray]) -> float:
    """The likeness of all tables' colliding accesses together."""
    sys.path.insert(0, str(ROOT))
    import hashing
    from data_utils import Store
    from hashing.report import collision_report, similarity

    store, total, weight = Store(study.work / "store"), 0.0, 0.0
    for table, id_map in hashing.load_maps(path)[0].items():
        counts = store.counts_of(table)[:-1]
        alike = similarity(id_map, vectors[table], counts)
        if not math.isnan(alike):
            mass = collision_report(id_map, counts, 1)["colliding_share"] * counts.sum()
            total, weight = total + alike * mass, weight + mass
    return total / weight if weight else math.nan
