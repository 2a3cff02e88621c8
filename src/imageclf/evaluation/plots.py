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

MOST_ROWS, SAMPLES, GAP = 20, 8, 2
"""Maximum number of classes in the picture of the data, images shown of each, and pixels between two images."""

MOST_IMAGES = 10_000
"""Train images of which the picture of the data is made."""

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


def plot_classes(
    path: Path, images: NDArray[np.uint8], labels: NDArray[np.int64], classes: Sequence[str], seed: int = 0
) -> None:
    """Draw a row per class: the mean of its images (n, C, H, W), and some of them; the first classes if they are many.

    The images are the first `MOST_IMAGES`, and those that are shown are drawn at random.
    """
    images, labels = images[:MOST_IMAGES], labels[:MOST_IMAGES]
    numbers = np.unique(labels)[:MOST_ROWS]
    random, rows = np.random.default_rng(seed), []
    for number in numbers:
        mine = np.flatnonzero(labels == number)
        mean = images[mine].mean(axis=0).round().astype(np.uint8)
        shown = images[np.sort(random.permutation(mine)[:SAMPLES])]
        blank = np.full((SAMPLES - len(shown), *mean.shape), 255, np.uint8)
        rows.append(np.concatenate([mean[None], shown, blank]))
    shown_names = fonts.labels(classes)
    names = [fonts.cut(shown_names.texts[number], LONGEST_LABEL) for number in numbers]
    more = f" (the first {MOST_ROWS} of {len(classes):,} classes)" if len(classes) > MOST_ROWS else ""
    with _figure(1, 1, (8, 1 + 0.7 * len(rows)), shown_names) as (figure, (axes,)):
        _mosaic(axes, np.stack(rows))
        height, width = images.shape[2] + GAP, images.shape[3] + GAP
        axes.set_yticks([(row + 0.5) * height for row in range(len(rows))])
        axes.set_yticklabels(names, parse_math=False)
        axes.set_xticks([0.5 * width, (1 + SAMPLES / 2) * width])
        axes.set_xticklabels(["mean", f"train images{more}"])
        _save(figure, path)


def plot_pairs(path: Path, test: NDArray[np.uint8], train: NDArray[np.uint8], titles: Sequence[str]) -> None:
    """Draw pairs of images, each (n, C, H, W): a column per pair, the test image above the train image."""
    with _figure(1, 1, (8, 4.5), fonts.labels(())) as (figure, (axes,)):
        _mosaic(axes, np.stack([test, train]))
        height, width = test.shape[2] + GAP, test.shape[3] + GAP
        axes.set_yticks([0.5 * height, 1.5 * height])
        axes.set_yticklabels(["test", "train"])
        axes.set_xticks([(column + 0.5) * width for column in range(len(titles))])
        axes.set_xticklabels(titles, fontsize=8)
        _save(figure, path)


def _mosaic(axes: Any, images: NDArray[np.uint8]) -> None:
    """Show images (rows, columns, C, H, W) as a grid with white gaps of `GAP` pixels."""
    padded = np.pad(images, ((0, 0), (0, 0), (0, 0), (0, GAP), (0, GAP)), constant_values=255)
    rows, columns, channels, height, width = padded.shape
    grid = padded.transpose(0, 3, 1, 4, 2).reshape(rows * height, columns * width, channels)
    axes.imshow(grid[:, :, 0] if channels == 1 else grid, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)


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
