"""Tests of a training in several processes: the bits of one process, and no process left behind, whatever dies."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from imports import ROOT
from project import clean_environment
from stage_run import outputs, run_stage, run_until, write_params

from benchmarks.served import free_port

pytestmark = pytest.mark.faults

IN_PIECES = """
from imageclf.training import gradients
from stages import train

start = gradients.GradientAccumulator.__init__

def in_pieces(self, *arguments, **options):
    start(self, *arguments, **options)
    self._micro_batches = {pieces}

gradients.GradientAccumulator.__init__ = in_pieces
train.main()
"""
"""A training in one process that splits each batch."""

LONG: dict[str, Any] = {"processes": "2", "hidden": "[8]", "schedule": "constant", "epochs": "40"}
"""Parameters of a training that can be interrupted before its end."""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the prepared digits, and the record of no learned weights."""
    return prepared_digits(tmp_path_factory.mktemp("prepared"))


def prepared_digits(root: Path) -> Path:
    """Run the stages before train on the digits in this folder, and return it."""
    write_params(root)
    run_until(root, "weights")
    return root


def new_project(prepared: Path, root: Path, **changes: Any) -> Path:
    shutil.copytree(prepared / "data", root / "data")
    write_params(root, **{"dropout": "0.0", "epochs": "2", "batch_size": "61", **changes})
    return root


def environment(root: Path) -> dict[str, str]:
    return {
        **clean_environment(),
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
        "DVC_ROOT": str(root),
        "OMP_NUM_THREADS": "1",
    }


def weights(root: Path) -> str:
    return outputs(root, "train")["data/model/model.safetensors"]


@pytest.mark.parametrize(
    ("processes", "changes"),
    [(2, {"epochs": "9", "patience": "1", "schedule": "constant", "lr": "0.02"}), (3, {"shift": "1"})],
)
def test_ranks_give_the_bits_of_one_process_that_splits_its_batches(
    processes: int, changes: dict[str, str], prepared: Path, tmp_path: Path
) -> None:
    """1,293 images in batches of 61 make parts of different sizes, and a last batch of 12 images."""
    changes = {"model": "cnn", "channels": "[4]", **changes}
    together = new_project(prepared, tmp_path / "together", **changes, processes=str(processes))
    result = run_stage(together, "train")
    assert result.code == 0, result.output
    alone = new_project(prepared, tmp_path / "alone", **changes, processes="1")
    code = IN_PIECES.format(pieces=processes)
    subprocess.run([sys.executable, "-c", code], cwd=alone, env=environment(alone), check=True, capture_output=True)
    assert weights(together) == weights(alone)
    assert (together / "metrics/history.csv").read_text() == (alone / "metrics/history.csv").read_text()
    assert result.output.count("epoch 2/") == 1  # only rank 0 prints
    assert ("(patience)" in result.output) == ("patience" in changes)


KEPT = """
from imageclf.core import memory
from stages import train

def keep():
    raise SystemExit("kept")

memory.keep_freed_memory = keep
train.main()
"""


def test_a_training_keeps_its_freed_memory(prepared: Path, tmp_path: Path) -> None:
    root = new_project(prepared, tmp_path / "project")
    command = [sys.executable, "-c", KEPT]
    done = subprocess.run(command, cwd=root, env=environment(root), capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("", "kept\n")  # before anything is computed


def test_a_net_with_batch_norm_needs_one_process(prepared: Path, tmp_path: Path) -> None:
    root = new_project(prepared, tmp_path / "project", model="vgg11", width="0.1", processes="2", pad="12")
    result = run_stage(root, "train")
    assert result.code == 1
    assert result.error == "runtime.processes: this net has batch norm, which needs one process; set it to 1 or auto"


def ranks_of(root: Path) -> list[int]:
    """Return the process ids of the ranks of this project that are running, other than rank 0."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if folder.joinpath("cwd").readlink() != root or b"IMAGECLF_PARENT=" not in (
                folder.joinpath("environ").read_bytes()
            ):
                continue
        except OSError:
            continue
        found.append(int(folder.name))
    return found


@contextmanager
def started(root: Path, **variables: str) -> Iterator["subprocess.Popen[str]"]:
    """Start the train stage, and kill it at the end."""
    with subprocess.Popen(
        [sys.executable, "-m", "stages.train"],
        cwd=root,
        env={**environment(root), **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for_state(root: Path, process: "subprocess.Popen[str]") -> None:
    """Wait until a training has saved a state."""
    while not list(root.glob(".resume/*.state")):
        assert process.poll() is None, process.stdout and process.stdout.read()
        time.sleep(0.05)


@contextmanager
def training(root: Path) -> Iterator["subprocess.Popen[str]"]:
    """Start a training of two ranks that takes long, and wait until it has saved a state."""
    with started(root) as process:
        wait_for_state(root, process)
        yield process


def wait_for_end(root: Path) -> None:
    deadline = time.monotonic() + 20
    while ranks_of(root):
        assert time.monotonic() < deadline, "a rank is still running"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def undisturbed(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    root = new_project(prepared, tmp_path_factory.mktemp("undisturbed") / "project", **LONG)
    result = run_stage(root, "train")
    assert result.code == 0, result.output
    return weights(root)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and only Linux ends the ranks of a killed stage")
@pytest.mark.parametrize(
    ("victim", "signum", "code"),
    [
        ("rank 0", signal.SIGKILL, -signal.SIGKILL),
        ("rank 0", signal.SIGTERM, 143),
        ("rank 0", signal.SIGINT, 130),
        ("rank 1", signal.SIGKILL, 1),
    ],
)
def test_a_killed_training_leaves_no_process_and_resumes_to_the_same_bits(
    victim: str, signum: int, code: int, prepared: Path, tmp_path: Path, undisturbed: str
) -> None:
    root = new_project(prepared, tmp_path / "project", **LONG)
    with training(root) as process:
        (other,) = ranks_of(root)
        os.kill(process.pid if victim == "rank 0" else other, signum)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == code, output
    assert "Traceback" not in output
    if victim == "rank 1":
        assert "error: another process of this training has ended, with an exit code: rank 1 (-9)" in output
    wait_for_end(root)
    result = run_stage(root, "train")
    assert "resuming at epoch" in result.output
    assert weights(root) == undisturbed


def test_a_training_can_be_resumed_with_another_number_of_processes(prepared: Path, tmp_path: Path) -> None:
    root = new_project(prepared, tmp_path / "project", **LONG)
    with training(root) as process:
        process.terminate()
    wait_for_end(root)
    write_params(root, **{"dropout": "0.0", "batch_size": "61", **LONG, "processes": "1"})
    result = run_stage(root, "train")
    assert result.code == 0, result.output
    assert "was begun with runtime.processes 2, now there are 1: the last digits will differ" in result.output
    assert "resuming at epoch" in result.output


MEETING = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1"]


def test_a_launcher_may_start_the_ranks(prepared: Path, tmp_path: Path) -> None:
    root = new_project(prepared, tmp_path / "launched", processes="1")
    command = ["-m", "torch.distributed.run", "--nproc-per-node", "2", *MEETING, "-m", "stages.train"]
    done = subprocess.run(
        [sys.executable, *command],
        cwd=root,
        env=environment(root),
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr
    expected = new_project(prepared, tmp_path / "started", processes="2")
    assert run_stage(expected, "train").code == 0
    assert weights(root) == weights(expected)


def test_a_launcher_may_stop_all_ranks_at_once(prepared: Path, tmp_path: Path, undisturbed: str) -> None:
    """Slurm sends SIGTERM to all ranks; rank 0 still needs the others to finish its step and to save the state."""
    root = new_project(prepared, tmp_path / "project", **LONG)
    meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    with started(root, **meeting, RANK="0") as first, started(root, **meeting, RANK="1") as second:
        wait_for_state(root, first)
        second.terminate()
        time.sleep(0.5)
        first.terminate()
        printed = [process.communicate(timeout=60)[0] for process in (first, second)]
        assert (first.returncode, second.returncode) == (143, 1), printed
    assert "error: another process of this training has ended" in printed[1]
    result = run_stage(root, "train")
    assert "resuming at epoch" in result.output
    assert weights(root) == undisturbed
