"""Which images are train, val and test: those that the source names, or stratified random shares."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from imageclf.errors import UserError
from imageclf.raw import Images

TEST_FRACTION, TEST_SEED = 0.2, 0
"""Which images are the test split of a source that names none: constants, so that all results compare."""


class Part(NamedTuple):
    """A split: the rows, ascending, of the origin's images; `drawn` is the (fraction, seed) that chose them, if any."""

    split: str
    origin: str
    rows: NDArray[np.intp]
    drawn: tuple[float, int] | None = None


def partition(images: dict[str, Images], classes: Sequence[str], val_fraction: float, split_seed: int) -> list[Part]:
    """Assign every image to a split. `val_fraction` and `split_seed` do not apply if the source has a val split.

    Every class keeps at least one image to train on: of one that has no more than that, none is drawn. Raises
    `UserError` if `val_fraction` leaves a larger class none, or a split no image.
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
                "0 trains on all of them"
            )
        if len(part.rows) == 0:
            raise UserError(f"these {len(labels):,} images leave none for {part.split}")
    return parts


def stratified(labels: NDArray[np.int64], fraction: float, seed: int) -> NDArray[np.bool_]:
    """A mask of round(fraction * N) random rows, with each class's share within one row of `fraction`."""
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    steps = np.floor(np.arange(len(labels) + 1) * fraction + 0.5)
    mask = np.zeros(len(labels), bool)
    mask[by_class[np.diff(steps) > 0]] = True
    return mask


def without_images(part: Part, images: dict[str, Images], classes: Sequence[str]) -> list[str]:
    """The classes of which a split has no image."""
    counts = np.bincount(images[part.origin].labels[part.rows], minlength=len(classes))
    return [name for name, count in zip(classes, counts, strict=True) if count == 0]


def listing(names: Sequence[str], most: int = 10) -> str:
    """The first names, quoted."""
    return ", ".join(map(repr, names[:most])) + (", ..." if len(names) > most else "")


def _hold_out(
    rows: NDArray[np.intp], labels: NDArray[np.int64], fraction: float, seed: int, classes: Sequence[str]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Divide `rows` into those that stay and those that are drawn."""
    mine = labels[rows]
    held = stratified(mine, fraction, seed)
    counts = np.bincount(mine, minlength=len(classes))
    emptied = (counts > 0) & (np.bincount(mine[~held], minlength=len(classes)) == 0)
    if names := [classes[int(label)] for label in np.flatnonzero(emptied & (counts > 1))]:
        # A draw takes less than one image more than its share: the smallest class of two or more keeps one.
        works = math.floor(1000 * (1 - 1 / counts[counts > 1].min())) / 1000
        raise UserError(
            f"val_fraction: {fraction} leaves no image of {listing(names)} to train on; "
            f"every class needs one: {works} works"
        )
    held &= ~emptied[mine]
    return rows[~held], rows[held]
