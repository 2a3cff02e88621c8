"""The study asks for the right experiments, and sets each net beside its permuted twin."""

from pathlib import Path
from typing import Any

import pytest
from imports import ROOT
from PIL import Image

from imageclf import experiments, permuted, recipes
from imageclf.experiments import Experiment


def test_each_net_is_set_beside_its_permuted_twin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text((ROOT / "params.yaml").read_text().replace("tracking: true", "tracking: false"))
    asked: list[Any] = []

    def show() -> dict[str, Experiment]:
        found = {}
        for name in asked[0]:
            for seed in range(2):
                accuracy = 0.9 - 0.01 * seed - 0.2 * (name == "study-cnn-permuted")
                scores = {"test": {"accuracy": accuracy, "loss": 1.0, "gap": 0.0}, "train": {"accuracy": accuracy}}
                key = f"{name}-s{seed}"
                found[key] = Experiment(key, "", "success", {"seed": seed, "epochs": 1}, scores, (), None)
        return found

    monkeypatch.setattr(recipes, "run", lambda *arguments: asked.extend(arguments))
    monkeypatch.setattr(experiments, "show", show)
    monkeypatch.setattr(experiments, "commit", lambda _revision: "0123456789")
    monkeypatch.setattr(experiments, "read", lambda _revision, _path: None)
    monkeypatch.setattr("sys.argv", ["permuted", "--seeds", "2", "--jobs", "3", "--set", "epochs=1"])
    permuted.main()
    assert asked[1:] == [2, 3, {"epochs": 1}]
    lines = (tmp_path / "metrics/permuted.md").read_text().splitlines()
    assert [line.split()[1] for line in lines if line.startswith("| study")] == asked[0]
    said = [line for line in lines if line.startswith("- ")]
    assert [" cannot be told apart" in line for line in said] == [True, False, True]
    assert said[1].startswith("- study-cnn is better than study-cnn-permuted by 20.00 points")
    monkeypatch.setattr("sys.argv", ["permuted", "--out", "kept/v1.2"])
    permuted.main()
    assert (tmp_path / "kept/v1.2.md").read_text() == "\n".join(lines).replace("permuted.png", "v1.2.png") + "\n"
    with Image.open(tmp_path / "metrics/permuted.png") as picture:
        picture.load()
