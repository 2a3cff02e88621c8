"""The process that writes to MLflow. It reads JSON lines from a socket; `imageclf.tracking` sends them.

One run for each training; `evaluate` finds it by the SHA-256 of the weights and adds its scores. Says
`busy_until` while the stage should wait for it, and `end`, one sentence for the user, when it is done.
"""

import json
import queue
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import filelock

from imageclf import places
from imageclf.channel import Channel, Message
from imageclf.store import Store, wait_briefly

if TYPE_CHECKING:
    from mlflow.entities import Run

FLUSH_S = 1.0
"""Metrics are written at most this often; MLflow takes 10 ms a call."""
BATCH = 1000
"""Metrics in one call, MLflow's limit."""
OPENING_S = 120.0
"""For MLflow's imports, and for a database that another process may be creating."""
UPLOAD_S = 300.0
"""For exporting and copying a model."""
UPLOADS = {"artifacts", "text", "model"}


class Session:
    """One run being written."""

    def __init__(
        self, store: Store, run: "Run", channel: Channel, *, owner: bool = True, restored: bool = False
    ) -> None:
        """`owner`: whether it starts the run, or resumes it, and so ends it."""
        self.store, self.channel = store, channel
        self.run_id = run.info.run_id
        self.name = run.info.run_name
        self.restored = restored
        self.status = "KILLED"  # unless the stage lives to tell
        self._pending: list[Any] = []
        self._failed: dict[str, Exception] = {}
        self._hurried = self._at_work = False
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
        """Carry out one message. If MLflow does not take it, the others are tried, without waiting for long."""
        kind = message.pop("kind")
        if message.pop("if_restored") and not self.restored:
            return
        if kind != "metrics":
            self.flush()
        with self._trying(kind):
            if self._hurried and kind in UPLOADS:
                raise InterruptedError("interrupted")
            getattr(self, f"_on_{kind}")(**message)

    def flush(self) -> None:
        """Write the metrics that wait; those that MLflow does not take wait on."""
        self._flushed = time.monotonic()
        with self._trying("metrics"):
            while self._pending:
                self.store.client.log_batch(self.run_id, metrics=self._pending[:BATCH])
                del self._pending[:BATCH]
            self._failed.pop("metrics", None)

    def hurry(self, _signum: int, _frame: FrameType | None) -> None:
        """The handler of SIGTERM: the person who waits has lost patience, so nothing more is uploaded."""
        self._hurried = True
        wait_briefly()
        if self._at_work:
            raise InterruptedError("interrupted")

    @contextmanager
    def _trying(self, kind: str) -> Iterator[None]:
        """Note what MLflow does not take, and why."""
        try:
            self._at_work = True
            yield
        except Exception as error:  # noqa: BLE001 - whatever MLflow raises, the stage hears it in one sentence
            if kind not in self._failed:
                traceback.print_exc()
                self._failed[kind] = error
            wait_briefly()
        finally:
            self._at_work = False

    def sentence(self) -> str:
        """How it went, for the user."""
        if not self._failed:
            return f"tracking: recorded as {self.name!r}; {self.store.how_to_look()}"
        reason = places.explain(next(iter(self._failed.values())), self.store.uri)
        return (
            f"tracking: MLflow failed to take the {', '.join(self._failed)} of {self.name!r} ({reason}); "
            "the run went on without a full record"
        )

    def end(self) -> None:
        """Set the status; a run that evaluate only added to keeps its own."""
        self.flush()
        if self._lock:
            self.store.client.set_terminated(self.run_id, self.status)
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
        self._announce_upload()
        for file in files:
            self.store.client.log_artifact(self.run_id, file, folder)

    def _on_text(self, name: str, text: str) -> None:
        self._announce_upload()
        self.store.client.log_text(self.run_id, text, name)

    def _on_model(self, folder: str, epoch: int) -> None:
        self._announce_upload()
        self.store.log_model(self.run_id, Path(folder), epoch)

    def _announce_upload(self) -> None:
        if not self.store.remote:  # else `_say_while_server_answers` does
            self.channel.say(busy_until=time.monotonic() + UPLOAD_S)

    def _on_close(self, status: str) -> None:
        self.status = status


def _warm_up() -> None:
    """Load what exporting a model needs, 4 s of imports, while the net still trains."""
    import mlflow.pytorch  # noqa: F401
    import torch

    torch.export.export(torch.nn.Linear(1, 1), (torch.zeros(2, 1),))


def _messages(channel: Channel, session: Session) -> Iterator[Message]:
    """Messages until the end; when none comes for a while, the metrics that wait are written."""
    while True:
        try:
            message = channel.inbox.get(timeout=FLUSH_S)
        except queue.Empty:
            session.flush()
            continue
        if message is None:
            return
        yield message


def _open_session(store: Store, opening: Message, channel: Channel) -> Session:
    """`train` starts a run or resumes one; `evaluate` adds to its model's run, or to a new one if there is none."""
    if opening["model_sha256"] is None:
        found = store.interrupted_run(opening) if opening["resumes"] else None
        return Session(store, found or store.create_run(opening, training=opening["training"] or ""), channel)
    found = store.find_run(opening)
    if found is not None:
        return Session(store, found, channel, owner=False)
    run = store.create_run(opening, restored="true", model_sha256=opening["model_sha256"])
    return Session(store, run, channel, restored=True)


def _record(channel: Channel, opening: Message) -> str:
    """Open the store, follow the messages, end the run; returns a sentence for the user."""
    store = Store()
    session = _open_session(store, opening, channel)
    if store.remote:
        channel.say(busy_until=time.monotonic())  # from now on, as long as the server answers
        channel.say_while_server_answers(store.uri)
    signal.signal(signal.SIGTERM, session.hurry)
    try:
        if opening["stage"] == "train":
            with suppress(Exception):  # whoever exports the model meets it again
                _warm_up()
        for message in _messages(channel, session):
            session.handle(message)
    finally:
        session.end()
    if opening["training"] and session.status == "FINISHED":
        store.forget_interruption(opening)
    return session.sentence()


def main() -> None:
    """Say how it went, whatever MLflow does."""
    channel = Channel(int(sys.argv[1]))
    opening = channel.inbox.get()
    if opening is None:
        return
    channel.say(busy_until=time.monotonic() + OPENING_S)
    try:
        end = _record(channel, opening)
    except Exception as error:  # noqa: BLE001 - whatever MLflow raises, the stage hears it in one sentence
        traceback.print_exc()
        reason = places.explain(error, places.tracking_uri())
        end = f"tracking: MLflow failed ({reason}); the run went on without a full record"
    channel.say(end=end)


if __name__ == "__main__":
    main()
