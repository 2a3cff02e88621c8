"""Measure the work around the training: decoding images, and recording to MLflow; about ten minutes on 2 cores.

    uv run python -m benchmarks.around

decode: seconds from the 60,000 JPEG files of the CIFAR-10 archive to prepared arrays, and those of a plain loop of
tarfile and Pillow in one process; both in turn, medians. recorder: processor time of the MLflow process in 100 epochs
of fc500, after its imports, as a share of the time of those epochs. Writes docs/around.json. Run nothing else at the
same time.
"""

import argparse
import os
import statistics
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import machine, projects
from imageclf import yaml12
from imageclf.contracts.raw import IMAGES_TAR
from imageclf.core import files, paths, process

OUT = Path("docs/around.json")
EPOCHS = 100
AFTER_IMPORTS = 12
"""Epochs after which MLflow's imports are finished; they take more than ten seconds."""


def plain_loop(tar: Path) -> tuple[float, int]:
    """Return seconds and number of images of a simple loop: open, decode and keep every image as an array."""
    start = time.perf_counter()
    images = []
    with tarfile.open(tar) as archive:
        for member in archive:
            file = archive.extractfile(member) if member.isfile() else None
            if file is not None:
                images.append(np.asarray(Image.open(file).convert("RGB")))
    np.stack(images)
    return time.perf_counter() - start, len(images)


def stage_seconds(project: Path, stage: str) -> float:
    """Return the seconds of a stage in a new process, as DVC starts it."""
    start = time.perf_counter()
    projects.run(project, "-m", f"stages.{stage}")
    return time.perf_counter() - start


def decode(work: Path, data: Path, rounds: int) -> dict[str, Any]:
    """Compare preprocess with the loop over the same tar file, and download and preprocess with it over the archive."""
    archive, project = data / "cifar10-images.tar.xz", work / "cifar-cnn"
    projects.make(project, "cifar-cnn", None, data)
    found: dict[str, list[float]] = {"plain, tar": [], "preprocess": [], "plain, tar.xz": [], "download": []}
    counts: set[int] = set()
    for _ in range(rounds):
        for name, path in (("plain, tar", project / paths.RAW / IMAGES_TAR), ("plain, tar.xz", archive)):
            seconds, count = plain_loop(path)
            found[name].append(seconds)
            counts.add(count)
        for stage in ("download", "preprocess"):
            found[stage].append(stage_seconds(project, stage))
    medians = {name: statistics.median(seconds) for name, seconds in found.items()}
    (images,) = counts
    return {
        "images": images,
        "seconds": found,
        "preprocess against plain": medians["preprocess"] / medians["plain, tar"],
        "download and preprocess against plain": (medians["download"] + medians["preprocess"])
        / medians["plain, tar.xz"],
    }


def recorder(work: Path, data: Path) -> dict[str, Any]:
    """Return the MLflow process's processor seconds between two epochs, and the elapsed seconds."""
    project = work / "fc500"
    projects.make(project, "fc500", None, data)
    files.write_json(project / paths.PARAMS, {**yaml12.read(project / paths.PARAMS), "epochs": EPOCHS})
    marks: dict[int, tuple[float, float]] = {}
    with projects.start(project, "-m", "stages.train") as stage:
        assert stage.stdout is not None
        for line in stage.stdout:
            for epoch in (AFTER_IMPORTS, EPOCHS):
                if line.startswith(f"epoch {epoch}/{EPOCHS}:"):
                    marks[epoch] = time.perf_counter(), processor_seconds(child(stage.pid))
    assert stage.returncode == 0
    (start, before), (end, after) = marks[AFTER_IMPORTS], marks[EPOCHS]
    return {
        "epochs": EPOCHS - AFTER_IMPORTS,
        "training_seconds": end - start,
        "recorder_processor_seconds": after - before,
        "share": (after - before) / (end - start),
        "start_processor_seconds": before,
    }


def child(parent: int) -> int:
    """Return the id of the only child process of `parent`, the MLflow process."""
    (pid,) = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return int(pid)


def processor_seconds(pid: int) -> float:
    """Return the processor seconds that a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Measure decoding, and recording to MLflow.")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of decode (default: 3)")
    projects.add_data_argument(parser)
    arguments = parser.parse_args()
    projects.check_data(arguments.data)
    with tempfile.TemporaryDirectory(prefix="around-") as work:
        content = {
            "machine": machine.describe_with_commit(("pillow", "mlflow", "torch", "numpy")),
            "decode": decode(Path(work), arguments.data, arguments.rounds),
            "recorder": recorder(Path(work), arguments.data),
        }
    files.write_json(OUT, content)
    for part in ("decode", "recorder"):
        print(f"{part}: {content[part]}")


if __name__ == "__main__":
    process.run(main)
