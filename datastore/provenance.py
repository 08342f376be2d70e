"""Where a run's figures come from: the code and the machine.

Loads no torch before it is asked for a machine: the benchmarks' parent, which calls the rest, must stay small.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@functools.cache  # of the code as it was imported: a checkout may move on while a run takes two days
def commit_of(folder: Path) -> str | None:
    """Short commit of a git checkout, with + and a checksum of what its tracked files differ by; None outside git.

    Args:
        folder: the checkout's root. A folder inside another project's checkout has no commit of its own.
    """

    def git(*words: str) -> str:
        command = ["git", "--no-optional-locks", "-C", str(folder), *words]
        done = subprocess.run(command, capture_output=True, check=True, timeout=10)
        return done.stdout.decode(errors="replace").strip()

    if not (folder / ".git").exists():
        return None
    try:
        head, changed = git("rev-parse", "--short", "HEAD"), git("diff", "HEAD")
    except (OSError, subprocess.SubprocessError):
        return None
    # results of uncommitted code must not pass for results of the commit
    return head + ("+" + hashlib.sha1(changed.encode()).hexdigest()[:6] if changed else "")


def cpu_name() -> str:
    """As the system calls it, "" where it does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")


def machine(device: torch.device) -> dict[str, str | int | None]:
    """Processor, its cores, the threads that torch uses of them, and the GPU of a run on one."""
    import torch

    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    processor = cpu_name() or platform.processor()
    return {"processor": processor, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "gpu": gpu}
