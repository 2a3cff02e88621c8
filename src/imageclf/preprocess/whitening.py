"""ZCA whitening: decorrelates the pixels and, of all such transformations, changes the images least.

Bell and Sejnowski, The "independent components" of natural scenes are edge filters (1997); for CIFAR-10
Krizhevsky, Learning Multiple Layers of Features from Tiny Images (2009), appendix A.
"""

import numpy as np
from numpy.typing import NDArray

from imageclf.core.errors import UserError

EPSILON = 0.01
"""Added to each variance, with pixels scaled to 0..1, because directions of almost no variance are noise."""

MAX_DIMENSIONS = 3 * 64 * 64
"""Largest number of values of an image: the matrix has the square of it, and its eigenvectors cost the cube."""

ROWS = 1024
"""Number of images multiplied at a time."""


def check(shape: tuple[int, int, int]) -> None:
    """Raise `UserError` if images of this shape need a matrix that is too large."""
    channels, height, width = shape
    if channels * height * width > MAX_DIMENSIONS:
        raise UserError(
            f"normalize: {channels}x{height}x{width} images are too large for zca, which takes at most "
            f"{MAX_DIMENSIONS:,} values per image; set image_size or grayscale"
        )


def measure(images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the mean (d,) and the symmetric matrix (d, d) of images (N, ...) of d values each, scaled to 0..1.

    (image - mean) @ matrix has mean 0, and variance 1 in each direction in which the images vary much more than
    EPSILON.
    """
    flat = images.reshape(len(images), -1)
    total = np.zeros(flat.shape[1], np.int64)
    for start in range(0, len(flat), ROWS):
        total += flat[start : start + ROWS].sum(axis=0, dtype=np.int64)
    mean = total / (255 * len(flat))
    covariance = np.zeros((flat.shape[1], flat.shape[1]))
    for start in range(0, len(flat), ROWS):
        centered = (flat[start : start + ROWS] / 255 - mean).astype(np.float32)
        covariance += centered.T @ centered
    variance, directions = np.linalg.eigh(covariance / len(flat))
    matrix = directions / np.sqrt(variance.clip(0) + EPSILON) @ directions.T
    return mean.astype(np.float32), matrix.astype(np.float32)
