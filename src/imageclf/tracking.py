"""The record of what was executed, kept in MLflow by a process of its own: `imageclf.recorder`.

Nothing in MLflow can break, hang or slow a run: its imports and its database work next to the training,
whatever goes wrong there is one printed sentence here, and a recorder that falls silent is left after
ten seconds. When this process dies, even by SIGKILL, the recorder sees its input end and closes the run.

The two processes talk over a socket that no library knows of. What MLflow prints ends in a temporary file.
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
from pathlib import Path
from typing import Any

from imageclf import paths
from imageclf.places import without_password

PATIENCE_S = 10.0
"""How long a stage waits for a silent recorder before it continues without."""


class Recorder:
    """A handle on the recorder process; each method returns at once. Without `opening` it records nothing."""

    def __init__(self, opening: dict[str, Any] | None) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._if_restored = False
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        if opening is None:
            return
        try:
            self._start(opening["root"])
        except OSError as error:  # no process, no descriptor or no temporary file is left
            print(f"tracking: the recorder cannot be started ({error}); not in MLflow", flush=True)
            return
        self._pump = threading.Thread(target=_pump, args=(self._outbox, self._channel), daemon=True)
        self._pump.start()
        self._send("open", **opening)

    def _start(self, root: str) -> None:
        """Start the recorder in the repository, so that relative addresses of a store mean the same to all stages."""
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - read when the recorder is closed
        self._channel, theirs = socket.socketpair()
        source = str(Path(__file__).resolve().parents[1])  # a queued experiment records with its own code, too
        search = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "imageclf.recorder", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=self._said,
                stderr=self._said,
                pass_fds=[theirs.fileno()],
                cwd=root,
                env={**os.environ, "PYTHONPATH": search},
                start_new_session=True,  # Ctrl-C is for the stage, which then tells how the run ended
            )

    @contextmanager
    def if_restored(self) -> Iterator[None]:
        """What is recorded within counts only where the model's run is not in MLflow.

        DVC may have restored the training from its cache, or the store may be another one.
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
        """Record tags; `model_sha256` is what `evaluate` finds the run by."""
        self._send("tags", values=values)

    def dataset(self, name: str, digest: str) -> None:
        """Record which data the net was trained on."""
        self._send("dataset", name=name, digest=digest)

    def metrics(self, values: dict[str, float], step: int) -> None:
        """Record numbers of one step, which is an epoch."""
        self._send("metrics", values=values, step=step, time_ms=time.time_ns() // 1_000_000)

    def epoch(self, epoch: dict[str, Any]) -> None:
        """Record a row of the history: `train_loss` becomes `train/loss`, and `number` the step."""
        values = {key.replace("_", "/", 1): value for key, value in epoch.items() if value is not None}
        self.metrics(values, step=values.pop("number"))

    def scores(self, tree: dict[str, Any], step: int) -> None:
        """Record what a metrics/*.json holds: nesting becomes slashes."""
        self.metrics(flatten(tree), step)

    def artifacts(self, files: list[Path], folder: str | None = None) -> None:
        """Record files, which must stay until the recorder is closed."""
        self._send("artifacts", files=[str(file.absolute()) for file in files], folder=folder)

    def text(self, name: str, text: str) -> None:
        """Record a text under a file name."""
        self._send("text", name=name, text=text)

    def model(self, folder: Path, epoch: int) -> None:
        """Record the checkpoint in `folder`, of that epoch, as an MLflow model."""
        self._send("model", folder=str(folder.absolute()), epoch=epoch)

    def close(self, status: str) -> None:
        """End the run as FINISHED, FAILED or KILLED, wait while the recorder is at work, and print how it went."""
        if self._process is None:
            return
        self._send("close", status=status)
        self._outbox.put(None)
        try:
            end = self._await_end()
        except KeyboardInterrupt:
            if status != "FINISHED":
                raise
            self._process.send_signal(signal.SIGTERM)  # the training has ended well: Ctrl-C only ends the wait
            end = self._await_end()
        self._process.kill()  # it has nothing left to do, or is stuck
        self._process.wait()
        self._pump.join()
        self._channel.close()
        print(end or f"tracking: the recorder died ({self._last_words()}); not in MLflow", flush=True)

    def _send(self, kind: str, **content: Any) -> None:
        if self._process is not None:
            message = {"kind": kind, "if_restored": self._if_restored, **content}
            self._outbox.put(json.dumps(message).encode() + b"\n")

    def _await_end(self) -> str | None:
        """The recorder's closing sentence, or ours if it is silent for longer than it announced; None if it died."""
        poller, received = select.poll(), b""
        poller.register(self._channel, select.POLLIN)
        until = soonest = notice = time.monotonic() + PATIENCE_S
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
            for message in filter(None, map(_parse, lines)):
                if isinstance(message.get("end"), str):
                    return message["end"]
                if isinstance(message.get("busy_until"), (int, float)):
                    until = max(soonest, message["busy_until"])
        return f"tracking: MLflow did not answer for {PATIENCE_S:.0f} s; the run went on without a full record"

    def _last_words(self) -> str:
        """What a dead recorder left behind: the signal that ended it, or its last line."""
        assert self._process is not None
        if self._process.returncode < 0:
            return signal.Signals(-self._process.returncode).name
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").split("\n")
        return without_password(next(filter(None, map(str.strip, reversed(lines))), "without a word"))[:200]


def _pump(outbox: "queue.SimpleQueue[bytes | None]", channel: socket.socket) -> None:
    """Send what comes; a recorder that does not read must not hold up the training."""
    try:
        while (message := outbox.get()) is not None:
            channel.sendall(message)
        channel.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # the recorder is gone; `close` tells


def _parse(line: bytes) -> dict[str, Any]:
    """A message of the recorder; empty if the line is none."""
    try:
        message = json.loads(line)
    except ValueError:
        return {}
    return message if isinstance(message, dict) else {}


@contextmanager
def recording(
    stage: str, *, model_sha256: str | None = None, training: str | None = None, resumes: bool = False, enabled: bool
) -> Iterator[Recorder]:
    """A recorder that starts a run, or adds to the run of an existing model.

    With `resumes` it goes on with the run of an interrupted `training`, a key that tags the run; metrics that stand
    there are not written again. A run that it started ends as the block does: FINISHED, FAILED, or KILLED by a signal.
    """
    opening = {
        "stage": stage,
        "model_sha256": model_sha256,
        "training": training,
        "resumes": resumes,
        "root": str(paths.repository()),
        "folder": str(Path.cwd()),
        "experiment_name": os.environ.get("DVC_EXP_NAME"),
        "baseline": os.environ.get("DVC_EXP_BASELINE_REV"),
        "time_ms": time.time_ns() // 1_000_000,
    }
    recorder = Recorder(opening if enabled else None)
    try:
        yield recorder
    except (KeyboardInterrupt, SystemExit):
        recorder.close("KILLED")
        raise
    except BaseException:
        recorder.close("FAILED")
        raise
    recorder.close("FINISHED")


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """Nested metrics to MLflow's names: `{"test": {"loss": 0.1}}` to `{"test/loss": 0.1}`; numbers only."""
    flat: dict[str, float] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}/")
        elif isinstance(value, (int, float)):
            flat[prefix + key] = float(value)
    return flat
