"""A description of the machine and the software that a benchmark ran on."""

import importlib.metadata
import importlib.util
import os
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks import ROOT
from imageclf.core import cores


def describe(packages: Iterable[str]) -> dict[str, Any]:
    """Return the processor, the number of cores that may be used, and the versions of the installed `packages`."""
    return {
        "processor": processor(),
        "cores": cores.allowed_cores(),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in packages if installed(name)},
    }


def describe_with_commit(packages: Iterable[str]) -> dict[str, Any]:
    """Return the commit of the code, and the same as `describe`; needs Git."""
    changes = _git("status", "--porcelain", "src", "stages", "benchmarks", "recipes.yaml", "params.yaml")
    return {"commit": _git("rev-parse", "HEAD"), "changed_since": bool(changes), **describe(packages)}


def sentence(machine: dict[str, Any]) -> str:
    """Return a description as a sentence."""
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    changed = " with uncommitted changes" if machine["changed_since"] else ""
    return (
        f"{machine['cores']} cores of {machine['processor']}, no GPU used; Python {machine['python']}, {packages}; "
        f"commit {machine['commit'][:7]}{changed}."
    )


def installed(package: str) -> bool:
    """Return True if a package is installed, without importing it."""
    return importlib.util.find_spec(package) is not None


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the processor's name on Linux, its architecture on other systems."""
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
