"""What the pipeline does around the training, in seconds: about ten minutes on 2 cores.

    uv run python -m benchmarks.around

decode: the 60,000 JPEG files of the CIFAR-10 archive to prepared arrays, beside a plain loop of tarfile and Pillow in
one process; in turn, medians. recorder: the processor time that MLflow's process takes in 100 epochs of fc500, once
its imports are done, beside the time of those epochs. Writes docs/around.json. Nothing else should run meanwhile.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import machine, projects
from imageclf import errors, files, paths, yaml12
from imageclf.errors import UserError
from imageclf.raw import IMAGES_TAR

OUT = Path("docs/around.json")
EPOCHS = 100
SETTLED = 12
"""Epochs after which MLflow's imports are done: ten seconds and more."""


def plain_loop(tar: Path) -> tuple[float, int]:
    """Seconds, and images, of what one writes first: every member opened, decoded, made an array, all kept."""
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
    """Of a stage as DVC starts it, a process of its own."""
    start = time.perf_counter()
    projects.run(project, "-m", f"stages.{stage}")
    return time.perf_counter() - start


def decode(work: Path, data: Path, rounds: int) -> dict[str, Any]:
    """Preprocess beside the plain loop over the same tar, and with the packing beside the loop over the archive."""
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
    """The recorder's processor seconds from one epoch to another, and between them the clock's."""
    project = work / "fc500"
    projects.make(project, "fc500", None, data)
    files.write_json(project / paths.PARAMS, {**yaml12.read(project / paths.PARAMS), "epochs": EPOCHS})
    marks: dict[int, tuple[float, float]] = {}
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(projects.ROOT), str(projects.ROOT / "src")])}
    with subprocess.Popen(
        [sys.executable, "-m", "stages.train"], cwd=project, env=environment, stdout=subprocess.PIPE, text=True
    ) as stage:
        assert stage.stdout is not None
        for line in stage.stdout:
            for epoch in (SETTLED, EPOCHS):
                if line.startswith(f"epoch {epoch}/{EPOCHS}:"):
                    marks[epoch] = time.perf_counter(), processor_seconds(child(stage.pid))
    assert stage.returncode == 0
    (start, before), (end, after) = marks[SETTLED], marks[EPOCHS]
    return {
        "epochs": EPOCHS - SETTLED,
        "training_seconds": end - start,
        "recorder_processor_seconds": after - before,
        "share": (after - before) / (end - start),
        "start_processor_seconds": before,
    }


def child(parent: int) -> int:
    """The one process that `parent` has started: the recorder."""
    (pid,) = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return int(pid)


def processor_seconds(pid: int) -> float:
    """What a process has taken of the processor so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Seconds around the training: decoding, and MLflow's recorder.")
    parser.add_argument("--rounds", type=int, default=3, help="of decode (default 3)")
    parser.add_argument("--data", type=Path, default=projects.DATA, help=f"the archives (default {projects.DATA})")
    arguments = parser.parse_args()
    if not arguments.data.is_dir():
        raise UserError(f"{arguments.data} is not here: --data names the folder of mnist/ and cifar10-images.tar.xz")
    with tempfile.TemporaryDirectory(prefix="around-") as work:
        content = {
            "machine": machine.describe(("pillow", "mlflow", "torch", "numpy")),
            "decode": decode(Path(work), arguments.data, arguments.rounds),
            "recorder": recorder(Path(work), arguments.data),
        }
    files.write_json(OUT, content)
    for part in ("decode", "recorder"):
        print(f"{part}: {content[part]}")


if __name__ == "__main__":
    errors.run(main)
