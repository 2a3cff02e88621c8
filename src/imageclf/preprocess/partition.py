"""Split images into train, val and test: as the source does, or by stratified random sampling."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from imageclf.contracts.raw import Images
from imageclf.core.errors import UserError

TEST_FRACTION, TEST_SEED = 0.2, 0
"""Fraction and seed of a test split that the source does not have: constants, so that all results are comparable."""


class Part(NamedTuple):
    """A split: the indices `rows`, ascending, of images of `origin`, a split of the source.

    drawn: (fraction, seed) if the rows were drawn at random.
    """

    split: str
    origin: str
    rows: NDArray[np.intp]
    drawn: tuple[float, int] | None = None


def partition(images: dict[str, Images], classes: Sequence[str], val_fraction: float, split_seed: int) -> list[Part]:
    """Assign each image to a split. `val_fraction` and `split_seed` do not apply if the source has a val split.

    A class with a single image keeps it in train. Raises `UserError` if `val_fraction` leaves no training image of a
    larger class, or if a split has no image.
    """
    labels = images["train"].labels
    rows, parts = np.arange(len(labels)), []
    if "test" not in images:
        rows, held = _hold_out(rows, labels, TEST_FRACTION, TEST_SEED, classes)
        parts.append(Part("test", "train", held, (TEST_FRACTION, TEST_SEED)))
    if "val" not in images and val_fraction > 0:
        rows, held = _hold_out(rows, labels, val_fraction, split_seed, classes)
        parts.append(Part("val", "train", held, (val_fraction, split_seed)))
    named = (Part(split, split, np.arange(len(images[split].labels))) for split in ("val", "test") if split in images)
    parts = [Part("train", "train", rows), *parts, *named]
    for part in parts:
        if len(part.rows) == 0 and part.split == "val":
            raise UserError(
                f"val_fraction: {val_fraction} of these {len(labels):,} images leaves none for val; "
                "set it to 0 to train on all images"
            )
        if len(part.rows) == 0:
            raise UserError(f"these {len(labels):,} images leave none for {part.split}")
    return parts


def stratified(labels: NDArray[np.int64], fraction: float, seed: int) -> NDArray[np.bool_]:
    """Return a mask of round(fraction * N) random rows; the count per class is within one of fraction * count."""
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    steps = np.floor(np.arange(len(labels) + 1) * fraction + 0.5)
    mask = np.zeros(len(labels), bool)
    mask[by_class[np.diff(steps) > 0]] = True
    return mask


def missing_classes(part: Part, images: dict[str, Images], classes: Sequence[str]) -> list[str]:
    """Return the classes without images in a split."""
    counts = np.bincount(images[part.origin].labels[part.rows], minlength=len(classes))
    return [name for name, count in zip(classes, counts, strict=True) if count == 0]


def first_names(names: Sequence[str], most: int = 10) -> str:
    """Return up to `most` names, quoted."""
    return ", ".join(map(repr, names[:most])) + (", ..." if len(names) > most else "")


def _hold_out(
    rows: NDArray[np.intp], labels: NDArray[np.int64], fraction: float, seed: int, classes: Sequence[str]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Draw a stratified fraction of `rows`; return the rest and the drawn ones."""
    mine = labels[rows]
    held = stratified(mine, fraction, seed)
    counts = np.bincount(mine, minlength=len(classes))
    emptied = (counts > 0) & (np.bincount(mine[~held], minlength=len(classes)) == 0)
    if names := [classes[int(label)] for label in np.flatnonzero(emptied & (counts > 1))]:
        # Fewer than fraction * count + 1 images of a class are drawn, so the smallest of these classes keeps one.
        works = math.floor(1000 * (1 - 1 / counts[counts > 1].min())) / 1000
        raise UserError(
            f"val_fraction: {fraction} leaves no image of {first_names(names)} to train on; "
            f"each class needs one; use at most {works}"
        )
    held &= ~emptied[mine]
    return rows[~held], rows[held]
