"""Tables of the test split: predictions and per-class accuracy as CSV files, and the confusion matrix."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from imageclf.core import files


def write_predictions(
    path: Path, classes: Sequence[str], labels: NDArray[np.int64], probabilities: NDArray[np.float32]
) -> None:
    """Write one row per image: index, actual and predicted class, and the probability of each of the two."""
    predicted = probabilities.argmax(axis=1)
    rows = np.arange(len(labels))
    files.write_csv(
        path,
        ["index", "actual", "predicted", "p_actual", "p_predicted"],
        [
            (row, classes[label], classes[guess], float(probabilities[row, label]), float(probabilities[row, guess]))
            for row, label, guess in zip(rows, labels, predicted, strict=True)
        ],
    )


def write_per_class(path: Path, classes: Sequence[str], confusion: NDArray[np.int64]) -> None:
    """Write one row per class: number of test images, and their accuracy."""
    counts = confusion.sum(axis=1)
    files.write_csv(
        path,
        ["class", "images", "accuracy"],
        [
            (name, int(count), float(confusion[row, row] / count) if count else None)
            for row, (name, count) in enumerate(zip(classes, counts, strict=True))
        ],
    )


def confusion_matrix(labels: NDArray[np.int64], predicted: NDArray[np.int64], num_classes: int) -> NDArray[np.int64]:
    """Return counts (num_classes, num_classes): one row per actual class, one column per predicted class."""
    cells = np.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes)


def most_confident_mistakes(labels: NDArray[np.int64], probabilities: NDArray[np.float32]) -> NDArray[np.intp]:
    """Return the indices of the wrong predictions, highest probability first."""
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != labels)
    return wrong[np.argsort(-probabilities[wrong].max(axis=1), kind="stable")]
