"""The process that writes to MLflow: the only user of mlflow. It reads JSON lines; `imageclf.tracking` sends them.

One run for each training; `evaluate` finds it by the SHA-256 of the weights and adds its scores. Says
`busy_until` before what takes time, and `end`, one sentence for the user, when it is done.
"""

import json
import logging
import os
import queue
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock

if TYPE_CHECKING:
    from mlflow.entities import Run

EXPERIMENT = "imageclf"
FLUSH_S = 1.0
"""Metrics are written at most this often; MLflow takes 10 ms a call."""
BATCH = 1000
"""Metrics in one call, MLflow's limit."""

Message = dict[str, Any]


class Store:
    """An MLflow store: where it is, and the experiment that holds our runs."""

    def __init__(self, root: Path) -> None:
        self.uri = _tracking_uri(root)
        self.locks = root / ".dvc" / "tmp" / "imageclf"
        self.locks.mkdir(parents=True, exist_ok=True)
        say(busy_until=time.time() + 120)  # imports, and another process may be creating the database
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

    def create_run(self, opening: Message, **tags: str) -> "Run":
        """A new run, RUNNING, with the tags that lead back to the DVC experiment."""
        commit = _git("rev-parse", "HEAD")
        branch = _git("rev-parse", "--abbrev-ref", "HEAD")
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
            run_name=name or f"{branch}@{commit[:7]}",
            tags={key: value for key, value in known.items() if value},
        )

    def find_run(self, opening: Message, query: str) -> "Run | None":
        """The newest run that `query` describes; of this DVC experiment, if there is one."""
        if opening["experiment_name"]:
            query += f" and tags.`dvc.exp.name` = '{opening['experiment_name']}'"
            query += f" and tags.`dvc.exp.baseline_rev` = '{opening['baseline']}'"
        found = self.client.search_runs(
            [self.experiment_id], query, max_results=1, order_by=["attributes.start_time DESC"]
        )
        return found[0] if found else None


class Session:
    """One run being written."""

    def __init__(self, store: Store, run: "Run", *, owner: bool, restored: bool = False) -> None:
        """`owner`: whether it starts the run, or goes on with it, and so ends it."""
        self.store = store
        self.run_id = run.info.run_id
        self.name = run.info.run_name
        self.restored = restored
        self._status = "KILLED"  # unless the stage lives to tell
        self._pending: list[Any] = []
        self._flushed = time.monotonic()
        self._lock = filelock.FileLock(store.locks / f"run-{self.run_id}.lock") if owner else None
        self._written: set[tuple[str, int]] = set()
        """(name, step) of what stands in the run: an interrupted training tells all of its epochs when it goes on."""
        if self._lock:
            self._lock.acquire()  # a recorder whose stage was killed may still be writing
            store.client.update_run(self.run_id, status="RUNNING")
            for name in store.client.get_run(self.run_id).data.metrics:
                history = store.client.get_metric_history(self.run_id, name)
                self._written |= {(name, metric.step) for metric in history}

    def handle(self, message: Message) -> None:
        """Carry out one message."""
        kind = message.pop("kind")
        if message.pop("if_restored") and not self.restored:
            return
        if kind != "metrics":
            self.flush()
        getattr(self, f"_on_{kind}")(**message)

    def flush(self) -> None:
        """Write the metrics that wait."""
        for start in range(0, len(self._pending), BATCH):
            self.store.client.log_batch(self.run_id, metrics=self._pending[start : start + BATCH])
        self._pending.clear()
        self._flushed = time.monotonic()

    def end(self) -> None:
        """Set the status; a run that evaluate only added to keeps its own."""
        self.flush()
        if self._lock:
            self.store.client.set_terminated(self.run_id, self._status)
            Path(self._lock.lock_file).unlink(missing_ok=True)
            self._lock.release()

    def _on_params(self, values: dict[str, str]) -> None:
        from mlflow.entities import Param

        self.store.client.log_batch(self.run_id, params=[Param(*pair) for pair in values.items()])

    def _on_tags(self, values: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        self.store.client.log_batch(self.run_id, tags=[RunTag(*pair) for pair in values.items()])
        self.name = values.get("mlflow.runName", self.name)  # MLflow renames the run by this tag

    def _on_dataset(self, name: str, digest: str) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        source = json.dumps({"uri": "data/processed"})
        data = Dataset(name=name, digest=digest[:36], source_type="local", source=source)  # MLflow's limit
        self.store.client.log_inputs(self.run_id, [DatasetInput(data, [InputTag("mlflow.data.context", "training")])])

    def _on_metrics(self, values: dict[str, float], step: int, time_ms: int) -> None:
        from mlflow.entities import Metric

        new = {key: value for key, value in values.items() if (key, step) not in self._written}
        self._pending += [Metric(key, value, time_ms, step) for key, value in new.items()]
        if time.monotonic() - self._flushed > FLUSH_S:
            self.flush()

    def _on_artifacts(self, files: list[str], folder: str | None) -> None:
        for file in files:
            self.store.client.log_artifact(self.run_id, file, folder)

    def _on_text(self, name: str, text: str) -> None:
        self.store.client.log_text(self.run_id, text, name)

    def _on_model(self, folder: str, epoch: int) -> None:
        say(busy_until=time.time() + 300)
        import mlflow
        import numpy as np
        import torch
        from mlflow.models import infer_signature
        from mlflow.pytorch import log_model

        from imageclf import checkpoint

        loaded = checkpoint.load(Path(folder))
        net = loaded.classifier()
        images = np.zeros((2, *loaded.recipe["raw_shape"]), np.uint8)  # two, or the batch would be fixed to one
        with torch.inference_mode():
            probabilities = net(torch.from_numpy(images)).numpy()
        mlflow.set_tracking_uri(self.store.uri)
        with mlflow.start_run(run_id=self.run_id):
            log_model(
                net,
                name="model",
                step=epoch,
                input_example=images,
                signature=infer_signature(images, probabilities),
                pip_requirements=[f"torch=={torch.__version__.split('+')[0]}", f"numpy=={np.__version__}"],
            )

    def _on_close(self, status: str) -> None:
        self._status = status


def _tracking_uri(root: Path) -> str:
    uri = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    if uri.startswith("sqlite:///") and not uri.startswith("sqlite:////"):
        return f"sqlite:///{root / uri.removeprefix('sqlite:///')}"
    return uri


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _quieten() -> None:
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.simplefilter("ignore")


def _warm_up() -> None:
    """Load what exporting a model needs, 4 s of imports, while the net still trains."""
    import mlflow.pytorch  # noqa: F401
    import torch

    torch.export.export(torch.nn.Linear(1, 1), (torch.zeros(2, 1),))


def say(**message: Any) -> None:
    """A line to the stage."""
    print(json.dumps(message), flush=True)


def _inbox() -> "queue.SimpleQueue[Message | None]":
    """The messages as they come; None when the stage has closed its end, or has died."""
    inbox: queue.SimpleQueue[Message | None] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            inbox.put(json.loads(line))
        inbox.put(None)

    threading.Thread(target=read, daemon=True).start()
    return inbox


def _messages(inbox: "queue.SimpleQueue[Message | None]", session: Session) -> Iterator[Message]:
    """Messages until the end; when none comes for a while, the metrics that wait are written."""
    while True:
        try:
            message = inbox.get(timeout=FLUSH_S)
        except queue.Empty:
            session.flush()
            continue
        if message is None:
            return
        yield message


def _open_session(store: Store, opening: Message) -> Session:
    """`train` starts a run or resumes one; `evaluate` adds to its model's run, or to a new one if there is none."""
    model_sha256 = opening["model_sha256"]
    if model_sha256 is None:
        training = opening["training"]
        interrupted = f"tags.training = '{training}' and attributes.status != 'FINISHED'"
        found = store.find_run(opening, interrupted) if opening["resumes"] else None
        session = Session(store, found or store.create_run(opening, training=training or ""), owner=True)
        if opening["stage"] == "train":
            _warm_up()
        return session
    found = store.find_run(opening, f"tags.model_sha256 = '{model_sha256}'")
    if found is not None:
        return Session(store, found, owner=False)
    return Session(
        store, store.create_run(opening, restored="true", model_sha256=model_sha256), owner=True, restored=True
    )


def main() -> None:
    """Open the store, follow the messages, end the run."""
    inbox = _inbox()
    opening = inbox.get()
    if opening is None:
        return
    try:
        store = Store(Path(opening["root"]))
        session = _open_session(store, opening)
        try:
            for message in _messages(inbox, session):
                session.handle(message)
        finally:
            session.end()
        say(end=f"tracking: recorded as {session.name!r}; `uv run mlflow ui`, then {store.address()}")
    except Exception as error:  # noqa: BLE001 - whatever MLflow raises, the stage hears it in one sentence
        traceback.print_exc()
        reason = str(error).strip().splitlines() or [type(error).__name__]
        say(end=f"tracking: MLflow failed ({reason[0][:200]}); the run went on without a full record")


if __name__ == "__main__":
    main()
