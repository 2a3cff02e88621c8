"""Tests that only missing experiments are queued, and that failures and arguments are reported; DVC does not run."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from imports import ROOT

from imageclf import yaml12
from imageclf.core.errors import UserError
from imageclf.study import experiments, follow, launch, recipes
from imageclf.study.experiments import Experiment

BOOK = recipes.read(ROOT / "recipes.yaml")
BASE = yaml12.read(ROOT / "params.yaml")


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def known(changed: dict[str, object] | None = None, **changes: Any) -> dict[str, Experiment]:
    """Return the experiment fc500-s0 as a run of the recipe leaves it, with `changes` and with `changed` parameters."""
    left = {**recipes.merge(BASE, BOOK["fc500"]), **(changed or {})}
    made = Experiment("fc500-s0", "HEAD", "success", left, {"test": {"accuracy": 0.98}}, ("src/imageclf",), None)
    return {"fc500-s0": replace(made, **changes)}


def test_only_missing_and_failed_experiments_are_queued(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiments, "changed_code", lambda _experiment: [])
    planned = recipes.plan(["fc500"], 2, {"runtime.threads": 1})
    assert launch.missing(planned, {}) == ["fc500-s0", "fc500-s1"]
    assert launch.missing(planned, known()) == ["fc500-s1"]
    assert launch.missing(planned, known(state="queued", metrics={})) == ["fc500-s1"]
    assert launch.missing(planned, known(state="failed", metrics={})) == ["fc500-s0", "fc500-s1"]


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        ({"changed": {"lr": 0.1}}, [], "with other parameters: lr 0.1, not 0.001"),
        ({"changed": {"old": 1}}, [], "with other parameters: old 1, not None"),
        ({"metrics": {}}, [], "exists without results"),
        ({}, ["src/imageclf/fit.py"], "made by other code: src/imageclf/fit.py changed since"),
    ],
)
def test_an_experiment_with_other_content_is_refused_with_the_command_that_removes_it(
    changes: dict[str, Any], code: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiments, "changed_code", lambda _experiment: code)
    with pytest.raises(UserError, match=re.escape(message)) as refusal:
        launch.missing(recipes.plan(["fc500"], 1, {}), known(**changes))
    assert str(refusal.value).endswith("`uv run dvc exp remove fc500-s0` removes them")


def test_a_failure_is_reported_with_the_end_of_its_log(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log"
    log.write_text("".join(f"line {number}\n\n" for number in range(100)))
    failed = known(state="failed", metrics={}, log=log)["fc500-s0"]
    monkeypatch.setattr(experiments, "start", lambda _jobs: None)
    monkeypatch.setattr(follow, "ended", lambda _names, _restart: iter([*known().values(), failed]))
    with pytest.raises(UserError, match="1 of 2 failed: fc500-s0"):
        launch._follow(recipes.plan(["fc500"], 2, {}), 1)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["1/2 fc500-s0: test accuracy 98.00%", "2/2 fc500-s0: failed"]
    assert lines[2:] == [f"    line {number}" for number in range(100 - launch.TAIL, 100)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name at least one recipe, or use --all or --list"),
        (["fc500", "--seeds", "0"], "--seeds: should be a whole number of at least 1, not '0'"),
        (["fc500", "--jobs", "two"], "--jobs: should be a whole number of at least 1, not 'two'"),
    ],
)
def test_wrong_arguments_are_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        launch.main(arguments, "imageclf recipes")
    printed = capsys.readouterr().err
    assert printed.startswith("usage: imageclf recipes ")
    assert message in printed


def test_the_arguments_make_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[Any] = []
    monkeypatch.setattr(launch, "run", lambda *arguments: runs.append(arguments))
    launch.main(["fc500", "mlp5", "--seeds", "2", "--jobs", "3", "--set", "epochs=1"])
    launch.main(["--all"])
    assert runs[0] == (recipes.plan(["fc500", "mlp5"], 2, {"epochs": 1}), 3)
    assert runs[1] == (recipes.plan(BOOK, 1, {}), 1)
