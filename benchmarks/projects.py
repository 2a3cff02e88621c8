"""Copies of the project, one for each recipe, with parameters and data that the real stages have prepared."""

import argparse
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import ROOT
from imageclf import params, yaml12
from imageclf.contracts import dataset
from imageclf.core import files, paths
from imageclf.core.errors import UserError
from imageclf.preprocess import npy
from imageclf.preprocess.partition import stratified
from imageclf.study import recipes

COMMON_CHANGES: dict[str, Any] = {
    "val_fraction": 0.1,  # imageclf validates after each epoch, on images that no competitor trains on
    "runtime.device": "cpu",
    "runtime.tracking": True,
    "runtime.progress": True,
    "runtime.threads": "auto",
}
"""Parameters that the benchmarks change in every recipe."""

CHANGES: dict[str, dict[str, Any]] = {
    # These have no effect worth measuring in a few batches, and each framework implements them in another way.
    "vgg-cifar10": {
        "shift": 0,
        "flip": False,
        "label_smoothing": 0.0,
        "weight_decay": 0.0,
        "schedule": "constant",
        "lr": 0.01,
    },
}
"""Parameters that they change in one recipe."""


def add_data_argument(parser: argparse.ArgumentParser) -> None:
    """Add --data, the folder of the archives."""
    parser.add_argument(
        "--data",
        type=Path,
        default=Path("../shared/datasets"),
        help="folder with mnist/*.gz and cifar10-images.tar.xz (default: %(default)s)",
    )


def add_arguments(parser: argparse.ArgumentParser, out: Path) -> None:
    """Add --data, and the arguments of a benchmark that publishes a page."""
    add_data_argument(parser)
    parser.add_argument("--out", type=Path, default=out, help="write OUT.json, OUT.md, OUT.png (default: %(default)s)")
    parser.add_argument("--redraw", action="store_true", help="write OUT.md and OUT.png from OUT.json; measure nothing")


def check_data(folder: Path) -> None:
    """Raise `UserError` if the folder of the archives does not exist."""
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist; name the folder of mnist/ and cifar10-images.tar.xz with --data")


def make(folder: Path, recipe: str, images: int | None, data: Path) -> int:
    """Fill `folder` with a copy of the project that trains `recipe` on `images` train images (None: all).

    Returns the number of train images before that selection.
    """
    copy_code(folder)
    content = recipes.merge(yaml12.read(ROOT / paths.PARAMS), parameters(recipe, data))
    files.write_json(folder / paths.PARAMS, content)  # JSON is valid YAML
    params.load(folder / paths.PARAMS)
    for stage in ("check", "list", "download", "preprocess", "weights"):
        run(folder, "-m", f"stages.{stage}", IMAGECLF_MIRROR=str(data.resolve()))
    whole = dataset.read(folder / paths.PROCESSED).manifest.counts["train"]
    if images is not None:
        subsample(folder / paths.PROCESSED, images)
    return whole


def copy_code(folder: Path) -> None:
    """Copy the stages, the library and dvc.yaml to `folder`."""
    for name in ("src", "stages"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(ROOT / paths.PIPELINE, folder / paths.PIPELINE)


def parameters(recipe: str, data: Path) -> dict[str, Any]:
    """Return the recipe's parameters with the changes; CIFAR-10 is read from a folder of images."""
    found = recipes.read(ROOT / recipes.RECIPES)[recipe]
    if found["dataset"] == "cifar10":
        found |= {"dataset": "folder", "folder": str((data / "cifar10-images.tar.xz").resolve())}
    return {**found, **COMMON_CHANGES, **CHANGES.get(recipe, {})}


def subsample(folder: Path, images: int) -> None:
    """Keep `images` of the train images in prepared data, and the same share of the other splits."""
    data = dataset.read(folder)
    share = min(1.0, images / data.manifest.counts["train"])
    counts: dict[str, int] = {}
    digests: dict[str, str] = {}
    for split in data.manifest.counts:
        part = data[split]
        rows = np.flatnonzero(stratified(part.labels, share, seed=0))
        counts[split] = len(rows)
        for file, array in zip(dataset.split_files(split), (part.images, part.targets), strict=True):
            npy.write(folder / file, array[rows], digests)
    dataset.write_manifest(folder, replace(data.manifest, counts=counts, files=digests))


def run(folder: Path, *arguments: str, **environment: str) -> None:
    """Run Python in `folder`; raises `RuntimeError` with the end of its output if it fails."""
    with start(folder, *arguments, **environment) as process:
        try:
            printed, _ = process.communicate()
        except BaseException:
            process.terminate()  # not kill: it may have to stop a stage
            raise
    if process.returncode:
        raise RuntimeError(f"{' '.join(arguments)} exited with {process.returncode}:\n{printed[-4000:]}")


def start(folder: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Start Python in `folder` with this working tree's modules; its output and its errors are one stream."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("DVC_", "MLFLOW_", "IMAGECLF_"))}
    search = os.pathsep.join([str(ROOT), str(ROOT / "src")])
    cache = str(folder.parent.resolve() / "archives")
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=folder,
        env={**clean, "PYTHONPATH": search, "IMAGECLF_CACHE": cache, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )


def take_result(path: Path) -> dict[str, Any]:
    """Return the content of a result file and delete it, so that it is not read as a later result."""
    content = json.loads(path.read_text())
    path.unlink()
    return content
