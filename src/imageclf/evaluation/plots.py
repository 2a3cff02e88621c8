"""Plots of the test split."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imageclf.core import files
from imageclf.evaluation import fonts

MOST_LABELS = 140
"""Maximum number of class names on an axis of the largest confusion plot: 16 pixels each."""

LONGEST_LABEL, LONGEST_TITLE = 30, 24
"""Maximum number of columns of a name on an axis of the confusion plot, and above an image."""

INCHES_PER_COLUMN = 0.085
"""Width of one column of a label on an axis."""


def plot_confusion(path: Path, classes: Sequence[str], confusion: NDArray[np.int64]) -> None:
    """Draw the confusion matrix, colored by the share of the row, with counts for up to 20 classes.

    If the names would overlap, only every second, third, ... class is labeled, as the axis titles then say.
    """
    shown = fonts.labels(classes)
    names = [fonts.cut(text, LONGEST_LABEL) for text in shown.texts]
    longest = max(map(fonts.columns, names))
    # The size is bounded by memory for a thousand classes; long names get extra room.
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


def plot_predictions(
    path: Path,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    probabilities: NDArray[np.float32],
    classes: Sequence[str],
) -> None:
    """Draw the first eight images (n, C, H, W), each with its predicted class, probability, and actual class."""
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
    """Yield a figure and its axes. The figure has a note if some classes are shown as numbers."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure  # importing pyplot takes twice as long

    with rc_context({"font.family": shown.families}):
        figure = Figure(figsize=size, layout="constrained")
        if shown.numbered:
            figure.supxlabel("#0 is the first class in per_class.csv", fontsize=8)
        yield figure, list(np.ravel(figure.subplots(rows, columns)))


def _save(figure: Any, path: Path) -> None:
    with files.replacing(path) as temporary:
        # The version of matplotlib is left out, so that the same numbers give the same bytes.
        figure.savefig(temporary, format="png", dpi=100, metadata={"Software": None})
