"""Where MLflow keeps our runs, and which belongs to what: beside `imageclf.recorder` the only user of mlflow."""

import json
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock

from imageclf.detached import git

if TYPE_CHECKING:
    from mlflow.entities import Run

EXPERIMENT = "imageclf"
SEARCH = 50_000
"""Runs in one search, MLflow's limit."""

Opening = dict[str, Any]
"""What a stage says of itself when it opens a run: see `imageclf.tracking.recording`."""


class Store:
    """An MLflow store: where it is, and the experiment that holds our runs."""

    def __init__(self, root: Path) -> None:
        self.uri = _tracking_uri(root)
        self.locks = root / ".dvc" / "tmp" / "imageclf"
        self.locks.mkdir(parents=True, exist_ok=True)
        # MLflow's defaults would retry an unreachable server for four minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "4")
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
        # Else MLflow tags models with the login name and the path of this file.
        os.environ["MLFLOW_RUN_CONTEXT"] = json.dumps({"mlflow.user": "", "mlflow.source.name": "stages/train.py"})
        from mlflow import MlflowClient

        _quieten()
        # Two processes that create the tables at once crash, hence the lock.
        with filelock.FileLock(self.locks / "store.lock", timeout=60):
            self.client: MlflowClient = MlflowClient(self.uri)
            self.experiment_id = self._experiment(root)
        self._bury()

    def _experiment(self, root: Path) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        found = self.client.get_experiment_by_name(name)
        if found is None:
            # SQLite's default would be the working directory, which may be a copy that DVC deletes.
            location = (root / "mlartifacts").as_uri() if self.uri.startswith("sqlite:") else None
            return self.client.create_experiment(name, artifact_location=location)
        if found.lifecycle_stage != "active":
            self.client.restore_experiment(found.experiment_id)
        return found.experiment_id

    def _bury(self) -> None:
        """End as KILLED the runs whose recorder died without a word: it held a lock that is free now."""
        for path in self.locks.glob("run-*.lock"):
            lock = filelock.FileLock(path)
            try:
                lock.acquire(timeout=0)
            except filelock.Timeout:
                continue
            try:
                run_id = path.stem.removeprefix("run-")
                if self.client.get_run(run_id).info.status == "RUNNING":
                    self.client.set_terminated(run_id, "KILLED")
            except Exception as error:  # noqa: BLE001 - a run deleted since is none of ours
                print(f"{path.name}: {error}", file=sys.stderr)
            path.unlink(missing_ok=True)
            lock.release()

    def address(self) -> str:
        """Where a browser shows our runs: MLflow's own start page opens another view."""
        base = self.uri if self.uri.startswith("http") else "http://127.0.0.1:5000"
        return f"{base.rstrip('/')}/#/experiments/{self.experiment_id}/runs?workflowType=machine_learning"

    def create_run(self, opening: Opening, **tags: str) -> "Run":
        """A new run, RUNNING, with the tags that lead back to the DVC experiment."""
        commit = git("rev-parse", "HEAD")
        branch = git("rev-parse", "--abbrev-ref", "HEAD")
        name = opening["experiment_name"]
        known = {
            "mlflow.source.name": f"stages/{opening['stage']}.py",
            "mlflow.source.type": "LOCAL",
            "mlflow.source.git.commit": commit,
            "dvc.exp.name": name,
            "dvc.exp.baseline_rev": opening["baseline"] or commit,
            **tags,
        }
        return self.client.create_run(
            self.experiment_id,
            run_name=name or (f"{branch}@{commit[:7]}" if commit else "no git commit"),
            start_time=opening["time_ms"],
            tags={key: value for key, value in known.items() if value},
        )

    def training_seconds(self, baseline: str) -> dict[str, float]:
        """How long the train stage of each DVC experiment on a commit took, by its name; the newest run counts."""
        query = f"tags.`dvc.exp.baseline_rev` = '{baseline}' and attributes.status = 'FINISHED'"
        found = self.client.search_runs(
            [self.experiment_id], query, max_results=SEARCH, order_by=["attributes.start_time ASC"]
        )
        return {
            run.data.tags["dvc.exp.name"]: (run.info.end_time - run.info.start_time) / 1000
            for run in found
            if run.info.end_time and "dvc.exp.name" in run.data.tags and "restored" not in run.data.tags
        }

    def find_run(self, opening: Opening, query: str) -> "Run | None":
        """The newest run that `query` describes; of this DVC experiment, if there is one."""
        if opening["experiment_name"]:
            query += f" and tags.`dvc.exp.name` = '{opening['experiment_name']}'"
            query += f" and tags.`dvc.exp.baseline_rev` = '{opening['baseline']}'"
        found = self.client.search_runs(
            [self.experiment_id], query, max_results=1, order_by=["attributes.start_time DESC"]
        )
        return found[0] if found else None


def _tracking_uri(root: Path) -> str:
    uri = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    if uri.startswith("sqlite:///") and not uri.startswith("sqlite:////"):
        return f"sqlite:///{root / uri.removeprefix('sqlite:///')}"
    return uri


def _quieten() -> None:
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
