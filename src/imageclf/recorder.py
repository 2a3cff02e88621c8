"""The process that writes to MLflow. It reads JSON lines; `imageclf.tracking` sends them.

One run for each training; `evaluate` finds it by the SHA-256 of the weights and adds its scores. Says
`busy_until` before what takes time, and `end`, one sentence for the user, when it is done.
"""

import json
import queue
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock

from imageclf.store import Store

if TYPE_CHECKING:
    from mlflow.entities import Run

FLUSH_S = 1.0
"""Metrics are written at most this often; MLflow takes 10 ms a call."""
BATCH = 1000
"""Metrics in one call, MLflow's limit."""

Message = dict[str, Any]


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
    say(busy_until=time.time() + 120)  # imports, and another process may be creating the database
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
