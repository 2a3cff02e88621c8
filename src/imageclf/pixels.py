"""Preparation of pixels (gray-scale, resize, pad, permute), and their mean and standard deviation."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imageclf.raw import Pixels

GRAY_WEIGHTS = (299, 587, 114)
"""Weights of red, green and blue in thousandths (ITU-R BT.601), as in Pillow's `convert("L")`."""


class Transform:
    """Gray-scale, resize, pad and permute, in this order; a step that would change nothing is None or False.

    shape: (channels, height, width) of the output.
    permutation: int64 (height * width,) with out[i] = in[permutation[i]]; or None.
    """

    def __init__(
        self,
        raw_shape: tuple[int, int, int],
        *,
        grayscale: bool,
        image_size: int | None,
        pad: int,
        permute_seed: int | None,
    ) -> None:
        channels, height, width = raw_shape
        self.grayscale = grayscale and channels == 3
        self.image_size = None if (height, width) == (image_size, image_size) else image_size
        self.pad = pad
        if image_size is not None:
            height, width = image_size, image_size
        self.shape = (1 if self.grayscale else channels, height + 2 * pad, width + 2 * pad)
        self.permutation: NDArray[np.int64] | None = None
        if permute_seed is not None:
            self.permutation = np.random.default_rng(permute_seed).permutation(self.shape[1] * self.shape[2])

    def __call__(self, images: Pixels) -> Pixels:
        """Return raw images (n, channels, height, width) as prepared images (n, *shape)."""
        if self.grayscale:
            images = to_gray(images)
        if self.image_size is not None:
            images = _resize(images, self.image_size)
        if self.pad:
            images = np.pad(images, ((0, 0), (0, 0), (self.pad, self.pad), (self.pad, self.pad)))
        if self.permutation is not None:
            flat = images.reshape(*images.shape[:2], -1)
            images = flat[:, :, self.permutation].reshape(images.shape)
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


def histogram(images: Pixels) -> NDArray[np.int64]:
    """Return the count of each level, (channels, 256); sums of such counts are exact in any order."""
    planes = images.swapaxes(0, 1).reshape(images.shape[1], -1)
    return np.stack([np.bincount(plane, minlength=256) for plane in planes])


def moments(levels: NDArray[np.int64]) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation per channel of a histogram, with pixels scaled to 0..1."""
    scale = np.arange(256) / 255
    share = levels / levels.sum(axis=1, keepdims=True)
    mean = share @ scale
    variance = (share * (scale - mean[:, None]) ** 2).sum(axis=1)
    return mean.tolist(), np.sqrt(variance).tolist()
