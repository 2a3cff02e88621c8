"""Tests that the running processes of the queue are found from DVC's files."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from imageclf.core import cores, paths, workers


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


@pytest.fixture
def copy(folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run in a copy of the repository, as an experiment of the queue does; return the folder of DVC's experiments."""
    monkeypatch.chdir(tmp_path_factory.mktemp("copy"))
    return folder


def test_workers_share_the_cores(copy: Path, process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(9)), raising=False)
    assert cores.allowed_cores(copy / "none") == 9
    for number in range(1, 5):
        describe(copy / f"celery/dvc-exp-worker-{number}.json", process.pid)
    assert cores.allowed_cores(copy / "none") == 2
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1}, raising=False)
    assert cores.allowed_cores(copy / "none") == 1
    monkeypatch.chdir(paths.repository())  # your own `dvc repro` next to the queue
    assert cores.allowed_cores(copy / "none") == 2


LEASE = "import sys; from imageclf.core import workers; print(workers.lease_gpu(2), flush=True); sys.stdin.read()"


@contextmanager
def leasing() -> Iterator[int]:
    """Start a process that leases one of two GPUs, and yield the index."""
    with subprocess.Popen([sys.executable, "-c", LEASE], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield int(process.stdout.readline())
        process.stdin.close()


def test_each_experiment_of_the_queue_has_its_own_gpu(copy: Path) -> None:
    assert copy.parent.is_dir()
    with leasing() as first:
        with leasing() as second, leasing() as third:
            assert (first, second, third) == (0, 1, 0)
        with leasing() as again:
            assert again == 1
    assert workers.lease_gpu(1) == 0


def test_outside_of_the_queue_the_first_gpu_is_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(paths.repository())
    with leasing() as first, leasing() as second:
        assert (first, second) == (0, 0)
    assert not list(folder.parent.glob("*.lock"))
