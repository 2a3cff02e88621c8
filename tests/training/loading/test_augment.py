"""Tests of augmentation: each image is shifted, flipped and cut out according to its own draws only."""

import numpy as np
import pytest
import torch
from torch import Tensor

from imageclf.training.loading.augment import CROP, FINENESS, Augmentation

SIZE = (6, 7)


def images(count: int = 50, channels: int = 3) -> Tensor:
    random = np.random.default_rng(0)
    return torch.from_numpy(random.integers(1, 256, (count, channels, *SIZE), np.uint8))


def draws(**columns: int) -> Tensor:
    """Return the draws of one image; those not given are 0."""
    return torch.tensor([[columns.get(name, 0) for name in ("dy", "dx", "flip", "cut_y", "cut_x")]])


def augmentation_of(**options: float) -> Augmentation:
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
    assert augmentation_of(crop=0.5)
    assert augmentation_of(color_jitter=0.5)


# --- crop ---


def cropped(image: Tensor, **fractions: float) -> Tensor:
    """Return the crop of an image with a least area of 0.25, for fractions from 0 to 1; those not given are 0."""
    values = [fractions.get(name, 0.0) for name in ("area", "aspect", "y", "x")]
    table = torch.tensor([[0] * 5 + [round(value * FINENESS) for value in values]])
    return augmentation_of(crop=0.25).apply(image, table)


def test_a_crop_of_the_whole_area_changes_nothing() -> None:
    image = images(1)
    assert torch.equal(cropped(image, area=1.0, aspect=0.9, y=0.3, x=0.8), image)


@pytest.mark.parametrize(("y", "x"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_the_smallest_crop_of_a_quarter_is_a_corner_of_half_the_sides(y: int, x: int) -> None:
    """The pixels in between are those of torch's bilinear interpolation."""
    image = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    image[0, 0, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4] = torch.arange(100, 116).view(4, 4)
    found = cropped(image, area=0.0, aspect=0.5, y=y, x=x)
    corner = image[:, :, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4].float()
    expected = torch.nn.functional.interpolate(corner, size=(8, 8), mode="bilinear").round()
    assert torch.equal(found[:, :, 1:-1, 1:-1].float(), expected[:, :, 1:-1, 1:-1])  # at its edges it sees outside


def test_a_crop_has_the_drawn_area_and_aspect_and_lies_inside_the_image() -> None:
    """Rows and columns of an image whose pixels are their coordinates show what was cut."""
    side, count = 60, 300
    augmentation = augmentation_of(crop=0.2)
    table = augmentation.draw(count, (side, side), torch.Generator().manual_seed(0))
    rows = torch.arange(side, dtype=torch.uint8).expand(side, side).T
    ramps = torch.stack([rows, rows.T]).expand(count, 2, side, side)
    found = augmentation.apply(ramps, table).double()
    height = (found[:, 0, -1, 0] - found[:, 0, 0, 0] + 1) / side
    width = (found[:, 1, 0, -1] - found[:, 1, 0, 0] + 1) / side
    area = 0.2 + 0.8 * table[:, CROP][:, 0] / FINENESS
    assert (height * width - area).abs().max() < 0.05
    assert (width / height).max() < 4 / 3 + 0.1
    assert (width / height).min() > 3 / 4 - 0.1
    assert (width / height).std() > 0.05
    assert found.min() == 0
    assert found.max() == side - 1


# --- colors ---


def recolored(image: Tensor, brightness: float = 0.5, contrast: float = 0.5, saturation: float = 0.5) -> Tensor:
    """Return an image with its colors changed by up to a half; 0.5 changes nothing."""
    values = (brightness, contrast, saturation)
    table = torch.tensor([[0] * 5 + [round(value * FINENESS) for value in values]])
    return augmentation_of(color_jitter=0.5).apply(image, table)


def test_colors_in_the_middle_of_their_range_do_not_change() -> None:
    assert torch.equal(recolored(images(1)), images(1))


def test_brightness_multiplies_and_ends_at_white() -> None:
    image = images(1).float()
    assert torch.equal(recolored(images(1), brightness=0), (image * 0.5).round().byte())
    assert torch.equal(recolored(images(1), brightness=1), (image * 1.5).round().clamp(max=255).byte())


def test_contrast_scales_the_distance_from_the_mean() -> None:
    image = images(1).double()
    expected = (image.mean() + 0.5 * (image - image.mean())).round()
    assert (recolored(images(1), contrast=0).double() - expected).abs().max() <= 1


def test_saturation_scales_the_distance_from_gray_and_leaves_gray_images() -> None:
    image = images(1).double()
    gray = (image * torch.tensor([0.299, 0.587, 0.114]).double()[:, None, None]).sum(1, keepdim=True)
    assert (recolored(images(1), saturation=0).double() - (gray + 0.5 * (image - gray)).round()).abs().max() <= 1
    single = images(1, channels=1)
    assert torch.equal(recolored(single, saturation=0), single)


def test_all_augmentations_together_treat_each_image_by_its_own_draws() -> None:
    augmentation, batch = augmentation_of(shift=1, flip=1, cutout=2, crop=0.3, color_jitter=0.4), images()
    table = augmentation.draw(len(batch), SIZE, torch.Generator().manual_seed(0))
    assert table.shape == (len(batch), 12)
    together = augmentation.apply(batch, table)
    alone = torch.cat([augmentation.apply(batch[row : row + 1], table[row : row + 1]) for row in range(len(batch))])
    assert together.dtype == torch.uint8
    assert torch.equal(together, alone)
    assert len({bytes(image.numpy()) for image in augmentation.apply(batch[:1].expand(50, -1, -1, -1), table)}) > 45


def test_crop_and_colors_leave_the_other_draws_as_they_were() -> None:
    plain, more = (
        augmentation_of(shift=2, **options).draw(9, SIZE, torch.Generator().manual_seed(0))
        for options in ({}, {"crop": 0.5, "color_jitter": 0.5})
    )
    assert torch.equal(more[:, :5], plain)
