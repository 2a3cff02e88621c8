"""A copy of the project for each recipe, with its parameters and its data, prepared by the real stages."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from imageclf import files, npy, params, paths, recipes, splits, yaml12
from imageclf.partition import stratified

ROOT = Path(__file__).resolve().parents[1]
DATA = Path("../shared/datasets")
"""Where the archives are, unless told otherwise: mnist/*.gz and cifar10-images.tar.xz."""

EVERYBODY: dict[str, Any] = {
    "val_fraction": 0.1,  # ours validates after each epoch, on images that nobody trains on
    "runtime.device": "cpu",
    "runtime.tracking": True,
    "runtime.progress": True,
    "runtime.threads": "auto",
}
"""What the benchmark changes in every recipe."""

CHANGES: dict[str, dict[str, Any]] = {
    # A few batches cannot show what these are for, and each would be another's implementation to compare.
    "vgg-cifar10": {
        "shift": 0,
        "flip": False,
        "label_smoothing": 0.0,
        "weight_decay": 0.0,
        "schedule": "constant",
        "lr": 0.01,
    },
}
"""What it changes in one."""


def make(folder: Path, recipe: str, images: int | None, data: Path) -> int:
    """Fill `folder` with a copy of the project that trains `recipe`, on `images` train images (None: all).

    Returns how many there are in all.
    """
    for name in ("src", "stages"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(ROOT / paths.PIPELINE, folder / paths.PIPELINE)
    content = recipes.merge(yaml12.read(ROOT / paths.PARAMS), values(recipe, data))
    files.write_json(folder / paths.PARAMS, content)  # JSON is YAML too
    params.load(folder / paths.PARAMS)
    for stage in ("download", "preprocess"):
        run(folder, "-m", f"stages.{stage}", IMAGECLF_MIRROR=str(data.resolve()))
    whole = splits.read(folder / paths.PROCESSED).manifest["counts"]["train"]
    if images is not None:
        thin(folder / paths.PROCESSED, images)
    return whole


def values(recipe: str, data: Path) -> dict[str, Any]:
    """The recipe's parameters here: CIFAR-10 comes as a folder of images."""
    found = recipes.read(ROOT / recipes.RECIPES)[recipe]
    if found["dataset"] == "cifar10":
        found |= {"dataset": "folder", "folder": str((data / "cifar10-images.tar.xz").resolve())}
    return {**found, **EVERYBODY, **CHANGES.get(recipe, {})}


def thin(folder: Path, images: int) -> None:
    """Keep `images` of the train images in prepared data, and as large a share of the other splits."""
    data = splits.read(folder)
    share = min(1.0, images / data.manifest["counts"]["train"])
    counts: dict[str, int] = {}
    digests: dict[str, str] = {}
    for split in data.manifest["counts"]:
        part = data[split]
        rows = np.flatnonzero(stratified(part.labels, share, seed=0))
        counts[split] = len(rows)
        for file, array in zip(splits.split_files(split), (part.images, part.targets), strict=True):
            npy.write(folder / file, array[rows], digests)
    unsigned = {key: value for key, value in data.manifest.items() if key != "sha256"}
    files.write_manifest(folder / splits.MANIFEST, {**unsigned, "counts": counts, "files": digests})


def run(folder: Path, *arguments: str, **environment: str) -> None:
    """Run Python in `folder`; raises `RuntimeError` with the end of what it said if it fails."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("DVC_", "MLFLOW_", "IMAGECLF_"))}
    with subprocess.Popen(
        [sys.executable, *arguments],
        cwd=folder,
        env={
            **clean,
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")]),
            "IMAGECLF_CACHE": str(folder.parent.resolve() / "archives"),
            **environment,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        try:
            said, _ = process.communicate()
        except BaseException:
            process.terminate()  # not kill: it may have a stage to end
            raise
    if process.returncode:
        raise RuntimeError(f"{' '.join(arguments)} exited {process.returncode}:\n{said[-4000:]}")


def take(path: Path) -> dict[str, Any]:
    """What a contestant left; it is gone after that, so that no later one is taken for it."""
    content = json.loads(path.read_text())
    path.unlink()
    return content
