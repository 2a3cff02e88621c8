"""Tests of gray-scale, resize, pad and permute, and of their order."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers import UNCHANGED
from PIL import Image

from imageclf.contracts.preparation import Preparation, Shape
from imageclf.contracts.raw import Pixels
from imageclf.download.datasets import DATASETS
from imageclf.preprocess.transform import apply, draw_permutation, to_gray

EVERYTHING: dict[str, Any] = {"grayscale": True, "image_size": 9, "pad": 2, "permute_seed": 1}
IMAGES = np.random.default_rng(0).integers(256, size=(50, 3, 7, 5), dtype=np.uint8)


def transformed(images: Pixels, **changes: Any) -> Pixels:
    """Return the images after a preparation that differs from `UNCHANGED`."""
    preparation = replace(UNCHANGED, **changes)
    shape = preparation.output_shape(shape_of(images))
    return apply(preparation, draw_permutation(preparation, shape), images)


def shape_of(images: Pixels) -> Shape:
    channels, height, width = images.shape[1:]
    return channels, height, width


@pytest.mark.parametrize("shape", sorted({source.image_shape for source in DATASETS.values()}))
@pytest.mark.parametrize("changes", [{}, EVERYTHING, *({key: value} for key, value in EVERYTHING.items())])
def test_the_shape_is_that_of_the_output(shape: Shape, changes: dict[str, Any]) -> None:
    found = transformed(np.zeros((4, *shape), np.uint8), **changes)
    assert found.shape == (4, *Preparation(**{**vars(UNCHANGED), **changes}).output_shape(shape))
    assert found.dtype == np.uint8


# --- gray-scale ---


def test_gray_is_the_luma_of_itu_r_601_rounded_to_the_nearest_level() -> None:
    levels = [(0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 255, 0), (0, 0, 255), (1, 0, 0), (0, 1, 0), (1, 2, 3)]
    image = np.array(levels, np.uint8).T[None, :, :, None]
    expected = [int(0.299 * red + 0.587 * green + 0.114 * blue + 0.5) for red, green, blue in levels]
    assert to_gray(image).ravel().tolist() == expected


def test_gray_differs_from_pillows_by_at_most_one_level() -> None:
    theirs = np.stack([np.asarray(Image.fromarray(image.transpose(1, 2, 0)).convert("L")) for image in IMAGES])
    ours = transformed(IMAGES, grayscale=True)
    assert ours.shape == (50, 1, 7, 5)
    assert abs(ours[:, 0].astype(int) - theirs).max() <= 1


@pytest.mark.parametrize("level", [0, 1, 127, 254, 255])
def test_a_gray_image_stored_as_rgb_keeps_its_level(level: int) -> None:
    assert np.all(to_gray(np.full((1, 3, 2, 2), level, np.uint8)) == level)


def test_gray_scale_does_not_change_images_of_one_channel() -> None:
    assert not replace(UNCHANGED, grayscale=True).effective((1, 7, 5)).grayscale
    assert np.array_equal(transformed(IMAGES[:, :1], grayscale=True), IMAGES[:, :1])


def test_the_order_is_gray_scale_resize_pad_permute() -> None:
    gray = transformed(IMAGES, grayscale=True)
    resized = transformed(gray, image_size=9)
    padded = transformed(resized, pad=2)
    order = np.random.default_rng(1).permutation(169)
    assert np.array_equal(
        transformed(IMAGES, **EVERYTHING), padded.reshape(50, 1, 169)[:, :, order].reshape(padded.shape)
    )


def test_a_resize_to_the_same_size_is_no_step() -> None:
    resized = replace(UNCHANGED, image_size=9)
    assert resized.effective((3, 9, 9)).image_size is None
    assert resized.effective((3, 9, 8)).image_size == 9


def test_the_unchanged_preparation_changes_nothing() -> None:
    assert UNCHANGED.effective((3, 7, 5)) == UNCHANGED
    assert UNCHANGED.output_shape((3, 7, 5)) == (3, 7, 5)
    assert np.array_equal(transformed(IMAGES), IMAGES)
