"""Write the messages of a stage to one MLflow run."""

import shutil
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import filelock

from imageclf.tracking import places
from imageclf.tracking.client import INCOMPLETE
from imageclf.tracking.recorder.channel import Channel, Message
from imageclf.tracking.recorder.store import Store, set_short_timeouts

if TYPE_CHECKING:
    from mlflow.entities import Run

FLUSH_S = 1.0
"""Seconds between two calls that write metrics; MLflow takes 10 ms per call."""
METRICS_PER_CALL = 1000
"""MLflow's limit."""
UPLOAD_S = 300.0
"""Seconds in which a model is exported and copied."""
UPLOADS = {"artifacts", "text", "model", "epoch_model"}


class Session:
    """An MLflow run to which a stage writes. If `owner`, the stage has started or resumed the run and also ends it."""

    def __init__(
        self, store: Store, run: "Run", channel: Channel, *, owner: bool = True, restored: bool = False
    ) -> None:
        self.status = "KILLED"  # until the stage sends another one
        self._store, self._channel = store, channel
        self.run_id: str = run.info.run_id
        models = run.outputs.model_outputs if run.outputs else []
        self._model_id: str | None = models[-1].model_id if models else None
        self._notes: list[str] = []
        """Sentences for the user, besides the address of the run."""
        self._ended_ms = run.info.end_time if restored else None
        self._name = run.info.run_name
        self._restored = restored
        self._waiting_metrics: list[Any] = []
        self._newest_metrics: list[Any] = []
        self._errors: dict[str, Exception] = {}
        """First error of each kind of message."""
        self._interrupted = self._in_call = False
        self._flushed = time.monotonic()
        self._lock = filelock.FileLock(store.locks / f"run-{self.run_id}.lock") if owner else None
        self._written: set[tuple[str, int]] = set()
        """Name and step of the metrics in the run: a resumed training sends all of its epochs again."""
        if self._lock:
            self._lock.acquire()  # the recorder of a killed stage may still be writing
            store.client.update_run(self.run_id, status="RUNNING")
            for name in store.client.get_run(self.run_id).data.metrics:
                history = store.client.get_metric_history(self.run_id, name)
                self._written |= {(name, metric.step) for metric in history}

    def handle(self, message: Message) -> None:
        """Write one message. If MLflow fails, later messages are tried with short timeouts."""
        kind = message.pop("kind")
        if message.pop("if_restored") and not self._restored:
            return
        if kind != "metrics":
            self.flush()
        with self._keep_error(kind):
            if kind in UPLOADS:
                self._start_upload()
            getattr(self, f"_on_{kind}")(**message)

    def flush(self) -> None:
        """Write the waiting metrics; if MLflow fails, they wait for the next call."""
        self._flushed = time.monotonic()
        with self._keep_error("metrics"):
            while self._waiting_metrics:
                self._store.client.log_batch(self.run_id, metrics=self._waiting_metrics[:METRICS_PER_CALL])
                del self._waiting_metrics[:METRICS_PER_CALL]
            self._errors.pop("metrics", None)

    def on_sigterm(self, _signum: int, _frame: FrameType | None) -> None:
        """Stop an upload and skip further ones: the user has pressed Ctrl-C instead of waiting."""
        self._interrupted = True
        set_short_timeouts()
        if self._in_call:
            raise InterruptedError("interrupted")

    def _start_upload(self) -> None:
        if self._interrupted:
            raise InterruptedError("interrupted")
        if not self._store.remote:  # `send_busy_while_server_answers` does it for a server
            self._channel.send(busy_until=time.monotonic() + UPLOAD_S)

    @contextmanager
    def _keep_error(self, kind: str) -> Iterator[None]:
        """Keep an error of MLflow for `result`, instead of raising it."""
        try:
            self._in_call = True
            yield
        except Exception as error:  # noqa: BLE001 - MLflow raises errors of many libraries
            if kind not in self._errors:
                traceback.print_exc()
                self._errors[kind] = error
            set_short_timeouts()
        finally:
            self._in_call = False

    def result(self) -> str:
        """Return a sentence for the user: how to view the run, or what MLflow did not store and why."""
        if not self._errors:
            where = self._store.how_to_view(self.run_id if self._lock else None)
            return "; ".join([f"tracking: recorded as {self._name!r}", *self._notes, where])
        reason = places.explain(next(iter(self._errors.values())), self._store.uri)
        return (
            f"tracking: MLflow did not store the {', '.join(self._errors)} of {self._name!r} ({reason}); {INCOMPLETE}"
        )

    def end(self) -> None:
        """Write the waiting metrics and, as the owner, the status of the run."""
        self.flush()
        if self._lock:
            self._store.client.set_terminated(self.run_id, self.status, self._ended_ms)
            Path(self._lock.lock_file).unlink(missing_ok=True)
            self._lock.release()

    def _on_params(self, values: dict[str, str]) -> None:
        from mlflow.entities import Param

        self._store.client.log_batch(self.run_id, params=[Param(*pair) for pair in values.items()])

    def _on_tags(self, values: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        self._store.client.log_batch(self.run_id, tags=[RunTag(*pair) for pair in values.items()])
        self._name = values.get("mlflow.runName", self._name)  # MLflow renames the run by this tag

    def _on_datasets(self, datasets: list[dict[str, str]]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        inputs = [
            DatasetInput(
                Dataset(each["name"], each["digest"], each["source_type"], each["source"], profile=each["profile"]),
                [InputTag("mlflow.data.context", each["context"])],
            )
            for each in datasets
        ]
        self._store.client.log_inputs(self.run_id, inputs)

    def _on_metrics(self, values: dict[str, float], step: int, time_ms: int, data: tuple[str, str] | None) -> None:
        from mlflow.entities import Metric

        new = {key: value for key, value in values.items() if (key, step) not in self._written}
        of_model = {"model_id": self._model_id} if data and self._model_id else {}
        of_data = {"dataset_name": data[0], "dataset_digest": data[1]} if data else {}
        self._newest_metrics = [Metric(key, value, time_ms, step, **of_model, **of_data) for key, value in new.items()]
        self._waiting_metrics += self._newest_metrics
        if time.monotonic() - self._flushed > FLUSH_S:
            self.flush()

    def _on_artifacts(self, files: list[str], folder: str | None) -> None:
        for file in files:
            self._store.client.log_artifact(self.run_id, file, folder)

    def _on_text(self, name: str, text: str) -> None:
        self._store.client.log_text(self.run_id, text, name)

    def _on_model(self, folder: str, name: str, epoch: int) -> None:
        from imageclf.tracking.recorder.served_model import log_served_model

        if self._model_id is None:
            self._model_id = log_served_model(self._store.client, self.run_id, Path(folder), name=name, epoch=epoch)

    def _on_epoch_model(self, folder: str, name: str, epoch: int, keep: int) -> None:
        from mlflow.entities import Metric

        from imageclf.tracking.recorder.served_model import delete_old_models, log_served_model

        try:
            logged = log_served_model(self._store.client, self.run_id, Path(folder), name=name)
        finally:
            shutil.rmtree(Path(folder).parent)
        of_model = [
            Metric(each.key, each.value, each.timestamp, each.step, model_id=logged)  # the run has them already
            for each in self._newest_metrics
            if each.step == epoch
        ]
        self._store.client.log_batch(self.run_id, metrics=of_model)
        delete_old_models(self._store.client, self.run_id, keep)

    def _on_model_tags(self, values: dict[str, str]) -> None:
        if self._model_id is not None:
            self._store.client.set_logged_model_tags(self._model_id, values)

    def _on_registration(self, name: str, accuracy: float, test_sha256: str) -> None:
        from imageclf.tracking.recorder.registry import register

        if self._model_id is None:
            raise LookupError("the run has no model")
        self._notes.append(
            register(self._store.client, name, self._model_id, accuracy=accuracy, test_sha256=test_sha256)
        )

    def _on_close(self, status: str) -> None:
        self.status = status
