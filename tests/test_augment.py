"""Each image is moved, mirrored and cut on its own, and only as its draws say."""

import numpy as np
import pytest
import torch
from torch import Tensor

from imageclf.augment import Augmentation

SIZE = (6, 7)


def images(count: int = 50, channels: int = 3) -> Tensor:
    random = np.random.default_rng(0)
    return torch.from_numpy(random.integers(1, 256, (count, channels, *SIZE), np.uint8))


def draws(**columns: int) -> Tensor:
    """One image's draws, 0 where not named."""
    return torch.tensor([[columns.get(name, 0) for name in ("dy", "dx", "flip", "cut_y", "cut_x")]])


def made(**knobs: int) -> Augmentation:
    return Augmentation(**{"shift": 0, "flip": 0, "cutout": 0, "fill": 0, **knobs})  # type: ignore[arg-type]


@pytest.mark.parametrize(("dy", "dx"), [(0, 0), (1, 0), (-2, 3), (4, -4), (5, 6), (-5, -6)])
def test_a_shift_is_numpys_reflection(dy: int, dx: int) -> None:
    image = images(1)
    padded = np.pad(image[0].numpy(), ((0, 0), (5, 5), (6, 6)), mode="reflect")
    expected = padded[:, 5 + dy : 11 + dy, 6 + dx : 13 + dx]
    assert np.array_equal(made(shift=6).apply(image, draws(dy=dy, dx=dx))[0].numpy(), expected)


def test_a_shift_beyond_the_image_still_gives_pixels_of_it() -> None:
    image = images(1)
    moved = made(shift=500).apply(image, draws(dy=500, dx=-499))
    assert set(moved.flatten().tolist()) <= set(image.flatten().tolist())


def test_a_flip_mirrors_left_and_right() -> None:
    image = images(1)
    assert torch.equal(made(flip=1).apply(image, draws(flip=1)), image.flip(3))
    assert torch.equal(made(flip=1).apply(image, draws(flip=0)), image)


def test_a_cutout_fills_a_square_and_leaves_the_rest() -> None:
    image = images(1)
    cut = made(cutout=3, fill=0).apply(image, draws(cut_y=2, cut_x=3))
    expected = image.clone()
    expected[:, :, 1:4, 2:5] = 0
    assert torch.equal(cut, expected)


def test_a_cutout_at_a_corner_stands_out_over_the_edge() -> None:
    cut = made(cutout=4).apply(images(1), draws(cut_y=0, cut_x=0))
    assert (cut[0, 0] == 0).sum() == 4


def test_every_image_has_its_own_draws_within_the_limits_and_the_seed_decides() -> None:
    augmentation = made(shift=2, flip=1, cutout=3)
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


def test_a_batch_is_augmented_as_its_images_are_one_by_one() -> None:
    augmentation, batch = made(shift=2, flip=1, cutout=3, fill=9), images()
    table = augmentation.draw(len(batch), SIZE, torch.Generator().manual_seed(0))
    together = augmentation.apply(batch, table)
    alone = torch.cat([augmentation.apply(batch[row : row + 1], table[row : row + 1]) for row in range(len(batch))])
    assert torch.equal(together, alone)
    assert not torch.equal(together, batch)


def test_without_knobs_it_is_false() -> None:
    assert not made()
    assert made(shift=1)
    assert made(flip=1)
    assert made(cutout=1)
