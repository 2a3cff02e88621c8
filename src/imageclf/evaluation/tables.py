"""Tables of the test split: predictions and scores per class as CSV files, and the confusion matrix."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from imageclf.core import files
from imageclf.evaluation.quality import PerClass

MOST_COLUMNS = 100
"""Maximum number of classes whose probabilities are all in the table of predictions."""


def write_predictions(
    path: Path, classes: Sequence[str], labels: NDArray[np.int64], probabilities: NDArray[np.float32]
) -> None:
    """Write one row per image: index, actual and predicted class, the probability of each of the two.

    For up to `MOST_COLUMNS` classes, the probability of each class follows, in columns such as `p: cat`.
    """
    predicted = probabilities.argmax(axis=1)
    columns = range(len(classes) if len(classes) <= MOST_COLUMNS else 0)
    files.write_csv(
        path,
        ["index", "actual", "predicted", "p_actual", "p_predicted", *(f"p: {classes[column]}" for column in columns)],
        [
            (index, classes[label], classes[guess], row[label], row[guess], *(row[column] for column in columns))
            for index, (label, guess, row) in enumerate(zip(labels, predicted, probabilities.tolist(), strict=True))
        ],
    )


def write_per_class(path: Path, names: Sequence[str], classes: PerClass) -> None:
    """Write one row per class: number of test images, their accuracy (the recall), precision, and F1.

    The cell of a score that is not defined is empty.
    """
    scores = zip(classes.recall, classes.precision, classes.f1, strict=True)
    files.write_csv(
        path,
        ["class", "images", "accuracy", "precision", "f1"],
        [
            (name, int(images), *(None if np.isnan(score) else float(score) for score in row))
            for name, images, row in zip(names, classes.images, scores, strict=True)
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
