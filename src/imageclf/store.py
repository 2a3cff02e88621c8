"""Where MLflow keeps our runs, and which belongs to what: with `imageclf.recorder` the only user of mlflow."""

import json
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock

from imageclf import places
from imageclf.detached import git

if TYPE_CHECKING:
    from mlflow.entities import Run

EXPERIMENT = "imageclf"
SEARCH = 50_000
"""Runs in one search, MLflow's limit."""

Opening = dict[str, Any]
"""What a stage says of itself when it opens a run: see `imageclf.tracking.recording`."""


BRIEFLY = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
"""For a server that may not exist. MLflow's defaults would retry for four minutes."""
OURS = {name: value for name, value in BRIEFLY.items() if name not in os.environ}
"""Without what the user has set."""


def wait_briefly() -> None:
    """Give up on a server that does not answer in ten seconds."""
    os.environ.update(OURS)


def wait_as_mlflow_does() -> None:
    """Wait for a slow server as long as MLflow does."""
    for name in OURS:
        os.environ.pop(name, None)


class Store:
    """An MLflow store: where it is, and the experiment that holds our runs. To be used in the repository's folder."""

    def __init__(self) -> None:
        self.uri = places.tracking_uri()
        self.remote = self.uri.startswith(("http://", "https://"))
        self.locks = Path(".dvc/tmp/imageclf").absolute()
        self.locks.mkdir(parents=True, exist_ok=True)
        wait_briefly()
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
        # Else MLflow tags models with the login name and the path of this file.
        os.environ["MLFLOW_RUN_CONTEXT"] = json.dumps({"mlflow.user": "", "mlflow.source.name": "stages/train.py"})
        from mlflow import MlflowClient

        _quieten()
        # Two processes that create the tables at once crash, hence the lock.
        with filelock.FileLock(self.locks / "store.lock", timeout=60):
            self.client: MlflowClient = MlflowClient(self.uri)
            self.experiment_id = self._experiment()
        wait_as_mlflow_does()
        self._bury()

    def _experiment(self) -> str:
        """The experiment that MLflow itself would take, or ours: by `MLFLOW_EXPERIMENT_ID`, then by its name."""
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
        if key := os.environ.get("MLFLOW_EXPERIMENT_ID"):
            found = self.client.get_experiment(key)
        else:
            found = self.client.get_experiment_by_name(name)
        if found is None:
            return self._create_experiment(name)
        if found.lifecycle_stage != "active":
            self.client.restore_experiment(found.experiment_id)
        places.follow(self.uri, found.artifact_location)
        return found.experiment_id

    def _create_experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        try:
            return self.client.create_experiment(name, artifact_location=places.artifact_location(self.uri))
        except MlflowException:
            found = self.client.get_experiment_by_name(name)  # another machine was faster
            if found is None:
                raise
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

    def create_run(self, opening: Opening, **tags: str) -> "Run":
        """A new run, RUNNING, with the tags that lead back to the DVC experiment."""
        name, known = _identity(opening)
        known |= {"mlflow.source.name": f"stages/{opening['stage']}.py", "mlflow.source.type": "LOCAL", **tags}
        run = self.client.create_run(
            self.experiment_id,
            run_name=name,
            start_time=opening["time_ms"],
            tags={key: value for key, value in known.items() if value},
        )
        if opening["training"]:
            self._note(opening).write_text(run.info.run_id)
        return run

    def interrupted_run(self, opening: Opening) -> "Run | None":
        """The unfinished run of an interrupted training, now under the name of the DVC experiment that resumes it.

        Its id is noted in a file, so that it is never the run of somebody who trains the same on a shared server.
        """
        from mlflow.exceptions import MlflowException

        try:
            run = self.client.get_run(self._note(opening).read_text())
        except (FileNotFoundError, MlflowException):
            return None  # deleted, or in another store
        place = run.info.experiment_id, run.info.lifecycle_stage
        if place != (self.experiment_id, "active") or run.info.status == "FINISHED":
            return None
        name, tags = _identity(opening)
        self.client.update_run(run.info.run_id, name=name)
        for key, value in tags.items():
            if value:
                self.client.set_tag(run.info.run_id, key, value)
            elif key in run.data.tags:
                self.client.delete_tag(run.info.run_id, key)
        return self.client.get_run(run.info.run_id)

    def log_model(self, run_id: str, folder: Path, epoch: int) -> None:
        """Export the checkpoint in `folder` as a model of the run: any batch of raw images to probabilities."""
        import mlflow
        import numpy as np
        import torch
        from mlflow.models import infer_signature
        from mlflow.pytorch import log_model

        from imageclf import checkpoint

        loaded = checkpoint.load(folder)
        net = loaded.classifier()
        images = np.zeros((2, *loaded.recipe["raw_shape"]), np.uint8)  # two, or the batch would be fixed to one
        with torch.inference_mode():
            probabilities = net(torch.from_numpy(images)).numpy()
        mlflow.set_tracking_uri(self.uri)
        with mlflow.start_run(run_id=run_id):
            log_model(
                net,
                name="model",
                step=epoch,
                input_example=images,
                signature=infer_signature(images, probabilities),
                pip_requirements=[f"torch=={torch.__version__.split('+')[0]}", f"numpy=={np.__version__}"],
            )

    def forget_interruption(self, opening: Opening) -> None:
        """Remove the note for `interrupted_run`: the training has ended."""
        self._note(opening).unlink(missing_ok=True)

    def _note(self, opening: Opening) -> Path:
        return self.locks / f"training-{opening['training']}"

    def find_run(self, opening: Opening) -> "Run | None":
        """The newest run that made this model; that of this DVC experiment, if it has a name."""
        made_it = f"tags.model_sha256 = '{opening['model_sha256']}'"  # names may hold quotes, a digest does not
        found = self.client.search_runs(
            [self.experiment_id], made_it, max_results=1000, order_by=["attributes.start_time DESC"]
        )
        ours = {"dvc.exp.name": opening["experiment_name"], "dvc.exp.baseline_rev": opening["baseline"]}
        for run in found:
            if not opening["experiment_name"] or ours.items() <= run.data.tags.items():
                return run
        return None

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

    def how_to_look(self) -> str:
        """How a person sees our runs."""
        return places.how_to_look(self.uri, self.experiment_id)


def _identity(opening: Opening) -> tuple[str, dict[str, str]]:
    """Return the name of a run, and the tags that name its commit and DVC experiment; an empty tag if there is none."""
    folder = opening["folder"]  # the stage's, which may be DVC's copy of an older commit
    commit = git("rev-parse", "HEAD", folder=folder)
    branch = git("rev-parse", "--abbrev-ref", "HEAD", folder=folder)
    name = opening["experiment_name"] or (f"{branch}@{commit[:7]}" if commit else "no git commit")
    return name, {
        "mlflow.source.git.commit": commit,
        "dvc.exp.name": opening["experiment_name"] or "",
        "dvc.exp.baseline_rev": opening["baseline"] or commit,
    }


def _quieten() -> None:
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
