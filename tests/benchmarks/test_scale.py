"""Tests of the benchmark of growing data: its archives, its steps, its verdicts and its figure."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import machine, scale, scale_steps
from imageclf.contracts import dataset
from imageclf.contracts.raw import Images
from imageclf.core import paths
from imageclf.download.datasets import DATASETS


@pytest.fixture
def source() -> dict[str, Images]:
    """Return 30 images of 28x28 pixels per split, each with one bright pixel in the middle, labels 0 to 9."""
    images = np.zeros((30, 1, 28, 28), np.uint8)
    images[:, :, 14, 14] = 200
    part = Images(np.arange(30) % 10, lambda: iter([images]))
    return {"train": part, "test": part}


def test_archives_repeat_the_images_each_moved_by_up_to_a_pixel(tmp_path: Path, source: dict[str, Images]) -> None:
    scale.write_archives(tmp_path / "raw", source, 100)
    written = DATASETS["mnist"].read(tmp_path / "raw").splits
    assert written["train"].labels.tolist() == [row % 30 % 10 for row in range(100)]
    assert len(written["test"].labels) == 10
    (pixels,) = written["train"].chunks()
    _, _, rows, columns = np.nonzero(pixels)
    assert len(rows) == 100
    assert set(rows) == set(columns) == {13, 14, 15}


def test_steps_preprocess_and_train_mapped_or_in_memory(
    tmp_path: Path, source: dict[str, Images], monkeypatch: pytest.MonkeyPatch
) -> None:
    scale.write_archives(tmp_path / paths.RAW, source, 200)
    monkeypatch.chdir(tmp_path)
    assert scale_steps.preprocess()["seconds"] > 0
    assert dataset.read(paths.PROCESSED).manifest.counts == {"train": 180, "val": 20, "test": 20}
    for step in ("mapped", "resident"):
        result = scale_steps.STEPS[step]()
        assert result["images"] == 180
        assert min(result["seconds"], result["first_epoch"]) > 0


def test_memory_is_read_from_the_kernels_status_file(tmp_path: Path) -> None:
    (tmp_path / "status").write_text("VmPeak:\t 9 kB\nVmHWM:\t   2048 kB\nRssAnon:\t    1024 kB\nRssFile:\t 7 kB\n")
    assert scale_steps.memory(tmp_path / "status") == {"peak_bytes": 2**21, "private_bytes": 2**20}


def made(seconds: float, peak: float, mapped: float) -> dict[str, Any]:
    """Return results for one size; `resident` takes a second, and memory that no verdict uses."""
    times = {"preprocess": seconds, "train": seconds, "mapped": mapped, "resident": 1.0}
    found = {step: {"seconds": time, "peak_bytes": peak, "private_bytes": 1} for step, time in times.items()}
    return {**found, "resident": {**found["resident"], "peak_bytes": 2**40}}


def test_verdicts_if_all_targets_are_reached() -> None:
    lines = scale.verdicts({10: made(1.0, 2**20, 1.0), 100: made(10.0, 2**30, 1.25)})
    assert lines == [
        "preprocess: time grows with the power 1.00 of the number of images (target: at most 1.1): reached",
        "train: time grows with the power 1.00 of the number of images (target: at most 1.1): reached",
        "memory with 100 images: 1.00 GiB (target: less than 1.5 GiB): reached",
        "speed mapped / resident with 100 images: 80% (target: at least 70%): reached",
    ]


def test_verdicts_if_no_target_is_reached() -> None:
    lines = scale.verdicts({10: made(1.0, 2**20, 1.0), 100: made(100.0, 1.5 * 2**30, 1.5)})
    assert all(line.endswith("**not reached**") for line in lines)
    assert len(lines) == 4


def test_redraw_makes_page_and_figure_from_the_numbers_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {10: made(1.0, 2**20, 1.0), 100: made(10.0, 2**30, 1.25)}
    described = machine.describe_with_commit(["numpy"])
    (tmp_path / "scale.json").write_text(json.dumps({"machine": described, "sizes": found}))
    monkeypatch.setattr("sys.argv", ["scale", "--redraw", "--data", "no/data", "--out", str(tmp_path / "scale")])
    scale.main()
    text = (tmp_path / "scale.md").read_text()
    assert all(f"- {line}" in text for line in scale.verdicts(found))
    assert (tmp_path / "scale.png").read_bytes().startswith(b"\x89PNG")


def test_the_figure_shows_seconds_and_memory_of_every_step() -> None:
    time, memory = scale.draw({10: made(1.0, 2**20, 1.0), 100: made(10.0, 2**30, 1.25)}).axes
    lines = {str(line.get_label()): np.asarray(line.get_xydata()).tolist() for line in time.lines}
    assert lines["preprocess"] == lines["train"] == [[10, 1.0], [100, 10.0]]
    assert lines["one epoch, images memory-mapped"] == [[10, 1.0], [100, 1.25]]
    assert np.asarray(memory.lines[0].get_xydata()).tolist() == [[10, 1], [100, 1024]]
