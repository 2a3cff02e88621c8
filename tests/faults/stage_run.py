"""One stage at a time as a real process, in a folder of its own, with as much of the world broken as one likes."""

import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from imports import ROOT
from project import clean_environment

from imageclf import files, paths

PIPELINE = ("download", "preprocess", "train", "evaluate")
QUICK = {"model": "mlp", "hidden": "[16]", "epochs": "1", "batch_size": "256"}
"""Knobs of a training that is over in a moment."""

OUTPUTS = {
    "download": [paths.RAW],
    "preprocess": [paths.PROCESSED],
    "train": [paths.MODEL, paths.HISTORY, paths.TRAIN_SCORES],
    "evaluate": [paths.TEST_SCORES, paths.PREDICTIONS, paths.PER_CLASS, paths.PLOTS],
}


class Ended(NamedTuple):
    """How a stage ended: its exit code, what it said on both channels, and the processor time that it took."""

    code: int
    said: str
    seconds: float

    @property
    def sentence(self) -> str:
        """The one line that says what went wrong; fails if there is none, several, or a traceback."""
        assert "Traceback" not in self.said, self.said
        (line,) = [line for line in self.said.splitlines() if line.startswith("error: ")]
        return line.removeprefix("error: ")


def write_params(root: Path, *, tracking: bool = False, **knobs: str) -> None:
    """The committed params.yaml with other values."""
    text = (ROOT / paths.PARAMS).read_text()
    for key, value in {**QUICK, "tracking": str(tracking).lower(), **knobs}.items():
        text, found = re.subn(rf"(?m)^( *){key}: .*$", lambda line, to=f"{key}: {value}": line[1] + to, text)
        assert found == 1, key
    (root / paths.PARAMS).write_text(text)


def run_stage(
    root: Path, stage: str, before: Callable[[], None] | None = None, environment: dict[str, str] | None = None
) -> Ended:
    """Run a stage in `root`, which is no repository; `before` is called in the new process."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", f"stages.{stage}"],
        cwd=root,
        env={
            **clean_environment(),
            "PYTHONPATH": str(ROOT),
            "DVC_ROOT": str(root),
            "IMAGECLF_CACHE": str(root / "cache"),
            "OMP_NUM_THREADS": "1",
            **(environment or {}),
        },
        preexec_fn=before,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=120,
    )
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Ended(done.returncode, done.stdout, now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime)


def run_until(root: Path, last: str) -> None:
    """Run the stages up to `last`; each must end well."""
    for stage in PIPELINE[: PIPELINE.index(last) + 1]:
        ended = run_stage(root, stage)
        assert ended.code == 0, ended.said


def outputs(root: Path, stage: str) -> dict[str, str]:
    """The SHA-256 of every file that a stage left, hidden ones included."""
    found: dict[str, str] = {}
    for place in OUTPUTS[stage]:
        here = root / place
        below = here.rglob("*") if here.is_dir() else [here]
        found |= {str(path.relative_to(root)): files.sha256(path) for path in below if path.is_file()}
    return found


def litter(root: Path) -> list[str]:
    """Half-written files, anywhere."""
    return sorted(str(path.relative_to(root)) for path in root.rglob("*.tmp") if ".dvc" not in os.fspath(path))
