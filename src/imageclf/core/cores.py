"""Number of processor cores that this process may use, found without importing torch."""

import os
from pathlib import Path


def allowed_cores(cpu_max: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Return the smallest of the CPU affinity, the cgroup quota (rounded down) and OMP_NUM_THREADS; at least 1.

    Set OMP_NUM_THREADS if several trainings share the cores: threads that wait for each other take several times as
    long as one thread per training.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = cpu_max.read_text().split()
        cores = min(cores, int(quota) // int(period))
    except (OSError, ValueError):
        pass  # there is no cgroup, or no quota ("max")
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return max(min(cores, int(limit) if limit.isdecimal() else cores), 1)
