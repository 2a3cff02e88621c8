"""Tests of the record in MLflow: if MLflow, its store or the stage fails, the run continues and its record is right."""

import http.server
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import new_spec
from imports import SOURCE

from imageclf import models
from imageclf.contracts import model
from imageclf.contracts.preparation import Preparation
from imageclf.inference.predictor import Predictor
from imageclf.tracking import client as tracking
from imageclf.tracking.opening import Opening

SCRIPT = """
import sys
from imageclf.tracking import client as tracking
from imageclf.tracking.opening import Opening
with tracking.recording(Opening("a_stage")) as recorder:
    recorder.params({"lr": 0.1})
    for number in (1, 2, 3):
        recorder.metrics({"train/loss": 1 / number}, step=number)
"""


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the root of a repository without a database, as the working directory."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a database with MLflow, which takes seconds."""
    folder = tmp_path_factory.mktemp("database")
    finish(start("from imageclf.tracking.recorder.store import Store; Store()", cwd=folder))
    return folder / "mlflow.db"


@pytest.fixture
def root(bare: Path, database: Path) -> Path:
    """Return the root of a repository with a database."""
    shutil.copyfile(database, bare / "mlflow.db")
    return bare


def start(code: str = SCRIPT, cwd: Path | None = None, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(SOURCE), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=120)
    return output


def rows(root: Path, query: str) -> list[tuple[object, ...]]:
    with sqlite3.connect(root / "mlflow.db") as database:
        return database.execute(query).fetchall()


def wait_for_row(root: Path, query: str) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            if rows(root, query):
                return
        except sqlite3.OperationalError:
            pass  # not created yet
        time.sleep(0.1)
    pytest.fail(f"nothing for {query}")


def test_metrics_params_and_status_arrive(bare: Path) -> None:
    process = start()
    output = finish(process)
    assert process.returncode == 0
    ((run,),) = rows(bare, "select run_uuid from runs")
    assert f"#/experiments/1/runs/{run}" in output
    assert rows(bare, "select status from runs") == [("FINISHED",)]
    assert rows(bare, "select key, value from params") == [("lr", "0.1")]
    assert rows(bare, "select step, value from metrics where key = 'train/loss' order by step") == [
        (1, 1.0),
        (2, 0.5),
        (3, pytest.approx(1 / 3)),
    ]
    assert rows(bare, "select artifact_location from experiments where name = 'imageclf'") == [
        ((bare / "mlartifacts").as_uri(),)
    ]


def test_the_use_of_the_machine_is_recorded_on_request(root: Path) -> None:
    settings = {"MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING": "true", "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL": "0.1"}
    settings["MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING"] = "1"
    finish(start(SCRIPT + "    import time\n    time.sleep(6)\n", None, **settings))
    query = "select key, count(*) from metrics where key like 'system/%' group by key order by key"
    found = rows(root, query)
    assert "system/cpu_utilization_percentage" in [name for name, _ in found]
    assert rows(root, "select status from runs") == [("FINISHED",)]
    finish(start())
    assert rows(root, query) == found


def test_other_output_and_a_missing_git_do_no_harm(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A `sitecustomize` module of the user prints at each start of Python; DVC works without a git program."""
    site = tmp_path_factory.mktemp("site")
    (site / "sitecustomize.py").write_text("print('hello'); print(1); print('{}')")
    process = start(PYTHONPATH=f"{site}:{SOURCE}", PATH=str(site))
    output = finish(process)
    assert process.returncode == 0
    assert "tracking: recorded as 'no git commit'" in output
    assert rows(root, "select name, status from runs") == [("no git commit", "FINISHED")]


def test_four_processes_without_a_database_get_one_run_each(bare: Path) -> None:
    processes = [start() for _ in range(4)]
    for process in processes:
        finish(process)
    assert rows(bare, "select status from runs") == [("FINISHED",)] * 4
    assert rows(bare, "select count(*) from experiments where name = 'imageclf'") == [(1,)]


def test_an_exception_ends_the_run_as_failed(root: Path) -> None:
    process = start(SCRIPT + "    raise ValueError('boom')\n")
    assert "boom" in finish(process)
    assert process.returncode == 1
    assert rows(root, "select status from runs") == [("FAILED",)]


LONG = SCRIPT + "    import time; time.sleep(600)\n"


def test_ctrl_c_ends_the_run_as_killed(root: Path) -> None:
    process = start(LONG)
    wait_for_row(root, "select * from metrics")
    process.send_signal(signal.SIGINT)
    finish(process)
    assert rows(root, "select status from runs") == [("KILLED",)]


def test_sigkill_ends_the_run_as_killed(root: Path) -> None:
    process = start(LONG)
    wait_for_row(root, "select * from metrics")
    process.kill()
    finish(process)
    wait_for_row(root, "select * from runs where status = 'KILLED'")


FULL = """
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE
from imageclf.tracking.recorder.store import Store
def full(*_):
    raise MlflowException("the disk is full", TEMPORARILY_UNAVAILABLE)
MlflowClient.set_terminated = full
Store()
"""
"""A start of the recorder while the disk of the database is full."""


def test_the_next_start_ends_a_run_whose_recorder_was_killed_too(root: Path) -> None:
    process = start(LONG)
    wait_for_row(root, "select * from metrics")
    (recorder,) = [entry.name for entry in Path("/proc").glob("[0-9]*") if parent(entry) == process.pid]
    os.kill(int(recorder), signal.SIGKILL)
    process.kill()
    finish(process)
    finish(start(FULL))
    assert rows(root, "select status from runs") == [("RUNNING",)]
    finish(start())
    assert rows(root, "select status from runs order by start_time") == [("KILLED",), ("FINISHED",)]


RESUMABLE = """
import sys, time
from imageclf.tracking import client as tracking
from imageclf.tracking.opening import Opening
with tracking.recording(Opening("a_stage", training="k", resumes={resumes})) as recorder:
    recorder.params({{"lr": 0.1}})
    for number in range(1, {epochs} + 1):
        recorder.metrics({{"train/loss": 1 / number}}, step=number)
    time.sleep({sleep})
"""


@pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "SIGKILL"])
@pytest.mark.parametrize("wait", [True, False], ids=["after its recorder", "while its recorder writes"])
def test_a_resumed_training_continues_its_run(wait: bool, kill: signal.Signals, root: Path) -> None:
    process = start(RESUMABLE.format(resumes=False, epochs=2, sleep=600))
    wait_for_row(root, "select * from metrics" if wait else "select * from params")
    process.send_signal(kill)
    if wait:
        finish(process)
        wait_for_row(root, "select * from runs where status = 'KILLED'")
    finish(start(RESUMABLE.format(resumes=True, epochs=3, sleep=0)))
    finish(process)
    assert rows(root, "select status from runs") == [("FINISHED",)]
    recorded = rows(root, "select step, value from metrics where key = 'train/loss' order by step")
    assert recorded == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]


def test_an_experiment_that_resumes_a_training_of_another_gets_its_run(root: Path) -> None:
    process = start(
        RESUMABLE.format(resumes=False, epochs=2, sleep=600), DVC_EXP_NAME="first", DVC_EXP_BASELINE_REV="1234"
    )
    wait_for_row(root, "select * from metrics")
    process.send_signal(signal.SIGINT)
    finish(process)
    resumed = RESUMABLE.format(resumes=True, epochs=3, sleep=0)
    output = finish(start(resumed, DVC_EXP_NAME="second", DVC_EXP_BASELINE_REV="5678"))
    assert "recorded as 'second'" in output
    assert rows(root, "select name, status from runs") == [("second", "FINISHED")]
    assert rows(root, "select value from tags where key like 'dvc.exp.%' order by key") == [("5678",), ("second",)]
    assert len(rows(root, "select * from metrics where key = 'train/loss'")) == 3
    finish(start(resumed))  # the run has ended, so there is nothing to resume
    assert rows(root, "select count(*) from runs") == [(2,)]


def test_a_training_from_the_start_gets_a_new_run(root: Path) -> None:
    process = start(RESUMABLE.format(resumes=False, epochs=2, sleep=600))
    wait_for_row(root, "select * from metrics")
    process.send_signal(signal.SIGINT)
    finish(process)
    finish(start(RESUMABLE.format(resumes=False, epochs=3, sleep=0)))
    assert rows(root, "select status from runs order by start_time") == [("KILLED",), ("FINISHED",)]


def parent(process: Path) -> int:
    """Return the id of the parent of a process in /proc."""
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0  # the process has ended meanwhile


def test_another_start_does_not_end_a_run_in_progress(root: Path) -> None:
    process = start(LONG)
    wait_for_row(root, "select * from metrics")
    finish(start())
    assert rows(root, "select status from runs order by start_time") == [("RUNNING",), ("FINISHED",)]
    process.kill()
    finish(process)


def test_no_recorder_outlives_its_stage(root: Path) -> None:
    process = start(SCRIPT + "    print('recorder', recorder._process.pid)\n")
    output = finish(process)
    assert not Path(f"/proc/{output.split('recorder ')[1].split()[0]}").exists()


def closed_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Yield the address of a server that accepts connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def failing_server() -> Iterator[str]:
    """Yield the address of a server that answers each request with status 500."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(500)

        def do_POST(self) -> None:
            self.send_error(500)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def assert_one_sentence(output: str, process: subprocess.Popen[str]) -> None:
    """Assert that the stage succeeded and printed one sentence about MLflow."""
    assert process.returncode == 0
    assert output.count("tracking: MLflow") == 1
    assert "Traceback" not in output


def test_a_closed_port_is_one_sentence(root: Path) -> None:
    process = start(MLFLOW_TRACKING_URI=closed_port())
    assert_one_sentence(finish(process), process)


def test_a_server_that_never_answers_is_one_sentence(root: Path, silent_server: str) -> None:
    process = start(MLFLOW_TRACKING_URI=silent_server)
    assert_one_sentence(finish(process), process)


def test_a_server_that_fails_is_one_sentence(root: Path, failing_server: str) -> None:
    process = start(MLFLOW_TRACKING_URI=failing_server)
    assert_one_sentence(finish(process), process)


def test_a_broken_database_is_one_sentence(root: Path) -> None:
    (root / "mlflow.db").write_text("a text of more than one page instead of a database" * 100)
    process = start()
    assert_one_sentence(finish(process), process)


def test_a_silent_recorder_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "SILENCE_S", 0.5)
    recorder = tracking.Recorder(None)
    recorder._channel, theirs = socket.socketpair()
    with recorder._channel, theirs:
        end = recorder._await_end()
    assert end is not None
    assert "did not answer" in end


def test_lines_that_are_not_messages_are_ignored() -> None:
    recorder = tracking.Recorder(None)
    recorder._channel, theirs = socket.socketpair()
    with recorder._channel, theirs:
        theirs.sendall(b'View run at http://...\n\xff\n[1]\n{"end": 3}\n{"busy_until": "soon"}\n{"end": "over"}\n')
        assert recorder._await_end() == "over"


def test_the_recorder_runs_the_code_of_its_stage(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A queued experiment runs in a copy of the code of its commit."""
    copy = tmp_path_factory.mktemp("copy")
    shutil.copytree(SOURCE / "imageclf", copy / "imageclf")
    store = copy / "imageclf/tracking/recorder/store.py"
    store.write_text(store.read_text().replace('EXPERIMENT = "imageclf"', 'EXPERIMENT = "copy"'))
    finish(start(f"import sys; sys.path.insert(0, {str(copy)!r})" + SCRIPT))
    names = "select experiments.name from runs join experiments using (experiment_id)"
    assert rows(root, names) == [("copy",)]


def test_the_output_of_mlflow_is_not_printed(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    noisy = tmp_path_factory.mktemp("noisy")
    (noisy / "sitecustomize.py").write_text(
        "import os, sys\nif 'imageclf.tracking.recorder' in ' '.join(sys.orig_argv):\n"
        "    print('View run at http://somewhere', flush=True)\n    os.write(1, b'{\"end\": 1}\\nTraceback\\n')\n"
        "    assert sys.stdin.read() == ''\n"
    )
    output = finish(start(PYTHONPATH=f"{SOURCE}{os.pathsep}{noisy}"))
    (line,) = [line for line in output.splitlines() if not line.startswith("waiting for MLflow")]
    assert line.startswith("tracking: recorded as ")
    assert rows(root, "select status from runs") == [("FINISHED",)]


def test_a_recorder_that_cannot_start_is_one_sentence(bare: Path) -> None:
    process = start(DVC_ROOT=str(bare / "gone"))
    output = finish(process)
    assert process.returncode == 0
    assert output.count("tracking: the recorder cannot be started") == 1
    assert "Traceback" not in output


def test_a_killed_recorder_is_one_sentence(root: Path) -> None:
    process = start(SCRIPT + "    recorder._process.kill()\n")
    assert finish(process) == f"tracking: the recorder died (SIGKILL); {tracking.INCOMPLETE}\n"
    assert process.returncode == 0


def test_the_address_of_a_database_is_relative_to_the_repository(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "copy").mkdir()
    monkeypatch.chdir(root / "copy")
    finish(start(MLFLOW_TRACKING_URI="sqlite:///other.db"))
    assert (root / "other.db").is_file()
    assert not (root / "copy/other.db").exists()


def test_tracking_can_be_switched_off(bare: Path) -> None:
    with tracking.recording(None) as recorder:
        recorder.metrics({"a": 1.0}, step=1)
    assert list(bare.iterdir()) == []


SECONDS = """
from imageclf.tracking.recorder.store import Store
print(Store().training_seconds("1234"))
"""


def test_training_seconds_are_those_of_the_train_stage(root: Path) -> None:
    names = {"a": "1234", "b": "1234", "elsewhere": "5678"}
    began = time.time()
    for name, baseline in names.items():
        finish(start(DVC_EXP_NAME=name, DVC_EXP_BASELINE_REV=baseline))
    finish(start(SCRIPT + "    raise ValueError('boom')\n", DVC_EXP_NAME="failed", DVC_EXP_BASELINE_REV="1234"))
    took = json.loads(finish(start(SECONDS)).replace("'", '"'))
    assert took.keys() == {"a", "b"}
    assert all(0 < seconds < time.time() - began for seconds in took.values())


@pytest.mark.filterwarnings("ignore")
def test_the_recorded_model_predicts_the_same_as_the_checkpoint(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow.pyfunc  # noqa: TID251

    spec = new_spec(
        image_shape=(1, 8, 8),
        preparation=Preparation(grayscale=False, image_size=None, pad=2, permute_seed=0),
        permutation=np.random.default_rng(0).permutation(64).tolist(),
        normalization=([0.3], [0.4]),
    )
    net = models.build(spec.model, spec.image_shape, len(spec.classes), **spec.arguments)
    model.write(root / "model", spec, net.state_dict(), None)
    images = np.random.default_rng(1).integers(0, 256, (1000, 1, 4, 4), np.uint8)
    with tracking.recording(Opening("a_stage")) as recorder:
        recorder.model(root / "model", "cnn-digits", epoch=1)
    ((location,),) = rows(root, "select artifact_location from logged_models")
    monkeypatch.setattr(sys, "path", sys.path.copy())  # MLflow adds the model's copy of a part of the package
    served = mlflow.pyfunc.load_model(str(location))
    expected = Predictor.load(root / "model", torch.device("cpu")).probabilities(images)
    for count in (1, 3, 1000):
        found = [[answer["probabilities"][name] for name in spec.classes] for answer in served.predict(images[:count])]
        np.testing.assert_allclose(found, expected[:count], atol=1e-6)
