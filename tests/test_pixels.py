"""Tests of gray-scale, resize, pad and permute, and of their order."""

from typing import Any

import numpy as np
import pytest
from helpers import Shape
from PIL import Image

from imageclf.datasets import DATASETS
from imageclf.pixels import Transform, to_gray

NOTHING: dict[str, Any] = {"grayscale": False, "image_size": None, "pad": 0, "permute_seed": None}
EVERYTHING: dict[str, Any] = {"grayscale": True, "image_size": 9, "pad": 2, "permute_seed": 1}
IMAGES = np.random.default_rng(0).integers(256, size=(50, 3, 7, 5), dtype=np.uint8)


def new_transform(shape: Shape = (3, 7, 5), **changes: Any) -> Transform:
    return Transform(shape, **{**NOTHING, **changes})


@pytest.mark.parametrize("shape", sorted({source.image_shape for source in DATASETS.values()}))
@pytest.mark.parametrize("changes", [{}, EVERYTHING, *({key: value} for key, value in EVERYTHING.items())])
def test_the_shape_is_that_of_the_output(shape: Shape, changes: dict[str, Any]) -> None:
    images = np.zeros((4, *shape), np.uint8)
    transform = new_transform(shape, **changes)
    assert transform(images).shape == (4, *transform.shape)
    assert transform(images).dtype == np.uint8


# --- gray-scale ---


def test_gray_is_the_luma_of_itu_r_601_rounded_to_the_nearest_level() -> None:
    levels = [(0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 255, 0), (0, 0, 255), (1, 0, 0), (0, 1, 0), (1, 2, 3)]
    image = np.array(levels, np.uint8).T[None, :, :, None]
    expected = [int(0.299 * red + 0.587 * green + 0.114 * blue + 0.5) for red, green, blue in levels]
    assert to_gray(image).ravel().tolist() == expected


def test_gray_differs_from_pillows_by_at_most_one_level() -> None:
    theirs = np.stack([np.asarray(Image.fromarray(image.transpose(1, 2, 0)).convert("L")) for image in IMAGES])
    ours = new_transform(grayscale=True)(IMAGES)
    assert ours.shape == (50, 1, 7, 5)
    assert abs(ours[:, 0].astype(int) - theirs).max() <= 1


@pytest.mark.parametrize("level", [0, 1, 127, 254, 255])
def test_a_gray_image_stored_as_rgb_keeps_its_level(level: int) -> None:
    assert np.all(to_gray(np.full((1, 3, 2, 2), level, np.uint8)) == level)


def test_gray_scale_does_not_change_images_of_one_channel() -> None:
    transform = new_transform((1, 7, 5), grayscale=True)
    assert not transform.grayscale
    assert np.array_equal(transform(IMAGES[:, :1]), IMAGES[:, :1])


# --- order ---


def test_the_order_is_gray_scale_resize_pad_permute() -> None:
    transform = new_transform(**EVERYTHING)
    gray = new_transform(grayscale=True)(IMAGES)
    resized = new_transform((1, 7, 5), image_size=9)(gray)
    padded = new_transform((1, 9, 9), pad=2)(resized)
    order = transform.permutation
    assert order is not None
    assert np.array_equal(transform(IMAGES), padded.reshape(50, 1, 169)[:, :, order].reshape(padded.shape))


# --- what changes nothing ---


def test_a_resize_to_the_same_size_is_none() -> None:
    assert new_transform((3, 9, 9), image_size=9).image_size is None
    assert new_transform((3, 9, 8), image_size=9).image_size == 9


def test_without_parameters_nothing_changes() -> None:
    transform = new_transform()
    assert transform.shape == (3, 7, 5)
    assert transform.permutation is None
    assert np.array_equal(transform(IMAGES), IMAGES)
