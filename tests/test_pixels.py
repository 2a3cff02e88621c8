"""Grey-scale, resize, pad and permute: each pixel is what the knobs say, in the order in which they act."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from imageclf.datasets import DATASETS
from imageclf.pixels import Transform, to_grey

KNOBS: dict[str, Any] = {"grayscale": False, "image_size": None, "pad": 0, "permute_seed": None}
EVERYTHING: dict[str, Any] = {"grayscale": True, "image_size": 9, "pad": 2, "permute_seed": 1}
COLOURS = np.random.default_rng(0).integers(256, size=(50, 3, 7, 5), dtype=np.uint8)


def transform(shape: tuple[int, int, int] = (3, 7, 5), **knobs: Any) -> Transform:
    return Transform(shape, **{**KNOBS, **knobs})


@pytest.mark.parametrize("shape", sorted({source.image_shape for source in DATASETS.values()}))
@pytest.mark.parametrize("knobs", [{}, EVERYTHING, *({key: value} for key, value in EVERYTHING.items())])
def test_the_shape_is_that_of_what_comes_out(shape: tuple[int, int, int], knobs: dict[str, Any]) -> None:
    images = np.zeros((4, *shape), np.uint8)
    made = transform(shape, **knobs)
    assert made(images).shape == (4, *made.shape)
    assert made(images).dtype == np.uint8


# --- grey-scale ---


def test_grey_is_the_luma_of_itu_r_601_rounded_to_the_nearest_level() -> None:
    levels = [(0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 255, 0), (0, 0, 255), (1, 0, 0), (0, 1, 0), (1, 2, 3)]
    image = np.array(levels, np.uint8).T[None, :, :, None]
    expected = [int(0.299 * red + 0.587 * green + 0.114 * blue + 0.5) for red, green, blue in levels]
    assert to_grey(image).ravel().tolist() == expected


def test_grey_is_within_a_level_of_pillows() -> None:
    theirs = np.stack([np.asarray(Image.fromarray(image.transpose(1, 2, 0)).convert("L")) for image in COLOURS])
    ours = transform(grayscale=True)(COLOURS)
    assert ours.shape == (50, 1, 7, 5)
    assert abs(ours[:, 0].astype(int) - theirs).max() <= 1


@pytest.mark.parametrize("level", [0, 1, 127, 254, 255])
def test_a_grey_image_in_colour_keeps_its_level(level: int) -> None:
    assert np.all(to_grey(np.full((1, 3, 2, 2), level, np.uint8)) == level)


def test_grey_images_are_grey_already() -> None:
    made = transform((1, 7, 5), grayscale=True)
    assert not made.grayscale
    assert np.array_equal(made(COLOURS[:, :1]), COLOURS[:, :1])


# --- order ---


def test_grey_comes_before_resize_and_that_before_pad_and_that_before_permute() -> None:
    made = transform(**EVERYTHING)
    grey = transform(grayscale=True)(COLOURS)
    resized = transform((1, 7, 5), image_size=9)(grey)
    padded = transform((1, 9, 9), pad=2)(resized)
    order = made.permutation
    assert order is not None
    assert np.array_equal(made(COLOURS), padded.reshape(50, 1, 169)[:, :, order].reshape(padded.shape))


# --- what changes nothing ---


def test_a_resize_to_the_size_that_there_is_is_none() -> None:
    assert transform((3, 9, 9), image_size=9).image_size is None
    assert transform((3, 9, 8), image_size=9).image_size == 9


def test_without_knobs_nothing_changes() -> None:
    made = transform()
    assert made.shape == (3, 7, 5)
    assert made.permutation is None
    assert np.array_equal(made(COLOURS), COLOURS)
