"""Tests of augmentation: each image is shifted, flipped and cut out according to its own draws only."""

import numpy as np
import pytest
import torch
from torch import Tensor

from imageclf.training.augment import Augmentation

SIZE = (6, 7)


def images(count: int = 50, channels: int = 3) -> Tensor:
    random = np.random.default_rng(0)
    return torch.from_numpy(random.integers(1, 256, (count, channels, *SIZE), np.uint8))


def draws(**columns: int) -> Tensor:
    """Return the draws of one image; those not given are 0."""
    return torch.tensor([[columns.get(name, 0) for name in ("dy", "dx", "flip", "cut_y", "cut_x")]])


def augmentation_of(**options: int) -> Augmentation:
    return Augmentation(**{"shift": 0, "flip": 0, "cutout": 0, "fill": 0, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize(("dy", "dx"), [(0, 0), (1, 0), (-2, 3), (4, -4), (5, 6), (-5, -6)])
def test_a_shift_equals_numpys_reflection_padding(dy: int, dx: int) -> None:
    image = images(1)
    padded = np.pad(image[0].numpy(), ((0, 0), (5, 5), (6, 6)), mode="reflect")
    expected = padded[:, 5 + dy : 11 + dy, 6 + dx : 13 + dx]
    assert np.array_equal(augmentation_of(shift=6).apply(image, draws(dy=dy, dx=dx))[0].numpy(), expected)


def test_a_shift_larger_than_the_image_still_gives_its_pixels() -> None:
    image = images(1)
    moved = augmentation_of(shift=500).apply(image, draws(dy=500, dx=-499))
    assert set(moved.flatten().tolist()) <= set(image.flatten().tolist())


def test_a_flip_mirrors_left_and_right() -> None:
    image = images(1)
    assert torch.equal(augmentation_of(flip=1).apply(image, draws(flip=1)), image.flip(3))
    assert torch.equal(augmentation_of(flip=1).apply(image, draws(flip=0)), image)


def test_a_cutout_fills_a_square_and_changes_nothing_else() -> None:
    image = images(1)
    cut = augmentation_of(cutout=3, fill=0).apply(image, draws(cut_y=2, cut_x=3))
    expected = image.clone()
    expected[:, :, 1:4, 2:5] = 0
    assert torch.equal(cut, expected)


def test_a_cutout_at_a_corner_may_extend_beyond_the_edge() -> None:
    cut = augmentation_of(cutout=4).apply(images(1), draws(cut_y=0, cut_x=0))
    assert (cut[0, 0] == 0).sum() == 4


def test_every_image_has_its_own_draws_within_the_limits_given_by_the_seed() -> None:
    augmentation = augmentation_of(shift=2, flip=1, cutout=3)
    first, second, other = (augmentation.draw(1000, SIZE, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert [set(column.tolist()) for column in first.T] == [
        set(range(-2, 3)),
        set(range(-2, 3)),
        {0, 1},
        set(range(SIZE[0])),
        set(range(SIZE[1])),
    ]


def test_a_batch_is_augmented_like_its_images_one_by_one() -> None:
    augmentation, batch = augmentation_of(shift=2, flip=1, cutout=3, fill=9), images()
    table = augmentation.draw(len(batch), SIZE, torch.Generator().manual_seed(0))
    together = augmentation.apply(batch, table)
    alone = torch.cat([augmentation.apply(batch[row : row + 1], table[row : row + 1]) for row in range(len(batch))])
    assert torch.equal(together, alone)
    assert not torch.equal(together, batch)


def test_an_augmentation_without_effect_is_false() -> None:
    assert not augmentation_of()
    assert augmentation_of(shift=1)
    assert augmentation_of(flip=1)
    assert augmentation_of(cutout=1)
