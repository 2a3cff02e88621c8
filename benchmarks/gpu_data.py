"""MNIST and CIFAR-10 prepared for the GPU benchmark, by the project's own preprocessing, where it is installed."""

import tempfile
from pathlib import Path

from imageclf import cores, files, folder, pack
from imageclf.datasets import DATASETS
from imageclf.prepare import prepare
from imageclf.raw import RawData


def make(archives: Path, out: Path) -> None:
    """Write `out`/mnist and `out`/cifar10 from `archives`; raises `UserError` where these are missing or damaged.

    All training images, targets as indices: what every recipe of the benchmark asks for. How a recipe normalizes
    is decided in training, from the mean and the deviation that are measured here in any case.
    """
    source = DATASETS["mnist"]
    for name, archive in source.files.items():
        files.verify(archives / "mnist" / name, archive.sha256, made_by="download")
    _write(source.read(archives / "mnist"), "mnist", out / "mnist")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        packed = Path(scratch) / "raw"
        pack.pack(archives / "cifar10-images.tar.xz", packed, progress=True)
        raw = folder.read(packed, image_size=None, workers=cores.allowed_cores(), progress=True)
        _write(raw, "folder", out / "cifar10")


def _write(raw: RawData, dataset: str, out: Path) -> None:
    manifest = prepare(
        raw,
        out,
        dataset=dataset,
        classes=None,
        val_fraction=0.0,
        split_seed=0,
        grayscale=False,
        image_size=None,
        pad=0,
        normalize="standard",
        permute_seed=None,
        one_hot=False,
    )
    print(f"{out}: {manifest['counts']} images of {'x'.join(map(str, manifest['image_shape']))}")
