"""Runs that an earlier study kept in results/ (scripts/keep_results.py), taken up so that they are not run anew."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from keep_results import FOLDERS, KEPT, comparable, driver_defaults
from quantized_runs import in_fewer_bits
from study import Method, Study, is_done

KINDS = {"run": str, "config": dict, "test": dict, "data_sha256": str, "evaluations": list, "boundaries": list}
FEW = 3  # flags that a refusal names
LEFT_OUT = {"by_frequency": "quality by frequency", "hash": "what its map makes collide"}


def kept_of(study: Study, methods: Sequence[Method], folder: Path, may_be_none: bool = False) -> dict[Path, dict]:
    """Those of the kept runs that the study would make and has not: file in its folder -> run. Writes nothing.

    Raises:
        ValueError: the folder or a line of it cannot be read, it has none of the study's runs (unless that `may_be`
            so), a run was made with other flags, the study needs more of a run than is kept.
    """
    if study.keep_models:
        raise ValueError(f"--kept={folder}: this study needs its runs' models, and those are not kept")
    runs = read_kept(folder)
    place = shlex.quote(str(study.work / "model"))
    every = {method: "" for method in methods}
    for method in methods:
        every |= {fewer: f"--load-model={place} {flags}" for fewer, flags in in_fewer_bits(method).items()}
    wanted = {
        study.file_of(*run): f"{study.flags_of(*run)} {every[run[0]]}".strip() for run in study.runs_of(list(every))
    }
    if not (may_be_none or any(path.stem in runs for path in wanted)):
        raise ValueError(f"--kept={folder}: none of its {len(runs)} runs is one of this study's")
    new = {path: flags for path, flags in wanted.items() if path.stem in runs and not is_done(path)}
    defaults = driver_defaults() if new else {}
    for path, flags in new.items():
        if differs := differences(runs[path.stem]["config"], config_of(flags, defaults), defaults):
            raise ValueError(f"--kept={folder}: {path.stem} was run with other flags ({differs})")
    return {path: runs[path.stem] for path in new}


def take_up(study: Study, kept: dict[Path, dict], folder: Path) -> None:
    """Write the runs into the study's folder, all or none.

    Raises:
        ValueError: they were made on other data than has been prepared, or lack what this study reads.
    """
    prepared = study.prepared_data()
    asides = {path: path.with_suffix(".part") for path in kept}
    try:
        for path, run in kept.items():
            if prepared and run["data_sha256"] != prepared:
                raise ValueError(f"--kept={folder}: its runs were made on other data than this study's")
            asides[path].write_text("".join(json.dumps(event) + "\n" for event in events_of(run)))
            try:
                study.read(asides[path])
            except (KeyError, StopIteration) as error:
                lacks = f"{path.stem} was kept without {error}, which this study reads"
                raise ValueError(f"--kept={folder}: {lacks}") from None
    except BaseException:
        for aside in asides.values():
            aside.unlink(missing_ok=True)
        raise
    for path, aside in asides.items():
        aside.replace(path)
    study.note_data()


def read_kept(folder: Path) -> dict[str, dict]:
    """The kept runs by name."""
    path, runs = folder / KEPT, {}
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ValueError(f"--kept={folder}: {path} cannot be read: {error.strerror}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            run = json.loads(line)
            is_whole = all(isinstance(run[key], kind) for key, kind in KINDS.items())
            events = [*run["evaluations"], *run["boundaries"]]
            is_whole = is_whole and bool(run["test"]) and all(isinstance(event, dict) for event in events)
        except (ValueError, KeyError, TypeError):
            is_whole = False
        if not is_whole:
            raise ValueError(f"{path}, line {number}: not a run as scripts/keep_results.py writes them")
        runs[run["run"]] = run
        if run["data_sha256"] != next(iter(runs.values()))["data_sha256"]:
            raise ValueError(f"{path}, line {number}: {run['run']} was made on other data than the runs above it")
    if not runs:
        raise ValueError(f"--kept={folder}: {path} has no run")
    return runs


def events_of(run: dict) -> Iterator[dict]:
    """The events of a metrics file, as far as they were kept; the result comes last."""
    yield from ({"event": "eval"} | event for event in run["evaluations"])
    yield from ({"event": "boundary"} | event for event in run["boundaries"])
    own = {key: value for key, value in run.items() if key not in ("run", "evaluations", "boundaries")}
    yield {"event": "result"} | own


def config_of(flags: str, defaults: dict) -> dict:
    """The flags as a kept run has them."""
    from dlrm_mlet import parse_flags

    place = "--metrics-file=kept/run.jsonl"  # some flags want one
    return json.loads(json.dumps(comparable(vars(parse_flags([*shlex.split(flags), place])), defaults)))


def differences(theirs: dict, ours: dict, defaults: dict) -> str:
    """Flags that differ and their values, the data first; nothing where none does."""
    apart = [name for name in dict.fromkeys(["data_set", *theirs, *ours]) if theirs.get(name) != ours.get(name)]
    theirs, ours = defaults | theirs, defaults | ours
    named = [f"--{name.replace('_', '-')} {theirs.get(name)}, here {ours.get(name)}" for name in apart[:FEW]]
    return "; ".join([*named, *([f"and {len(apart) - FEW} more"] if apart[FEW:] else [])])


def commands_with(own: str, folder: Path) -> list[str]:
    """The commands that the tables in the folder say they come from, of the same script, and the study's own."""
    found: dict[str, None] = {}
    for path in sorted(folder.glob("*.md")):
        block = path.read_text().partition("### Where it comes from\n\n```bash\n")[2].partition("\n```")[0]
        found |= dict.fromkeys(line for line in block.splitlines() if line.split()[:2] == own.split()[:2])
    return [*found, *([] if FOLDERS.sub("", own) in found else [own])]


def need(results: Sequence[dict], key: str) -> None:
    """Raises ValueError where a result lacks what is left out of those that are kept; before others are made."""
    if any(key not in result for result in results):
        raise ValueError(
            f"{LEFT_OUT[key]} is not kept in results/, and this table needs it: name a new --work, without --kept"
        )
