"""What a person looks at: metrics/*.json, *.csv and *.png. No number is made here, only shown."""

import csv
import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imageclf import files, fonts

DIGITS = 6
"""Significant digits in tables: enough to tell any two accuracies apart, too few for the last bits to show."""

MOST_LABELS = 140
"""Class names on an axis of the largest confusion plot, at most: 16 pixels each."""

LONGEST_LABEL, LONGEST_TITLE = 30, 24
"""Columns of a name on an axis of the confusion plot, and above an image."""

INCHES_PER_COLUMN = 0.085
"""Width of one column of a label on an axis."""


def write_table(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A CSV file; floats with `DIGITS` significant digits, None as an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        writer.writerow([f"{cell:.{DIGITS}g}" if isinstance(cell, float) else cell for cell in row])
    files.write_text(path, text.getvalue())


def write_history(path: Path, epochs: Sequence[dict[str, Any]]) -> None:
    """A row an epoch; the val columns are there, and empty, where nothing was kept aside."""
    header = ["epoch" if key == "number" else key for key in epochs[0]]
    write_table(path, header, [list(epoch.values()) for epoch in epochs])


def write_predictions(
    path: Path, classes: Sequence[str], labels: NDArray[np.int64], probabilities: NDArray[np.float32]
) -> None:
    """A row for each image: index, actual and predicted class, and the probability given to each."""
    predicted = probabilities.argmax(axis=1)
    rows = np.arange(len(labels))
    write_table(
        path,
        ["index", "actual", "predicted", "p_actual", "p_predicted"],
        [
            (row, classes[label], classes[guess], float(probabilities[row, label]), float(probabilities[row, guess]))
            for row, label, guess in zip(rows, labels, predicted, strict=True)
        ],
    )


def write_per_class(path: Path, classes: Sequence[str], confusion: NDArray[np.int64]) -> None:
    """A row for each class: how many test images it has and the share of them that was recognized."""
    counts = confusion.sum(axis=1)
    write_table(
        path,
        ["class", "images", "accuracy"],
        [
            (name, int(count), float(confusion[row, row] / count) if count else None)
            for row, (name, count) in enumerate(zip(classes, counts, strict=True))
        ],
    )


def confusion_matrix(labels: NDArray[np.int64], predicted: NDArray[np.int64], num_classes: int) -> NDArray[np.int64]:
    """Counts (num_classes, num_classes): row = actual, column = predicted."""
    cells = np.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes)


def plot_confusion(path: Path, classes: Sequence[str], confusion: NDArray[np.int64]) -> None:
    """Draw the confusion matrix, colored by the share of the row, with counts for up to 20 classes.

    If the names would overlap, only every second, third, ... class is named, and the axes say so.
    """
    shown = fonts.labels(classes)
    names = [fonts.cut(text, LONGEST_LABEL) for text in shown.texts]
    longest = max(map(fonts.columns, names))
    # A thousand classes must still fit into memory; a long name must leave room for the matrix.
    side = min(2 + 0.45 * len(names), 25) + INCHES_PER_COLUMN * max(0, longest - 10)
    step = math.ceil(len(names) / MOST_LABELS)
    every = "" if step == 1 else f" (one class in {step} is named)"
    with _figure(1, 1, (side + 1, side), shown) as (figure, (axes,)):
        shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
        ticks = range(0, len(names), step)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.set(xlabel=f"predicted{every}", ylabel=f"actual{every}", xticks=ticks, yticks=ticks)
        axes.set_xticklabels(names[::step], rotation=90 if longest > 2 else 0, parse_math=False)
        axes.set_yticklabels(names[::step], parse_math=False)
        if len(names) <= 20:
            for row, column in np.argwhere(confusion):
                color = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, str(confusion[row, column]), ha="center", va="center", color=color, fontsize=8)
        _save(figure, path)


def surest_mistakes(labels: NDArray[np.int64], probabilities: NDArray[np.float32]) -> NDArray[np.intp]:
    """Rows of the wrong predictions, the most probable first."""
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != labels)
    return wrong[np.argsort(-probabilities[wrong].max(axis=1), kind="stable")]


def plot_predictions(
    path: Path,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    probabilities: NDArray[np.float32],
    classes: Sequence[str],
) -> None:
    """The first eight images (n, C, H, W) with what they are taken for, how surely, and what they are."""
    shown = fonts.labels(classes)
    names = [fonts.cut(text, LONGEST_TITLE) for text in shown.texts]
    fontsize = 10 if max(map(fonts.columns, names)) <= 14 else 7
    with _figure(2, 4, (8, 5), shown) as (figure, axes):
        for place in axes:
            place.axis("off")
        for place, image, label, row in zip(axes, images, labels, probabilities, strict=False):
            if len(image) == 1:
                place.imshow(image[0], cmap="gray", vmin=0, vmax=255)
            else:
                place.imshow(image.transpose(1, 2, 0))
            guess = int(row.argmax())
            color = "tab:green" if guess == label else "tab:red"
            title = f"{names[guess]} ({row[guess]:.1%})\nis {names[int(label)]}"
            place.set_title(title, fontsize=fontsize, color=color, parse_math=False)
        if len(images) == 0:
            figure.text(0.5, 0.5, "none", ha="center")
        _save(figure, path)


@contextmanager
def _figure(rows: int, columns: int, size: tuple[float, float], shown: fonts.Labels) -> Iterator[tuple[Any, list[Any]]]:
    """A figure and its axes, with the fonts of the labels, and a note if some classes are shown as numbers."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure  # not pyplot: no backend, no state, half the import

    with rc_context({"font.family": shown.families}):
        figure = Figure(figsize=size, layout="constrained")
        if shown.numbered:
            figure.supxlabel("#0 is the first class in per_class.csv", fontsize=8)
        yield figure, list(np.ravel(figure.subplots(rows, columns)))


def _save(figure: Any, path: Path) -> None:
    with files.replacing(path) as temporary:
        # Without the version of matplotlib the same numbers give the same bytes.
        figure.savefig(temporary, format="png", dpi=100, metadata={"Software": None})
