"""Scores that accuracy hides: of rare classes, of the probabilities, and of the gap between train and test."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

BINS = 15
"""Bins of the calibration error; the number of Guo et al., "On Calibration of Modern Neural Networks" (2017)."""

LARGE_GAP = 0.05
"""A train accuracy that is this much above the test accuracy is reported as over-fitting, if it cannot be chance."""


@dataclass(frozen=True)
class PerClass:
    """Scores of each class, (K,) float64. A score is nan if it is not defined.

    recall: the share of the images of a class that get its name; nan without test images.
    precision: the share of the predictions of a class that are right; nan if the class is never predicted.
    f1: harmonic mean of both, with 0 for an undefined precision; nan without test images.
    """

    images: NDArray[np.int64]
    recall: NDArray[np.float64]
    precision: NDArray[np.float64]
    f1: NDArray[np.float64]


def per_class(confusion: NDArray[np.int64]) -> PerClass:
    """Return the scores of the classes of a confusion matrix (K, K), whose rows are the actual classes."""
    right, actual, predicted = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
    f1 = np.where(actual > 0, _divide(2 * right, actual + predicted), np.nan)
    return PerClass(actual, _divide(right, actual), _divide(right, predicted), f1)


def _divide(above: NDArray[np.int64], below: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.divide(above, below, out=np.full(len(above), np.nan), where=below > 0)


def class_scores(classes: PerClass) -> dict[str, float]:
    """Return balanced accuracy (mean recall) and macro F1 (mean F1) of the classes that have test images."""
    return {"balanced_accuracy": float(np.nanmean(classes.recall)), "macro_f1": float(np.nanmean(classes.f1))}


@dataclass(frozen=True)
class Calibration:
    """Predictions in `BINS` equal bins of their probability; arrays (BINS,), nan for an empty bin.

    error: the expected calibration error: the mean difference of probability and accuracy, weighted by `images`.
    """

    images: NDArray[np.int64]
    probability: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    error: float


def calibration(labels: NDArray[np.int64], probabilities: NDArray[np.float32]) -> Calibration:
    """Compare the probability of the predicted class with its accuracy, over images with probabilities (N, K)."""
    top = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == labels
    # A bin includes its upper end, as in the paper.
    bins = np.clip(np.ceil(top * BINS).astype(np.int64) - 1, 0, BINS - 1)
    images = np.bincount(bins, minlength=BINS)
    mean = [_divide(np.bincount(bins, values, BINS), images) for values in (top, right)]
    error = float(np.nansum(np.abs(mean[0] - mean[1]) * images) / max(len(labels), 1))
    return Calibration(images, mean[0], mean[1], error)


def interval(share: float, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's interval of a share of `count` images, such as an accuracy; (0, 1) without images."""
    if count == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    center, scale = share + z * z / (2 * count), 1 + z * z / count
    radius = z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    return (center - radius) / scale, (center + radius) / scale


def remarks(train_accuracy: float, accuracy: float, classes: PerClass, names: Sequence[str]) -> list[str]:
    """Return a sentence, with a remedy, for a large gap between train and test, and for classes that are never right.

    The gap counts only if the train accuracy is above the interval of the test accuracy.
    """
    found = []
    count = int(classes.images.sum())
    gap = train_accuracy - accuracy
    if gap > LARGE_GAP and train_accuracy > interval(accuracy, count)[1]:
        found.append(
            f"over-fitting: the train accuracy is {100 * gap:.1f} points above the test accuracy; more images, "
            "augmentation (shift, flip, cutout), dropout or weight_decay make the gap smaller"
        )
    missed = [name for name, recall in zip(names, classes.recall, strict=True) if recall == 0]
    if missed:
        examples = ", ".join(map(repr, missed[:3])) + (", ..." if len(missed) > 3 else "")
        found.append(
            f"{len(missed):,} of {len(names):,} classes {'is' if len(missed) == 1 else 'are'} never recognized: "
            f"{examples}; class_weights=balanced gives rare classes more weight, and per_class.csv has all scores"
        )
    return found
