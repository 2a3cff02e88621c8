"""ZCA whitening: the rotation of decorrelated pixels that stays closest to the image.

Bell and Sejnowski, The "independent components" of natural scenes are edge filters (1997); for CIFAR-10
Krizhevsky, Learning Multiple Layers of Features from Tiny Images (2009), appendix A.
"""

import numpy as np
from numpy.typing import NDArray

from imageclf.errors import UserError

EPSILON = 0.01
"""Added to each variance, pixels on a scale of 0..1: directions in which images hardly vary are noise."""

MAX_DIMENSIONS = 3 * 64 * 64
"""Pixels and channels of an image, at most: the matrix has the square of that, and its eigenvectors take the cube."""

ROWS = 1024
"""Images multiplied at a time."""


def check(shape: tuple[int, int, int]) -> None:
    """Raise `UserError` where the matrix would be too large."""
    channels, height, width = shape
    if channels * height * width > MAX_DIMENSIONS:
        raise UserError(
            f"normalize: zca of {channels}x{height}x{width} images needs a matrix of the square of that; "
            f"set image_size or grayscale for {MAX_DIMENSIONS:,} values or fewer"
        )


def measure(images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The mean (d,) and the symmetric matrix (d, d) of images (N, ...) with d values, on a scale of 0..1.

    (image - mean) @ matrix has mean 0 and, in the directions of variance v >> EPSILON, variance 1.
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
