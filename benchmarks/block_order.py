"""Compare the accuracy after shuffling in blocks with that after shuffling all images at once.

    uv run python -m benchmarks.block_order                  # MNIST and CIFAR-10, five seeds; ten minutes on 2 cores

The train images are sorted by class in their file, the worst case. Images that exceed the memory have 4,096 blocks per
window; 20 million of 28x28 pixels have 59 windows, of blocks of 83 images. MNIST and CIFAR-10 are smaller, so three
orders stand for that one. `as many blocks` has 4,096 blocks per window, as for large data, each of five images of the
same class. `as many windows` has 59 windows of about 180 such blocks, so that the classes of a window differ five times
as much. `blocks of 64 KiB` has 59 windows too, and then only a few blocks in each. Prints a table.
"""

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from benchmarks import machine, projects
from benchmarks.output import markdown_table
from imageclf import models
from imageclf.contracts import dataset
from imageclf.contracts.dataset import Prepared, Split
from imageclf.core import paths, process
from imageclf.training import losses, optim, runtime, scoring
from imageclf.training.gradients import FLOAT32, GradientAccumulator
from imageclf.training.loading import blocks
from imageclf.training.loading.batches import Batches, Normalize
from imageclf.training.loading.blocks import BlockOrder

EPOCHS, WINDOWS, BLOCKS, PER_BLOCK = 3, 59, 4096, 5
RECIPES = ("fc500", "cifar-cnn")
CPU = torch.device("cpu")


class Order(NamedTuple):
    """Images per block and blocks per window; `block` 0 shuffles all images at once."""

    block: int
    window: int


def orders(images: int, bytes_per_image: int) -> dict[str, Order]:
    """Return the orders to compare, by name."""
    real = max(1, blocks.BLOCK_BYTES // bytes_per_image)
    return {
        "all at once": Order(0, 0),
        "as many blocks": Order(PER_BLOCK, BLOCKS),
        "as many windows": Order(PER_BLOCK, max(1, images // PER_BLOCK // WINDOWS)),
        "blocks of 64 KiB": Order(real, max(2, images // real // WINDOWS)),
    }


def sorted_by_class(split: Split, path: Path) -> Split:
    """Write the images of a split, sorted by class, to a file, and return them mapped from there."""
    order = np.argsort(split.labels, kind="stable")
    np.save(path, split.images[order])
    return Split(np.load(path, mmap_mode="c", allow_pickle=False), split.targets[order])


def accuracy(data: Prepared, train: Split, parameters: dict[str, object], order: Order, seed: int) -> float:
    """Train a new net with this order, and return the accuracy on the test split."""
    normalize = Normalize(data.normalization)
    made = BlockOrder(len(train), order.block, order.window) if order.block else None
    BlockOrder.of = lambda _images: made  # type: ignore[method-assign, assignment]
    torch.manual_seed(seed)
    name = str(parameters["model"])
    arguments = {key: parameters[key] for key in models.parameter_names(name)}
    net = models.build(name, data.manifest.image_shape, len(data.manifest.classes), **arguments)
    optimizer = optim.OPTIMIZERS["adam"](net, optim.OptimizerOptions(lr=0.001))
    size = int(str(parameters["batch_size"]))
    batches = Batches(train, normalize, size, CPU, resident=made is None)
    gradients = GradientAccumulator(net, batches, losses.LOSSES["cross_entropy"], 0.0, FLOAT32)
    for epoch in range(EPOCHS):
        for pixels, targets in batches.shuffled(runtime.derive(seed, epoch)):
            gradients(pixels, targets, len(targets))
            optimizer.step()
    test = Batches(data["test"], normalize, scoring.BATCH_SIZE, CPU)
    return scoring.score(net.eval(), test, losses.LOSSES["cross_entropy"]).accuracy


def measure(recipe: str, folder: Path, given: argparse.Namespace) -> list[list[str]]:
    """Return a row of the table per order."""
    projects.make(folder / recipe, recipe, given.images, given.data)
    data = dataset.read(folder / recipe / paths.PROCESSED)
    train = sorted_by_class(data["train"], folder / f"{recipe}.npy")
    parameters = projects.parameters(recipe, given.data)
    rows = []
    for name, order in orders(len(train), train.images[0].nbytes).items():
        found = [100 * accuracy(data, train, parameters, order, seed) for seed in range(given.seeds)]
        spread = f" ± {statistics.stdev(found):.2f}" if len(found) > 1 else ""
        shape = f"{order.block} and {order.window}" if order.block else ""
        rows.append([recipe, name, shape, f"{statistics.fmean(found):.2f}{spread}", str(len(found))])
        print(*rows[-1], flush=True)
    return rows


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Compare orders of the train images by test accuracy.")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--images", type=int, help="train on this many images only, to see that it runs")
    projects.add_data_argument(parser)
    given = parser.parse_args()
    projects.check_data(given.data)
    runtime.set_threads("auto")
    print(machine.sentence(machine.describe_with_commit(("torch", "numpy"))), flush=True)
    header = ["recipe", "order", "images per block, blocks per window", "test accuracy, %", "n"]
    with tempfile.TemporaryDirectory() as work:
        rows = [row for recipe in RECIPES for row in measure(recipe, Path(work), given)]
    print(markdown_table([header, *rows]))


if __name__ == "__main__":
    process.run(main)
