"""The steps of a `Preparation`, applied to pixels: the one implementation for training, evaluation and inference."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imageclf.contracts.preparation import Preparation, Shape
from imageclf.contracts.raw import Pixels

GRAY_WEIGHTS = (299, 587, 114)
"""Weights of red, green and blue in thousandths (ITU-R BT.601), as in Pillow's `convert("L")`."""


def draw_permutation(preparation: Preparation, image_shape: Shape) -> NDArray[np.int64] | None:
    """Return the order of the pixels of prepared images, int64 (height * width,); None if they are not permuted."""
    if preparation.permute_seed is None:
        return None
    return np.random.default_rng(preparation.permute_seed).permutation(image_shape[1] * image_shape[2])


def apply(preparation: Preparation, permutation: NDArray[np.int64] | None, images: Pixels) -> Pixels:
    """Return raw images (n, channels, height, width) as prepared images: gray-scale, resize, pad, permute.

    permutation: out[i] = in[permutation[i]] over the height * width positions; None to leave them in place.
    """
    if preparation.grayscale and images.shape[1] == 3:
        images = to_gray(images)
    size = preparation.image_size
    if size is not None and images.shape[2:] != (size, size):
        images = _resize(images, size)
    if pad := preparation.pad:
        images = np.pad(images, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    if permutation is not None:
        flat = images.reshape(*images.shape[:2], -1)
        images = flat[:, :, permutation].reshape(images.shape)
    return images


def to_gray(images: Pixels) -> Pixels:
    """Return the luma of RGB images (n, 3, height, width) as (n, 1, height, width), rounded to the nearest level."""
    red, green, blue = (weight * images[:, channel].astype(np.uint32) for channel, weight in enumerate(GRAY_WEIGHTS))
    return ((red + green + blue + 500) // 1000).astype(np.uint8)[:, None]


def _resize(images: Pixels, size: int) -> Pixels:
    resized = np.empty((*images.shape[:2], size, size), np.uint8)
    for image, target in zip(images, resized, strict=True):
        for plane, target_plane in zip(image, target, strict=True):
            target_plane[:] = Image.fromarray(plane).resize((size, size), Image.Resampling.BILINEAR)
    return resized
