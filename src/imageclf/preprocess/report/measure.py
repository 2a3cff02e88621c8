"""Measure the prepared data for the report: counts, copies of images, and what is wrong with them."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from imageclf.contracts.dataset import PERMUTATION, DatasetManifest, split_files
from imageclf.preprocess.report import near
from imageclf.preprocess.report.record import DataReport, Near

FEW = 10
"""A class with fewer train images is reported."""

UNEQUAL = 10
"""An imbalance above this is reported."""

MOST_PAIRS = 10**9
"""Largest number of pairs of a test and a train image that are compared; 10,000 times 50,000 take 15 to 30 seconds."""

SPLITS = ("train", "val", "test")

Digests = dict[str, NDArray[np.uint64]]
"""The first eight bytes of the SHA-256 of the pixels of each image, (N,), by split."""


def measure(folder: Path, manifest: DatasetManifest) -> DataReport:
    """Return the report on the prepared data in `folder`. Near-duplicates are searched in your own images only."""
    splits = [split for split in SPLITS if split in manifest.counts]
    labels = {split: _labels(folder, split) for split in splits}
    digests = {split: _digests(_images(folder, split)) for split in splits}
    counts = {split: np.bincount(labels[split], minlength=len(manifest.classes)) for split in splits}
    found, skipped = _near(folder, manifest)
    shared, relabeled = _shared(digests), _relabeled(digests, labels)
    imbalance = float(counts["train"].max() / max(counts["train"].min(), 1))
    return DataReport(
        counts={split: dict(zip(manifest.classes, map(int, each), strict=True)) for split, each in counts.items()},
        imbalance=round(imbalance, 2),
        left_out=dict(Counter(each.reason for each in manifest.skipped).most_common()),
        traits=manifest.census.traits if manifest.census else {},
        repeated={split: len(each) - len(np.unique(each)) for split, each in digests.items()},
        shared=shared,
        relabeled=relabeled,
        near=found,
        near_skipped=skipped,
        warnings=list(_warnings(manifest, shared, relabeled, counts["train"], found)),
    )


def _images(folder: Path, split: str) -> NDArray[np.uint8]:
    return np.load(folder / split_files(split)[0], mmap_mode="r", allow_pickle=False)


def _labels(folder: Path, split: str) -> NDArray[np.int64]:
    targets = np.load(folder / split_files(split)[1], mmap_mode="r", allow_pickle=False)
    return targets.argmax(axis=1) if targets.ndim == 2 else np.asarray(targets)


def _digests(images: NDArray[np.uint8]) -> NDArray[np.uint64]:
    return np.frombuffer(b"".join(hashlib.sha256(image).digest()[:8] for image in images), np.uint64)


def _shared(digests: Digests) -> dict[str, int]:
    """Return how many images of val are in train, and how many of test are in train or val."""
    seen, counts = digests["train"], {}
    for split in ("val", "test"):
        if split in digests:
            counts[split] = int(np.isin(digests[split], seen).sum())
            seen = np.concatenate([seen, digests[split]])
    return counts


def _relabeled(digests: Digests, labels: dict[str, NDArray[np.int64]]) -> int:
    """Return the number of different images that have more than one class."""
    _, numbers = np.unique(np.concatenate(list(digests.values())), return_inverse=True)
    classes = np.concatenate([labels[split] for split in digests])
    different = np.unique(np.stack([numbers, classes]), axis=1)
    return int((np.bincount(different[0]) > 1).sum())


def _near(folder: Path, manifest: DatasetManifest) -> tuple[Near | None, str | None]:
    """Return the near-duplicates, or the reason why they were not searched."""
    if manifest.census is None:
        return None, "only your own images are searched"
    if manifest.counts["test"] * manifest.counts["train"] > MOST_PAIRS:
        return None, f"there are more than {MOST_PAIRS:,} pairs of a test and a train image"
    permutation = np.load(folder / PERMUTATION, allow_pickle=False) if PERMUTATION in manifest.files else None
    return near.find(_images(folder, "train"), _images(folder, "test"), permutation), None


def _warnings(
    manifest: DatasetManifest,
    shared: dict[str, int],
    relabeled: int,
    train: NDArray[np.int64],
    found: Near | None,
) -> Iterator[str]:
    test = manifest.counts["test"]
    if manifest.census and (hidden := manifest.census.traits.get("hidden")):
        yield (
            f"{hidden:,} of {manifest.census.used:,} images show almost nothing, because their transparent pixels "
            "become black; put dark drawings on white first, also those to predict, for example with ImageMagick: "
            "mogrify -background white -alpha remove FOLDER/*/*.png"
        )
    if shared["test"]:
        yield (
            f"{shared['test']:,} of {test:,} test images have the same pixels as one in train or val, so the test "
            "scores are too good; keep each image in one split"
        )
    if found is not None and found.count:
        yield (
            f"{found.count:,} of {test:,} test images have a near-duplicate in train (see near_duplicates.png), so the "
            "test scores may be too good; keep pictures of one scene in one split"
        )
    if relabeled:
        yield (
            f"{_counted(relabeled, 'picture is', 'pictures are')} in more than one class, compared by the pixels; "
            "keep each in the right one"
        )
    few = np.flatnonzero(train < FEW)
    if len(few):
        names = _first([manifest.classes[number] for number in few])
        classes = _counted(len(few), "class has", "classes have")
        yield f"{classes} fewer than {FEW} train images ({names}); add images, or leave the classes out"
    if train.max() > UNEQUAL * train.min():
        yield (
            f"the largest class has {train.max() / max(train.min(), 1):,.0f} times the train images of the smallest; "
            "look at the balanced accuracy, and try class_weights=balanced"
        )


def _counted(number: int, one: str, several: str) -> str:
    return f"{number:,} {one if number == 1 else several}"


def _first(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(map(repr, names[:most])) + (", ..." if len(names) > most else "")
