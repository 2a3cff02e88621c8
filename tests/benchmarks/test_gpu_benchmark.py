"""Tests that the GPU benchmark measures what recipes.yaml says, and runs with few packages besides torch."""

import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from imports import ROOT

from benchmarks import gpu, gpu_correct, gpu_data, gpu_training
from imageclf.contracts import dataset as splits
from imageclf.contracts import raw
from imageclf.core.errors import UserError
from imageclf.study import recipes

AS_IF_ABSENT = """
import sys

class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] not in absent:
            return next(filter(None, (finder.find_spec(name, path, target) for finder in finders)), None)

    @staticmethod
    def find_distributions(context):
        searches = [finder.find_distributions for finder in finders if hasattr(finder, "find_distributions")]
        return (found for search in searches for found in search(context))

absent, finders = set(sys.argv.pop(1).split(",")), sys.meta_path
sys.meta_path = [Finder]
"""


def canonical(package: str) -> str:
    """Return the canonical spelling of a package's name."""
    return re.sub("[-_.]+", "-", package).lower()


def absent_modules() -> str:
    """Return the modules installed here that a machine with only torch, its dependencies, and numpy lacks."""
    waiting, packages = ["torch"], {"numpy", "imageclf"}
    while waiting:
        name = canonical(waiting.pop())
        if name not in packages:
            packages.add(name)
            try:
                required = metadata.requires(name) or []
            except metadata.PackageNotFoundError:
                continue  # for another platform
            waiting += [found[0] for line in required if "extra" not in line and (found := re.match(r"[\w.-]+", line))]
    owners = metadata.packages_distributions().items()
    return ",".join(module for module, names in owners if not packages & set(map(canonical, names)))


def run_there(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `code` from the project's root as if only torch and numpy were installed."""
    return subprocess.run(
        [sys.executable, "-c", AS_IF_ABSENT + code, absent_modules(), *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a prepared folder with images of 16x16 pixels, the smallest size that every net accepts."""
    folder, random = tmp_path_factory.mktemp("prepared"), np.random.default_rng(0)
    for name, channels in (("mnist", 1), ("cifar10", 3)):
        splits = {}
        for split, count in (("train", 40), ("test", 20)):
            pixels = random.integers(256, size=(count, channels, 16, 16), dtype=np.uint8)
            splits[split] = raw.Images(np.arange(count) % 10, lambda pixels=pixels: iter([pixels]))
        gpu_data.write_set(raw.RawData(splits, tuple("0123456789"), (channels, 16, 16)), name, folder / name)
    gpu_data.write_recipes(gpu.MEASURED, folder / gpu.RECIPES)
    return folder


def test_the_measured_recipes_are_those_of_recipes_yaml(prepared: Path) -> None:
    book = recipes.read(ROOT / "recipes.yaml")
    found = gpu.read_recipes(prepared)
    assert set(found) == {"fc500", "mlp5", "cnn6", "cifar-cnn", "vgg-cifar10", "mnist-cnn", "googlenet", "resnet18"}
    assert found == {name: book[name] for name in found}


@pytest.mark.parametrize("name", gpu.MEASURED)
def test_data_and_training_are_prepared_in_the_only_way_that_the_recipes_use(name: str) -> None:
    """The benchmark prepares the data once for all recipes, and ignores these parameters."""
    book = recipes.read(ROOT / "recipes.yaml")[name]
    expected = {**gpu_data.OTHERS, **vars(gpu_data.PREPARATION)}
    assert {key: None if key == "permute_seed" and not book["permute"] else book[key] for key in expected} == expected
    assert (book["permute"], book["precision"], book["compile"]) == (False, "float32", False)


def test_missing_recipes_are_a_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"recipes.json does not exist; run .* --prepare"):
        gpu.read_recipes(tmp_path)


def test_training_needs_torch_and_numpy_alone() -> None:
    """Torchvision is imported only when one of its nets is built."""
    code = "\n".join(
        f"from imageclf{package} import {modules}"
        for package, modules in {
            "": "models",
            ".contracts": "dataset",
            ".training": "fit, losses, optim, scoring",
            ".training.loading": "augment, batches",
        }.items()
    )
    done = run_there(f"sys.path.insert(0, 'src')\n{code}")
    assert done.returncode == 0, done.stderr


def test_an_absent_module_is_not_found() -> None:
    """Prove that the test above can fail."""
    done = run_there("sys.path.insert(0, 'src')\nimport imageclf.params")
    assert "ModuleNotFoundError: No module named" in done.stderr


def test_a_quick_run_on_the_cpu_has_every_part(prepared: Path, tmp_path: Path) -> None:
    code = "import runpy\nrunpy.run_module('benchmarks.gpu', run_name='__main__', alter_sys=True)"
    out = tmp_path / "gpu.json"
    done = run_there(code, "--data", str(prepared), "--device", "cpu", "--quick", "--out", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())
    assert found["machine"]["packages"]["torch"] in done.stdout
    check_correct(found["correct"])
    check_speed(found["speed"])
    check_accuracy(found["accuracy"])


def check_correct(rows: list[dict[str, Any]]) -> None:
    checked = [row for row in rows if "check" in row]
    assert {row["recipe"] for row in checked} == {"fc500", "mlp5", "cnn6", "cifar-cnn", "mnist-cnn", "vgg-cifar10"}
    assert len(checked) == 6 * (3 * 2 + 2)
    assert [row["recipe"] for row in rows if row.get("skipped") == "torchvision is not installed"] == [
        "googlenet",
        "resnet18",
    ]
    exact = [row for row in checked if row["check"].startswith("float32")]
    assert {row["difference"] for row in exact} == {0.0}, "the same computation, also on the CPU"
    rounded = [row for row in checked if row["check"].startswith("bfloat16: ")]
    assert all(0 < row["difference"] <= row["bound"] for row in rounded)


def check_speed(rows: list[dict[str, Any]]) -> None:
    loops = {(row["net"], row["loop"]) for row in rows if "loop" in row}
    nets = {"fc500", "mlp5", "cnn6", "cifar-cnn", "vgg11", "vgg16"}
    assert loops == {(net, loop) for net in nets for loop in ("imageclf", "optimized", "imageclf in tf32", "tutorial")}
    for row in rows:
        if "loop" in row:
            assert 0 < row["lowest"] <= row["images_per_second"] <= row["highest"]
            assert row["n"] == 2
    assert [row["precision"] for row in rows if "teraflops" in row] == ["float32", "tf32", "bfloat16"]


def check_accuracy(rows: list[dict[str, Any]]) -> None:
    assert {(row["recipe"], row["start"]) for row in rows} == {
        (recipe, start) for recipe in ("mnist-cnn", "vgg-cifar10") for start in ("warm", "cold")
    }
    for row in rows:
        assert row["seconds_mean"] > 0
        if row["start"] == "warm":
            assert len(row["accuracies"]) == len(row["seconds"]) == row["n"] == 2


def test_a_check_that_fails_fails_the_command(
    prepared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_correct, "BOUNDS", {key: {1: -1.0} for key in gpu_correct.BOUNDS})
    cnn6 = {"cnn6": gpu.read_recipes(prepared)["cnn6"]}
    monkeypatch.setattr(gpu, "read_recipes", lambda _folder: cnn6)
    monkeypatch.setattr(sys, "argv", ["gpu", "correct", "--data", str(prepared), "--device", "cpu", "--quick"])
    with pytest.raises(SystemExit, match="a check of `correct` failed"):
        gpu.main()
    assert "False" in capsys.readouterr().out


def test_deterministic_mode_ends_after_its_check() -> None:
    with gpu_correct._deterministic():
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_table_shows_every_column_of_every_row() -> None:
    assert gpu.table([{"net": "a", "rate": 12345.6}, {"net": "bb", "ok": True, "all": [0.5, 1]}]).splitlines() == [
        "| net |   rate |   ok |   all |",
        "| --- | -----: | ---: | ----: |",
        "| a   | 12,346 |      |       |",
        "| bb  |        | True | 0.5 1 |",
    ]


def test_some_images_of_a_split_sorted_by_class_have_all_classes() -> None:
    targets = np.arange(1000) // 100
    split = splits.Split(np.zeros((1000, 1, 2, 2), np.uint8), targets)
    assert gpu_training.some(split, 20).targets.tolist() == [number // 2 for number in range(20)]
    assert gpu_training.some(split, 5000).targets.tolist() == targets.tolist()
