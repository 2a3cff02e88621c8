"""How many processor cores this process may use, without importing torch for it."""

import os
from pathlib import Path


def allowed_cores(cpu_max: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Cores by the process's affinity, its cgroup quota, rounded down, and OMP_NUM_THREADS, at least 1.

    OMP_NUM_THREADS is for several trainings at a time: on shared cores, threads that wait for each other
    take several times as long as one thread each.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = cpu_max.read_text().split()
        cores = min(cores, int(quota) // int(period))
    except (OSError, ValueError):
        pass  # no cgroup, or "max": no quota
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return max(min(cores, int(limit) if limit.isdecimal() else cores), 1)
