"""Runs of the driver forked from a process that has its imports behind it: they take four of a short run's ten seconds.

A `WarmDriver` starts this file as a process, which waits for command lines, forks a child for each and says how it
ended. Nothing is computed before the fork, so that no library has threads that a child would lack.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LAST = 2000  # characters of what a failed run said


class WarmDriver:
    """One run of the driver at a time, each a process of its own.

    Args:
        threads: for the libraries' own parallel loops.
    """

    def __init__(self, threads: int) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        self._server = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True,
        )  # fmt: skip

    def run(self, arguments: Sequence[str]) -> tuple[int, str]:
        """Exit code, negative for a signal, and the end of what the run wrote to stderr.

        Raises RuntimeError if the process that forks has gone, as after `stop`.
        """
        try:
            self._server.stdin.write(json.dumps(list(arguments)) + "\n")
            self._server.stdin.flush()
            answer = self._server.stdout.readline()
        except (OSError, ValueError):
            answer = ""
        if not answer:
            raise RuntimeError("the process that starts the runs was ended")
        code, said = json.loads(answer)
        return code, said

    def stop(self) -> None:
        """End the run that is under way, and the process that forks."""
        try:
            os.killpg(self._server.pid, signal.SIGTERM)
        except ProcessLookupError:
            pass
        self._server.wait()
        with contextlib.suppress(OSError):  # of what was never sent
            self._server.stdin.close()
        self._server.stdout.close()


def serve() -> None:
    """Fork a run for each line on stdin until it is closed."""
    sys.path.insert(0, str(ROOT))
    import sklearn.cluster  # noqa: F401 (of learned maps; what a run would import late costs every run a second)
    import torch._dynamo  # noqa: F401 (of the first optimizer)

    import dlrm_mlet
    from datastore.provenance import commit_of

    commit_of(ROOT)  # of the code that all runs share, whatever becomes of the checkout
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # progress lines are nobody's
    while line := sys.stdin.readline():
        with tempfile.TemporaryFile() as said:
            child = os.fork()
            if child == 0:
                os.dup2(said.fileno(), 2)
                os._exit(code_of(dlrm_mlet.main, json.loads(line)))
            status = status_of(child)
            said.seek(max(0, said.seek(0, os.SEEK_END) - LAST))
            text = said.read().decode(errors="replace")
        print(json.dumps([os.waitstatus_to_exitcode(status), text]), file=answers, flush=True)


def status_of(child: int) -> int:
    """Wait for a run. Ends it, and this process, where the study has gone: its end of stdin is closed."""
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        if select.select([0], [], [], 0.05)[0]:  # nobody sends a command before the last is answered
            os.kill(child, signal.SIGTERM)
            sys.exit(1)


def code_of(main, arguments: list[str]) -> int:  # noqa: ANN001 (the driver's)
    """What the run ends with; everything that it wrote is flushed, since nobody cleans up behind `os._exit`."""
    try:
        code = main(arguments)
    except SystemExit as end:  # argparse
        code = end.code
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code if isinstance(code, int) else int(code is not None)


if __name__ == "__main__":
    serve()
