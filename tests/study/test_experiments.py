"""Tests that the output of DVC's commands becomes experiments; `test_recipes` runs the real queue."""

import fcntl
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from imageclf import commands
from imageclf.core.errors import UserError
from imageclf.study import experiments
from imageclf.study.experiments import Experiment

SCORES = {"metrics/train.json": {"data": {"epoch": 2}}, "metrics/test.json": {"data": {"test": {"accuracy": 0.9}}}}
NONE_YET = {"metrics/test.json": {"error": {"type": "FileNotFoundError", "msg": "no such file"}}}


def entry(name: str, executor: dict[str, Any] | None, metrics: dict[str, Any]) -> dict[str, Any]:
    """Return an experiment as `dvc exp show --json` prints it, with only the parts that are read."""
    deps = {"data/raw": {}, "src/imageclf/models": {}, "stages/train.py": {}}
    data = {"params": {"params.yaml": {"data": {"seed": 1}}}, "metrics": metrics, "deps": deps}
    return {"name": name, "executor": executor, "revs": [{"rev": f"rev-{name}", "data": data}]}


def showing(monkeypatch: pytest.MonkeyPatch, *entries: dict[str, Any]) -> dict[str, Experiment]:
    """Return the experiments that `show` finds if DVC prints these entries."""
    states = [{"rev": "workspace", "experiments": None}, {"rev": "HEAD", "experiments": list(entries) or None}]
    monkeypatch.setattr(commands, "run_dvc", lambda *_arguments, **_others: json.dumps(states))
    return experiments.show()


def test_no_experiments(monkeypatch: pytest.MonkeyPatch) -> None:
    assert showing(monkeypatch) == {}


def test_a_finished_experiment(monkeypatch: pytest.MonkeyPatch) -> None:
    found = showing(monkeypatch, entry("a-s1", None, SCORES))["a-s1"]
    code = ("src/imageclf/models", "stages/train.py")
    scores = {"epoch": 2, "test": {"accuracy": 0.9}}
    assert found == Experiment("a-s1", "rev-a-s1", "success", {"seed": 1}, scores, code, None)
    assert found.complete


def test_states_of_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    log = {"state": "failed", "local": {"log": "/a/log"}}
    found = showing(
        monkeypatch,
        entry("running", {"state": "running", "local": None}, SCORES),
        entry("queued", {"state": "queued"}, {}),
        entry("failed", log, NONE_YET),
        {"name": "unreadable", "executor": None, "revs": [{"rev": "x", "data": None}]},
    )
    assert {name: each.state for name, each in found.items()} == {
        "running": "running",
        "queued": "queued",
        "failed": "failed",
        "unreadable": "success",
    }
    assert not any(each.complete for each in found.values())
    assert found["failed"].log == Path("/a/log")


def test_a_finished_experiment_replaces_a_failed_one_of_the_same_name(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = [entry("a", None, SCORES), entry("a", {"state": "failed"}, {})]
    assert showing(monkeypatch, *tries)["a"].complete
    assert showing(monkeypatch, *reversed(tries))["a"].complete


def test_code_that_has_changed_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("src/used.py", "src/unused.py"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("")
    for command in ("init -q", "add -A", "-c user.name=a -c user.email=b commit -q -m state"):
        subprocess.run(["git", *command.split()], check=True)
    made = Experiment("a", experiments.commit("HEAD"), "success", {}, {}, ("src/used.py",), None)
    Path("src/unused.py").write_text("changed")
    assert experiments.changed_code(made) == []
    Path("src/used.py").write_text("changed")
    assert experiments.changed_code(made) == ["src/used.py"]


def test_the_message_of_a_failing_dvc_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(UserError, match=r"dvc exp show: ERROR: you are not inside of a DVC repository"):
        experiments.show()


def test_a_missing_git_and_a_failing_git_have_different_messages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(UserError, match="git rev-parse: fatal: not a git repository"):
        experiments.commit("HEAD")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="git was not found; install it or add it to PATH, because"):
        experiments.commit("HEAD")


def test_a_dvc_that_queues_keeps_others_waiting_after_its_parent_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    with experiments.tree_at_rest() as lock:
        child = subprocess.Popen(["sleep", "600"], pass_fds=(lock,))
    with (tmp_path / ".dvc/tmp/queueing.lock").open() as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    child.kill()
    child.wait()
    with experiments.tree_at_rest():
        pass
