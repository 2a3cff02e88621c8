"""The first message to the recorder: which run a stage opens."""

import os
import time
from dataclasses import dataclass, field
from pathlib import Path

from imageclf.core import paths
from imageclf.core.detached import git


@dataclass(frozen=True)
class Opening:
    """The run that a stage opens: that of the model `model_sha256`, or the run of a training, or any other new run.

    `training` is the key of a training. If it `resumes`, the run of the interrupted training with that key continues.
    The stage `sync` completes the run of an experiment, whichever part of it is missing.
    `experiment` and `baseline` are the name and the commit of the DVC experiment; `dvc repro` has none.
    """

    stage: str
    model_sha256: str | None = None
    training: str | None = None
    resumes: bool = False
    repository: str = field(default_factory=lambda: str(paths.repository()))
    folder: str = field(default_factory=lambda: str(Path.cwd()))
    """Working directory of the stage: the repository, or DVC's copy of it for a queued experiment."""
    experiment: str | None = field(default_factory=lambda: os.environ.get("DVC_EXP_NAME"))
    baseline: str | None = field(default_factory=lambda: os.environ.get("DVC_EXP_BASELINE_REV"))
    time_ms: int = field(default_factory=lambda: time.time_ns() // 1_000_000)

    def run_name_and_tags(self) -> tuple[str, dict[str, str]]:
        """Return the name of the run, and tags for its commit and DVC experiment; a tag is "" if there is none."""
        commit = self.baseline or git("rev-parse", "HEAD", folder=self.folder)
        branch = git("rev-parse", "--abbrev-ref", "HEAD", folder=self.folder)
        name = self.experiment or (f"{branch}@{commit[:7]}" if commit else "no git commit")
        return name, {
            "mlflow.source.git.commit": commit,
            "dvc.exp.name": self.experiment or "",
            "dvc.exp.baseline_rev": commit,
        }
