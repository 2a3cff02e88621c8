"""The processes behind DVC's queue, from the files that DVC keeps of them: looking at them costs nothing.

`dvc queue status` asks the workers by messages instead. That takes a second, a busy worker does not answer in time,
and a worker that reads a message while it is still being written dies of it.
"""

import json
import os
from pathlib import Path

from imageclf import paths

EXPERIMENTS = Path(".dvc/tmp/exps")


def alive() -> int:
    """The number of queue workers that are running."""
    return _count("celery/dvc-exp-worker-*.json", b"queue-worker")


def experiments_running() -> int:
    """The number of queued experiments that are running, with or without their worker."""
    return _count("run/*/*.json", b"exec-run")


def results() -> list[str]:
    """The names of the files that DVC writes as each task of the queue ends, well or not."""
    return sorted(path.name for path in _folder().glob("celery/result/*"))


def _folder() -> Path:
    return paths.repository() / EXPERIMENTS


def _count(pattern: str, word: bytes) -> int:
    return sum(_is_running(path, word) for path in _folder().glob(pattern))


def _is_running(path: Path, word: bytes) -> bool:
    """Whether a process lives that DVC described in `path` and that has `word` in its command line."""
    try:
        process = json.loads(path.read_text())
        if process["returncode"] is not None:
            return False
        os.kill(process["pid"], 0)
    except (FileNotFoundError, ProcessLookupError):
        return False
    try:  # after a restart of the machine another process may have the number; a dead one has no command line
        return word in Path(f"/proc/{process['pid']}/cmdline").read_bytes()
    except OSError:  # macOS has no /proc
        return True
