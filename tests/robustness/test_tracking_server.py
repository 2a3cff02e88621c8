"""Tests with a real MLflow server: it gets the record of the pipeline, and its faults do not change a training."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import names
from imports import SOURCE
from mlflow_server import Proxy, server
from project import Project, Run, clean_environment
from stage_run import outputs, run_stage

from imageclf.tracking.client import INCOMPLETE

pytestmark = [pytest.mark.faults, pytest.mark.pipeline]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the server."""
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    with server(folder) as running:
        yield running


@pytest.fixture(scope="module")
def project(address: str, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Return a clone with a short training after its first `dvc repro`, which the server recorded."""
    made = Project(tmp_path_factory.mktemp("project"), model="mlp", hidden="[8]", epochs="2")
    output = made.run("dvc", "repro", MLFLOW_TRACKING_URI=address)
    assert output.count("tracking: ") == output.count(f"; {address}/#/experiments/1/runs") == 2
    assert "View run" not in output
    assert "Traceback" not in output
    made.commit()
    return made


def assert_complete(run: Run, folder: Path) -> None:
    """Assert that the run has ended, with scores of both stages, artifacts and a model."""
    assert run.status == "FINISHED"
    assert len(run.metrics["epoch/train_loss"]) == 2
    assert len(run.metrics["test/accuracy"]) == 1
    artifacts = folder / "artifacts" / str(run.artifacts).removeprefix("mlflow-artifacts:/")
    assert (artifacts / "history.csv").is_file()
    assert (artifacts / "plots/confusion.png").is_file()
    assert run.model is not None
    model = folder / "artifacts" / str(run.model).removeprefix("mlflow-artifacts:/")
    assert (model / "data/model/model.safetensors").is_file()


def test_repro_is_recorded_on_the_server(project: Project, folder: Path) -> None:
    (run,) = project.runs(folder)
    assert_complete(run, folder)
    assert not (project.root / "mlflow.db").exists()
    assert not (project.root / "mlartifacts").exists()


def test_temporary_and_queued_experiments_are_recorded_on_the_server(
    project: Project, folder: Path, address: str
) -> None:
    project.run("dvc", "exp", "run", "--queue", "-n", "queued", "-S", "seed=3")
    project.run("dvc", "queue", "start", MLFLOW_TRACKING_URI=address)
    project.run("dvc", "exp", "run", "--temp", "-n", "o'brien", "-S", "seed=2", MLFLOW_TRACKING_URI=address)
    until = time.monotonic() + 120
    while not any(run.name == "queued" and "test/loss" in run.metrics for run in project.runs(folder)):
        assert time.monotonic() < until, project.run("dvc", "queue", "logs", "queued")
        time.sleep(0.5)
    while "Running" in project.run("dvc", "queue", "status"):
        time.sleep(0.5)
    runs = {run.name: run for run in project.runs(folder)}
    for name in ("o'brien", "queued"):
        assert_complete(runs[name], folder)
        assert runs[name].tags["dvc.exp.name"] == name
    assert len(runs) == 3


MIDDLE = {"where": "runs/log-batch", "first": 4}
"""The fourth batch of a training, which is the first with metrics."""


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ({**MIDDLE, "how": "closed"}, "did not answer for 10 s"),
        ({**MIDDLE, "how": "silent"}, "did not answer for 10 s"),
        ({"where": "mlflow-artifacts", "how": "refused"}, "did not store the text, artifacts, model of 'main@"),
        ({"where": "/", "how": "refused", "status": 401}, "failed with error code 401"),
        ({"where": "/", "how": "refused", "status": 200}, "not in a valid JSON format"),
    ],
    ids=["killed", "stopped", "artifacts that cannot be written", "unknown user", "login page"],
)
def test_a_fault_of_the_server_is_one_sentence_and_changes_no_output(
    project: Project, folder: Path, address: str, fault: dict, sentence: str
) -> None:
    before = outputs(project.root, "train")
    known = len(project.runs(folder))
    with Proxy(address, **fault) as proxy:
        environment = {"MLFLOW_TRACKING_URI": proxy.address.replace("//", "//user:secret@")}
        if fault["where"] == "mlflow-artifacts":
            environment["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "1"  # MLflow's default takes four minutes
        ended = run_stage(project.root, "train", environment=environment)
        assert proxy.matches >= proxy.first
    assert ended.code == 0
    assert ended.output.count("tracking: MLflow") == ended.output.count(INCOMPLETE) == 1
    assert sentence in ended.output
    assert "secret" not in ended.output
    assert "Traceback" not in ended.output
    assert outputs(project.root, "train") == before
    if fault["where"] == "mlflow-artifacts":
        *_, run = project.runs(folder)
        assert len(project.runs(folder)) == known + 1
        assert run.status == "FINISHED"
        assert len(run.metrics["epoch/train_loss"]) == 2
        assert "model_sha256" in run.tags


SCRIPT = """
from pathlib import Path
from imageclf.tracking import client as tracking
from imageclf.tracking.opening import Opening
with tracking.recording(Opening("a_stage")) as recorder:
    for name in ("first", "second"):
        Path(name).write_text(name)
        recorder.artifacts([Path(name)])
"""


def start(root: Path, address: str) -> subprocess.Popen[str]:
    """Start a stage that records two artifacts."""
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        cwd=root,
        env={
            **clean_environment(),
            "PYTHONPATH": str(SOURCE),
            "DVC_ROOT": str(root),
            "DVC_EXP_NAME": root.name,
            "MLFLOW_TRACKING_URI": address,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_slow_upload_is_waited_for(tmp_path: Path, project: Project, folder: Path, address: str) -> None:
    with Proxy(address, "artifacts/first", "late") as proxy:
        process = start(tmp_path, proxy.address)
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert output.startswith("waiting for MLflow, which is slow; Ctrl-C ends the wait, not the training\n")
    assert output.count(f"tracking: recorded as '{tmp_path.name}'; {proxy.address}/#") == 1
    run = next(run for run in project.runs(folder) if run.name == tmp_path.name)
    assert run.status == "FINISHED"
    artifacts = folder / "artifacts" / str(run.artifacts).removeprefix("mlflow-artifacts:/")
    assert names(artifacts) == ["first", "second"]


def test_ctrl_c_ends_the_wait_and_not_the_stage(tmp_path: Path, project: Project, folder: Path, address: str) -> None:
    with Proxy(address, "artifacts/first", "late") as proxy:
        process = start(tmp_path, proxy.address)
        until = time.monotonic() + 120
        while not proxy.matches:
            assert time.monotonic() < until
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert "did not store the artifacts" in output
    assert "(interrupted)" in output
    run = next(run for run in project.runs(folder) if run.name == tmp_path.name)
    assert run.status == "FINISHED"
