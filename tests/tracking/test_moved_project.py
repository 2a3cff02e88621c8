"""Real DVC in a folder with special characters that is then moved: the rows and files of MLflow are correct."""

from pathlib import Path

import pytest
from project import Project, Run
from test_places import ODD

pytestmark = pytest.mark.pipeline


def assert_complete(run: Run, root: Path) -> None:
    """Assert that the run has ended, and that its artifacts and its model are in the project."""
    assert run.status == "FINISHED"
    assert len(run.metrics["test/accuracy"]) >= 1
    assert run.model is not None
    for file in (run.artifacts / "plots/confusion.png", run.model / "data/model/model.safetensors"):
        assert file.is_relative_to(root / "mlartifacts")
        assert file.is_file()


def test_a_moved_project_keeps_its_runs(tmp_path: Path) -> None:
    first, second = tmp_path / f"1 {ODD}", tmp_path / f"2 {ODD}"
    first.mkdir()
    project = Project(first, model="mlp", hidden="[8]", epochs="1")
    project.run("dvc", "repro")
    project.commit()
    assert_complete(project.runs()[0], first)
    first.rename(second)
    first.write_text("a file in place of the old folder")
    project.root = second
    output = project.run("dvc", "exp", "run", "-n", "moved", "-S", "seed=5", IMAGECLF_CACHE=str(second / ".archives"))
    assert "--backend-store-uri sqlite:///mlflow.db" in output
    for run in project.runs():
        assert_complete(run, second)
    assert [run.name for run in project.runs()][1:] == ["moved"]
