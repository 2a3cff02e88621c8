"""Draw docs/pixels.png: digits with plain and with permuted pixels, and the accuracy of each kind of net on both.

    uv run python -m benchmarks.picture --images ../shared/datasets/mnist/t10k-images-idx3-ubyte.gz

The accuracies are those of the study in docs/permuted.json.
"""

import argparse
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from imageclf.contracts.preparation import Preparation
from imageclf.core import files, process
from imageclf.preprocess import transform

STUDY, PICTURE = Path("docs/permuted.json"), Path("docs/pixels.png")
NETS = {"study-mlp": "fully connected", "study-cnn": "CNN", "study-vgg": "VGG-11, narrow"}
PLAIN, PERMUTED = "#0072B2", "#D55E00"
"""Blue and vermilion of the palette of Okabe and Ito, which color-blind readers can tell apart."""
HEADER, PIXELS, DIGITS = 16, 28 * 28, 5


def read_digits(archive: Path) -> NDArray[np.uint8]:
    """Return the first images of an IDX archive of MNIST, uint8 (DIGITS, 1, 28, 28)."""
    with gzip.open(archive) as stream:
        stream.read(HEADER)
        return np.frombuffer(stream.read(DIGITS * PIXELS), np.uint8).reshape(DIGITS, 1, 28, 28)


def draw(digits: NDArray[np.uint8], study: dict[str, Any], path: Path) -> None:
    """Draw both rows of digits next to one line per net, from its mean accuracy on plain to that on permuted pixels."""
    permuted = Preparation(permute_seed=0)
    order = transform.draw_permutation(permuted, (1, 28, 28))
    figure = Figure(figsize=(9.6, 3.2), layout="constrained")
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(1.1, 1))[0]
    axes = left.subplots(2, DIGITS)
    for row, (title, color, images) in enumerate(
        (("plain", PLAIN, digits), ("permuted", PERMUTED, transform.apply(permuted, order, digits)))
    ):
        for place, image in zip(axes[row], images, strict=True):
            place.imshow(image[0], cmap="gray")
            place.set(xticks=[], yticks=[])
        axes[row, 0].set_ylabel(title, color=color, fontsize=13)
    _draw_accuracies(right.subplots(), study)
    with files.replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100, metadata={"Software": None})


def _draw_accuracies(axes: Any, study: dict[str, Any]) -> None:
    for row, name in enumerate(NETS):
        plain, permuted = (
            100 * study["groups"][f"{name}{suffix}"]["scores"]["accuracy"]["mean"] for suffix in ("", "-permuted")
        )
        axes.plot([plain, permuted], [row, row], color="0.6", zorder=1)
        axes.plot(plain, row, "o", color=PLAIN, markersize=11, label="plain" if row == 0 else None)
        axes.plot(permuted, row, "D", color=PERMUTED, markersize=8, label="permuted" if row == 0 else None)
        lost = round(plain - permuted, 1)
        points = f"{lost} points lost" if lost else "nothing lost"
        axes.annotate(points, ((plain + permuted) / 2, row), (0, 10), textcoords="offset points", ha="center")
    axes.set_yticks(range(len(NETS)), NETS.values(), fontsize=12)
    axes.set(ylim=(len(NETS) - 0.5, -0.6), xlabel="test accuracy after one epoch, percent")
    axes.margins(x=0.12)
    axes.grid(axis="x", alpha=0.3)
    axes.legend(loc="upper left", frameon=False)


def main() -> None:
    """Read the digits and the study, and draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=Path, required=True, help="the test images of MNIST, as published")
    draw(read_digits(parser.parse_args().images), json.loads(STUDY.read_text()), PICTURE)


if __name__ == "__main__":
    process.run(main)
