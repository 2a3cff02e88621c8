"""Free memory of the machine, and what this process keeps of it, without importing torch."""

import ctypes
import sys
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
UNKNOWN = 2**30
"""Bytes that count as free where the system does not tell, such as on macOS: one GiB."""
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""The numbers of these options of mallopt in glibc's <malloc.h>."""


def free_bytes(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = CGROUP) -> int:
    """Return the bytes that this process can still allocate without swapping, within the limit of a container."""
    return max(0, min(_available(meminfo), _left_in_cgroup(cgroup)))


def _available(meminfo: Path) -> int:
    try:
        lines = meminfo.read_text().splitlines()
    except OSError:
        return UNKNOWN
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), UNKNOWN)


def _left_in_cgroup(folder: Path) -> int:
    """Return the limit minus the memory in use; file pages that the kernel can drop do not count as in use."""
    try:
        limit = int((folder / "memory.max").read_text())
        used = int((folder / "memory.current").read_text())
        counters = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return 2**63  # there is no cgroup, or no limit ("max")
    return limit - used + int(counters.get("inactive_file", 0))


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees for its later allocations.

    Each step of a training allocates and frees tensors of the same sizes. By default, glibc returns those of several
    MiB to the system, which must then clear each page again in the next step: a fifth of an epoch of a small
    convolutional net (see docs/measurements.md). Other C libraries than glibc are left as they are.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)  # never
