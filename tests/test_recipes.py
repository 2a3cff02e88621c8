"""recipes.yaml holds what params.yaml accepts, DVC gets it unchanged, and what ran before is not run again."""

import json
import os
import re
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from dvc.utils.cli_parse import to_path_overrides
from dvc.utils.hydra import apply_overrides
from imports import ROOT
from project import Project

from imageclf import compare, experiments, follow, params, permuted, recipes, yaml12
from imageclf.errors import UserError
from imageclf.experiments import Experiment

BOOK = recipes.read(ROOT / "recipes.yaml")
BASE = yaml12.read(ROOT / "params.yaml")


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("name", BOOK)
def test_a_recipe_is_valid_and_names_every_parameter(name: str) -> None:
    params.validate(recipes.merge(BASE, BOOK[name]), name)
    assert set(BOOK[name]) == set(params.Params.model_fields) - {"runtime"}


@pytest.mark.parametrize("name", BOOK)
def test_a_recipes_name_makes_a_name_for_an_experiment(name: str) -> None:
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)
    assert not re.search(r"-s\d+$", name), "compare would take it for a seed"


def test_a_permuted_twin_differs_in_nothing_else() -> None:
    twins = [name for name in BOOK if name.endswith("-permuted")]
    for name in twins:
        assert BOOK[name] == {**BOOK[name.removesuffix("-permuted")], "permute": True}
    assert {f"{net}-permuted" for net in permuted.NETS} <= set(twins)


def test_references_belong_to_recipes() -> None:
    assert set(compare.read_references()) <= set(BOOK)


def applied(tmp_path: Path, overrides: list[str]) -> dict[str, object]:
    """What params.yaml holds after DVC has applied the overrides to the committed one."""
    path = tmp_path / "params.yaml"
    path.write_text((ROOT / "params.yaml").read_text())
    assert to_path_overrides(overrides) == {"params.yaml": overrides}
    apply_overrides(path, overrides)
    return yaml12.read(path)


@pytest.mark.parametrize("name", BOOK)
def test_dvc_writes_exactly_the_recipe(name: str, tmp_path: Path) -> None:
    changes = {"runtime.threads": 1, "lr": 1e-05}
    (values,) = recipes.plan([name], 1, changes).values()
    found = applied(tmp_path, [recipes.override(key, value) for key, value in values.items()])
    assert found == recipes.merge(BASE, values)
    assert params.validate(found, name) == params.validate(recipes.merge(BASE, {**BOOK[name], **changes}), name)


@pytest.mark.parametrize(
    "value",
    ["/a/my pics (1)", "~/pics", "it's", '"', "C:\\x\\", "\\'", "${x}", "a,b", "a=b", "[1]", "{a}", "null", "1e-3", ""],
)
def test_any_text_reaches_params_yaml_unchanged(value: str, tmp_path: Path) -> None:
    found = applied(tmp_path, [recipes.override("folder", value), recipes.override("classes", [value, "ü"])])
    assert found["folder"] == value
    assert found["classes"] == [value, "ü"]


def test_a_plan_has_each_recipe_with_each_seed() -> None:
    planned = recipes.plan(["fc500", "mlp5", "fc500"], 2, {"epochs": 3})
    assert list(planned) == ["fc500-s0", "fc500-s1", "mlp5-s0", "mlp5-s1"]
    assert planned["mlp5-s1"] == {**BOOK["mlp5"], "epochs": 3, "seed": 1}
    assert planned["fc500-s0"]["split_seed"] == planned["fc500-s1"]["split_seed"] == 0


@pytest.mark.parametrize(
    ("names", "changes", "told"),
    [
        (["fc50"], {}, "'fc50' is not a recipe in recipes.yaml; did you mean 'fc500'?"),
        (["§"], {}, "there are fc500, keras512"),
        (["fc500"], {"lrr": 1}, "recipe fc500: lrr: is not a parameter; did you mean 'lr'?"),
        (["fc500"], {"lr": -1}, "recipe fc500: lr: should be greater than 0, got -1"),
        (["fc500"], {"runtime.thread": 1}, "runtime.thread: is not a parameter; did you mean 'threads'?"),
        (["fc500"], {"runtimes.threads": 1}, "runtimes.threads: is not a parameter"),
        (["fc500"], {"seed": 3}, "seed: is set for each experiment"),
    ],
)
def test_what_cannot_be_run_is_told_before_anything_is_queued(
    names: list[str], changes: dict[str, object], told: str
) -> None:
    with pytest.raises(UserError, match=re.escape(told)):
        recipes.plan(names, 1, changes)


def test_changes_are_written_as_in_params_yaml() -> None:
    texts = ["lr=1e-3", "hidden=[8, 4]", "image_size=null", "folder=my pics", "flip=true", "runtime.threads=2"]
    assert recipes.parse_changes(texts) == {
        "lr": 0.001,
        "hidden": [8, 4],
        "image_size": None,
        "folder": "my pics",
        "flip": True,
        "runtime.threads": 2,
    }
    with pytest.raises(UserError, match="--set lr: should be key=value"):
        recipes.parse_changes(["lr"])
    with pytest.raises(UserError, match=re.escape("--set hidden=[8 is not valid YAML")):
        recipes.parse_changes(["hidden=[8"])


def known(changed: dict[str, object] | None = None, **changes: Any) -> dict[str, Experiment]:
    """The experiment fc500-s0 as a run of that recipe leaves it, but for `changes` and `changed` parameters."""
    left = {**recipes.merge(BASE, BOOK["fc500"]), **(changed or {})}
    made = Experiment("fc500-s0", "HEAD", "success", left, {"test": {"accuracy": 0.98}}, ("src/imageclf",), None)
    return {"fc500-s0": replace(made, **changes)}


def test_only_what_is_not_there_is_queued(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiments, "changed_code", lambda _experiment: [])
    planned = recipes.plan(["fc500"], 2, {"runtime.threads": 1})
    assert recipes.missing(planned, {}) == ["fc500-s0", "fc500-s1"]
    assert recipes.missing(planned, known()) == ["fc500-s1"]
    assert recipes.missing(planned, known(state="queued", metrics={})) == ["fc500-s1"]
    assert recipes.missing(planned, known(state="failed", metrics={})) == ["fc500-s0", "fc500-s1"]


@pytest.mark.parametrize(
    ("changes", "code", "told"),
    [
        ({"changed": {"lr": 0.1}}, [], "with other parameters: lr 0.1, not 0.001"),
        ({"changed": {"old": 1}}, [], "with other parameters: old 1, not None"),
        ({"metrics": {}}, [], "exists without results"),
        ({}, ["src/imageclf/fit.py"], "made by other code: src/imageclf/fit.py changed since"),
    ],
)
def test_an_experiment_of_that_name_with_other_contents_is_told_with_the_way_out(
    changes: dict[str, Any], code: list[str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiments, "changed_code", lambda _experiment: code)
    with pytest.raises(UserError, match=re.escape(told)) as refusal:
        recipes.missing(recipes.plan(["fc500"], 1, {}), known(**changes))
    assert str(refusal.value).endswith("`uv run dvc exp remove fc500-s0` removes them")


def test_a_failure_is_told_with_the_end_of_its_log(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log"
    log.write_text("".join(f"line {number}\n\n" for number in range(100)))
    failed = known(state="failed", metrics={}, log=log)["fc500-s0"]
    monkeypatch.setattr(experiments, "start", lambda _jobs: None)
    monkeypatch.setattr(follow, "ended", lambda _names, _revive: iter([*known().values(), failed]))
    with pytest.raises(UserError, match="1 of 2 failed: fc500-s0"):
        recipes._follow(recipes.plan(["fc500"], 2, {}), 1)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["1/2 fc500-s0: test accuracy 98.00%", "2/2 fc500-s0: failed"]
    assert lines[2:] == [f"    line {number}" for number in range(100 - recipes.TAIL, 100)]


TINY = """
common: {dataset: digits, val_fraction: 0.0, model: mlp, epochs: 1, batch_size: 64, lr: 0.01}
recipes:
  narrow: {hidden: [2]}
  wide: {like: narrow, hidden: [64]}
references:
  wide: {mean: 50}
"""


@pytest.mark.pipeline
def test_recipes_run_once_and_can_be_compared(tmp_path: Path) -> None:
    project = Project(tmp_path)
    (project.root / "recipes.yaml").write_text(TINY)
    project.commit()
    command = ["python", "-m", "imageclf.recipes", "narrow", "wide", "--seeds", "2"]
    # The trainings' own records are test_pipeline's business, and a second each.
    quick = ["--set", "runtime.tracking=false", "--set", "runtime.threads=1"]
    output = project.run(*command, *quick, "--jobs", "2")
    assert sorted(re.findall(r"\d/4 (\S+): test accuracy", output)) == ["narrow-s0", "narrow-s1", "wide-s0", "wide-s1"]
    assert project.run(*command, *quick) == "4 of 4 experiments are there already\n"
    assert "narrow-s0 exists with other parameters: lr 0.01, not 0.1" in project.run(
        *command, "--set", "lr=0.1", code=1
    )

    table = project.run("python", "-m", "imageclf.compare", "narrow", "wide")
    assert re.search(r"\| wide \| \S+ ± \S+ \| \S+ to \S+ \| 2 \|.*\| 50.00 \| reached \|", table)
    assert re.search(r"(wide is better than narrow|cannot be told apart).*, n=2, p", table)
    assert "tracking: recorded as 'compare: narrow, wide'" in table
    numbers = json.loads((project.root / "metrics/comparison.json").read_text())
    assert list(numbers["groups"]["wide"]["experiments"]) == ["wide-s0", "wide-s1"]
    assert set(numbers["pairs"][0]["mcnemar"]) == {"0", "1"}
    run = project.only_run("compare: narrow, wide")
    assert run.status == "FINISHED"
    assert run.metrics["wide/accuracy/mean"] == [numbers["groups"]["wide"]["scores"]["accuracy"]["mean"]]
    assert {path.name for path in run.artifacts.iterdir()} == {"comparison.md", "comparison.json", "comparison.png"}


@pytest.mark.pipeline
def test_a_worker_that_dies_is_replaced_and_nothing_is_trained_twice(tmp_path: Path) -> None:
    """As on a busy machine, when it reads a message that is still being written."""
    project = Project(tmp_path)
    (project.root / "recipes.yaml").write_text(TINY)
    project.commit()
    queue = project.root / ".dvc/tmp/exps"
    killed: list[Path] = []

    def kill() -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if running := list(queue.glob("run/*/*.json")):
                os.kill(int((queue / "celery/dvc-exp-worker-1.pid").read_text()), signal.SIGKILL)
                killed.extend(running)
                return
            time.sleep(0.1)

    killer = threading.Thread(target=kill)
    killer.start()
    output = project.run(
        *["python", "-m", "imageclf.recipes", "narrow", "--seeds", "2"],
        *["--set", "runtime.tracking=false", "--set", "runtime.threads=1"],
    )
    killer.join()
    assert len(killed) == 1
    assert output.count("DVC's queue worker ended before its time: starting it again\n") == 1
    assert output.count("queued narrow-s0\n") == 2
    assert sorted(re.findall(r"[12]/2 (\S+): test accuracy", output)) == ["narrow-s0", "narrow-s1"]
    log = project.run("dvc", "queue", "logs", "narrow-s0")
    assert "Stage 'train' is cached - skipping run" in log, "the first worker's training was left to end"
