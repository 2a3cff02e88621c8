"""The processes of DVC's queue, read from the files that DVC keeps about them.

`dvc queue status` sends messages to the workers instead: that takes a second, a busy worker does not answer in time,
and a worker that reads a message while it is being written dies.
"""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from imageclf.core import paths

EXPERIMENTS = Path(".dvc/tmp/exps")


def sharing() -> int:
    """Return the number of workers of the queue that share the machine with this experiment; 1 outside of the queue.

    DVC does not say that an experiment is queued, but runs it in a copy of the repository.
    """
    return max(1, alive()) if _is_copy() else 1


def lease_gpu(count: int) -> int:
    """Return the index of a GPU that no other experiment of the queue uses, and keep it until this process ends.

    Outside of the queue, and if all `count` GPUs are in use, return 0: an experiment then shares the first one.
    """
    if count < 2 or not _is_copy():
        return 0
    import filelock

    for index in range(count):
        lock = filelock.FileLock(paths.repository() / f".dvc/tmp/gpu-{index}.lock")
        with suppress(filelock.Timeout):
            lock.acquire(blocking=False)
            _leases.append(lock)
            return index
    return 0


_leases: list[Any] = []
"""Locks that this process keeps; a lock that nothing refers to is released."""


def _is_copy() -> bool:
    """Return True if DVC runs this process in a copy of the repository: in the queue, or with `--temp`."""
    return Path.cwd() != paths.repository()


def alive() -> int:
    """Return the number of queue workers that are running."""
    return _count("celery/dvc-exp-worker-*.json", b"queue-worker")


def experiments_running() -> int:
    """Return the number of queued experiments that are running, with or without their worker."""
    return _count("run/*/*.json", b"exec-run")


def results() -> list[str]:
    """Return the names of the files that DVC writes when a task of the queue ends, successful or failed."""
    return sorted(path.name for path in _folder().glob("celery/result/*"))


def _folder() -> Path:
    return paths.repository() / EXPERIMENTS


def _count(pattern: str, word: bytes) -> int:
    return sum(_is_running(path, word) for path in _folder().glob(pattern))


def _is_running(path: Path, word: bytes) -> bool:
    """Return True if the process that DVC described in `path` is running and has `word` in its command line."""
    try:
        process = json.loads(path.read_text())
        if process["returncode"] is not None:
            return False
        os.kill(process["pid"], 0)
    except (FileNotFoundError, ProcessLookupError):
        return False
    try:  # another process may have the same id after a restart of the machine; a dead one has no command line
        return word in Path(f"/proc/{process['pid']}/cmdline").read_bytes()
    except OSError:  # macOS has no /proc
        return True
