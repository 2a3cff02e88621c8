"""Tests that recipes.yaml holds what params.yaml accepts, and that DVC gets it unchanged; the real queue runs it."""

import json
import os
import re
import signal
import threading
import time
from pathlib import Path
from typing import get_args

import pytest
from dvc.utils.cli_parse import to_path_overrides
from dvc.utils.hydra import apply_overrides
from imports import ROOT
from project import Project

from imageclf import params, yaml12
from imageclf.core.errors import UserError
from imageclf.study import experiments, recipes

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
    assert not re.search(r"-s\d+$", name), "compare would read the end as a seed"


def test_a_permuted_recipe_differs_in_permute_only() -> None:
    names = [name for name in BOOK if name.endswith("-permuted")]
    assert names
    for name in names:
        assert BOOK[name] == {**BOOK[name.removesuffix("-permuted")], "permute": True}


def test_references_and_studies_name_recipes() -> None:
    assert set(recipes.read_references()) <= set(BOOK)
    studies = recipes.read_studies()
    assert {name for study in studies.values() for pair in study.pairs for name in pair} <= set(BOOK)
    permuted = studies["permuted"]
    assert permuted.labels == ("plain", "permuted")
    assert permuted.pairs == [(f"study-{net}", f"study-{net}-permuted") for net in ("mlp", "cnn", "vgg")]


@pytest.mark.parametrize(("study", "key"), [("activations", "activation"), ("losses", "loss")])
def test_a_study_compares_the_default_with_every_other_choice(study: str, key: str) -> None:
    annotation = params.Params.model_fields[key].annotation
    default, *others = get_args(annotation)
    pairs = recipes.read_studies()[study].pairs
    assert {first for first, _second in pairs} == {"study-mlp"}
    assert BOOK["study-mlp"][key] == default
    assert sorted(BOOK[second][key] for _first, second in pairs) == sorted(others)
    for _first, second in pairs:
        assert BOOK[second] == {**BOOK["study-mlp"], key: BOOK[second][key]}


def test_the_second_nets_of_the_study_linear_have_no_activation() -> None:
    for first, second in recipes.read_studies()["linear"].pairs:
        assert BOOK[first]["activation"] == "relu"
        assert BOOK[first]["hidden"]
        assert BOOK[second]["activation"] == "none" or BOOK[second]["hidden"] == []
        same = {"activation": "relu", "hidden": BOOK[first]["hidden"]}
        assert BOOK[first] == {**BOOK[second], **same}


def test_references_are_in_percent_in_recipes_yaml() -> None:
    assert recipes.read_references()["keras512"].mean == pytest.approx(0.9788)


def applied(tmp_path: Path, overrides: list[str]) -> dict[str, object]:
    """Return what params.yaml holds after DVC has applied the overrides to the committed one."""
    path = tmp_path / "params.yaml"
    path.write_text((ROOT / "params.yaml").read_text())
    assert to_path_overrides(overrides) == {"params.yaml": overrides}
    apply_overrides(path, overrides)
    return yaml12.read(path)


@pytest.mark.parametrize("name", BOOK)
def test_dvc_writes_exactly_the_recipe(name: str, tmp_path: Path) -> None:
    changes = {"runtime.threads": 1, "lr": 1e-05}
    (values,) = recipes.plan([name], 1, changes).values()
    found = applied(tmp_path, [experiments.override(key, value) for key, value in values.items()])
    assert found == recipes.merge(BASE, values)
    assert params.validate(found, name) == params.validate(recipes.merge(BASE, {**BOOK[name], **changes}), name)


@pytest.mark.parametrize(
    "value",
    ["/a/my pics (1)", "~/pics", "it's", '"', "C:\\x\\", "\\'", "${x}", "a,b", "a=b", "[1]", "{a}", "null", "1e-3", ""],
)
def test_any_text_reaches_params_yaml_unchanged(value: str, tmp_path: Path) -> None:
    found = applied(tmp_path, [experiments.override("folder", value), experiments.override("classes", [value, "ü"])])
    assert found["folder"] == value
    assert found["classes"] == [value, "ü"]


def test_a_plan_has_each_recipe_with_each_seed() -> None:
    planned = recipes.plan(["fc500", "mlp5", "fc500"], 2, {"epochs": 3})
    assert list(planned) == ["fc500-s0", "fc500-s1", "mlp5-s0", "mlp5-s1"]
    assert planned["mlp5-s1"] == {**BOOK["mlp5"], "epochs": 3, "seed": 1}
    assert planned["fc500-s0"]["split_seed"] == planned["fc500-s1"]["split_seed"] == 0


@pytest.mark.parametrize(
    ("names", "changes", "message"),
    [
        (["fc50"], {}, "'fc50' is not a recipe in recipes.yaml; did you mean 'fc500'?"),
        (["§"], {}, "choose from fc500, keras512"),
        (["fc500"], {"lrr": 1}, "recipe fc500: lrr: is not a parameter; did you mean 'lr'?"),
        (["fc500"], {"lr": -1}, "recipe fc500: lr: should be greater than 0, got -1"),
        (["fc500"], {"runtime.thread": 1}, "runtime.thread: is not a parameter; did you mean 'threads'?"),
        (["fc500"], {"runtimes.threads": 1}, "runtimes.threads: is not a parameter"),
        (["fc500"], {"seed": 3}, "seed: each experiment has its own; --seeds sets their number"),
    ],
)
def test_an_impossible_plan_is_refused(names: list[str], changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
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
    # Without MLflow, each training is a second shorter.
    quick = ["--set", "runtime.tracking=false", "--set", "runtime.threads=1"]
    output = project.run(*command, *quick, "--jobs", "2")
    assert sorted(re.findall(r"\d/4 (\S+): test accuracy", output)) == ["narrow-s0", "narrow-s1", "wide-s0", "wide-s1"]
    assert project.run(*command, *quick) == "4 of 4 experiments exist already\n"
    assert "narrow-s0 exists with other parameters: lr 0.01, not 0.1" in project.run(
        *command, "--set", "lr=0.1", code=1
    )

    table = project.run("python", "-m", "imageclf.compare", "narrow", "wide")
    assert re.search(r"\nwide +\S+ ± \S+ +\S+ to \S+ +2 .* 50.00 +reached\n", table)
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
    """A worker dies on a busy machine if it reads a message that is still being written."""
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
    assert output.count("DVC's queue worker died; starting it again\n") == 1
    assert output.count("queued narrow-s0\n") == 2
    assert sorted(re.findall(r"[12]/2 (\S+): test accuracy", output)) == ["narrow-s0", "narrow-s1"]
    log = project.run("dvc", "queue", "logs", "narrow-s0")
    assert "Stage 'train' is cached - skipping run" in log, "the first worker's training was not stopped"
