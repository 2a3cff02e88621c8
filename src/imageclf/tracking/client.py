"""A handle on the process that records a run in MLflow: `imageclf.tracking.recorder`.

MLflow cannot break, hang or slow down a run: it is imported and called in that other process, next to the training.
Each failure is one printed sentence, and a recorder that is silent for ten seconds is stopped. When this process
dies, even by SIGKILL, the recorder reads the end of its input and ends the run.

The two processes use a socket, because libraries print to stdout and stderr. Those go to a temporary file.
"""

import json
import math
import os
import queue
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from imageclf.tracking.descriptions import DatasetInput
from imageclf.tracking.opening import Opening
from imageclf.tracking.places import without_password

SILENCE_S = 10.0
"""Seconds for which a stage waits for a silent recorder."""
INCOMPLETE = "the stage continued, but its record in MLflow is incomplete"


class Recorder:
    """A handle on the recorder process. Each method returns at once. If `opening` is None, nothing is recorded."""

    def __init__(self, opening: Opening | None) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._if_restored = False
        self.experiment = opening.experiment if opening else None
        """Name of the DVC experiment that is recorded; None if there is none."""
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        if opening is None:
            return
        try:
            self._start(opening.repository)
        except OSError as error:  # no free process, file descriptor or disk space
            print(f"tracking: the recorder cannot be started ({error}); this run is not in MLflow", flush=True)
            return
        self._sender = threading.Thread(target=_send_all, args=(self._outbox, self._channel), daemon=True)
        self._sender.start()
        self._put(asdict(opening))

    def _start(self, repository: str) -> None:
        """Start the process in the repository: a relative address of a store means the same for all stages."""
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - read when the recorder is closed
        self._channel, theirs = socket.socketpair()
        source = str(Path(__file__).resolve().parents[2])  # a queued experiment also records with its own code
        search = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "imageclf.tracking.recorder", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                pass_fds=[theirs.fileno()],
                cwd=repository,
                env={**os.environ, "PYTHONPATH": search},
                start_new_session=True,  # Ctrl-C interrupts the stage only, which then sends the status of the run
            )

    @property
    def records(self) -> bool:
        """True if there is a recorder process."""
        return self._process is not None

    @contextmanager
    def if_restored(self) -> Iterator[None]:
        """Record what is sent inside only if MLflow has no run for the model.

        This happens if DVC has restored the training from its cache, or if the store is another one.
        """
        self._if_restored = True
        try:
            yield
        finally:
            self._if_restored = False

    def params(self, values: dict[str, Any]) -> None:
        """Record parameters."""
        self._send("params", values={key: str(value) for key, value in values.items()})

    def tags(self, values: dict[str, str]) -> None:
        """Record tags. `evaluate` finds the run of its model by the tag `model_sha256`."""
        self._send("tags", values=values)

    def datasets(self, datasets: list[DatasetInput]) -> None:
        """Record which data the net is trained, chosen and tested on."""
        self._send("datasets", datasets=[asdict(each) for each in datasets])

    def metrics(self, values: dict[str, float], step: int, of_model_on: DatasetInput | None = None) -> None:
        """Record the metrics of one step, which is an epoch; or those of the run's model on some data."""
        data = of_model_on and (of_model_on.name, of_model_on.digest)
        self._send("metrics", values=values, step=step, time_ms=time.time_ns() // 1_000_000, data=data)

    def artifacts(self, files: list[Path], folder: str | None = None) -> None:
        """Record files; they must exist until the recorder is closed."""
        self._send("artifacts", files=[str(file.absolute()) for file in files], folder=folder)

    def text(self, name: str, text: str) -> None:
        """Record a text as a file."""
        self._send("text", name=name, text=text)

    def model(self, folder: Path, name: str, epoch: int) -> None:
        """Record the checkpoint in `folder`, which is that of `epoch`, as an MLflow model with this name."""
        self._send("model", folder=str(folder.absolute()), name=name, epoch=epoch)

    def epoch_model(self, folder: Path, name: str, epoch: int, keep: int) -> None:
        """Record the checkpoint in `folder`; delete all such models but the newest `keep`, and the folder's parent."""
        self._send("epoch_model", folder=str(folder), name=name, epoch=epoch, keep=keep)

    def model_tags(self, values: dict[str, str]) -> None:
        """Record tags of the run's model."""
        self._send("model_tags", values=values)

    def registration(self, name: str, *, accuracy: float, test_sha256: str) -> None:
        """Register the run's model as a version of `name`; the best version on these test data is the champion."""
        self._send("registration", name=name, accuracy=accuracy, test_sha256=test_sha256)

    def close(self, status: str) -> None:
        """End the run as FINISHED, FAILED or KILLED, wait while the recorder works, and print its last sentence."""
        if self._process is None:
            return
        self._send("close", status=status)
        self._outbox.put(None)
        try:
            end = self._await_end()
        except KeyboardInterrupt:
            if status != "FINISHED":
                raise
            self._process.send_signal(signal.SIGTERM)  # the training has ended well: Ctrl-C ends only the wait
            end = self._await_end()
        self._process.kill()  # it has finished, or hangs
        self._process.wait()
        self._sender.join()
        self._channel.close()
        print(end or f"tracking: the recorder died ({self._reason_of_death()}); {INCOMPLETE}", flush=True)

    def _send(self, kind: str, **content: Any) -> None:
        if self._process is not None:
            self._put({"kind": kind, "if_restored": self._if_restored, **content})

    def _put(self, message: dict[str, Any]) -> None:
        self._outbox.put(json.dumps(message).encode() + b"\n")

    def _await_end(self) -> str | None:
        """Return the last sentence of the recorder, or ours if it is silent for too long; None if it has died."""
        poller, received = select.poll(), b""
        poller.register(self._channel, select.POLLIN)
        until = soonest = notice = time.monotonic() + SILENCE_S
        while (now := time.monotonic()) < until:
            if now >= notice:
                print("waiting for MLflow, which is slow; Ctrl-C ends the wait, not the training", flush=True)
                notice = math.inf
            if not poller.poll(1000 * min(1.0, until - now)):
                continue
            try:
                block = self._channel.recv(65536)
            except OSError:
                return None
            if not block:
                return None
            *lines, received = (received + block).split(b"\n")
            for message in map(_parse, lines):
                if isinstance(message.get("end"), str):
                    return message["end"]
                if isinstance(message.get("busy_until"), (int, float)):
                    until = max(soonest, message["busy_until"])
        return f"tracking: MLflow did not answer for {SILENCE_S:.0f} s; {INCOMPLETE}"

    def _reason_of_death(self) -> str:
        """Return the signal that ended the recorder, or the last line that it printed."""
        assert self._process is not None
        if self._process.returncode < 0:
            return signal.Signals(-self._process.returncode).name
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").split("\n")
        return without_password(next(filter(None, map(str.strip, reversed(lines))), "no message"))[:200]


def _send_all(outbox: "queue.SimpleQueue[bytes | None]", channel: socket.socket) -> None:
    """Send the messages until None; in a thread, because a recorder that does not read must not block the training."""
    try:
        while (message := outbox.get()) is not None:
            channel.sendall(message)
        channel.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # the recorder has died; `close` reports it


def _parse(line: bytes) -> dict[str, Any]:
    """Return a message of the recorder; {} for any other line."""
    try:
        message = json.loads(line)
    except ValueError:
        return {}
    return message if isinstance(message, dict) else {}


@contextmanager
def recording(opening: Opening | None) -> Iterator[Recorder]:
    """Open a run, and close it as FINISHED, FAILED by an exception, or KILLED by a signal; None records nothing.

    A run that only gets scores of its existing model keeps its status.
    """
    recorder = Recorder(opening)
    try:
        yield recorder
    except (KeyboardInterrupt, SystemExit):
        recorder.close("KILLED")
        raise
    except BaseException:
        recorder.close("FAILED")
        raise
    recorder.close("FINISHED")
