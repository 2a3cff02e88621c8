"""Tests that a training that was killed at any time, in any way, resumes and writes the same files."""

import contextlib
import fcntl
import hashlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from dvc.utils.serialize import parse_yaml
from imports import ROOT
from project import Project, clean_environment
from stage_run import run_until, write_params

pytestmark = pytest.mark.faults

KILLS = int(os.environ.get("IMAGECLF_KILLS", "6"))
"""Number of kills. docs/reliability.md reports a run with 200."""
EPOCHS = 8
SLOW_EPOCHS = """
import time

_epoch = Progress.epoch


def _slow_epoch(self, epoch):
    _epoch(self, epoch)
    time.sleep(1)


Progress.epoch = _slow_epoch
"""
"""Code added to a module that does not change results: the training is slow enough to be killed before its end."""


def test_a_training_survives_every_kill(tmp_path: Path) -> None:
    write_params(tmp_path, model="cnn", epochs="6", batch_size="32", checkpoint_minutes="0.0005")
    run_until(tmp_path, "weights")
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("kill_loop.py"), tmp_path, str(KILLS), "0"],
        env={
            **clean_environment(),
            "DVC_ROOT": str(tmp_path),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    print(found)
    assert found["killed"] == KILLS
    assert (found["wrong"], found["leftovers"]) == (0, 0)


def model(project: Project) -> str:
    return hashlib.sha256((project.root / "data/model/model.safetensors").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the digest of the model of a training that was not killed."""
    project = Project(tmp_path_factory.mktemp("expected"), epochs=str(EPOCHS))
    for stage in ("download", "preprocess", "weights", "train"):
        project.run("python", "-m", f"stages.{stage}")
    return model(project)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Create a project with its own cache, so that DVC does not reuse the result of another test."""
    return Project(tmp_path, epochs=str(EPOCHS))


def launch(project: Project, *command: str) -> subprocess.Popen[bytes]:
    """Start a command in its own process group, as a shell does."""
    with (project.root / ".commands.log").open("ab") as log:
        return subprocess.Popen(
            command,
            cwd=project.root,
            env={**clean_environment(), "IMAGECLF_CACHE": str(project.root / ".archives")},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def wait_for(condition: Callable[[], object], patience_s: float = 60) -> None:
    until = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def saved(project: Project) -> list[Path]:
    """Return the states of unfinished trainings."""
    return list((project.root / ".resume").glob("*.state"))


def statuses(project: Project, name: str) -> list[str]:
    """Return the statuses of the runs of this name; on a busy machine, the recorder creates its run later than this."""
    try:
        return [run.status for run in project.runs() if run.name == name]
    except sqlite3.OperationalError:  # no table exists yet
        return []


def trainers(project: Project) -> list[int]:
    """Return the ids of processes that train in this project or in DVC's copies of it."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if b"stages.train" in (entry / "cmdline").read_bytes() and (entry / "cwd").resolve().is_relative_to(
                project.root
            ):
                found.append(int(entry.name))
        except (OSError, ValueError):
            continue
    return found


def interrupt(project: Project, kill: Callable[[int], None], *command: str) -> int:
    """Start a command, kill it during the training, wait for the end of its processes; return the exit code."""
    progress = project.root / "src/imageclf/tracking/progress.py"
    as_committed = progress.read_text()
    progress.write_text(as_committed + SLOW_EPOCHS)
    process = launch(project, *command)
    wait_for(lambda: saved(project) or process.poll() is not None)
    assert process.poll() is None, (project.root / ".commands.log").read_text()
    time.sleep(0.3)
    kill(process.pid)
    code = process.wait(timeout=60)
    wait_for(lambda: not trainers(project))
    progress.write_text(as_committed)
    assert saved(project)
    return code


def locked(project: Project) -> object:
    """Return the entry of the training in dvc.lock."""
    return parse_yaml((project.root / "dvc.lock").read_text(), "dvc.lock")["stages"].get("train")


def history(project: Project) -> list[int]:
    lines = (project.root / "metrics/history.csv").read_text().splitlines()[1:]
    return [int(line.split(",")[0]) for line in lines]


def terminate_stage_before_dvc(dvc: int) -> None:
    """Send SIGTERM to all in such a way that DVC, which is stopped meanwhile, dies two seconds after its stage."""
    os.kill(dvc, signal.SIGSTOP)
    os.killpg(dvc, signal.SIGTERM)
    time.sleep(2)
    os.kill(dvc, signal.SIGCONT)


KILLERS: dict[str, Callable[[int], None]] = {
    "Ctrl-C": lambda pid: os.killpg(pid, signal.SIGINT),
    "SIGTERM to DVC": lambda pid: os.kill(pid, signal.SIGTERM),
    "SIGKILL to DVC": lambda pid: os.kill(pid, signal.SIGKILL),
    "SIGTERM to all": lambda pid: os.killpg(pid, signal.SIGTERM),
    "SIGTERM to all, DVC last": terminate_stage_before_dvc,
    "SIGKILL to all": lambda pid: os.killpg(pid, signal.SIGKILL),
}


@pytest.mark.parametrize("killer", [name for name in KILLERS if not name.startswith("SIGTERM to all")])
def test_repro_resumes_after(killer: str, project: Project, expected: str) -> None:
    before = locked(project)
    assert interrupt(project, KILLERS[killer], "dvc", "repro", "train") != 0
    assert locked(project) == before
    output = project.run("dvc", "repro", "train")
    assert "resuming at epoch" in output
    assert model(project) == expected
    assert history(project) == list(range(1, EPOCHS + 1))
    assert not saved(project)
    with sqlite3.connect(project.root / "mlflow.db") as database:
        (runs,) = database.execute("select count(*) from runs").fetchone()
        steps = database.execute("select step from metrics where key = 'epoch/train_loss' order by step").fetchall()
    assert runs == 1
    assert project.runs()[0].status == "FINISHED"
    assert [step for (step,) in steps] == list(range(1, EPOCHS + 1))


def test_an_experiment_in_a_copy_resumes(project: Project, expected: str) -> None:
    command = ("dvc", "exp", "run", "--temp", "-n", "again")
    assert interrupt(project, KILLERS["Ctrl-C"], *command) != 0
    output = project.run(*command)
    assert "resuming at epoch" in output
    project.run("dvc", "exp", "apply", "again")
    assert model(project) == expected
    assert project.only_run("again").status == "FINISHED"


def launch_in_terminal(project: Project, *command: str) -> tuple[subprocess.Popen[bytes], int]:
    """Start a command in a new terminal; return it and the other end of the terminal, to be closed by the test."""
    other_end, terminal = os.openpty()

    def take_terminal() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        command,
        cwd=project.root,
        env={**clean_environment(), "IMAGECLF_CACHE": str(project.root / ".archives")},
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        preexec_fn=take_terminal,  # noqa: PLW1509 - one system call
    )
    os.close(terminal)
    threading.Thread(target=read_all, args=(other_end,), daemon=True).start()
    return process, other_end


def read_all(descriptor: int) -> None:
    """Read the output of a terminal, so that programs in it do not block."""
    with contextlib.suppress(OSError):
        while os.read(descriptor, 65536):
            pass


def test_a_killed_experiment_leaves_git_on_its_branch(project: Project) -> None:
    """DVC detaches HEAD while an experiment runs in the workspace: later commits would be on no branch."""
    (project.root / "README.md").write_text("edited by hand\n")
    command = ("dvc", "exp", "run", "-n", "killed", "-S", "lr=0.002")
    killers = ("SIGKILL to DVC", "SIGTERM to all", "SIGTERM to all, DVC last")
    for killer in killers:
        for state in saved(project):
            state.unlink()
        assert interrupt(project, KILLERS[killer], *command) != 0
        assert project.run("git", "symbolic-ref", "HEAD") == "refs/heads/main\n", killer
        assert (project.root / "README.md").read_text() == "edited by hand\n"
    log = (project.root / ".commands.log").read_text()
    sentence = "DVC was killed and had left git on a detached HEAD; git is on branch main again"
    assert log.count(sentence) == len(killers)
    assert "DVC has ended; stopping" in log
    assert "Traceback" not in log
    output = project.run(*command)
    assert "resuming at epoch" in output
    assert project.run("git", "symbolic-ref", "HEAD") == "refs/heads/main\n"
    assert project.run("git", "log", "--format=%s") == "state\n"


def test_a_closed_terminal_ends_an_experiment_like_any_other_kill(project: Project, expected: str) -> None:
    command = ("dvc", "exp", "run", "-n", "closed")
    progress = project.root / "src/imageclf/tracking/progress.py"
    as_committed = progress.read_text()
    progress.write_text(as_committed + SLOW_EPOCHS)
    process, other_end = launch_in_terminal(project, *command)
    wait_for(lambda: saved(project) or process.poll() is not None)
    os.close(other_end)
    assert process.wait(timeout=60) != 0
    wait_for(lambda: not trainers(project))
    progress.write_text(as_committed)
    assert project.run("git", "symbolic-ref", "HEAD") == "refs/heads/main\n"
    wait_for(lambda: statuses(project, "closed") == ["KILLED"])
    assert "resuming at epoch" in project.run(*command)
    assert model(project) == expected


def test_a_changed_training_starts_again(project: Project) -> None:
    interrupt(project, KILLERS["Ctrl-C"], "dvc", "repro", "train")
    path = project.root / "src/imageclf/training/losses.py"
    path.write_text(path.read_text() + "\n# changed\n")
    assert "resuming" not in project.run("dvc", "repro", "train")
    assert history(project) == list(range(1, EPOCHS + 1))


def test_two_commands_at_once(project: Project, expected: str) -> None:
    """DVC's lock allows one command at a time; the other waits or fails with a message, and the result is right."""
    both = [launch(project, "dvc", "repro", "train") for _ in range(2)]
    codes = sorted(process.wait(timeout=120) for process in both)
    assert codes[0] == 0
    log = (project.root / ".commands.log").read_text()
    assert codes[1] == 0 or "Unable to acquire lock" in log or "is busy" in log, log
    assert model(project) == expected
    assert "Stage 'train' didn't change" in project.run("dvc", "repro", "train")


def test_two_clones_on_one_cache(tmp_path: Path, expected: str) -> None:
    clones = [Project(tmp_path / name, cache=tmp_path / "cache", epochs=str(EPOCHS)) for name in ("a", "b")]
    at_once = [launch(clone, "dvc", "repro", "train") for clone in clones]
    assert [process.wait(timeout=180) for process in at_once] == [0, 0]
    assert [model(clone) for clone in clones] == [expected] * 2
    cached = [path for path in (tmp_path / "cache/files/md5").glob("??/*") if path.suffix != ".dir"]
    assert cached
    for path in cached:
        assert hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() == path.parent.name + path.name
