"""Run one stage in a real process and a separate folder, under conditions that make it fail."""

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

from imageclf.core import files, paths

PIPELINE = ("download", "preprocess", "weights", "train", "evaluate")
QUICK = {"model": "mlp", "hidden": "[16]", "epochs": "1", "batch_size": "256"}
"""Parameters of a training that takes less than a second."""

OUTPUTS = {
    "download": [paths.RAW],
    "preprocess": [paths.PROCESSED, paths.DATA_REPORT],
    "weights": [paths.PRETRAINED],
    "train": [paths.MODEL, paths.HISTORY, paths.TRAIN_SCORES],
    "evaluate": [paths.TEST_SCORES, paths.PREDICTIONS, paths.PER_CLASS, paths.MODEL_CARD, paths.PLOTS],
}


class StageResult(NamedTuple):
    """Exit code, output (stdout and stderr) and processor time of a stage."""

    code: int
    output: str
    seconds: float

    @property
    def error(self) -> str:
        """The error message. Fails unless there is one, of one line, and no traceback."""
        assert "Traceback" not in self.output, self.output
        (line,) = [line for line in self.output.splitlines() if line.startswith("error: ")]
        return line.removeprefix("error: ")


def write_params(root: Path, *, tracking: bool = False, **changes: str) -> None:
    """Write the committed params.yaml with changes."""
    text = (ROOT / paths.PARAMS).read_text()
    for key, value in {**QUICK, "tracking": str(tracking).lower(), **changes}.items():
        text, found = re.subn(rf"(?m)^( *){key}: .*$", lambda line, to=f"{key}: {value}": line[1] + to, text)
        assert found == 1, key
    (root / paths.PARAMS).write_text(text)


def run_stage(
    root: Path, stage: str, before: Callable[[], None] | None = None, environment: dict[str, str] | None = None
) -> StageResult:
    """Run a stage in `root`, which is not a repository; `before` is called in the new process."""
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
    return StageResult(done.returncode, done.stdout, now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime)


def run_until(root: Path, last: str) -> None:
    """Run the stages up to `last`; each must succeed."""
    for stage in PIPELINE[: PIPELINE.index(last) + 1]:
        result = run_stage(root, stage)
        assert result.code == 0, result.output


def outputs(root: Path, stage: str) -> dict[str, str]:
    """Return the SHA-256 of each output of a stage, by path, with hidden files."""
    found: dict[str, str] = {}
    for place in OUTPUTS[stage]:
        here = root / place
        below = here.rglob("*") if here.is_dir() else [here]
        found |= {str(path.relative_to(root)): files.sha256(path) for path in below if path.is_file()}
    return found


def temporary_files(root: Path) -> list[str]:
    """Return the paths of temporary files that were not deleted."""
    return sorted(str(path.relative_to(root)) for path in root.rglob("*.tmp") if ".dvc" not in os.fspath(path))
