"""Labelled images to what a net can eat: choose, split, transform, measure, write.

Everything streams: what is in memory is a chunk of images and the labels, however large the set is.
"""

import difflib
import math
import unicodedata
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imageclf import files, npy, whitening
from imageclf.census import census
from imageclf.errors import UserError
from imageclf.partition import Part, partition
from imageclf.pixels import Transform, histogram, moments
from imageclf.raw import Images, Pixels, RawData
from imageclf.splits import MANIFEST, PERMUTATION, WHITENING, WHITENING_MEAN, split_files

PIECE_BYTES = 2**20
"""Pixels transformed at a time: a resize can make a chunk a thousand times larger."""


def prepare(
    raw: RawData,
    folder: Path,
    *,
    dataset: str,
    classes: list[str] | None,
    val_fraction: float,
    split_seed: int,
    grayscale: bool,
    image_size: int | None,
    pad: int,
    normalize: str,
    permute_seed: int | None,
    one_hot: bool,
) -> dict[str, Any]:
    """Write the prepared files of `splits` into `folder` and return their manifest.

    The arguments are the knobs of params.yaml; `permute_seed` is None where the pixels stay in place.
    Raises `UserError` if a class is unknown, and if a split, or a class in train, would be left without an image.
    """
    whole = raw
    raw = raw if classes is None else keep_classes(raw, classes)
    parts = partition(raw.splits, raw.classes, val_fraction, split_seed)
    transform = Transform(
        raw.image_shape, grayscale=grayscale, image_size=image_size, pad=pad, permute_seed=permute_seed
    )
    if normalize == "zca":
        whitening.check(transform.shape)
    digests: dict[str, str] = {}
    mean, std = moments(_write_images(raw, parts, transform, folder, digests))
    _write_targets(raw, parts, one_hot, folder, digests)
    if transform.permutation is not None:
        npy.write(folder / PERMUTATION, transform.permutation, digests)
    if normalize == "zca":
        _write_whitening(folder, digests)
    manifest = {
        "dataset": dataset,
        "classes": list(raw.classes),
        "image_shape": list(transform.shape),
        "counts": {part.split: len(part.rows) for part in parts},
        "skipped": list(raw.skipped),
        "raw_shape": list(raw.image_shape),
        "grayscale": transform.grayscale,
        "image_size": transform.image_size,
        "pad": pad,
        "normalize": normalize,
        "mean": mean,
        "std": std,
        "permute_seed": permute_seed,
        **census(raw, parts, other_classes=_count(whole) - _count(raw)),
        "files": dict(sorted(digests.items())),
    }
    files.write_manifest(folder / MANIFEST, manifest)
    files.keep_only(folder, {MANIFEST, *digests})
    return manifest


def keep_classes(raw: RawData, classes: list[str]) -> RawData:
    """The images of `classes` alone, which count from 0 in the order given; raises `UserError` for an unknown one.

    Names that look alike are alike: both sides are compared in Unicode's composed form (NFC).
    """
    known = {unicodedata.normalize("NFC", name): number for number, name in enumerate(raw.classes)}
    wanted = [unicodedata.normalize("NFC", name) for name in classes]
    for name in wanted:
        if name not in known:
            (nearest,) = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            raise UserError(f"classes: {name!r} is not among the {len(known)} here; the nearest is {nearest!r}")
    index = np.full(len(raw.classes), -1)
    numbers = [known[name] for name in wanted]
    index[numbers] = np.arange(len(numbers))
    splits = {split: _labelled(images, index) for split, images in raw.splits.items()}
    return replace(raw, splits=splits, classes=tuple(raw.classes[number] for number in numbers))


def _count(raw: RawData) -> int:
    return sum(len(images.labels) for images in raw.splits.values())


def _labelled(images: Images, index: NDArray[np.int64]) -> Images:
    """The images with new labels, index[old], without those whose new label is negative."""
    labels = index[images.labels]
    kept = labels >= 0

    def chunks() -> Iterator[Pixels]:
        start = 0
        for chunk in images.chunks():
            yield chunk[kept[start : start + len(chunk)]]
            start += len(chunk)

    return Images(labels[kept], chunks, None if images.facts is None else images.facts[kept])


def _write_images(
    raw: RawData, parts: list[Part], transform: Transform, folder: Path, digests: dict[str, str]
) -> NDArray[np.int64]:
    """Write each split's images; returns how often each level occurs in train, (channels, 256)."""
    levels = np.zeros((transform.shape[0], 256), np.int64)
    most = max(1, PIECE_BYTES // max(math.prod(raw.image_shape), math.prod(transform.shape)))
    with ExitStack() as stack:
        writers = {
            part.split: stack.enter_context(
                npy.writing(folder / split_files(part.split)[0], (len(part.rows), *transform.shape), digests)
            )
            for part in parts
        }
        for origin, piece, start in _pieces(raw.splits, most):
            transformed = transform(piece)
            for part in parts:
                if part.origin == origin:
                    first, last = np.searchsorted(part.rows, (start, start + len(piece)))
                    mine = transformed[part.rows[first:last] - start]
                    writers[part.split].append(mine)
                    if part.split == "train":
                        levels += histogram(mine)
    return levels


def _pieces(images: dict[str, Images], most: int) -> Iterator[tuple[str, Pixels, int]]:
    """(origin, at most `most` images, row of the first of them) through all images."""
    for origin, part in images.items():
        start = 0
        for chunk in part.chunks():
            for first in range(0, len(chunk), most):
                piece = chunk[first : first + most]
                yield origin, piece, start
                start += len(piece)
        if start != len(part.labels):
            raise ValueError(f"{origin}: {start} images for {len(part.labels)} labels")


def _write_targets(raw: RawData, parts: list[Part], one_hot: bool, folder: Path, digests: dict[str, str]) -> None:
    for part in parts:
        targets = raw.splits[part.origin].labels[part.rows]
        if one_hot:
            targets = np.eye(len(raw.classes), dtype=np.uint8)[targets]
        npy.write(folder / split_files(part.split)[1], targets, digests)


def _write_whitening(folder: Path, digests: dict[str, str]) -> None:
    train = np.load(folder / split_files("train")[0], mmap_mode="r", allow_pickle=False)
    mean, matrix = whitening.measure(train)
    npy.write(folder / WHITENING_MEAN, mean, digests)
    npy.write(folder / WHITENING, matrix, digests)
