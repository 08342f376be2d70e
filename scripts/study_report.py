"""A study from its command line to its table: what is run, what is shown, what is said of the rest."""

from __future__ import annotations

import argparse
import fcntl
import signal
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO

sys.path.insert(0, str(Path(__file__).resolve().parent))

from metrics_table import result_of  # noqa: E402
from paired_difference import interval  # noqa: E402
from study import Method, Outcome, Study  # noqa: E402
from study_kept import commands_with, kept_of, need, take_up  # noqa: E402
from study_origin import command_line, origin  # noqa: E402
from study_widen import candidates  # noqa: E402

Derive = Callable[[Study, Sequence[Outcome]], list[Outcome]]


def check_one_data(outcomes: Sequence[Outcome]) -> None:
    """Raises ValueError where runs that are compared were made on different raw data."""
    if len({result["data_sha256"] for each in outcomes for result in each.results.values()}) > 1:
        raise ValueError("the runs were made on different data: the raw file has changed; name another --work")


def table(outcomes: Sequence[Outcome]) -> str:
    """Markdown: a row a method, with its paired difference to the first."""
    first = outcomes[0]
    lines = [
        f"| method | setting | test AUC | logloss | AUC - {first.method.name} (95 %) | inference MB |",
        "|---|---|---|---|---|---|",
    ]
    for each in outcomes:
        size = next(iter(each.results.values()))["inference_bytes"] / 1e6
        cells = [each.method.name, f"`{each.setting}`" if each.setting else "-"]
        cells += [spread(each.values("auc")), spread(each.values("logloss")), difference(first, each), f"{size:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation over seeds."""
    deviation = f" ±{statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{deviation}"


def difference(first: Outcome, other: Outcome) -> str:
    """Mean over seeds of the paired differences in test AUC, with Student's interval."""
    if other is first or len(first.results) < 2:
        return "-"
    return gap_text(*gap(first, other))


def gap(first: Outcome, other: Outcome) -> tuple[float, float, float]:
    """Mean over seeds of the paired differences in test AUC, and the ends of its 95 % interval."""
    pairs = zip(first.values("auc"), other.values("auc"), strict=True)
    return interval([second - before for before, second in pairs])


def gap_text(mean: float, low: float, high: float) -> str:
    """A difference with its interval."""
    return f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]"


def report(base: str, methods: Sequence[Method], flags: argparse.Namespace, derive: Derive | None = None) -> int:
    """Run a study of the methods that --only names, see `run_study`; differences are taken against the first."""
    named = [method for method in methods if method.name in flags.only]
    return run_study(base, named, flags, table, derive, also=[method for method in methods if method not in named])


def lock_folder(work: Path) -> IO[str]:
    """Make the study's folder; it is held while the lock is open.

    Raises ValueError where another study is at work in it, or a file is in its way.
    """
    try:
        work.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ValueError(f"--work={work}: there is a file of this name") from None
    lock = open(work / ".lock", "w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f"another study is at work in {work}") from None
    return lock


def run_study(
    base: str,
    methods: Sequence[Method],
    flags: argparse.Namespace,
    render: Callable[[Sequence[Outcome]], str],
    derive: Derive | None = None,
    prepare: Callable[[Study], Sequence[Method] | None] | None = None,
    *,
    also: Sequence[Method] = (),
    headline: Callable[[Sequence[Outcome]], str] | None = None,
    read: Callable[[Path], dict] = result_of,
    keep_models: bool = False,
    table_name: str = "table.md",
    needs: str = "",
) -> int:
    """Run a study and print what comes of it, which is also written to WORK. Returns the exit code.

    Args:
        base: flags of all runs, before those behind --.
        methods: what is compared.
        flags: see `study_flags.parse`.
        render: Markdown of the outcomes, see `table`.
        derive: makes further outcomes.
        prepare: called once the data is prepared; may return further methods, made to fit the data.
        also: methods that are not run, but shown where an earlier call has run them, and else named as not run.
        headline: what stands above all else.
        read, keep_models: see `Study`.
        table_name: of the file in WORK.
        needs: what the tables read of each result that is left out of those that are kept, see `study_kept.need`.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as an exception, so that the runs are ended too
    base = f"{base} {flags.more}".strip()
    if refusal := what_is_in_vain(methods, flags, prepare is None):
        print(f"error: {refusal}", file=sys.stderr)
        return 2
    study = lock = None
    try:
        lock = lock_folder(flags.work)
        study = Study(base, flags.work, flags.seeds, flags.jobs, keep_models, flags.tuning_seeds, read, flags.widen)
        study.commands = [command_line(sys.argv)]
        outcomes = _carry_out(study, methods, also, prepare, derive, flags.kept, needs)
        text = render(outcomes) if outcomes else ""
    except KeyboardInterrupt:
        print("interrupted: what is done stays, and a restart goes on", file=sys.stderr)
        return 130
    except (RuntimeError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        if study:
            study.close()
        if lock:
            lock.close()
    if outcomes:
        text = with_remarks(text, base, study, outcomes, also)
        text = f"{headline(outcomes)}\n\n{text}" if headline else text
        if not is_shown(text, flags.work / table_name):
            return 2
    for reason in study.failed.values():
        print(f"error: {reason}", file=sys.stderr)
    return 2 if study.failed else 0


def what_is_in_vain(methods: Sequence[Method], flags: argparse.Namespace, are_all: bool) -> str:
    """What the command line asks for and this study cannot do, as a sentence; nothing if it can do all."""
    if not methods and are_all:
        return "these arguments leave nothing to run"
    if flags.widen and not any(candidates(method.grid, 1) for method in methods):
        return f"--widen={flags.widen}: no table rate is tuned here"
    return ""


def _carry_out(
    study: Study,
    methods: Sequence[Method],
    also: Sequence[Method],
    prepare: Callable[[Study], Sequence[Method] | None] | None,
    derive: Derive | None,
    kept: Path | None,
    needs: str,
) -> list[Outcome]:
    """All runs, and what is derived from them; none if no method came to its end. Arguments as in `run_study`."""
    own = study.commands[0]
    earlier = kept_of(study, [*methods, *also], kept) if kept else {}  # refused before anything is written
    if needs:
        need([*earlier.values(), *study.results_there([*methods, *also])], needs)
    if kept:
        study.commands = commands_with(own, kept)
    done = [method for method in also if study.is_complete(method)]
    study.check_record([*methods, *done])
    study.prepare(methods)
    if prepare:
        more = list(prepare(study) or ())
        earlier |= kept_of(study, more, kept, may_be_none=True) if kept else {}
        methods = [*methods, *more]
    if kept:
        take_up(study, earlier, kept)
        print(f"{len(earlier)} runs taken up from {kept}")
        done = [method for method in also if study.is_complete(method)]
    study.check_record([*methods, *done])
    outcomes = study.run_all(methods)
    if not done:  # this call makes all that is shown
        study.commands = [own]
    if outcomes:
        outcomes += [study.outcome(method) for method in done]
        outcomes += derive(study, outcomes) if derive else []
        check_one_data(outcomes)
    return outcomes


def is_shown(text: str, path: Path) -> bool:
    """Print the table and write it; whether the disk took it."""
    print(text)
    try:
        path.write_text(text)
    except OSError as error:
        print(f"error: the table was not written: {error}", file=sys.stderr)
        return False
    return True


def with_remarks(text: str, base: str, study: Study, outcomes: Sequence[Outcome], also: Sequence[Method]) -> str:
    """The tables below the flags of all runs, above what was not run, what failed and where the figures come from."""
    first = next(iter(outcomes[0].results.values()))
    flags = shared_flags(base, [outcome.method for outcome in outcomes])
    text = f"Seeds {', '.join(map(str, study.seeds))}; {first['test']['samples']} test rows, {flags}\n\n{text}\n"
    shown = {outcome.method.name for outcome in outcomes}  # a name may stand for several grids of settings
    absent = [name for name in dict.fromkeys(method.name for method in also) if name not in shown]
    text += f"\nNot run: {', '.join(in_short(absent, shown))}.\n" if absent else ""
    broken = dict.fromkeys(method.name for method, _, _ in study.failed)
    text += f"\nFailed: {', '.join(broken)}.\n" if broken else ""
    return f"{text}\n{origin(study.commands, outcomes)}\n"


def shared_flags(base: str, methods: Sequence[Method]) -> str:
    """Flags of all runs as they act: of one given twice the last, and none that every method or setting replaces."""

    def names(text: str) -> set[str]:
        return {word.partition("=")[0] for word in text.split() if word.startswith("--")}

    replaced = set.intersection(*(names(f"{each.flags} {setting}") for each in methods for setting in each.grid))
    words = base.split()  # a value of its own, as in `--data-option a=b`, may be given repeatedly: only --name=value
    last = {word.partition("=")[0]: place for place, word in enumerate(words) if word.startswith("--") and "=" in word}
    acts = [last.get(word.partition("=")[0], place) == place for place, word in enumerate(words)]
    return " ".join(
        word for word, act in zip(words, acts, strict=True) if act and word.partition("=")[0] not in replaced
    )


def in_short(absent: Sequence[str], shown: Iterable[str]) -> list[str]:
    """Names of methods, those alike up to the first dot as one where none of these was run: "nfm (all 7)"."""
    begun = {name.partition(".")[0] for name in shown}
    groups: dict[str, list[str]] = {}
    for name in absent:
        first = name.partition(".")[0]
        groups.setdefault(name if first in begun else first, []).append(name)
    return [f"{group} (all {len(names)})" if len(names) > 1 else names[0] for group, names in groups.items()]
