"""Plots of the test split."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imageclf.evaluation import figure, fonts
from imageclf.evaluation.figure import GAP
from imageclf.evaluation.quality import Calibration, PerClass

MOST_LABELS = 140
"""Maximum number of class names on an axis of the largest confusion plot: 16 pixels each."""

LONGEST_LABEL, LONGEST_TITLE = 30, 20
"""Maximum number of columns of a name on an axis of the confusion plot, and above an image."""

MOST_ROWS, SAMPLES = 20, 8
"""Maximum number of classes in the picture of the data, and images shown of each."""

MOST_IMAGES = 10_000
"""Train images of which the picture of the data is made."""

PICTURES, MOST_BARS, HIGHEST, LONGEST_BAR = 8, 10, 5, 10
"""Images of a picture, classes whose bars are all shown, bars shown otherwise, and columns of a name next to a bar."""

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
    with figure.opened(1, 1, (side + 1, side), shown) as (drawn, (axes,)):
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
        figure.save(drawn, path)


def plot_predictions(
    path: Path,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    probabilities: NDArray[np.float32],
    classes: Sequence[str],
) -> None:
    """Draw up to eight images (n, C, H, W) with their predicted and actual class and the highest probabilities."""
    shown = fonts.labels(classes)
    names = [fonts.cut(text, LONGEST_TITLE) for text in shown.texts]
    fontsize = 10 if max(map(fonts.columns, names)) <= 14 else 7
    images = images[:PICTURES]
    if len(images) == 0:
        with figure.opened(1, 1, (4, 1), shown) as (drawn, (axes,)):
            axes.axis("off")
            drawn.text(0.5, 0.5, "no image", ha="center")
            figure.save(drawn, path)
        return
    columns = min(len(images), PICTURES // 2)
    rows = math.ceil(len(images) / columns)
    size = (2 * columns, 3.5 * rows)
    margins = {"left": 0.65 / size[0], "right": 1 - 0.15 / size[0], "wspace": 0.5, "hspace": 0.45}
    margins |= {"bottom": 0.25 / size[1], "top": 1 - 0.45 / size[1]}
    with figure.opened(2 * rows, columns, size, shown, margins) as (drawn, axes):
        for place in axes:
            place.axis("off")
        for index, (image, label, row) in enumerate(zip(images, labels, probabilities, strict=False)):
            above = 2 * columns * (index // columns) + index % columns
            _show(axes[above], image)
            guess = int(row.argmax())
            color = figure.GREEN if guess == label else figure.RED
            title = f"predicted {names[guess]}\nactual {names[int(label)]}"
            axes[above].set_title(title, fontsize=fontsize, color=color, parse_math=False)
            _bars(axes[above + columns], row, int(label), names)
        figure.save(drawn, path)


def _show(axes: Any, image: NDArray[np.uint8]) -> None:
    if len(image) == 1:
        axes.imshow(image[0], cmap="gray", vmin=0, vmax=255)
    else:
        axes.imshow(image.transpose(1, 2, 0))


def _bars(axes: Any, row: NDArray[np.float32], label: int, names: Sequence[str]) -> None:
    """Draw the probabilities of the classes, up to ten in their order, else the highest ones, as bars."""
    order = np.arange(len(row)) if len(row) <= MOST_BARS else np.argsort(-row, kind="stable")[:HIGHEST]
    colors = [figure.GREEN if number == label else figure.BLUE for number in order]
    axes.axis("on")
    axes.barh(range(len(order)), 100 * row[order], color=colors)
    axes.set(xlim=(0, 100), xticks=[0, 50, 100], yticks=range(len(order)))
    axes.set_yticklabels([fonts.cut(names[int(number)], LONGEST_BAR) for number in order], fontsize=6, parse_math=False)
    axes.set_xticklabels(["0", "50", "100%"], fontsize=6)
    axes.invert_yaxis()


def plot_scores(path: Path, classes: Sequence[str], scores: PerClass, calibration: Calibration) -> None:
    """Draw recall and precision per class, those with the lowest F1 if they are many, and the calibration."""
    shown = fonts.labels(classes)
    order = np.argsort(np.nan_to_num(scores.f1, nan=2.0), kind="stable")[:MOST_ROWS]
    order = np.sort(order) if len(classes) <= MOST_ROWS else order
    height = max(4, 0.6 + 0.32 * len(order))
    with figure.opened(1, 2, (9, height), shown) as (drawn, (bars, reliability)):
        places = np.arange(len(order))
        bars.barh(places - 0.2, 100 * np.nan_to_num(scores.recall[order]), 0.4, color=figure.BLUE, label="recall")
        bars.barh(
            places + 0.2, 100 * np.nan_to_num(scores.precision[order]), 0.4, color=figure.ORANGE, label="precision"
        )
        few = f": the {len(order)} with the lowest F1" if len(classes) > len(order) else ""
        bars.set(xlim=(0, 100), xlabel="%", title=f"Test images per class{few}", yticks=places)
        bars.set_yticklabels([fonts.cut(shown.texts[number], LONGEST_LABEL) for number in order], parse_math=False)
        bars.invert_yaxis()
        bars.legend(loc="upper right", bbox_to_anchor=(1, -0.04), ncols=2, fontsize=8)
        used = calibration.images > 0
        reliability.plot([0, 100], [0, 100], color="gray", linewidth=1, label="perfect")
        reliability.scatter(
            100 * calibration.probability[used],
            100 * calibration.accuracy[used],
            s=8 + 192 * calibration.images[used] / calibration.images.sum(),
            color=figure.BLUE,
            label=f"this model (area: images), calibration error {100 * calibration.error:.1f} points",
        )
        reliability.set(
            xlim=(0, 103), ylim=(-3, 120), yticks=range(0, 101, 20), xlabel="probability of the predicted class, %"
        )
        reliability.set(ylabel="accuracy, %", title="Calibration on the test images")
        reliability.legend(loc="upper left", fontsize=8)
        figure.save(drawn, path)


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
    with figure.opened(1, 1, (8, 1 + 0.7 * len(rows)), shown_names) as (drawn, (axes,)):
        figure.mosaic(axes, np.stack(rows))
        height, width = images.shape[2] + GAP, images.shape[3] + GAP
        axes.set_yticks([(row + 0.5) * height for row in range(len(rows))])
        axes.set_yticklabels(names, parse_math=False)
        axes.set_xticks([0.5 * width, (1 + SAMPLES / 2) * width])
        axes.set_xticklabels(["mean", f"train images{more}"])
        figure.save(drawn, path)


def plot_pairs(path: Path, test: NDArray[np.uint8], train: NDArray[np.uint8], titles: Sequence[str]) -> None:
    """Draw pairs of images, each (n, C, H, W): a column per pair, the test image above the train image."""
    with figure.opened(1, 1, (8, 4.5), fonts.labels(())) as (drawn, (axes,)):
        figure.mosaic(axes, np.stack([test, train]))
        height, width = test.shape[2] + GAP, test.shape[3] + GAP
        axes.set_yticks([0.5 * height, 1.5 * height])
        axes.set_yticklabels(["test", "train"])
        axes.set_xticks([(column + 0.5) * width for column in range(len(titles))])
        axes.set_xticklabels(titles, fontsize=8)
        figure.save(drawn, path)
