"""Runs that an earlier study kept in results/ (scripts/keep_results.py), taken up so that they are not run anew."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from keep_results import KEPT, comparable, driver_defaults
from study import Method, Study, is_done

LEFT_OUT = {"by_frequency": "quality by frequency", "hash": "what its map makes collide"}


def take_up(study: Study, methods: Sequence[Method], folder: Path) -> int:
    """Write those of the kept runs that the study would make into its folder, but for those that it has.

    A run is taken up if the flags it was made with are those that the study would give it; that its data is theirs
    too is noticed by the first new run.

    Returns:
        How many runs were taken up.

    Raises:
        ValueError: the folder or a line of it cannot be read, a run was made with other flags, the study needs more
            of a run than is kept.
    """
    if study.keep_models:
        raise ValueError(f"--kept={folder}: this study needs its runs' models, and those are not kept")
    runs = read_kept(folder)
    wanted = {
        study.file_of(method, setting, seed): study.flags_of(method, setting, seed)
        for method in methods
        for setting in method.grid
        for seed in study.seeds
    }
    new = {path: flags for path, flags in wanted.items() if path.stem in runs and not is_done(path)}
    defaults = driver_defaults() if new else {}
    for path, flags in new.items():
        if differs := differences(runs[path.stem]["config"], config_of(flags, defaults)):
            raise ValueError(f"--kept={folder}: {path.stem} was run with other flags ({', '.join(differs)})")
    for path in new:
        aside = path.with_suffix(".part")
        aside.write_text("".join(json.dumps(event) + "\n" for event in events_of(runs[path.stem])))
        try:
            study.read(aside)
        except (KeyError, StopIteration) as error:
            aside.unlink()
            raise ValueError(f"--kept={folder}: {path.stem} was kept without {error}, which this study reads") from None
        aside.replace(path)
    study.note_data()
    return len(new)


def read_kept(folder: Path) -> dict[str, dict]:
    """The kept runs by name."""
    path, runs = folder / KEPT, {}
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise ValueError(f"--kept={folder}: {path} cannot be read: {error.strerror}") from None
    for number, line in enumerate(lines, 1):
        try:
            run = json.loads(line)
            runs[run["run"]] = run
            run["config"], run["evaluations"], run["boundaries"], run["test"]  # noqa: B018
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{path}, line {number}: not a run as scripts/keep_results.py writes them") from None
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


def differences(theirs: dict, ours: dict) -> list[str]:
    """Names of the flags that differ."""
    names = dict.fromkeys([*theirs, *ours])
    return [f"--{name.replace('_', '-')}" for name in names if theirs.get(name) != ours.get(name)]


def commands_in(folder: Path) -> list[str]:
    """The commands that the tables in the folder say they come from."""
    found: dict[str, None] = {}
    for path in sorted(folder.glob("*.md")):
        block = path.read_text().partition("### Where it comes from\n\n```bash\n")[2].partition("\n```")[0]
        found |= dict.fromkeys(block.splitlines())
    return list(found)


def need(results: Sequence[dict], key: str) -> None:
    """Raises ValueError where a result lacks what is left out of those that are kept."""
    if any(key not in result for result in results):
        raise ValueError(f"{LEFT_OUT[key]} is not kept in results/, and this table needs it: run without --kept")
