"""Tests that a search continues after SIGKILL and counts every trial once: real Optuna, and real DVC with its queue."""

import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from project import Project, clean_environment

from imageclf.core import paths

pytest.importorskip("optuna", reason="needs the dependency group search")

pytestmark = [pytest.mark.slow, pytest.mark.pipeline]
SEARCH = ("imageclf", "search")
KILLS = {
    "0 of 2 experiments exist": 1.0,  # DVC is queuing the first trial
    "queued search-[01]": 0.0,
    "1/. search-[01]: test accuracy": 0.0,  # the other one may be running
    "queued search-[23]": 0.0,
    "[12]/. search-[23]: test accuracy": 0.0,
}
"""Lines at which the search is killed, in turn, and the seconds from the line to the kill."""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Create a project whose trainings take seconds."""
    return Project(tmp_path, epochs="1", model="mlp", hidden="[8]", lr="0.001")


def kill_at(project: Project, line: str, delay_s: float, *arguments: str) -> None:
    """Run the search until it prints this line, a regular expression, and kill it with SIGKILL."""
    environment = {**clean_environment(), "IMAGECLF_CACHE": str(project.root / ".archives"), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [*SEARCH, *arguments],
        cwd=project.root,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    output = ""
    with process:
        assert process.stdout is not None
        for printed in process.stdout:
            output += printed
            if re.match(line, printed):
                time.sleep(delay_s)
                process.kill()
    assert process.returncode == -signal.SIGKILL, output


def trials(project: Project) -> dict[str, tuple[str, float, float]]:
    """Return state, learning rate and score of each trial in the search's own record, by the name of its experiment."""
    import optuna

    study = optuna.load_study(storage=f"sqlite:///{project.root / '.resume/search.db'}", study_name="search")
    return {f"search-{each.number}": (each.state.name, each.params["lr"], each.values[0]) for each in study.trials}


def names(project: Project) -> list[str]:
    """Return the names of the experiments in git."""
    shown = project.run("dvc", "exp", "ls", "--name-only").split()
    return sorted(name for name in shown if name.startswith("search"))


def test_a_search_that_is_killed_five_times_ends_with_five_trials(project: Project) -> None:
    arguments = ("lr=0.0001..0.1", "--trials", "5", "--jobs", "2")
    for line, delay_s in KILLS.items():
        kill_at(project, line, delay_s, *arguments)
    output = project.run(*SEARCH, *arguments)
    assert "validation accuracy of the best of 5 trials:" in output
    found = trials(project)
    expected = [f"search-{number}" for number in range(5)]
    assert list(found) == names(project) == expected
    assert {state for state, _, _ in found.values()} == {"COMPLETE"}
    assert len({lr for _, lr, _ in found.values()}) == 5
    assert all(0 < score <= 1 for _, _, score in found.values())
    runs = project.runs()
    assert sorted(run.name for run in runs) == expected
    assert {run.status for run in runs} == {"FINISHED"}
    assert project.run("dvc", "queue", "status").count("Success") == 5


def test_a_trial_with_the_values_of_params_yaml_counts(project: Project) -> None:
    """The results for these values are committed, so that nothing changes, and DVC runs no stage."""
    project.run("dvc", "repro")
    project.commit()
    output = project.run(*SEARCH, "lr=0.001,0.002", "--trials", "4", "--jobs", "2")
    assert "validation accuracy of the best of 4 trials:" in output
    found = trials(project)
    assert names(project) == list(found) == [f"search-{number}" for number in range(4)]
    assert {state for state, _, _ in found.values()} == {"COMPLETE"}
    assert {lr for _, lr, _ in found.values()} == {"0.001", "0.002"}
    assert (project.root / paths.PARAMS).read_text().count("lr: 0.001") == 1
