"""Test of DVC's queue: sixteen experiments on four workers, none lost, none doubled."""

import time
from pathlib import Path

import pytest
from project import Project

pytestmark = [pytest.mark.slow, pytest.mark.pipeline]
EXPERIMENTS, WORKERS, LIMIT_S = 16, 4, 600


def test_sixteen_queued_experiments_on_four_workers_all_end_with_scores(tmp_path: Path) -> None:
    project = Project(tmp_path, epochs="2", model="mlp", hidden="8", patience="")
    grid = ["-S", "lr=0.001,0.002,0.003,0.004", "-S", "seed=0,1,2,3"]
    project.run("dvc", "exp", "run", "--queue", *grid)
    project.run("dvc", "queue", "start", "-j", str(WORKERS))
    until = time.monotonic() + LIMIT_S
    while project.run("dvc", "queue", "status").count("Success") < EXPERIMENTS:
        assert time.monotonic() < until, project.run("dvc", "queue", "status")
        time.sleep(3)
    assert "Failed" not in project.run("dvc", "queue", "status")
    shown = project.run("dvc", "exp", "ls", "--name-only").split()
    names = [name for name in shown if name not in {"main:", "HEAD:"}]
    runs = project.runs()
    assert len(names) == len(runs) == EXPERIMENTS
    assert sorted(run.name for run in runs) == sorted(names)
    assert len({(run.params["lr"], run.params["seed"]) for run in runs}) == EXPERIMENTS
    for run in runs:
        assert run.status == "FINISHED"
        assert len(run.metrics["epoch/train_loss"]) == 2
        assert len(run.metrics["test/accuracy"]) == 1
        assert run.model is not None
