"""Tests of patience: a training that no longer improves ends early, also after it was killed."""

import re
from pathlib import Path
from typing import Any

import pytest
from imports import ROOT
from stage_run import outputs, run_stage, run_until, write_params

pytestmark = pytest.mark.faults

STUCK: dict[str, Any] = {"epochs": "50", "patience": "3", "schedule": "constant", "optimizer": "sgd", "lr": "1.0e-12"}
"""A training in which no epoch is better than the first one."""
KILLED_BEFORE_WRITING = """
import os

from imageclf.contracts import model

model.write = lambda *_: os._exit(9)
"""


def epochs_of(root: Path) -> list[str]:
    lines = (root / "metrics/history.csv").read_text().splitlines()[1:]
    return [line.split(",")[0] for line in lines]


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    write_params(tmp_path, **STUCK)
    run_until(tmp_path, "weights")
    return tmp_path


def test_a_training_ends_after_epochs_without_a_better_one(prepared: Path) -> None:
    result = run_stage(prepared, "train")
    assert result.code == 0, result.output
    assert "stopping: none of the last 3 epochs was better than epoch 1 (patience)" in result.output
    assert epochs_of(prepared) == ["1", "2", "3", "4"]
    assert re.search('"epoch": 1\n', (prepared / "metrics/train.json").read_text())


def test_a_training_that_was_killed_after_its_last_epoch_ends_there(prepared: Path) -> None:
    expected = outputs(prepared, "train") if run_stage(prepared, "train").code == 0 else None
    site = prepared / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(KILLED_BEFORE_WRITING)
    assert run_stage(prepared, "train", environment={"PYTHONPATH": f"{site}:{ROOT}"}).code == 9
    assert epochs_of(prepared) == ["1", "2", "3", "4"]  # written while the net was trained
    result = run_stage(prepared, "train")
    assert result.code == 0, result.output
    assert "resuming at epoch 5" in result.output
    assert "epoch 5/" not in result.output
    assert outputs(prepared, "train") == expected


def test_without_validation_images_patience_is_refused(tmp_path: Path) -> None:
    write_params(tmp_path, **STUCK, val_fraction="0.0")
    run_until(tmp_path, "weights")
    result = run_stage(tmp_path, "train")
    assert result.code == 1
    assert result.error == "patience needs validation images; set val_fraction to 0.1, or leave patience empty"
