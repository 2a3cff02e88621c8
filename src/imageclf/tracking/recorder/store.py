"""The MLflow store that holds our runs."""

import json
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import filelock

from imageclf.tracking import places
from imageclf.tracking.opening import Opening
from imageclf.tracking.recorder import views

if TYPE_CHECKING:
    from mlflow.entities import Run

EXPERIMENT = "imageclf"
"""Default name of the MLflow experiment."""
COMPARISONS = "-comparisons"
"""Ending of the name of the MLflow experiment that holds comparisons."""
RUNS_PER_SEARCH = 50_000
"""MLflow's limit."""
_SHORT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
SHORT_TIMEOUTS = {name: value for name, value in _SHORT.items() if name not in os.environ}
"""Settings of MLflow, except the user's, for a server that may not exist; by default, MLflow tries for four minutes."""


def set_short_timeouts() -> None:
    """Make MLflow give up if a server does not answer in ten seconds."""
    os.environ.update(SHORT_TIMEOUTS)


def restore_timeouts() -> None:
    """Make MLflow wait for a slow server as long as it does by default."""
    for name in SHORT_TIMEOUTS:
        os.environ.pop(name, None)


class Store:
    """An MLflow store and its experiment with our trainings, or with our comparisons of them.

    The working directory must be the repository.
    """

    def __init__(self, *, of_comparisons: bool = False) -> None:
        self.uri = places.tracking_uri()
        self.remote = self.uri.startswith(("http://", "https://"))
        self.locks = Path(".dvc/tmp/imageclf").absolute()
        self.locks.mkdir(parents=True, exist_ok=True)
        set_short_timeouts()
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
        os.environ["MLFLOW_LOG_UV_FILES"] = "false"  # the project's own; the model has its requirements
        # By default, MLflow tags models with the login name and the path of this file.
        os.environ["MLFLOW_RUN_CONTEXT"] = json.dumps({"mlflow.user": "", "mlflow.source.name": "stages/train.py"})
        from mlflow import MlflowClient

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.ERROR)
        warnings.simplefilter("ignore")
        with filelock.FileLock(self.locks / "store.lock", timeout=60):  # two processes that create the tables crash
            self.client: MlflowClient = MlflowClient(self.uri)
            self.experiment_id = self._experiment(of_comparisons)
        restore_timeouts()
        self._end_abandoned_runs()

    def _experiment(self, of_comparisons: bool) -> str:
        """Return the id of the experiment that `MLFLOW_EXPERIMENT_ID` or `_NAME` sets, or of ours; create it if new."""
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
        found = None
        if key := os.environ.get("MLFLOW_EXPERIMENT_ID"):
            found = self.client.get_experiment(key)
            name = found.name
        if of_comparisons:
            name, found = name + COMPARISONS, None
        found = found or self.client.get_experiment_by_name(name)
        if found is None:
            return self._create_experiment(name, views.COMPARISON_TAGS if of_comparisons else views.TAGS)
        if found.lifecycle_stage != "active":
            self.client.restore_experiment(found.experiment_id)
        places.update_locations(self.uri, found.artifact_location)
        if not of_comparisons and views.VIEW_TAG not in found.tags:  # of an older version, or the user's own
            self.client.set_experiment_tag(found.experiment_id, views.VIEW_TAG, views.TAGS[views.VIEW_TAG])
        return found.experiment_id

    def _create_experiment(self, name: str, tags: dict[str, str]) -> str:
        from mlflow.exceptions import MlflowException

        try:
            return self.client.create_experiment(name, artifact_location=places.artifact_location(self.uri), tags=tags)
        except MlflowException:
            found = self.client.get_experiment_by_name(name)  # another machine has created it meanwhile
            if found is None:
                raise
            return found.experiment_id

    def _end_abandoned_runs(self) -> None:
        """End as KILLED the runs whose recorder was killed: the lock that it held is free."""
        for path in self.locks.glob("run-*.lock"):
            lock = filelock.FileLock(path)
            try:
                lock.acquire(timeout=0)
            except filelock.Timeout:
                continue
            full = False
            try:
                run_id = path.stem.removeprefix("run-")
                if self.client.get_run(run_id).info.status == "RUNNING":
                    self.client.set_terminated(run_id, "KILLED")
            except Exception as error:  # noqa: BLE001 - the run was deleted, is in another store, or the disk is full
                print(f"{path.name}: {error}", file=sys.stderr)
                full = getattr(error, "error_code", "") == "TEMPORARILY_UNAVAILABLE"
            if not full:  # else the next start tries again
                path.unlink(missing_ok=True)
            lock.release()

    def create_run(self, opening: Opening, **tags: str) -> "Run":
        """Create a run, with the tags that name its commit and DVC experiment; its status is RUNNING."""
        name, tags_of_dvc = opening.run_name_and_tags()
        source = {"mlflow.source.name": f"stages/{opening.stage}.py", "mlflow.source.type": "LOCAL"}
        run = self.client.create_run(
            self.experiment_id,
            run_name=name,
            start_time=opening.time_ms,
            tags={key: value for key, value in (tags_of_dvc | source | tags).items() if value},
        )
        if opening.training:
            self._note(opening).write_text(run.info.run_id)
        return run

    def interrupted_run(self, opening: Opening) -> "Run | None":
        """Return the unfinished run of an interrupted training, renamed for the DVC experiment that resumes it.

        Its id comes from a file in the repository: on a shared server, others may train the same.
        """
        from mlflow.exceptions import MlflowException

        try:
            run = self.client.get_run(self._note(opening).read_text())
        except (FileNotFoundError, MlflowException):
            return None  # deleted, or in another store
        place = run.info.experiment_id, run.info.lifecycle_stage
        if place != (self.experiment_id, "active") or run.info.status == "FINISHED":
            return None
        name, tags = opening.run_name_and_tags()
        self.client.update_run(run.info.run_id, name=name)
        for key, value in tags.items():
            if value:
                self.client.set_tag(run.info.run_id, key, value)
            elif key in run.data.tags:
                self.client.delete_tag(run.info.run_id, key)
        return self.client.get_run(run.info.run_id)

    def forget_interruption(self, opening: Opening) -> None:
        """Delete the file that `interrupted_run` reads: the training has finished."""
        self._note(opening).unlink(missing_ok=True)

    def _note(self, opening: Opening) -> Path:
        """Return the file with the id of the run of a training."""
        return self.locks / f"training-{opening.training}"

    def find_run(self, opening: Opening) -> "Run | None":
        """Return the newest run with this model, of this DVC experiment if there is one; None if not found."""
        # Names may hold quotes, so the filter uses the digest only.
        filter_string = f"tags.model_sha256 = '{opening.model_sha256}'"
        found = self.client.search_runs(
            [self.experiment_id], filter_string, max_results=1000, order_by=["attributes.start_time DESC"]
        )
        ours = {"dvc.exp.name": opening.experiment, "dvc.exp.baseline_rev": opening.baseline}
        return next((run for run in found if not opening.experiment or ours.items() <= run.data.tags.items()), None)

    def unfinished_run(self, opening: Opening) -> "Run | None":
        """Return the newest run of a DVC experiment that has no model; None if there is none."""
        run = self.runs_of_experiments().get((opening.experiment or "", opening.baseline or ""))
        return run if run is not None and "model_sha256" not in run.data.tags else None

    def runs_of_experiments(self) -> "dict[tuple[str, str], Run]":
        """Return the newest run of each DVC experiment, by the experiment's name and baseline commit."""
        found = self.client.search_runs(
            [self.experiment_id],
            "tags.`dvc.exp.name` != ''",
            max_results=RUNS_PER_SEARCH,
            order_by=["attributes.start_time ASC"],
        )
        return {(run.data.tags["dvc.exp.name"], run.data.tags.get("dvc.exp.baseline_rev", "")): run for run in found}

    def training_seconds(self, baseline: str) -> dict[str, float]:
        """Return the duration of the train stage for each name of a DVC experiment on a commit, from its newest run."""
        found = self.client.search_runs(
            [self.experiment_id],
            f"tags.`dvc.exp.baseline_rev` = '{baseline}' and attributes.status = 'FINISHED'",
            max_results=RUNS_PER_SEARCH,
            order_by=["attributes.start_time ASC"],
        )
        return {
            run.data.tags["dvc.exp.name"]: (run.info.end_time - run.info.start_time) / 1000
            for run in found
            if run.info.end_time and "dvc.exp.name" in run.data.tags and "restored" not in run.data.tags
        }

    def how_to_view(self, run_id: str | None = None) -> str:
        """Return the address of a run, or else of the table of runs, with the command that shows it if needed."""
        page = views.run_page(self.experiment_id, run_id) if run_id else views.table_page(self.experiment_id)
        return places.how_to_view(self.uri, page)
