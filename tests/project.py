"""A copy of the project for tests with real DVC, and its runs in MLflow's database."""

import os
import re
import shutil
import sqlite3
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from urllib.request import url2pathname

from imports import ROOT


@dataclass(frozen=True)
class Run:
    """A run in MLflow's database."""

    name: str
    status: str
    tags: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, list[float]]
    artifacts: Path
    model: Path | None


class Project:
    """A copy of the working tree in a new Git repository; `params` changes keys of params.yaml."""

    def __init__(self, root: Path, *, cache: Path | None = None, **params: str) -> None:
        self.root = root
        listing = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, check=True
        )
        for name in filter(None, listing.stdout.decode().split("\0")):
            if (ROOT / name).is_file():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, root / name)
        self.set(**params)
        self.run("git", "init", "-q", "-b", "main")
        self.run("git", "config", "user.name", "somebody")
        self.run("git", "config", "user.email", "somebody@example.org")
        if cache is not None:
            self.run("dvc", "config", "--local", "cache.dir", str(cache))
        self.commit()

    def cloned(self, root: Path) -> "Project":
        """Return a clone by git, as a colleague gets it: without cache, database and local settings."""
        subprocess.run(["git", "clone", "-q", str(self.root), str(root)], check=True)
        clone = object.__new__(Project)
        clone.root = root
        clone.run("git", "config", "user.name", "colleague")
        clone.run("git", "config", "user.email", "colleague@example.org")
        return clone

    def set(self, **params: str) -> None:
        """Change top-level keys of params.yaml."""
        path = self.root / "params.yaml"
        text = path.read_text()
        for key, value in params.items():
            text, found = re.subn(rf"(?m)^{key}: .*$", f"{key}: {value}", text)
            assert found == 1, key
        path.write_text(text)

    def commit(self) -> None:
        """Commit everything that git does not ignore."""
        self.run("git", "add", "-A")
        self.run("git", "commit", "-q", "--allow-empty", "-m", "state")

    def run(self, *command: str, code: int = 0, **environment: str) -> str:
        """Run a command in the project, assert its exit code, and return its output."""
        # A file, not a pipe: the workers of `dvc queue start` keep a pipe open for a minute.
        with tempfile.TemporaryFile() as file:
            done = subprocess.run(
                command,
                cwd=self.root,
                env={**clean_environment(), "IMAGECLF_CACHE": str(self.root / ".archives"), **environment},
                stdout=file,
                stderr=subprocess.STDOUT,
                check=False,
            )
            file.seek(0)
            output = file.read().decode()
        assert done.returncode == code, f"{' '.join(command)} exited {done.returncode}:\n{output}"
        return output

    def stages_run(self, output: str) -> list[str]:
        """Return the stages that ran, from the output of DVC."""
        return re.findall(r"Running stage '(\w+)'", output)

    def runs(self, folder: Path | None = None) -> list[Run]:
        """Return all runs in the database in `folder`, by default the project's, the oldest first."""
        with sqlite3.connect((folder or self.root) / "mlflow.db") as database:
            rows = database.execute("select run_uuid, name, status, artifact_uri from runs order by start_time")
            return [self._run(database, *row) for row in rows.fetchall()]

    def only_run(self, name: str) -> Run:
        """Return the run of this name; there must be exactly one."""
        (found,) = [run for run in self.runs() if run.name == name]
        return found

    def _run(self, database: sqlite3.Connection, key: str, name: str, status: str, artifacts: str) -> Run:
        metrics: dict[str, list[float]] = {}
        for metric, value in database.execute(
            "select key, value from metrics where run_uuid = ? order by step, timestamp", (key,)
        ):
            metrics.setdefault(metric, []).append(value)
        models = database.execute(
            "select artifact_location from logged_models where source_run_id = ?", (key,)
        ).fetchall()
        return Run(
            name,
            status,
            dict(database.execute("select key, value from tags where run_uuid = ?", (key,))),
            dict(database.execute("select key, value from params where run_uuid = ?", (key,))),
            metrics,
            local_path(artifacts),
            local_path(models[0][0]) if models else None,
        )


def local_path(address: str) -> Path:
    """Return the path of a `file:` address; other addresses unchanged."""
    return Path(url2pathname(address.removeprefix("file://")) if address.startswith("file://") else address)


def clean_environment() -> dict[str, str]:
    """Return this process's environment without the variables that change what a stage reads or writes.

    SHELL is left out, as in a container: DVC then uses /bin/sh, which may stay between DVC and the stage.
    """
    return {
        key: value
        for key, value in os.environ.items()
        if key != "SHELL" and not key.startswith(("DVC_", "MLFLOW_", "IMAGECLF_", "GIT_", "PYTEST_"))
    }
