"""The record of what was executed, kept in MLflow by a process of its own: `imageclf.recorder`.

Nothing in MLflow can break, hang or slow a run: its imports and its database work beside the training,
whatever goes wrong there is one printed sentence here, and a recorder that falls silent is left after
ten seconds. When this process dies, even by SIGKILL, the recorder sees its input end and closes the run.
"""

import json
import os
import queue
import select
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from imageclf import paths

PATIENCE_S = 10.0
"""How long a stage waits for a silent recorder before it goes on without."""


class Recorder:
    """A handle on the recorder process; each method returns at once. Without `opening` it records nothing."""

    def __init__(self, opening: dict[str, Any] | None) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._if_restored = False
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        if opening is None:
            return
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - read when the recorder is closed
        source = str(Path(__file__).resolve().parents[1])  # a queued experiment records with its own code, too
        search = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "imageclf.recorder"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env={**os.environ, "PYTHONPATH": search},
            start_new_session=True,  # Ctrl-C is for the stage, which then tells how the run ended
        )
        assert self._process.stdin is not None
        threading.Thread(target=_pump, args=(self._outbox, self._process.stdin), daemon=True).start()
        self._send("open", **opening)

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
        self._send("artifacts", files=[str(file) for file in files], folder=folder)

    def text(self, name: str, text: str) -> None:
        """Record a text under a file name."""
        self._send("text", name=name, text=text)

    def model(self, folder: Path, epoch: int) -> None:
        """Record the checkpoint in `folder`, of that epoch, as an MLflow model."""
        self._send("model", folder=str(folder), epoch=epoch)

    def close(self, status: str) -> None:
        """End the run as FINISHED, FAILED or KILLED, wait while the recorder gets on, and print how it went."""
        if self._process is None:
            return
        self._send("close", status=status)
        self._outbox.put(None)
        end = self._await_end(self._process)
        self._process.kill()  # it has nothing left to do, or is stuck
        self._process.wait()
        self._stderr.seek(0)
        trouble = self._stderr.read().decode(errors="replace").strip().splitlines()
        print(end or f"tracking: the recorder died ({trouble[-1] if trouble else 'without a word'}); not in MLflow")

    def _send(self, kind: str, **content: Any) -> None:
        if self._process is not None:
            message = {"kind": kind, "if_restored": self._if_restored, **content}
            self._outbox.put(json.dumps(message).encode() + b"\n")

    def _await_end(self, process: subprocess.Popen[bytes]) -> str | None:
        """The recorder's last word, or ours if it falls silent for longer than it announced; None if it died."""
        assert process.stdout is not None
        descriptor, received, until = process.stdout.fileno(), b"", time.time() + PATIENCE_S
        while (left := until - time.time()) > 0:
            if not select.select([descriptor], [], [], left)[0]:
                continue
            block = os.read(descriptor, 65536)
            if not block:
                return None
            received += block
            *lines, received = received.split(b"\n")
            for line in lines:
                message = _parse(line)
                if "end" in message:
                    return message["end"]
                until = max(until, message.get("busy_until", until))
        return f"tracking: MLflow did not answer for {PATIENCE_S:.0f} s; the run went on without a record"


def _parse(line: bytes) -> dict[str, Any]:
    """Return the recorder's message; an empty one for what a library or a `sitecustomize` has printed there."""
    try:
        message = json.loads(line)
    except ValueError:
        return {}
    return message if isinstance(message, dict) else {}


def _pump(outbox: "queue.SimpleQueue[bytes | None]", pipe: IO[bytes]) -> None:
    """Write to the pipe what comes; a recorder that does not read must not hold up the training."""
    try:
        while (message := outbox.get()) is not None:
            pipe.write(message)
            pipe.flush()
        pipe.close()
    except OSError:
        pass  # the recorder is gone; `close` tells


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
