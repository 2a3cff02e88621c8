"""Tests of a training on a Ray cluster: its driver ends with the stage, and the weights are those of one machine."""

import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from imports import ROOT
from project import clean_environment
from stage_run import run_stage
from test_ranks import LONG, environment, new_project, prepared_digits, started, wait_for_state, weights

from benchmarks.served import free_port
from imageclf import params
from imageclf.cluster import launch
from imageclf.core.errors import UserError
from imageclf.training.ranks import PEER_ENDED

pytestmark = pytest.mark.faults

STAGE = """
import importlib.util, sys
from imageclf.cluster import launch
from imageclf.core import process

importlib.util.find_spec = lambda name: True
launch.COMMAND = [sys.executable, "-c", sys.argv[1]]
process.run(lambda: launch.train("identity"))
"""
"""A stage that only starts the driver whose code is its argument."""
WAITING = """
import signal, sys
from imageclf.core import process

def stop(*_):
    print("saved", flush=True)
    sys.exit(143)

signal.signal(signal.SIGTERM, stop)
process.end_with_parent(signal.SIGTERM)
print("ready", flush=True)
while True:
    signal.pause()
"""


def test_ray_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match="ray needs the package ray; `uv sync --group ray`"):
        launch.train("identity")


@contextmanager
def stage_with(code: str, folder: Path) -> Iterator["subprocess.Popen[str]"]:
    with subprocess.Popen(
        [sys.executable, "-c", STAGE, code],
        env=environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        yield process


@pytest.mark.parametrize(
    ("code", "expected", "printed"),
    [
        ("", 0, ""),
        ("raise SystemExit('error: no cluster')", 1, "error: no cluster\n"),
        (
            "import os; os.kill(os.getpid(), 9)",
            1,
            "error: the driver of the Ray cluster was killed (-9); the same command resumes the training\n",
        ),
    ],
)
def test_a_stage_ends_like_its_driver(code: str, expected: int, printed: str, tmp_path: Path) -> None:
    with stage_with(code, tmp_path) as process:
        assert (process.communicate(timeout=60)[0], process.returncode) == (printed, expected)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends the driver of a killed stage")
@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_a_driver_is_asked_to_stop_and_is_not_left_behind(signum: int, code: int, tmp_path: Path) -> None:
    with stage_with(WAITING, tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signum)
        printed, _ = process.communicate(timeout=60)  # returns when the driver has ended too
    assert process.returncode == code
    assert printed == ("saved\ninterrupted\n" if signum == signal.SIGINT else "saved\n")


def test_a_rank_needs_the_data_and_the_code_of_its_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = params.load(ROOT / "params.yaml").runtime
    monkeypatch.setenv(launch.IDENTITY, "the stage's")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert launch.settings_of_rank(machine, "the stage's").threads == 3
    with pytest.raises(UserError, match=r"params.yaml, the code, the data or torch differ"):
        launch.settings_of_rank(machine, "mine")


# --- with Ray ---

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs `uv sync --group ray`")
LONGER = {**LONG, "epochs": "100"}
PEER = f"error: {PEER_ENDED} (Connection closed by peer)\n"


@needs_ray
@pytest.mark.parametrize(
    ("codes", "last", "expected"),
    [
        ({0: 1, 1: -9}, {0: PEER}, "lost rank 1 (-9)"),
        ({0: 1, 1: 1}, {0: PEER, 1: PEER}, "lost the connection between ranks"),
        ({0: -11}, {}, "lost rank 0 (-11)"),
    ],
)
def test_a_lost_rank_is_tried_again(codes: dict[int, int], last: dict[int, str], expected: str) -> None:
    driver = importlib.import_module("imageclf.cluster.driver")
    with pytest.raises(driver.LostError) as error:
        driver.exit_code(codes, last)
    assert str(error.value) == expected


@needs_ray
@pytest.mark.parametrize(
    ("codes", "last", "code", "printed"),
    [
        ({0: 1, 1: 1}, {0: PEER, 1: "error: out of memory\n"}, 1, "error: out of memory\n"),
        ({0: 1, 1: 1}, {0: "error: patience\n", 1: PEER}, 1, ""),
        ({0: 1, 1: -6}, {0: "error: patience\n", 1: PEER}, 1, ""),
        ({0: 143, 1: 1}, {1: PEER}, 143, ""),
    ],
)
def test_a_mistake_is_not_tried_again(
    codes: dict[int, int], last: dict[int, str], code: int, printed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    driver = importlib.import_module("imageclf.cluster.driver")
    assert (driver.exit_code(codes, last), capsys.readouterr().err) == (code, printed)


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Start a Ray cluster on this machine; return its address."""
    port = free_port()
    command = [Path(sys.executable).with_name("ray"), "start", "--head", "--block", "--include-dashboard=false"]
    options = ["--node-ip-address=127.0.0.1", f"--port={port}", "--num-cpus=3", "--object-store-memory=100000000"]
    with tempfile.TemporaryDirectory(prefix="ray") as folder:  # a short path: it holds sockets
        process = subprocess.Popen(
            [*command, *options, f"--temp-dir={folder}"],
            env={**clean_environment(), "HOME": folder, "RAY_USAGE_STATS_ENABLED": "0"},
            stdout=subprocess.DEVNULL,
        )
        yield f"127.0.0.1:{port}"
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the prepared digits, and the record of no learned weights."""
    return prepared_digits(tmp_path_factory.mktemp("prepared"))


@contextmanager
def training(root: Path, address: str) -> Iterator["subprocess.Popen[str]"]:
    """Start the train stage, and wait until a state is saved."""
    with started(root, RAY_ADDRESS=address, HOME=str(root / "home")) as process:
        wait_for_state(root, process)
        yield process


def processes_of(root: Path) -> list[int]:
    """Return the ids of the processes whose working directory is `root`."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if folder.joinpath("cwd").readlink() == root:
                found.append(int(folder.name))
    return found


def read(number: int, name: str) -> bytes:
    """Return a file of a process; nothing if the process has ended."""
    with suppress(OSError):
        return Path(f"/proc/{number}/{name}").read_bytes()
    return b""


def wait_for_end(root: Path) -> None:
    deadline = time.monotonic() + 60
    while found := processes_of(root):
        assert time.monotonic() < deadline, [read(number, "cmdline") for number in found]
        time.sleep(0.1)


@needs_ray
@pytest.mark.slow
@pytest.mark.parametrize("processes", ["1", "2", "3"])
def test_a_cluster_gives_the_bits_of_one_machine(processes: str, cluster: str, prepared: Path, tmp_path: Path) -> None:
    here = new_project(prepared, tmp_path / "here", processes=processes)
    assert run_stage(here, "train").code == 0
    there = new_project(prepared, tmp_path / "there", processes=processes, launcher="ray")
    result = run_stage(there, "train", environment={"RAY_ADDRESS": cluster, "HOME": str(tmp_path / "home")})
    assert result.code == 0, result.output
    assert weights(here) == weights(there)
    assert result.output.count("epoch 2/") == 1
    assert not (tmp_path / "home").exists()
    wait_for_end(there)


@pytest.fixture(scope="module")
def undisturbed(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the SHA-256 of the weights of a training on this machine."""
    root = new_project(prepared, tmp_path_factory.mktemp("undisturbed") / "project", **LONGER)
    assert run_stage(root, "train").code == 0
    return weights(root)


@needs_ray
@pytest.mark.slow
@pytest.mark.parametrize(
    ("victim", "signum", "code"),
    [
        ("stages.train", signal.SIGTERM, 143),
        ("stages.train", signal.SIGINT, 130),
        ("stages.train", signal.SIGKILL, -signal.SIGKILL),
        ("imageclf.cluster.driver", signal.SIGKILL, 1),
    ],
)
def test_a_stopped_training_leaves_no_process_on_the_cluster_and_resumes(
    victim: str, signum: int, code: int, cluster: str, prepared: Path, tmp_path: Path, undisturbed: str
) -> None:
    root = new_project(prepared, tmp_path / "project", **LONGER, launcher="ray")
    with training(root, cluster) as process:
        drivers = [number for number in processes_of(root) if b"imageclf.cluster.driver" in read(number, "cmdline")]
        os.kill(process.pid if victim == "stages.train" else drivers[0], signum)
        output, _ = process.communicate(timeout=100)
        assert process.returncode == code, output
    assert "Traceback" not in output
    wait_for_end(root)
    result = run_stage(root, "train", environment={"RAY_ADDRESS": cluster})
    assert "resuming at epoch" in result.output
    assert weights(root) == undisturbed


@needs_ray
@pytest.mark.slow
def test_a_killed_rank_is_started_again(cluster: str, prepared: Path, tmp_path: Path, undisturbed: str) -> None:
    root = new_project(prepared, tmp_path / "project", **LONGER, launcher="ray")
    with training(root, cluster) as process:
        (victim,) = [number for number in processes_of(root) if b"\0RANK=1\0" in read(number, "environ")]
        os.kill(victim, signal.SIGKILL)
        output, _ = process.communicate(timeout=100)
    assert process.returncode == 0, output
    assert "starting all ranks again" in output
    assert "resuming at epoch" in output
    assert weights(root) == undisturbed


@needs_ray
@pytest.mark.slow
def test_a_mistake_is_one_sentence(cluster: str, prepared: Path, tmp_path: Path) -> None:
    net = {"model": "vgg11", "width": "0.1", "pad": "12"}
    root = new_project(prepared, tmp_path / "project", processes="2", launcher="ray", **net)
    result = run_stage(root, "train", environment={"RAY_ADDRESS": cluster})
    assert result.code == 1
    assert result.error == "runtime.processes: this net has batch norm, which needs one process; set it to 1 or auto"
    result = run_stage(root, "train", environment={"RAY_ADDRESS": f"127.0.0.1:{free_port()}"})
    assert result.error.startswith("runtime.launcher: there is no Ray cluster at 127.0.0.1:")
