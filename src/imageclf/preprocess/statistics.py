"""Mean and standard deviation of the pixels, measured while they are written."""

import numpy as np
from numpy.typing import NDArray

from imageclf.contracts.raw import Pixels


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
