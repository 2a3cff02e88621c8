"""Tests of the command `imageclf study`, without DVC: which experiments it runs, and what it writes about them."""

import json
from pathlib import Path
from typing import Any

import pytest
from imports import ROOT
from PIL import Image

from imageclf.core.errors import UserError
from imageclf.study import experiments, launch, study
from imageclf.study.experiments import Experiment


@pytest.fixture
def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """Return the experiments that the command has run, by name, in a folder with params.yaml and recipes.yaml.

    Each has an accuracy of 0.9, 0.89 and so on, by seed, except `study-cnn-permuted`, which has 0.2 less.
    """
    ran: dict[str, dict[str, Any]] = {}

    def show() -> dict[str, Experiment]:
        found = {}
        for name, values in ran.items():
            accuracy = 0.9 - 0.01 * values["seed"] - 0.2 * name.startswith("study-cnn-permuted")
            scores = {"test": {"accuracy": accuracy, "loss": 1.0, "gap": 0.0}, "train": {"accuracy": accuracy}}
            found[name] = Experiment(name, "", "success", values, scores, (), None)
        return found

    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text((ROOT / "params.yaml").read_text().replace("tracking: true", "tracking: false"))
    Path("recipes.yaml").write_text((ROOT / "recipes.yaml").read_text())
    monkeypatch.setattr(launch, "run", lambda experiments, jobs: ran.update(experiments, jobs={"seed": jobs}))
    monkeypatch.setattr(experiments, "show", show)
    monkeypatch.setattr(experiments, "commit", lambda _revision: "0123456789")
    monkeypatch.setattr(experiments, "read", lambda _revision, _path: None)
    return ran


NETS = ["study-mlp", "study-mlp-permuted", "study-cnn", "study-cnn-permuted", "study-vgg", "study-vgg-permuted"]


def test_a_study_runs_its_recipes_and_compares_its_pairs(planned: dict[str, dict[str, Any]]) -> None:
    study.main(["permuted", "--seeds", "2", "--jobs", "3"])
    assert planned.pop("jobs") == {"seed": 3}
    assert list(planned) == [f"{net}-s{seed}" for net in NETS for seed in (0, 1)]
    assert planned["study-cnn-permuted-s1"]["permute"] is True
    lines = Path("metrics/permuted.md").read_text().splitlines()
    assert lines[0] == "# Plain and permuted pixels"
    assert [line.split()[1] for line in lines if line.startswith("| study")] == NETS
    sentences = [line for line in lines if line.startswith("- ")]
    assert [" do not differ significantly" in line for line in sentences] == [True, False, True]
    assert sentences[1].startswith("- study-cnn is better than study-cnn-permuted by 20.00 points")
    assert json.loads(Path("metrics/permuted.json").read_text())["labels"] == ["plain", "permuted"]
    with Image.open("metrics/permuted.png") as picture:
        picture.load()
        assert picture.width == 800


def test_a_changed_parameter_is_named_on_the_page(planned: dict[str, dict[str, Any]]) -> None:
    study.main(["permuted", "--set", "epochs=2", "--out", "kept/v1.2"])
    assert len(planned) == 3 * len(NETS) + 1
    text = Path("kept/v1.2.md").read_text()
    assert "![Plain and permuted pixels](v1.2.png)" in text
    assert f"- {', '.join(NETS)} ran with epochs 2 in place of 1\n" in text
    assert {line.split(" | ")[-1] for line in text.splitlines() if line.startswith("| study")} == {"other parameters |"}


def test_an_unknown_study_is_refused_with_the_nearest_name(planned: dict[str, dict[str, Any]]) -> None:
    with pytest.raises(UserError, match=r"^'permute' is not a study in recipes\.yaml; did you mean 'permuted'\?$"):
        study.main(["permute"])
    assert planned == {}
