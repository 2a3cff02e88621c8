"""Tests of the benchmark of the work around the training: its loop, and its count of processor time."""

import os
import tarfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks import around


def test_the_plain_loop_decodes_every_image(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "images.tar.xz", "w:xz") as archive:
        for number in range(3):
            path = tmp_path / f"{number}.jpg"
            Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(path)
            archive.add(path, f"train/cat/{number}.jpg")
    seconds, images = around.plain_loop(tmp_path / "images.tar.xz")
    assert images == 3
    assert seconds > 0


def test_processor_seconds_belong_to_the_process() -> None:
    before, clock = around.processor_seconds(os.getpid()), time.process_time()
    while time.process_time() < clock + 0.1:
        pass
    assert around.processor_seconds(os.getpid()) - before >= 0.05  # the kernel counts hundredths of a second
