"""All pictures of an evaluation, in one folder."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from imageclf.contracts import history
from imageclf.contracts.dataset import Prepared, unpermute
from imageclf.core import paths
from imageclf.evaluation import curves, inside, plots, quality, tables
from imageclf.preprocess.report.record import DataReport

if TYPE_CHECKING:
    from imageclf.inference.checkpoint import Checkpoint

SHOWN = 8
"""Images of a picture."""
AUGMENTATIONS = ("crop", "color_jitter", "shift", "flip", "cutout")
SEED = 0
"""Seed of the augmentation that is shown."""


def draw_test(folder: Path, data: Prepared, probabilities: NDArray[np.float32]) -> None:
    """Draw the results on the test split: confusion matrix, scores, first images, and the most confident mistakes."""
    test, names = data["test"], data.manifest.classes
    confusion = tables.confusion_matrix(test.labels, probabilities.argmax(axis=1), len(names))
    plots.plot_confusion(folder / "confusion.png", names, confusion)
    calibration = quality.calibration(test.labels, probabilities)
    plots.plot_scores(folder / "scores.png", names, quality.per_class(confusion), calibration)
    mistakes = tables.most_confident_mistakes(test.labels, probabilities)[:SHOWN]
    for name, rows in (("samples", np.arange(min(SHOWN, len(test)))), ("mistakes", mistakes)):
        images = unpermute(test.images[rows], data.permutation)
        plots.plot_predictions(folder / f"{name}.png", images, test.labels[rows], probabilities[rows], names)


def draw_training(folder: Path, data: Prepared, loaded: "Checkpoint") -> None:
    """Draw the learning curves, train images as the net sees them, and the first layer of the net."""
    curves.plot_training(folder / "training.png", history.read(paths.HISTORY))
    inside.plot_input(folder / "input.png", steps(data, loaded.spec.parameters))
    inside.plot_first_layer(folder / "first_layer.png", loaded, data["test"].images[0])


def steps(data: Prepared, parameters: dict[str, Any]) -> dict[str, NDArray[np.uint8]]:
    """Return the first train images by step: as they were, and permuted or augmented if they are."""
    import torch

    from imageclf.training.loading.augment import Augmentation

    augmentation = Augmentation(fill=data.mean_level, **{key: parameters[key] for key in AUGMENTATIONS})
    stored = np.ascontiguousarray(data["train"].images[:SHOWN])
    found = {"original": unpermute(stored, data.permutation)}
    if data.permutation is not None:
        found["permuted"] = stored
    if augmentation:
        draws = augmentation.draw(len(stored), stored.shape[2:], torch.Generator().manual_seed(SEED))
        found["augmented"] = augmentation.apply(torch.from_numpy(stored), draws).numpy()
    return found


def draw_data(folder: Path, data: Prepared, about: DataReport) -> None:
    """Draw the train images of each class, and the closest pairs of near-duplicates."""
    train, test, permutation = data["train"], data["test"], data.permutation
    shown = unpermute(train.images[: plots.MOST_IMAGES], permutation)
    plots.plot_classes(folder / "data.png", shown, train.labels[: len(shown)], data.manifest.classes)
    if about.near and (pairs := about.near.pairs[:5]):
        shown_test = unpermute(test.images[[pair.test for pair in pairs]], permutation)
        shown_train = unpermute(train.images[[pair.train for pair in pairs]], permutation)
        titles = [f"{pair.test} and {pair.train}\ncorrelation {pair.details:.2f}" for pair in pairs]
        plots.plot_pairs(folder / "near_duplicates.png", shown_test, shown_train, titles)
