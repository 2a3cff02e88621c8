"""Tests of your own images in a real DVC pipeline: unusual class names, 16-bit gray, and counts of all files."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from project import Project

from imageclf.contracts import dataset
from imageclf.preprocess.report import record

pytestmark = pytest.mark.pipeline

NAMES = ["03", "3", "nan", "null", "true", "1e3", "猫", "🐰", "العربية", "Käfer", "with space ", "x" * 100]
"""Names that readers of CSV or YAML may convert, names in scripts without a font, and names with spaces."""


def save(root: Path, name: str, pixels: np.ndarray) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(root / f"{name}.png")


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    """Create 12-bit images in 16 bits, one class of a different brightness per name, and a class of one image."""
    root, random = tmp_path / "origin", np.random.default_rng(0)
    for number, name in enumerate(NAMES):
        for each in range(12):
            noise = random.integers(-9, 10, (8, 8)) + 300 + 100 * number
            save(root, f"train/{name}/{each}", noise.astype(np.uint16))
    save(root, "train/rare/0", np.full((8, 8), 4095, np.uint16))
    (root / "train/3/copy.png").write_bytes((root / "train/3/0.png").read_bytes())
    (root / "train/3/broken.png").write_bytes(b"no image")
    return root


@pytest.fixture
def project(tmp_path: Path, origin: Path) -> Project:
    (tmp_path / "project").mkdir()
    made = Project(
        tmp_path / "project", dataset="folder", folder=str(origin), epochs="1", model="mlp", normalize="unit"
    )
    params = made.root / "params.yaml"
    params.write_text(params.read_text().replace("  tracking: true", "  tracking: false"))
    return made


def column(path: Path, name: str) -> list[str]:
    with path.open(encoding="utf-8", newline="") as file:
        return [row[name] for row in csv.DictReader(file)]


def test_names_bits_and_counts_are_right_in_all_outputs(project: Project) -> None:
    output = project.run("dvc", "repro")
    lines = output.splitlines()
    assert "147 files found: 146 used, 1 skipped" in lines
    assert "test: a stratified fifth of the images, drawn with seed 0" in lines
    assert "test has no image of 1 class ('rare'): too few images for a share of 0.2" in lines
    assert any(line.startswith("146 images in 16-bit gray, scaled from 0..4,095 to 0..255") for line in lines)
    assert any(line.startswith("identical files: 1 ") for line in lines)
    assert any(line.startswith("test accuracy") and "top-5" in line for line in lines)
    assert "Glyph" not in output
    assert "Warning" not in output

    data = dataset.read(project.root / "data/processed")
    assert data.manifest.classes == sorted([*NAMES, "rare"])
    assert data.manifest.gray16_bits == 12
    assert data.manifest.census is not None
    assert data.manifest.census.used == sum(data.manifest.counts.values())
    assert len(np.unique(data["train"].images)) > 20  # the high byte alone has six
    assert set(data["train"].labels) == set(range(13))

    metrics = project.root / "metrics"
    warnings = record.read(metrics / "data.json").warnings
    assert any(" classes have fewer than 10 train images (" in sentence for sentence in warnings)
    limits = (metrics / "model_card.md").read_text(encoding="utf-8").split("## Limits")[1]
    for sentence in warnings:
        assert f"warning: {sentence}" in lines
        assert f"- {sentence.partition(' (')[0]}" in limits
    assert column(metrics / "per_class.csv", "class") == data.manifest.classes
    actual = column(metrics / "predictions.csv", "actual")
    assert actual == [data.manifest.classes[label] for label in data["test"].labels]
    assert set(column(metrics / "predictions.csv", "predicted")) <= set(data.manifest.classes)
    plots = json.loads(project.run("dvc", "plots", "show", "--json"))
    shown = json.dumps(plots, ensure_ascii=False)
    for name in NAMES:
        assert json.dumps(name, ensure_ascii=False) in shown


def test_selected_classes_in_another_unicode_form_and_a_val_fraction_that_is_too_large(
    project: Project, origin: Path
) -> None:
    project.set(classes="['3', 'Ka\u0308fer', 猫]", val_fraction="0.999")
    output = project.run("dvc", "repro", "preprocess", code=255)
    assert "error: val_fraction: 0.999 leaves no image of '3', 'Käfer', '猫' to train on" in output
    assert "Traceback" not in output
    project.set(val_fraction="0.1")
    output = project.run("dvc", "repro", LC_ALL="C")
    assert "147 files found: 37 used, 1 skipped, 109 of classes that `classes` does not name" in output
    assert dataset.read(project.root / "data/processed").manifest.classes == ["3", "Käfer", "猫"]
    assert column(project.root / "metrics/per_class.csv", "class") == ["3", "Käfer", "猫"]
    (line,) = [line for line in output.splitlines() if line.startswith("test accuracy")]
    assert "top-5" not in line
    assert set(json.loads((project.root / "metrics/test.json").read_text())["test"]) == {
        "loss",
        "accuracy",
        "top5",
        "balanced_accuracy",
        "macro_f1",
        "calibration_error",
        "gap",
    }

    shutil.copytree(origin / "train/猫", origin / "val/猫")
    project.run("dvc", "repro", "download")
    output = project.run("dvc", "repro", "preprocess")
    assert "val: the images in val/; val_fraction and split_seed do not apply" in output
    assert "val has no image of 2 classes ('3', 'Käfer')" in output
    assert dataset.read(project.root / "data/processed").manifest.counts["val"] == 12
