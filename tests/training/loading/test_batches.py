"""Tests of batches: every image once with its target, in an order that only the seed decides."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from imageclf.contracts.dataset import Split
from imageclf.training.loading.augment import Augmentation
from imageclf.training.loading.batches import Batches, Normalize
from imageclf.training.losses import smooth

CPU = torch.device("cpu")
PIXELS = ([0.0, 0.0, 0.0], [1 / 255] * 3)
"""The normalization that does not change the range 0..255."""


def numbered(count: int, *, one_hot: bool = False) -> Split:
    """Return images whose first pixel and label are the number of their row."""
    images = np.random.default_rng(0).integers(256, size=(count, 3, 4, 5), dtype=np.uint8)
    images[:, 0, 0, 0] = np.arange(count)
    return Split(images, np.eye(count, dtype=np.uint8) if one_hot else np.arange(count))


def new_batches(
    split: Split, batch_size: int = 8, resident: bool = True, augmentation: Augmentation | None = None
) -> Batches:
    return Batches(split, Normalize(PIXELS), batch_size, CPU, augmentation=augmentation, resident=resident)


def mapped(split: Split, folder: Path) -> Split:
    """Return the same split with its images memory-mapped, as `splits.read` does it."""
    np.save(folder / "images.npy", split.images)
    return Split(np.load(folder / "images.npy", mmap_mode="c"), split.targets)


def rows(batches: list[tuple[Tensor, Tensor]]) -> list[int]:
    return [round(pixel) for images, _ in batches for pixel in images[:, 0, 0, 0].tolist()]


@pytest.mark.parametrize("count", [1, 7, 8, 9, 24, 61])
def test_shuffled_gives_every_image_once_in_len_batches(count: int) -> None:
    batches = new_batches(numbered(count))
    found = list(batches.shuffled(0))
    assert sorted(rows(found)) == list(range(count))
    assert len(found) == len(batches)
    assert batches.num_images == count


@pytest.mark.parametrize(("count", "sizes"), [(24, [8, 8, 8]), (20, [8, 8, 4]), (3, [3])])
def test_the_last_batch_may_be_smaller(count: int, sizes: list[int]) -> None:
    batches = new_batches(numbered(count))
    assert [len(images) for images, _ in batches.shuffled(0)] == sizes
    assert [len(images) for images, _ in batches.in_order()] == sizes


def test_in_order_gives_the_stored_order() -> None:
    assert rows(list(new_batches(numbered(20)).in_order())) == list(range(20))


@pytest.mark.parametrize("resident", [False, True], ids=["mapped", "resident"])
def test_each_image_keeps_its_target(resident: bool) -> None:
    batches = new_batches(numbered(61), resident=resident)
    for found in (list(batches.shuffled(3)), list(batches.in_order())):
        assert rows(found) == torch.cat([targets for _, targets in found]).tolist()


def test_only_the_seed_decides_the_order() -> None:
    torch.manual_seed(1)
    first = rows(list(new_batches(numbered(61)).shuffled(5)))
    torch.manual_seed(2)
    again = new_batches(numbered(61, one_hot=True), batch_size=7)
    list(again.shuffled(4))  # an epoch before it
    assert rows(list(again.shuffled(5))) == first


def test_shuffling_does_not_use_the_global_generator() -> None:
    before = torch.get_rng_state()
    list(new_batches(numbered(20)).shuffled(0))
    assert torch.equal(torch.get_rng_state(), before)


def test_orders_of_different_seeds_differ() -> None:
    batches = new_batches(numbered(61))
    orders = [tuple(rows(list(batches.shuffled(seed)))) for seed in (0, 1, 2**63 - 1)]
    assert len({*orders, tuple(range(61))}) == 4


@pytest.mark.parametrize("one_hot", [True, False])
def test_a_memory_mapped_split_gives_the_same_bits_as_a_resident_one(one_hot: bool, tmp_path: Path) -> None:
    split = numbered(61, one_hot=one_hot)
    resident, on_disk = new_batches(split), new_batches(mapped(split, tmp_path), resident=False)
    pairs = [(resident.shuffled(7), on_disk.shuffled(7)), (resident.in_order(), on_disk.in_order())]
    for ours, theirs in pairs:
        for (images, targets), (mapped_images, mapped_targets) in zip(ours, theirs, strict=True):
            assert torch.equal(images, mapped_images)
            assert torch.equal(targets, mapped_targets)


def test_only_a_resident_split_is_copied() -> None:
    split = numbered(8)
    copied, shared = new_batches(split), new_batches(split, resident=False)
    split.images[:] = 9
    assert rows(list(copied.in_order())) == list(range(8))
    assert rows(list(shared.in_order())) == [9] * 8


@pytest.mark.parametrize(
    ("one_hot", "dtype", "shape"), [(True, torch.float32, (8, 24)), (False, torch.int64, (8,))], ids=str
)
def test_targets_are_one_hot_floats_or_indices(one_hot: bool, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    batches = new_batches(numbered(24, one_hot=one_hot))
    for _, targets in (*batches.shuffled(0), *batches.in_order()):
        assert targets.dtype == dtype
        assert targets.shape == shape


def test_one_hot_targets_have_the_class_of_their_image() -> None:
    for images, targets in new_batches(numbered(24, one_hot=True)).shuffled(0):
        assert torch.equal(targets.argmax(dim=1), images[:, 0, 0, 0].round().long())
        assert torch.equal(targets.sum(dim=1), torch.ones(len(targets)))


def test_normalize_computes_its_formula_per_channel() -> None:
    pixels = np.arange(256 * 3, dtype=np.uint8).reshape(4, 3, 8, 8)
    mean, std = [0.13, 0.5, 0.48], [0.31, 0.25, 0.2]
    found = Normalize((mean, std))(torch.from_numpy(pixels))
    expected = (pixels / 255 - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_whitening_precedes_the_normalization_per_channel() -> None:
    random = np.random.default_rng(0)
    pixels = random.integers(256, size=(5, 2, 3, 4), dtype=np.uint8)
    mean, matrix = random.random(24, dtype=np.float32), random.random((24, 24), dtype=np.float32)
    found = Normalize(([0.1, 0.2], [0.5, 2.0]), (mean, matrix))(torch.from_numpy(pixels))
    white = ((pixels.reshape(5, 24) / 255 - mean) @ matrix).reshape(pixels.shape)
    expected = (white - np.reshape([0.1, 0.2], (2, 1, 1))) / np.reshape([0.5, 2.0], (2, 1, 1))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_batches_are_pixels_with_their_normalization(made_split: Split) -> None:
    batches = Batches(made_split, Normalize(([0.25], [0.5])), 64, CPU)
    found = torch.cat([images for images, _ in batches.in_order()])
    np.testing.assert_array_equal(found, made_split.images)
    expected = (made_split.images / 255 - 0.25) / 0.5
    np.testing.assert_allclose(batches.normalize(found), expected, rtol=0, atol=1e-6)


def test_a_resized_split_shares_its_images() -> None:
    split = numbered(20)
    batches = new_batches(split, batch_size=8, resident=False)
    resized = batches.resized(5)
    assert [len(images) for images, _ in resized.in_order()] == [5] * 4
    assert [len(images) for images, _ in batches.in_order()] == [8, 8, 4]
    split.images[:] = 9
    assert rows(list(resized.in_order())) == [9] * 20


@pytest.mark.parametrize(("std", "high"), [(1.0, 1.0), (1 / 255, 255.0)], ids=["unit", "none"])
def test_normalizations_that_only_scale_keep_both_ends_of_the_range(std: float, high: float) -> None:
    ends = Normalize(([0.0], [std]))(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1))
    assert ends.flatten().tolist() == pytest.approx([0.0, high], rel=1e-6)


@pytest.mark.parametrize("resident", [False, True], ids=["mapped", "resident"])
@pytest.mark.parametrize("one_hot", [True, False], ids=["one-hot", "indices"])
def test_an_epoch_does_not_change_the_split(resident: bool, one_hot: bool) -> None:
    split = numbered(20, one_hot=one_hot)
    images_before, targets_before = split.images.copy(), split.targets.copy()
    batches = new_batches(split, resident=resident)
    for images, targets in (*batches.shuffled(0), *batches.in_order()):
        assert batches.normalize(images).dtype == torch.float32
        smooth(targets, torch.zeros(len(targets), 20), 0.1)
    assert rows(list(batches.in_order())) == list(range(20))
    np.testing.assert_array_equal(split.images, images_before)
    np.testing.assert_array_equal(split.targets, targets_before)


EVERYTHING = Augmentation(shift=2, flip=True, cutout=2, fill=7)


def test_augmentation_changes_pixels_but_neither_order_nor_targets() -> None:
    plain, augmented = new_batches(numbered(61)), new_batches(numbered(61), augmentation=EVERYTHING)
    for (images, targets), (moved, same_targets) in zip(plain.shuffled(5), augmented.shuffled(5), strict=True):
        assert torch.equal(targets, same_targets)
        assert images.shape == moved.shape
        assert not torch.equal(images, moved)


def test_images_in_order_are_never_augmented() -> None:
    assert rows(list(new_batches(numbered(20), augmentation=EVERYTHING).in_order())) == list(range(20))


@pytest.mark.parametrize("resident", [False, True], ids=["mapped", "resident"])
def test_only_the_seed_decides_the_augmentation(resident: bool) -> None:
    """All images are equal here, so that their order does not matter."""
    split = Split(numbered(1).images.repeat(61, axis=0), np.zeros(61, np.int64))
    first = torch.cat([images for images, _ in new_batches(split, augmentation=EVERYTHING).shuffled(5)])
    torch.manual_seed(1)
    batches = new_batches(split, batch_size=7, resident=resident, augmentation=EVERYTHING)
    again, other = (torch.cat([images for images, _ in batches.shuffled(seed)]) for seed in (5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_cutout_of_the_whole_image_leaves_the_fill_level() -> None:
    blank = Augmentation(shift=0, flip=False, cutout=16, fill=51)
    ((images, _),) = new_batches(numbered(8), augmentation=blank).shuffled(0)
    assert images.dtype == torch.uint8
    assert images.unique().tolist() == [51]


def test_an_augmentation_without_effect_changes_nothing() -> None:
    idle = Augmentation(shift=0, flip=False, cutout=0, fill=7)
    batches = new_batches(numbered(20), augmentation=idle)
    for (images, _), (plain, _) in zip(batches.shuffled(0), new_batches(numbered(20)).shuffled(0), strict=True):
        assert torch.equal(images, plain)
