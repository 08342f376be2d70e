"""What memory the machine has left for this process: the system, control groups (containers), the GPU."""

from __future__ import annotations

import os
from pathlib import Path

import torch

# Resident size of the driver before its first step, 430 MB, and what the first step adds whatever the model (threads,
# kernels, the optimizer's modules), 70 MB. Measured on Linux with torch 2.13 for the CPU.
RUNTIME_BYTES = 500_000_000
FIRST_STEP_BYTES = 70_000_000


def size_text(count: int) -> str:
    """Bytes for people, in powers of 1000: 4.10 GB, 2.1 MB, 12 kB."""
    for unit, size, digits in (("TB", 1e12, 2), ("GB", 1e9, 2), ("MB", 1e6, 1)):
        if count >= 0.1 * size or (unit == "MB" and count >= 0.01 * size):
            return f"{count / size:.{digits}f} {unit}"
    return f"{count / 1000:.0f} kB"


def available_bytes(device: torch.device) -> int | None:
    """Bytes that this process may have in all: what is free, and on the CPU what it holds already (as `runtime` does).

    On the CPU the least of what the system could give (/proc/meminfo, page cache included) and what the memory limits
    of its control groups leave (version 1 or 2; inactive file cache counts as free). Elsewhere physical memory.
    On CUDA what the device has free. None where nothing is known.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    system = _kilobytes(Path("/proc/meminfo"), "MemAvailable")
    known = [free for free in (system, cgroup_free()) if free is not None]
    if not known:
        return _physical_bytes()
    status = Path("/proc/self/status")
    held = [_kilobytes(status, name) or 0 for name in ("RssAnon", "RssShmem")]
    return min(known) + sum(held)


def runtime_bytes() -> int:
    """Resident size of this process now, and what a first training step adds to it whatever the model."""
    resident = _kilobytes(Path("/proc/self/status"), "VmRSS")
    return RUNTIME_BYTES if resident is None else resident + FIRST_STEP_BYTES


def cgroup_free(groups: Path = Path("/proc/self/cgroup"), mount: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes that the memory limits of this process's control groups leave; None where there is no limit.

    Args:
        groups: the list of its groups. mount: where their hierarchy lies.
    """
    free = []
    for line in _lines(groups):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, names = mount, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root, names = mount / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        folder = root / path.lstrip("/")
        # a limit of a parent holds too; in a container the path may name folders that are not mounted: the root is
        while folder.is_relative_to(root):
            free.append(_cgroup_room(folder, *names))
            if folder == root:
                break
            folder = folder.parent
    known = [room for room in free if room is not None]
    return min(known) if known else None


def _cgroup_room(folder: Path, limit: str, usage: str, cache: str) -> int | None:
    try:
        most, used = int((folder / limit).read_text()), int((folder / usage).read_text())
    except (OSError, ValueError):  # no such group, or "max"
        return None
    if most >= 1 << 60:  # version 1 says "no limit" with the largest number of pages
        return None
    reclaimable = next((int(v) for k, v in map(str.split, _lines(folder / "memory.stat")) if k == cache), 0)
    return max(0, most - used + reclaimable)


def _kilobytes(path: Path, name: str) -> int | None:
    """Bytes of a line such as `MemAvailable:  24105 kB`."""
    return next((int(line.split()[1]) * 1024 for line in _lines(path) if line.startswith(f"{name}:")), None)


def _lines(path: Path) -> list[str]:
    """Lines of a file of the system's; none where it cannot be read."""
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _physical_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
