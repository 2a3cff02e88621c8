"""The processes of DVC's queue, read from the files that DVC keeps about them.

`dvc queue status` sends messages to the workers instead: that takes a second, a busy worker does not answer in time,
and a worker that reads a message while it is being written dies.
"""

import json
import os
from pathlib import Path

from imageclf.core import paths

EXPERIMENTS = Path(".dvc/tmp/exps")


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
