"""How many processor cores this process may use, without importing torch for it."""

import os
from pathlib import Path


def allowed_cores(cpu_max: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Cores by the process's affinity and its cgroup quota, rounded down, at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = cpu_max.read_text().split()
        cores = min(cores, int(quota) // int(period))
    except (OSError, ValueError):
        pass  # no cgroup, or "max": no quota
    return max(cores, 1)
