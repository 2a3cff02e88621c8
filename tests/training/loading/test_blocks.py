"""Tests of the shuffling in blocks: every image once, the same order from memory and from a file, at any start."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from imageclf.contracts.dataset import Split
from imageclf.training.loading import blocks
from imageclf.training.loading.augment import Augmentation
from imageclf.training.loading.batches import Batches, Normalize
from imageclf.training.loading.blocks import BlockOrder, one_ahead
from imageclf.training.ranks import Ranks

Found = list[tuple[Tensor, Tensor]]


@pytest.fixture(autouse=True)
def _all_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make blocks of 4 images of 20 bytes, windows of 3 blocks, and every split large."""
    monkeypatch.setattr(blocks, "LARGE", 0)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 80)
    monkeypatch.setattr(blocks, "WINDOW_BYTES", 240)


def numbered(count: int) -> Split:
    """Return images (count, 1, 4, 5) whose first two pixels and whose target are the number of the image."""
    images = np.random.default_rng(0).integers(256, size=(count, 1, 4, 5), dtype=np.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = np.divmod(np.arange(count), 256)
    return Split(images, np.arange(count))


def mapped(split: Split, folder: Path) -> Split:
    np.save(folder / "images.npy", split.images)
    return Split(np.load(folder / "images.npy", mmap_mode="c"), split.targets)


def shuffled(
    split: Split, batch_size: int = 5, *, seed: int = 0, skip: int = 0, resident: bool = False, shift: int = 0
) -> Found:
    normalize = Normalize(([0.0], [1 / 255]))
    augmentation = Augmentation(shift=shift, flip=shift > 0, cutout=0, fill=0)
    device = torch.device("cpu")
    return list(
        Batches(split, normalize, batch_size, device, augmentation=augmentation, resident=resident).shuffled(seed, skip)
    )


def numbers(found: Found) -> list[int]:
    return [256 * int(image[0, 0, 0]) + int(image[0, 0, 1]) for images, _ in found for image in images]


def assert_equal(first: Found, second: Found) -> None:
    assert len(first) == len(second)
    for ours, theirs in zip(first, second, strict=True):
        assert torch.equal(ours[0], theirs[0])
        assert torch.equal(ours[1], theirs[1])


@pytest.mark.parametrize("count", [1, 3, 4, 5, 12, 13, 61, 600])
@pytest.mark.parametrize("batch_size", [1, 5, 12, 40])
def test_every_image_comes_once_with_its_target_in_whole_batches(count: int, batch_size: int, tmp_path: Path) -> None:
    found = shuffled(mapped(numbered(count), tmp_path), batch_size)
    assert sorted(numbers(found)) == list(range(count))
    assert [int(target) for _, targets in found for target in targets] == numbers(found)
    assert {len(targets) for _, targets in found[:-1]} <= {batch_size}
    assert len(found) == -(-count // batch_size)


def test_memory_and_file_give_the_same_bits(tmp_path: Path) -> None:
    split = numbered(61)
    for shift in (0, 1):
        from_file = shuffled(mapped(split, tmp_path), shift=shift)
        assert_equal(from_file, shuffled(split, resident=True, shift=shift))
        assert_equal(from_file, shuffled(split, shift=shift))


@pytest.mark.parametrize("skip", range(14))
def test_a_resumed_epoch_continues_with_the_same_bits(skip: int, tmp_path: Path) -> None:
    split = mapped(numbered(61), tmp_path)
    assert_equal(shuffled(split, skip=skip, shift=1), shuffled(split, shift=1)[skip:])


@pytest.mark.parametrize(("block_bytes", "share"), [(20, 0.34), (80, 1.0)], ids=["one image", "four images"])
def test_each_rank_reads_its_part_of_every_batch_and_only_blocks_that_it_needs(
    block_bytes: int, share: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", block_bytes)
    split, device = mapped(numbered(601), tmp_path), torch.device("cpu")
    reading, read = os.preadv, list[int]()
    monkeypatch.setattr(blocks.os, "preadv", lambda *args: read.append(len(args[1][0])) or reading(*args))
    parts: list[Found] = []
    for rank in range(3):
        read.clear()
        batches = Batches(
            split, Normalize(([0.0], [1 / 255])), 24, device, resident=False, ranks=Ranks(rank, 3),
            augmentation=Augmentation(shift=1, flip=True, cutout=0, fill=0),
        )  # fmt: skip
        parts.append(list(batches.shuffled(0, 2)))
        assert sum(read) <= share * split.images.nbytes
    together = [
        (torch.cat([images for images, _ in each]), torch.cat([targets for _, targets in each]))
        for each in zip(*parts, strict=True)
    ]
    assert_equal(together, shuffled(split, 24, skip=2, shift=1))


def test_another_seed_gives_another_order(tmp_path: Path) -> None:
    split = mapped(numbered(61), tmp_path)
    assert numbers(shuffled(split, seed=1)) != numbers(shuffled(split, seed=0))
    assert numbers(shuffled(split, seed=1)) == numbers(shuffled(split, seed=1))


def test_a_window_mixes_images_from_all_parts_of_the_file(tmp_path: Path) -> None:
    """The first quarter of an epoch has about a quarter of each fifth of the file, as of classes in a row."""
    order = BlockOrder(num_images=20_000, block=10, window=500)
    window = next(order.windows(seed=0))
    used = window.rows
    fifths = torch.bincount(used // 4000, minlength=5) / len(used)
    assert torch.all((fifths - 0.2).abs() < 0.05)
    neighbors = (used[1:] - used[:-1]).abs() == 1
    assert neighbors.float().mean() < 0.01


def test_the_order_depends_on_the_size_of_the_data_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    small = np.lib.stride_tricks.as_strided(np.zeros(1, np.uint8), (2**21, 1, 32, 32), (0, 0, 0, 0))
    large = np.lib.stride_tricks.as_strided(np.zeros(1, np.uint8), (2**21 + 1, 1, 32, 32), (0, 0, 0, 0))
    assert small.nbytes == 2**31
    assert BlockOrder.of(small) is None
    assert BlockOrder.of(large) == BlockOrder(2**21 + 1, block=64, window=4096)


def test_one_image_may_be_larger_than_a_block_and_a_window() -> None:
    assert BlockOrder.of(np.zeros((5, 3, 16, 16), np.uint8)) == BlockOrder(5, block=1, window=1)


def test_a_file_that_ends_early_is_an_error(tmp_path: Path) -> None:
    split = mapped(numbered(61), tmp_path)
    with (tmp_path / "images.npy").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(EOFError, match="the file of images 40 to 43 ends early"):
        shuffled(split)


def test_a_reader_keeps_its_file_open_without_the_array(tmp_path: Path) -> None:
    images = mapped(numbered(61), tmp_path).images
    assert isinstance(images, np.memmap)
    expected, order = torch.tensor(images[7]), BlockOrder.of(images)
    assert order is not None
    reader = blocks.Reader(images, order)
    del images
    stored, places = reader.read(torch.tensor([7]), pinned=False)
    assert torch.equal(stored[places[0]], expected)


def test_an_epoch_can_be_left_in_the_middle(tmp_path: Path) -> None:
    batches = Batches(
        mapped(numbered(600), tmp_path), Normalize(([0.0], [1.0])), 5, torch.device("cpu"), resident=False
    )
    for _ in zip(range(3), batches.shuffled(0), strict=False):
        pass
    assert sorted(numbers(list(batches.shuffled(1)))) == list(range(600))


def test_one_ahead_keeps_order_and_errors() -> None:
    assert list(one_ahead(iter(range(5)))) == [0, 1, 2, 3, 4]
    assert list(one_ahead(iter(()))) == []
    items = one_ahead(1 / value for value in (1, 2, 0))
    assert [next(items), next(items)] == [1.0, 0.5]
    with pytest.raises(ZeroDivisionError):
        next(items)
