"""What a benchmark was measured on and with."""

import importlib.metadata
import importlib.util
import os
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.projects import ROOT
from imageclf import cores


def describe(packages: Iterable[str]) -> dict[str, Any]:
    """The commit, the processor, the cores that may be used, and the versions of those packages that are there."""
    changes = _git("status", "--porcelain", "src", "stages", "benchmarks", "recipes.yaml", "params.yaml")
    return {
        "commit": _git("rev-parse", "HEAD"),
        "changed_since": bool(changes),
        "processor": processor(),
        "cores": cores.allowed_cores(),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in packages if installed(name)},
    }


def sentence(machine: dict[str, Any]) -> str:
    """The same for people."""
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    changed = " with changes" if machine["changed_since"] else ""
    return (
        f"{machine['cores']} cores of {machine['processor']}, no GPU used; Python {machine['python']}, {packages}; "
        f"commit {machine['commit'][:7]}{changed}."
    )


def installed(package: str) -> bool:
    """Whether a package is there, without importing it."""
    return importlib.util.find_spec(package) is not None


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Its name, where Linux tells it, else its kind."""
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
