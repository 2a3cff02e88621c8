"""Tests that the running processes of the queue are found from DVC's files."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from imageclf.study import workers


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of DVC's experiments, without descriptions of processes."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    for name in ("celery", "celery/result", "run/abc"):
        (tmp_path / workers.EXPERIMENTS / name).mkdir(parents=True)
    return tmp_path / workers.EXPERIMENTS


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """Start a process with the command line of a worker."""
    script = "import time; print(flush=True); time.sleep(60)"
    running = subprocess.Popen([sys.executable, "-c", script, "queue-worker"], stdout=subprocess.PIPE)
    assert running.stdout is not None
    running.stdout.readline()
    yield running
    running.stdout.close()
    running.kill()
    running.wait()


def describe(path: Path, pid: int, returncode: int | None = None) -> None:
    """Write the description of a process as DVC does."""
    path.write_text(json.dumps({"pid": pid, "stdin": None, "stdout": "", "stderr": None, "returncode": returncode}))


def test_nothing_runs_before_the_first_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    assert (workers.alive(), workers.experiments_running(), workers.results()) == (0, 0, [])


def test_a_worker_is_alive_as_long_as_its_process(folder: Path, process: subprocess.Popen[bytes]) -> None:
    first, second = folder / "celery/dvc-exp-worker-1.json", folder / "celery/dvc-exp-worker-2.json"
    describe(first, process.pid)
    describe(second, process.pid, returncode=-9)
    assert (workers.alive(), workers.experiments_running()) == (1, 0)
    process.kill()
    process.wait()
    assert workers.alive() == 0


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="needs /proc to tell processes apart")
def test_another_process_with_the_same_id_is_not_an_experiment(folder: Path, process: subprocess.Popen[bytes]) -> None:
    """Ids are used again after a restart of the machine; a dead process keeps its id until its parent waits for it."""
    describe(folder / "run/abc/abc.json", process.pid)
    assert workers.experiments_running() == 0
    describe(folder / "celery/dvc-exp-worker-1.json", process.pid)
    process.kill()
    while Path(f"/proc/{process.pid}/cmdline").read_bytes():
        pass
    assert workers.alive() == 0


def test_an_ended_task_is_a_result(folder: Path) -> None:
    (folder / "celery/result/celery-task-meta-1").touch()
    assert workers.results() == ["celery-task-meta-1"]
