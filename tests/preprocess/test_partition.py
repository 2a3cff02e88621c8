"""Tests that each class keeps a training image, that given splits are used, and that drawn splits never change."""

import hashlib
from collections.abc import Sequence

import numpy as np
import pytest
from sklearn.datasets import load_digits

from imageclf.contracts.raw import Images
from imageclf.core.errors import UserError
from imageclf.preprocess.partition import Part, missing_classes, partition

DIGITS = {
    "train": "25b7016d3bd86e2e",
    "test": "8c31effa184c2079",
    "val": "e8222c2264d951e6",
}
"""First digits of the SHA-256 of the rows of each split of digits."""


def images_of(counts: Sequence[int]) -> Images:
    """Return labels without pixels; `counts` is the number per class."""
    return Images(np.repeat(np.arange(len(counts)), counts), lambda: iter(()))


def divided(images: dict[str, Images], count: int, val_fraction: float = 0.1, seed: int = 0) -> dict[str, Part]:
    return {part.split: part for part in partition(images, list(map(str, range(count))), val_fraction, seed)}


def counted(part: Part, images: dict[str, Images], count: int) -> list[int]:
    return np.bincount(images[part.origin].labels[part.rows], minlength=count).tolist()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("val_fraction", [0.1, 0.3, 0.5])
def test_every_class_keeps_a_training_image_and_each_image_is_used_once(seed: int, val_fraction: float) -> None:
    counts = [40, 40, *[1] * 10, *[2] * 5, *[3] * 5]
    images = {"train": images_of(counts)}
    parts = divided(images, len(counts), val_fraction, seed)
    assert list(parts) == ["train", "test", "val"]
    assert min(counted(parts["train"], images, len(counts))) >= 1
    assert sorted(np.concatenate([part.rows for part in parts.values()])) == list(range(sum(counts)))
    assert all(np.all(np.diff(part.rows) > 0) for part in parts.values())
    assert [parts[split].drawn for split in ("train", "test", "val")] == [None, (0.2, 0), (val_fraction, seed)]


def test_a_class_of_one_image_stays_in_train_and_is_missing_in_other_splits() -> None:
    counts = [40, 40, *[1] * 10]
    images = {"train": images_of(counts)}
    parts = divided(images, 12)
    assert counted(parts["train"], images, 12)[2:] == [1] * 10
    for split in ("test", "val"):
        assert missing_classes(parts[split], images, list("abcdefghijkl")) == list("cdefghijkl")
    assert missing_classes(parts["train"], images, list("abcdefghijkl")) == []


def test_a_split_without_images_is_refused() -> None:
    with pytest.raises(UserError, match="these 9 images leave none for test"):
        divided({"train": images_of([1] * 9)}, 9)
    with pytest.raises(
        UserError, match=r"val_fraction: 0.1 of these 9 images leaves none for val; set it to 0 to train on all"
    ):
        divided({"train": images_of([1] * 9), "test": images_of([1] * 9)}, 9)


@pytest.mark.parametrize("smallest", [2, 3, 10, 100])
def test_the_suggested_val_fraction_works_for_every_seed(smallest: int) -> None:
    images = {"train": images_of([smallest, 150, 1]), "test": images_of([1, 1, 1])}
    with pytest.raises(UserError, match=r"val_fraction: 0.999 leaves no image of '0'.* to train on") as caught:
        divided(images, 3, 0.999)
    suggested = float(str(caught.value).split()[-1])
    assert suggested >= 0.5
    for seed in range(20):
        assert min(counted(divided(images, 3, suggested, seed)["train"], images, 3)) >= 1


def test_the_sources_own_val_is_taken_whole_and_the_draw_does_not_apply() -> None:
    images = {"train": images_of([10, 10]), "val": images_of([3, 4])}
    parts = divided(images, 2, 0.5, seed=7)
    assert parts["val"] == Part("val", "val", parts["val"].rows)
    assert parts["val"].rows.tolist() == list(range(7))
    assert (len(parts["train"].rows), len(parts["test"].rows)) == (16, 4)
    parts = divided({**images, "test": images_of([1, 1])}, 2, 0.5)
    assert {split: len(part.rows) for split, part in parts.items()} == {"train": 20, "val": 7, "test": 2}


def test_the_splits_of_the_digits_are_those_that_they_always_were() -> None:
    labels = np.asarray(load_digits()["target"], np.int64)  # type: ignore[index] - a bunch
    parts = divided({"train": Images(labels, lambda: iter(()))}, 10)
    rows = {split: hashlib.sha256(part.rows.astype("<i8").tobytes()).hexdigest()[:16] for split, part in parts.items()}
    assert rows == DIGITS
