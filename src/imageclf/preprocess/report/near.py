"""Near-duplicates: test images that show the same as a train image, with other noise, brightness or compression.

Two images are near-duplicates if the whole images and their details correlate. The whole alone also finds every two
pictures of a clear sky, the details alone every two pictures with the same frame. The thresholds are from CIFAR-10,
where nine in ten of the pairs that they find are duplicates by eye.
"""

import numpy as np
from numpy.typing import NDArray

from imageclf.contracts.dataset import unpermute
from imageclf.preprocess.report.record import Near, Pair

WHOLE, DETAILS = 0.9, 0.75
"""Least correlations of near-duplicates."""

CANDIDATES = 10
"""Train images that are compared in detail with each test image: those with the best correlation of 8x8 means."""

ALIKE = 0.1
"""Above this share of the test images no number is given, because the images are alike by nature, as digits are."""

LISTED = 10
"""Number of the closest pairs in the report."""

BLOCK_BYTES = 2**26
"""Bytes of correlations, or of images, in memory at a time."""

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]


def find(train: Pixels, test: Pixels, permutation: NDArray[np.int64] | None = None) -> Near:
    """Compare each test image with all train images, both (N, C, H, W), stored with this permutation."""
    known, asked = _unit(_means(train, 8, permutation)), _unit(_means(test, 8, permutation))
    pairs: list[Pair] = []
    step = max(1, BLOCK_BYTES // (4 * max(len(train), 1)))
    for start in range(0, len(test), step):
        scores = asked[start : start + step] @ known.T
        best = min(CANDIDATES, len(train))
        candidates = np.argpartition(-scores, best - 1, axis=1)[:, :best]
        pairs += _compare(train, test[start : start + step], candidates, permutation, start=start)
    pairs.sort(key=lambda pair: -pair.details)
    found = [pair for pair in pairs if pair.details > DETAILS and pair.whole > WHOLE]
    if len(found) > ALIKE * len(test):
        return Near(count=None, share=None, pairs=pairs[:LISTED])
    return Near(count=len(found), share=len(found) / len(test), pairs=found[:LISTED])


def _compare(
    train: Pixels, test: Pixels, candidates: NDArray[np.intp], permutation: NDArray[np.int64] | None, *, start: int
) -> list[Pair]:
    """Return the best candidate, a row of train, of each image of `test`, whose first row is `start` of the split."""
    rows = np.unique(candidates)
    known, asked = _means(train[rows], 16, permutation), _means(test, 16, permutation)
    details = _unit(_details(known)), _unit(_details(asked))
    whole = _unit(known), _unit(asked)
    pairs = []
    for number, places in enumerate(np.searchsorted(rows, candidates)):
        correlations = details[0][places] @ details[1][number]
        best = places[correlations.argmax()]
        pairs.append(
            Pair(
                test=start + number,
                train=int(rows[best]),
                details=round(float(correlations.max()), 4),
                whole=round(float(whole[0][best] @ whole[1][number]), 4),
            )
        )
    return pairs


def _means(images: Pixels, side: int, permutation: NDArray[np.int64] | None) -> Floats:
    """Return the means of side x side equal areas of each image, (N, C, side, side), with its pixels in order."""
    _, channels, height, width = images.shape
    rows, columns = _areas(height, side), _areas(width, side)
    found = np.empty((len(images), channels, side, side), np.float32)
    step = max(1, BLOCK_BYTES // (4 * max(1, channels * height * width)))
    for start in range(0, len(images), step):
        block = unpermute(images[start : start + step], permutation)
        found[start : start + step] = rows @ block.astype(np.float32) @ columns.T
    return found


def _areas(length: int, parts: int) -> Floats:
    """Return the matrix (parts, length) whose rows average equal parts of `length` pixels."""
    edges = np.linspace(0, length, parts + 1)
    pixels = np.arange(length)
    covered = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return (covered.clip(0) * parts / length).astype(np.float32)


def _details(means: Floats) -> Floats:
    """Return 16x16 means minus the mean of the 5x5 of them around each, without the border of 2: (N, C, 12, 12).

    What remains of a smooth gradient, such as a sky, is zero.
    """
    near = np.abs(np.subtract.outer(np.arange(16), np.arange(16))) <= 2
    blur = (near / 5).astype(np.float32)
    return np.asarray(means - blur @ means @ blur, np.float32)[:, :, 2:-2, 2:-2]


def _unit(means: Floats) -> Floats:
    """Return each image as a vector of mean 0 and length 1, so that a product of two is their correlation."""
    flat = means.reshape(len(means), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    lengths = np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-3)
    return (flat / lengths).astype(np.float32, copy=False)
