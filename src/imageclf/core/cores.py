"""The processor: cores, instruction sets and vendor, found without importing torch."""

import os
from pathlib import Path

from imageclf.core import workers

CPUINFO = Path("/proc/cpuinfo")


def allowed_cores(cpu_max: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Return the smallest of the CPU affinity, the cgroup quota (rounded down) and OMP_NUM_THREADS; at least 1.

    The workers of DVC's queue get equal parts of the cores: threads of several trainings that wait for each other take
    several times as long as one thread per training. Set OMP_NUM_THREADS if you run several trainings in another way.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = cpu_max.read_text().split()
        cores = min(cores, int(quota) // int(period))
    except (OSError, ValueError):
        pass  # there is no cgroup, or no quota ("max")
    cores //= workers.sharing()
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return max(min(cores, int(limit) if limit.isdecimal() else cores), 1)


def processor_flags(cpuinfo: Path = CPUINFO) -> set[str]:
    """Return the instruction sets that Linux lists; empty on other systems."""
    return set(_first_line("flags", cpuinfo).split())


def processor_vendor(cpuinfo: Path = CPUINFO) -> str:
    """Return the maker of the processor as Linux names it, such as "AuthenticAMD"; empty on other systems."""
    return _first_line("vendor_id", cpuinfo).strip()


def _first_line(key: str, cpuinfo: Path) -> str:
    """Return what follows the colon in the first line of this key, which describes the first processor."""
    try:
        with cpuinfo.open() as lines:  # not read to the end, which takes long for hundreds of cores
            return next((line.split(":", 1)[1] for line in lines if line.startswith(key)), "")
    except OSError:
        return ""
