"""Where a study's figures come from: the commands that ran it, the code and the machines."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from study import Outcome

UNKNOWN = "not recorded"


def command_line(arguments: Sequence[str]) -> str:
    """What a reader types to run this study: `sys.argv` as a call of its shell script, less --work and --kept."""
    words, skip = [], False
    for place, word in enumerate(arguments[1:], 1):
        if "--" in arguments[:place]:  # the driver's own
            words.append(word)
        elif skip or word in ("--work", "--kept"):
            skip = not skip
        elif not word.startswith(("--work=", "--kept=")):
            words.append(word)
    return f"bash scripts/{Path(arguments[0]).stem}.sh {shlex.join(words)}".strip()


def machine_of(result: dict) -> str:
    """Of a run, as in "Intel(R) Xeon(R) Processor, 2 cores, 1 thread a run, torch 2.13.0+cpu"."""
    about = result.get("machine")
    if not about:
        return UNKNOWN
    threads = f"{about['threads']} thread{'s' if about['threads'] > 1 else ''} a run"
    parts = [about["processor"] or "a processor without a name", f"{about['cores']} cores", threads, about["gpu"]]
    return ", ".join([*(part for part in parts if part), f"torch {result['versions']['torch']}"])


def code_of(result: dict) -> str:
    """Of the code of a run."""
    return result.get("versions", {}).get("commit") or UNKNOWN


def origin(commands: Sequence[str], outcomes: Sequence[Outcome]) -> str:
    """Markdown: the commands, and which code on which machines made the runs that the tables show."""
    results = [result for outcome in outcomes for result in outcome.results.values()]

    def counted(name_of) -> str:  # noqa: ANN001
        found = Counter(map(name_of, results)).most_common()
        alone = len(found) == 1
        return "; ".join(name if alone else f"{name} ({count} runs)" for name, count in found)

    calls = "\n".join(commands) or f"# {UNKNOWN}"
    return (
        f"### Where it comes from\n\n```bash\n{calls}\n```\n\n"
        f"Commit: {counted(code_of)}. Machine: {counted(machine_of)}."
    )
