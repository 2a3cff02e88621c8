"""Tests of the pictures of a training and of the inside of a net."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import new_spec, png_size, prepare_with, save_model
from PIL import Image

from imageclf.contracts import dataset
from imageclf.contracts.raw import Images, RawData
from imageclf.evaluation import curves, inside, pictures
from imageclf.inference import checkpoint

PERMUTATION = np.random.default_rng(0).permutation(64)


def rows(train: list[float], val: list[float] | None = None) -> list[dict[str, float]]:
    found = []
    for index, loss in enumerate(train):
        row = {"epoch": index + 1.0, "lr": 0.1, "train_loss": loss, "train_accuracy": 0.5}
        if val:
            row |= {"val_loss": val[index], "val_accuracy": 0.4}
        found.append(row)
    return found


@pytest.mark.parametrize(
    ("train", "val", "start"),
    [
        ([1.0, 0.5, 0.2, 0.1, 0.05], [1.0, 0.6, 0.5, 0.6, 0.7], "over-fitting: after epoch 3"),
        ([2.0, 1.5, 1.1, 0.8, 0.6], [2.0, 1.5, 1.1, 0.8, 0.6], "under-fitting"),
        ([2.0, 1.0, 0.52, 0.51, 0.50], [2.0, 1.0, 0.6, 0.6, 0.6], "neither"),
        ([2.0, 1.0, 0.52, 0.51, 0.50], None, "the train loss has settled"),
        ([2.0, 1.0, 0.9, 0.7, 0.5], None, "under-fitting"),
        ([2.0, 1.0], [2.0, 1.0], ""),
    ],
)
def test_the_verdict_of_the_curves(train: list[float], val: list[float] | None, start: str) -> None:
    verdict = curves.verdict(rows(train, val))
    assert verdict.startswith(start)
    assert bool(verdict) == bool(start)


@pytest.mark.parametrize("val", [None, [2.0]])
def test_curves_of_one_epoch_can_be_seen(val: list[float] | None, tmp_path: Path) -> None:
    curves.plot_training(tmp_path / "a.png", rows([1.0], val))
    with Image.open(tmp_path / "a.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    assert (pixels == (0x00, 0x72, 0xB2)).all(axis=1).sum() > 10


def test_a_unit_of_a_fully_connected_net_is_shown_without_the_permutation(tmp_path: Path) -> None:
    """The weight that the net has for the stored pixel i belongs to the original pixel permutation[i]."""
    shape: dict[str, Any] = {"raw_shape": (1, 8, 8), "image_shape": (1, 8, 8)}
    save_model(
        tmp_path,
        new_spec(model="mlp", arguments={"hidden": [4], "dropout": 0.0}, permutation=PERMUTATION.tolist(), **shape),
    )
    loaded = checkpoint.load(tmp_path)
    with torch.no_grad():
        inside.first_layer(loaded.net).weight[1].zero_()[5] = 1.0
    filters = inside.filters_of(loaded)
    assert filters.shape == (4, 1, 8, 8)
    assert filters[1].argmax() == PERMUTATION[5]
    inside.plot_first_layer(tmp_path / "a.png", loaded, np.zeros((1, 8, 8), np.uint8))
    assert png_size(tmp_path / "a.png") == (500, 400)


@pytest.mark.parametrize("channels", [1, 3])
def test_filters_and_feature_maps_of_a_convolution_are_shown(channels: int, tmp_path: Path) -> None:
    shape: dict[str, Any] = {"raw_shape": (channels, 8, 8), "image_shape": (channels, 8, 8)}
    shape["normalization"] = ([0.5] * channels, [0.5] * channels)
    arguments = {"channels": [5], "kernel_size": 3, "conv_padding": "same", "hidden": [4], "dropout": 0.0}
    save_model(tmp_path, new_spec(model="cnn", arguments=arguments, **shape))
    loaded = checkpoint.load(tmp_path)
    assert inside.filters_of(loaded).shape == (5, channels, 3, 3)
    inside.plot_first_layer(tmp_path / "a.png", loaded, np.zeros((channels, 8, 8), np.uint8))
    assert png_size(tmp_path / "a.png") == (1000, 400)


OFF = {"crop": 0.0, "color_jitter": 0.0, "shift": 0, "flip": False, "cutout": 0}


@pytest.mark.parametrize("permute_seed", [None, 0])
@pytest.mark.parametrize("augment", [{}, {"cutout": 4}])
def test_the_steps_show_the_permutation_and_the_augmentation(
    permute_seed: int | None, augment: dict[str, int], tmp_path: Path
) -> None:
    pixels = np.random.default_rng(0).integers(256, size=(12, 1, 8, 8), dtype=np.uint8)
    split = Images(np.arange(12) % 2, lambda: iter([pixels]))
    prepare_with(RawData({"train": split, "test": split}, ("a", "b"), (1, 8, 8)), tmp_path, permute_seed=permute_seed)
    steps = pictures.steps(dataset.read(tmp_path), {**OFF, **augment})
    assert list(steps) == ["original", *["permuted"] * (permute_seed is not None), *["augmented"] * bool(augment)]
    assert (steps["original"] == pixels[:8]).all()
    if permute_seed is not None:
        assert (np.sort(steps["permuted"].reshape(8, -1)) == np.sort(pixels[:8].reshape(8, -1))).all()
        assert (steps["permuted"] != pixels[:8]).any()
    if augment:
        changed = (steps["augmented"] != list(steps.values())[-2]).reshape(8, -1).sum(axis=1)
        assert (changed > 0).all()
        assert (changed <= 16).all()
    inside.plot_input(tmp_path / "a.png", steps)
    assert png_size(tmp_path / "a.png") == (800, round(90 + 90 * len(steps)))
