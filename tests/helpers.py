"""Functions and values that several test files share."""

import bz2
import gzip
import io
import lzma
import random
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from imageclf import models
from imageclf.contracts import model
from imageclf.contracts.dataset import DatasetManifest, Split
from imageclf.contracts.model import ModelSpec
from imageclf.contracts.preparation import Preparation
from imageclf.contracts.raw import Images, Pixels, RawData
from imageclf.download import pack
from imageclf.preprocess import images
from imageclf.preprocess.prepare import prepare
from imageclf.training.loading.batches import Batches, Normalize

Shape = tuple[int, int, int]
"""Channels, height and width of an image."""

COLOR: Shape = (3, 32, 32)

Files = dict[str, bytes]
"""Contents of files by their names."""

PREPARATION: dict[str, Any] = {
    "dataset": "made",
    "classes": None,
    "val_fraction": 0.0,
    "split_seed": 0,
    "normalize": "standard",
    "one_hot": False,
}
"""Arguments of `prepare_with` that leave the pixels unchanged."""


UNCHANGED = Preparation()


def new_manifest(**changes: Any) -> DatasetManifest:
    """Return the manifest of gray images of 4x4 pixels in two classes, with changes."""
    content: dict[str, Any] = {
        "dataset": "made",
        "classes": ["a", "b"],
        "image_shape": (1, 4, 4),
        "counts": {"train": 1, "test": 1},
        "skipped": [],
        "raw_shape": (1, 4, 4),
        "preparation": UNCHANGED,
        "normalize": "unit",
        "mean": [0.5],
        "std": [0.5],
        "files": {},
    }
    return DatasetManifest(**{**content, **changes})


def new_spec(**changes: Any) -> ModelSpec:
    """Return the spec of a small mlp on gray images of 4x4 pixels in two classes, with changes."""
    content: dict[str, Any] = {
        "model": "mlp",
        "arguments": {"hidden": [8], "dropout": 0.0},
        "raw_shape": (1, 4, 4),
        "image_shape": (1, 4, 4),
        "classes": ["a", "b"],
        "preparation": UNCHANGED,
        "permutation": None,
        "normalization": ([0.0], [1.0]),
        "loss": "cross_entropy",
        "data_sha256": "0" * 64,
        "epoch": 3,
    }
    return ModelSpec(**{**content, **changes})


def save_model(folder: Path, spec: ModelSpec, *, seed: int = 0, whitening: tuple[Any, Any] | None = None) -> ModelSpec:
    """Write a freshly initialized net to `folder`, as train does; return the complete spec."""
    torch.manual_seed(seed)
    net = models.build(spec.model, spec.image_shape, len(spec.classes), **spec.arguments)
    return model.write(folder, spec, net.state_dict(), whitening)


def prepare_with(raw: RawData, folder: Path, **changes: Any) -> DatasetManifest:
    """Call `prepare` with `PREPARATION` and changes; the steps of the preparation are given by their names."""
    values = {**PREPARATION, **changes}
    names = {field.name for field in fields(Preparation)} & values.keys()
    preparation = Preparation(**{name: values.pop(name) for name in names})
    return prepare(raw, folder, **values, preparation=preparation)


def num_parameters(net: nn.Module) -> int:
    return sum(weights.numel() for weights in net.parameters())


def layers_of(net: nn.Module, kind: type[Any]) -> list[Any]:
    """Return the layers of a class, in the order in which they were created."""
    return [layer for layer in net.modules() if isinstance(layer, kind)]


def batches_of(split: Split, batch_size: int) -> Batches:
    """Return batches on the CPU, with mean 0.5 and standard deviation 0.25."""
    return Batches(split, Normalize(([0.5], [0.25])), batch_size, torch.device("cpu"))


def decoded(split: Images) -> Pixels:
    """Return all chunks as one array."""
    return np.concatenate(list(split.chunks()))


def decode(data: bytes, image_size: int | None = None, gray16_bits: int = 16) -> Pixels:
    """Return the pixels (3, height, width) of an image file."""
    with images.without_warnings():
        return np.asarray(images.to_rgb(data, image_size, gray16_bits).image).transpose(2, 0, 1)


def encode(image: Image.Image | NDArray[Any], kind: str = "PNG", **options: Any) -> bytes:
    """Return an image file."""
    stream = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(stream, kind, **options)
    return stream.getvalue()


def noise(seed: int, height: int = 8, width: int = 8, channels: int = 3) -> NDArray[np.uint8]:
    """Return random pixels (height, width, channels), or (height, width) for one channel."""
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(256, size=shape, dtype=np.uint8)


def noise_png(seed: int, height: int = 6, width: int = 5) -> bytes:
    """Return a PNG file of random pixels in color."""
    return encode(noise(seed, height, width))


def png_size(path: Path) -> tuple[int, int]:
    """Return width and height of a PNG file, all of which can be read."""
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        picture.load()
        return picture.size


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, *, depth: int = 8, color: int = 2, data: bytes = b"") -> bytes:
    """Return a PNG file with this header and compressed data; `color` is 0 for gray, 2 for RGB."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", data) + png_chunk(b"IEND", b"")


def pets() -> Files:
    """Return twelve images in train and four in test, of the classes cat and dog."""
    files = {f"train/{name}/{number}.png": noise_png(number) for number in range(6) for name in ("cat", "dog")}
    tests = {f"test/{name}/{number}.png": noise_png(90 + number) for number in range(2) for name in ("cat", "dog")}
    return files | tests


def as_directory(path: Path, files: Files) -> Path:
    """Write files below `path`."""
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def tar_member(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, target: str = "") -> tarfile.TarInfo:
    """Return the header of a member of a tar; `target` is that of a link."""
    member = tarfile.TarInfo(name)
    member.type, member.size, member.linkname = kind, size, target
    return member


def tar_bytes(files: Files, *extra: tarfile.TarInfo, prefix: str = "", **options: Any) -> bytes:
    """Return a tar with these files, whose times, modes and owners are unusual, and with extra members."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", **options) as tar:
        for name, content in files.items():
            member = tar_member(prefix + name, size=len(content))
            member.mtime, member.mode, member.uid = 1_700_000_000, 0o777, 1000
            tar.addfile(member, io.BytesIO(content))
        for member in extra:
            tar.addfile(member, io.BytesIO(bytes(max(member.size, 0))) if member.isreg() else None)
    return stream.getvalue()


def as_tar(path: Path, files: Files, compress: Callable[[bytes], bytes] = bytes, **options: Any) -> Path:
    path.write_bytes(compress(tar_bytes(files, **options)))
    return path


def zip_bytes(files: Files, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


def as_zip(path: Path, files: Files, method: int = zipfile.ZIP_DEFLATED) -> Path:
    path.write_bytes(zip_bytes(files, method))
    return path


def shuffle(files: Files) -> Files:
    """Return the files in another order."""
    order = list(files.items())
    random.Random(3).shuffle(order)
    return dict(order)


FORMS: dict[str, Callable[[Path, Files], Path]] = {
    "directory": as_directory,
    "tar": as_tar,
    "tar in pax": lambda path, files: as_tar(path, files, format=tarfile.PAX_FORMAT),
    "tar from ./": lambda path, files: as_tar(path, files, prefix="./"),
    "tar.gz": lambda path, files: as_tar(path, files, gzip.compress),
    "tar.bz2": lambda path, files: as_tar(path, files, bz2.compress),
    "tar.xz": lambda path, files: as_tar(path, files, lzma.compress),
    "zip": as_zip,
    "zip, stored": lambda path, files: as_zip(path, files, zipfile.ZIP_STORED),
}
"""Writers of your own images in each form that `folder` may have."""


def packed(origin: Path, raw: Path) -> dict[str, Any]:
    """Pack your own images; return the manifest by field."""
    return vars(pack.pack(origin, raw, progress=False))
