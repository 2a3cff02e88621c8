"""Prepare splits from labeled images: select classes, split, transform, measure, write.

The images are read in chunks, so that only the labels and one chunk of images are in memory.
"""

import difflib
import math
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from imageclf.contracts.dataset import (
    MANIFEST,
    PERMUTATION,
    WHITENING,
    WHITENING_MEAN,
    DatasetManifest,
    split_files,
    write_manifest,
)
from imageclf.contracts.preparation import Preparation, Shape
from imageclf.contracts.raw import Images, Pixels, RawData
from imageclf.core import files
from imageclf.core.errors import UserError
from imageclf.preprocess import npy, whitening
from imageclf.preprocess.census import take_census
from imageclf.preprocess.partition import Part, partition
from imageclf.preprocess.statistics import histogram, moments
from imageclf.preprocess.transform import apply, draw_permutation

PIECE_BYTES = 2**20
"""Maximum number of bytes of pixels transformed at a time: a resize can make a chunk a thousand times larger."""


def prepare(
    raw: RawData,
    folder: Path,
    *,
    dataset: str,
    classes: list[str] | None,
    val_fraction: float,
    split_seed: int,
    preparation: Preparation,
    normalize: str,
    one_hot: bool,
) -> DatasetManifest:
    """Write the prepared files of `contracts.dataset` into `folder` and return their manifest.

    Raises `UserError` if a class is unknown, or if a split, or a class in train, would have no image.
    """
    chosen = raw if classes is None else keep_classes(raw, classes)
    parts = partition(chosen.splits, chosen.classes, val_fraction, split_seed)
    preparation = preparation.effective(chosen.image_shape)
    shape = preparation.output_shape(chosen.image_shape)
    if normalize == "zca":
        whitening.check(shape)
    digests, mean, std = _write_arrays(chosen, parts, folder, preparation, whiten=normalize == "zca", one_hot=one_hot)
    report = take_census(chosen, parts, other_classes=_count(raw) - _count(chosen))
    manifest = DatasetManifest(
        dataset=dataset,
        classes=list(chosen.classes),
        image_shape=shape,
        counts={part.split: len(part.rows) for part in parts},
        skipped=list(chosen.skipped),
        raw_shape=chosen.image_shape,
        preparation=preparation,
        normalize=normalize,
        mean=mean,
        std=std,
        files=dict(sorted(digests.items())),
        **report._asdict(),
    )
    files.keep_only(folder, {MANIFEST, *digests})
    return write_manifest(folder, manifest)


def keep_classes(raw: RawData, classes: list[str]) -> RawData:
    """Return the images of `classes` only, with indices in this order. Raises `UserError` for an unknown class.

    Names are compared in the composed form of Unicode (NFC), so that names that look equal are equal.
    """
    known = {unicodedata.normalize("NFC", name): number for number, name in enumerate(raw.classes)}
    wanted = [unicodedata.normalize("NFC", name) for name in classes]
    for name in wanted:
        if name not in known:
            (nearest,) = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            raise UserError(f"classes: {name!r} is not one of the {len(known)} classes; the nearest is {nearest!r}")
    index = np.full(len(raw.classes), -1)
    numbers = [known[name] for name in wanted]
    index[numbers] = np.arange(len(numbers))
    splits = {split: _labelled(images, index) for split, images in raw.splits.items()}
    return replace(raw, splits=splits, classes=tuple(raw.classes[number] for number in numbers))


def _count(raw: RawData) -> int:
    return sum(len(images.labels) for images in raw.splits.values())


def _labelled(images: Images, index: NDArray[np.int64]) -> Images:
    """Return the images with the labels index[old], without those whose new label is negative."""
    labels = index[images.labels]
    kept = labels >= 0

    def chunks() -> Iterator[Pixels]:
        start = 0
        for chunk in images.chunks():
            yield chunk[kept[start : start + len(chunk)]]
            start += len(chunk)

    return Images(labels[kept], chunks, None if images.facts is None else images.facts[kept])


def _write_arrays(
    raw: RawData, parts: list[Part], folder: Path, preparation: Preparation, *, whiten: bool, one_hot: bool
) -> tuple[dict[str, str], list[float], list[float]]:
    """Write all arrays; return the SHA-256 of each file, and mean and std per channel of the train split."""
    digests: dict[str, str] = {}
    shape = preparation.output_shape(raw.image_shape)
    permutation = draw_permutation(preparation, shape)
    transform = partial(apply, preparation, permutation)
    mean, std = moments(_write_images(raw, parts, folder, digests, transform=transform, shape=shape))
    _write_targets(raw, parts, one_hot, folder, digests)
    if permutation is not None:
        npy.write(folder / PERMUTATION, permutation, digests)
    if whiten:
        train = np.load(folder / split_files("train")[0], mmap_mode="r", allow_pickle=False)
        for file, array in zip((WHITENING_MEAN, WHITENING), whitening.measure(train), strict=True):
            npy.write(folder / file, array, digests)
    return digests, mean, std


def _write_images(
    raw: RawData,
    parts: list[Part],
    folder: Path,
    digests: dict[str, str],
    *,
    transform: Callable[[Pixels], Pixels],
    shape: Shape,
) -> NDArray[np.int64]:
    """Write each split's images, transformed to `shape`; return the histogram of the train split, (channels, 256)."""
    levels = np.zeros((shape[0], 256), np.int64)
    most = max(1, PIECE_BYTES // max(math.prod(raw.image_shape), math.prod(shape)))
    with ExitStack() as stack:
        writers = {
            part.split: stack.enter_context(
                npy.writing(folder / split_files(part.split)[0], (len(part.rows), *shape), digests)
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
    """Yield all images as (origin, at most `most` images, row of the first of them)."""
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
