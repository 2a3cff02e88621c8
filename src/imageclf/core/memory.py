"""Free memory of the machine, found without importing torch."""

from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
UNKNOWN = 2**30
"""Bytes that count as free where the system does not tell, such as on macOS: one GiB."""


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
