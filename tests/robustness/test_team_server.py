"""Tests with a team's server: `mlflow server` on PostgreSQL, which dies, is down, and gets the numbers afterwards."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from mlflow_server import Proxy, needs_postgresql, postgresql, server
from project import Project

from benchmarks.served import free_port

pytestmark = [pytest.mark.faults, pytest.mark.pipeline, needs_postgresql]
EPOCHS = 2


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with postgresql() as database, server(tmp_path_factory.mktemp("server"), database) as running:
        yield running


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project(tmp_path_factory.mktemp("project"), epochs=str(EPOCHS), model="mlp", hidden="8")


def runs(address: str) -> dict[str, dict[str, Any]]:
    """Return the newest run of each name from the server."""
    answer = requests.post(
        f"{address}/api/2.0/mlflow/runs/search", json={"experiment_ids": ["1"], "max_results": 100}, timeout=60
    )
    return {run["info"]["run_name"]: run for run in reversed(answer.json().get("runs", []))}


def assert_complete(project: Project, address: str, name: str) -> None:
    """Assert that the server has a finished run of the experiment in the workspace, with its scores and a model."""
    run = runs(address)[name]
    metrics = {metric["key"]: metric["value"] for metric in run["data"]["metrics"]}
    scores = json.loads((project.root / "metrics/test.json").read_text())["test"]
    assert run["info"]["status"] == "FINISHED"
    assert {f"test/{key}": value for key, value in scores.items()}.items() <= metrics.items()
    history = requests.get(
        f"{address}/api/2.0/mlflow/metrics/get-history",
        params={"run_id": run["info"]["run_id"], "metric_key": "epoch/train_loss"},
        timeout=60,
    ).json()["metrics"]
    assert sorted(metric.get("step", 0) for metric in history) == list(range(1, EPOCHS + 1))
    assert len(run["outputs"]["model_outputs"]) == 1


def test_an_experiment_is_recorded(project: Project, address: str) -> None:
    project.run("dvc", "exp", "run", "-n", "good", "-S", "seed=1", MLFLOW_TRACKING_URI=address)
    assert_complete(project, address, "good")


def test_a_slow_upload_of_the_model_is_waited_for(project: Project, address: str) -> None:
    """The server answers 12 s late, two seconds more than a silent server gets."""
    with Proxy(address, "model.safetensors", "late") as proxy:
        output = project.run("dvc", "exp", "run", "-n", "slow", "-S", "seed=2", MLFLOW_TRACKING_URI=proxy.address)
        assert proxy.matches
    assert "incomplete" not in output
    assert_complete(project, address, "slow")


@pytest.mark.parametrize("how", ["closed in the middle", "down from the start"])
def test_the_numbers_are_complete_after_sync(how: str, project: Project, address: str) -> None:
    name = how.replace(" ", "-")
    experiment = ("dvc", "exp", "run", "-n", name, "-S", f"seed={len(how)}")
    if how == "down from the start":
        output = project.run(*experiment, MLFLOW_TRACKING_URI=f"http://127.0.0.1:{free_port()}")
    else:
        with Proxy(address, "runs/log-batch", "closed", first=4) as proxy:
            output = project.run(*experiment, MLFLOW_TRACKING_URI=proxy.address)
    assert output.count("its record in MLflow is incomplete") == 2
    assert name not in runs(address) or runs(address)[name]["info"]["status"] != "FINISHED"
    assert "1 recorded now" in project.run("imageclf", "sync", MLFLOW_TRACKING_URI=address)
    assert_complete(project, address, name)
    assert "0 recorded now" in project.run("imageclf", "sync", MLFLOW_TRACKING_URI=address)


def test_a_clone_with_no_experiments_tags_none_of_its_colleagues(tmp_path: Path, address: str) -> None:
    """The experiment of a run on a server may be in the repository of another person."""
    clone = Project(tmp_path / "clone")
    assert "experiments: 0 of 0 were complete" in clone.run("imageclf", "sync", MLFLOW_TRACKING_URI=address)
    assert all(tag["key"] != "dvc.exp.missing" for tag in runs(address)["good"]["data"]["tags"])
