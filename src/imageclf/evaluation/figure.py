"""Parts of all pictures: the figure with its fonts, its file, and a grid of images."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imageclf.core import files
from imageclf.evaluation import fonts

GAP = 2
"""Pixels between two images of a grid."""

BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
"""Colors that people with a color vision deficiency can tell apart (Okabe and Ito, 2008)."""

NO_NAMES = fonts.Labels([], ["sans-serif"], [])
"""Labels of a picture without class names."""


@contextmanager
def opened(
    rows: int,
    columns: int,
    size: tuple[float, float],
    shown: fonts.Labels = NO_NAMES,
    margins: dict[str, float] | None = None,
) -> Iterator[tuple[Any, list[Any]]]:
    """Yield a figure and its axes. The figure has a note if some classes are shown as numbers.

    `margins` are those of `Figure.subplots_adjust`. Without them, matplotlib finds room for all texts, which takes
    half a second for many axes.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure  # importing pyplot takes twice as long

    with rc_context({"font.family": shown.families}):
        drawn = Figure(figsize=size, layout=None if margins else "constrained")
        if margins:
            drawn.subplots_adjust(**margins)
        if shown.numbered:
            drawn.supxlabel("#0 is the first class in per_class.csv", fontsize=8)
        yield drawn, list(np.ravel(drawn.subplots(rows, columns)))


def save(drawn: Any, path: Path) -> None:
    """Write the figure as a PNG file of 100 pixels per inch."""
    with files.replacing(path) as temporary:
        # The version of matplotlib is left out, so that the same numbers give the same bytes.
        drawn.savefig(temporary, format="png", dpi=100, metadata={"Software": None})


def mosaic(axes: Any, images: NDArray[np.uint8]) -> None:
    """Show images (rows, columns, C, H, W) as a grid with white gaps of `GAP` pixels."""
    padded = np.pad(images, ((0, 0), (0, 0), (0, 0), (0, GAP), (0, GAP)), constant_values=255)
    rows, columns, channels, height, width = padded.shape
    grid = padded.transpose(0, 3, 1, 4, 2).reshape(rows * height, columns * width, channels)
    axes.imshow(grid[:, :, 0] if channels == 1 else grid, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
