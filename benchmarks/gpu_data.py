"""Data and recipes for the GPU benchmark, written on a machine with the project installed."""

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks import ROOT
from imageclf.contracts.preparation import Preparation
from imageclf.contracts.raw import RawData
from imageclf.core import cores, files
from imageclf.download import pack
from imageclf.download.datasets import DATASETS
from imageclf.preprocess import folder
from imageclf.preprocess.prepare import prepare
from imageclf.study import recipes

PREPARATION = Preparation()
OTHERS: dict[str, Any] = {"classes": None, "val_fraction": 0.0, "split_seed": 0, "one_hot": False}
"""Parameters of preprocess, equal in all measured recipes, as is the preparation."""


def write_recipes(names: Iterable[str], path: Path) -> None:
    """Write the parameters of the named recipes as JSON: the GPU machine has no package that reads YAML."""
    book = recipes.read(ROOT / recipes.RECIPES)
    files.write_json(path, {name: book[name] for name in names})


def write_data(archives: Path, out: Path) -> None:
    """Write `out`/mnist and `out`/cifar10 from `archives`; raises `UserError` if these are missing or damaged.

    The recipes differ in `normalize`, which training applies: the mean and the standard deviation are always stored.
    """
    source = DATASETS["mnist"]
    for name, archive in source.files.items():
        files.verify(archives / "mnist" / name, archive.sha256, made_by="download")
    write_set(source.read(archives / "mnist"), "mnist", out / "mnist")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        packed = Path(scratch) / "raw"
        pack.pack(archives / "cifar10-images.tar.xz", packed, progress=True)
        raw = folder.read(packed, image_size=None, workers=cores.allowed_cores(), progress=True)
        write_set(raw, "folder", out / "cifar10")


def write_set(raw: RawData, dataset: str, out: Path) -> None:
    """Write one prepared data set and print its sizes."""
    manifest = prepare(raw, out, dataset=dataset, normalize="standard", preparation=PREPARATION, **OTHERS)
    print(f"{out}: {manifest.counts} images of {'x'.join(map(str, manifest.image_shape))}")
