"""The process that writes to MLflow. It reads JSON lines from a socket; `imageclf.tracking.client` sends them.

Each training has one run. `evaluate` finds it by the SHA-256 of the weights and adds its scores. The recorder sends
`busy_until` as long as the stage should wait for it and, when it is done, `end`: one sentence for the user.
"""

import os
import queue
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from imageclf.tracking import places
from imageclf.tracking.client import INCOMPLETE
from imageclf.tracking.opening import Opening
from imageclf.tracking.recorder.channel import Channel, Message
from imageclf.tracking.recorder.session import FLUSH_S, Session
from imageclf.tracking.recorder.store import Store

OPENING_S = 120.0
"""Seconds for MLflow's imports, and for a database that another process may be creating."""


def main() -> None:
    """Record one run and send the stage a sentence about the result, also if MLflow fails."""
    channel = Channel(int(sys.argv[1]))
    message = channel.inbox.get()
    if message is None:
        return
    channel.send(busy_until=time.monotonic() + OPENING_S)
    try:
        end = _record(channel, Opening(**message))
    except Exception as error:  # noqa: BLE001 - MLflow raises errors of many libraries
        traceback.print_exc()
        reason = places.explain(error, places.tracking_uri())
        end = f"tracking: MLflow failed ({reason}); {INCOMPLETE}"
    channel.send(end=end)


def _record(channel: Channel, opening: Opening) -> str:
    """Open the store, write the messages, end the run; returns a sentence for the user."""
    store = Store(of_comparisons=opening.stage == "compare")
    session = _open_session(store, opening, channel)
    if store.remote:
        channel.send(busy_until=time.monotonic())  # from here on, the answers of the server count
        channel.send_busy_while_server_answers(store.uri)
    signal.signal(signal.SIGTERM, session.on_sigterm)
    try:
        if opening.stage == "train":
            with suppress(Exception):  # recording the model raises it again
                # Import what recording the model needs, while the net is trained.
                import imageclf.tracking.recorder.served_model  # noqa: F401
        with _system_metrics(store, session.run_id):
            for message in _messages(channel, session):
                session.handle(message)
    finally:
        session.end()
    if opening.training and session.status == "FINISHED":
        store.forget_interruption(opening)
    return session.result()


@contextmanager
def _system_metrics(store: Store, run_id: str) -> Iterator[None]:
    """Record the use of processor, memory and GPU inside the context, if MLflow's variable asks for it."""
    if os.environ.get("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "").lower() not in {"1", "true"}:
        yield
        return
    import mlflow
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    mlflow.set_tracking_uri(store.uri)
    monitor = SystemMetricsMonitor(run_id)
    monitor.start()
    try:
        yield
    finally:
        monitor.finish()


def _open_session(store: Store, opening: Opening, channel: Channel) -> Session:
    """Open a new run, that of an interrupted training, or that of an existing model, which may have none."""
    if opening.model_sha256 is None:
        found = store.interrupted_run(opening) if opening.resumes else None
        return Session(store, found or store.create_run(opening, training=opening.training or ""), channel)
    found = store.find_run(opening)
    if opening.stage == "sync":
        found = found or store.unfinished_run(opening)
        run = found or store.create_run(opening, restored="true", model_sha256=opening.model_sha256)
        return Session(store, run, channel, restored=True)
    if found is not None:
        return Session(store, found, channel, owner=False)
    run = store.create_run(opening, restored="true", model_sha256=opening.model_sha256)
    return Session(store, run, channel, restored=True)


def _messages(channel: Channel, session: Session) -> Iterator[Message]:
    """Yield messages until the last one; if none comes for a while, write the waiting metrics."""
    while True:
        try:
            message = channel.inbox.get(timeout=FLUSH_S)
        except queue.Empty:
            session.flush()
            continue
        if message is None:
            return
        yield message


if __name__ == "__main__":
    main()
