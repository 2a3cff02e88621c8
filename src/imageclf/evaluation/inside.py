"""Pictures of what goes into the net, and of its first layer."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from imageclf.contracts.dataset import unpermute
from imageclf.evaluation import figure
from imageclf.evaluation.figure import GAP

if TYPE_CHECKING:
    from imageclf.inference.checkpoint import Checkpoint

COLUMNS = 8
"""Images per row."""
MOST_FILTERS = 32
"""Filters, and feature maps, that are shown."""
SIDE = 32
"""Pixels per side to which smaller images are enlarged."""


def plot_input(path: Path, rows: dict[str, NDArray[np.uint8]]) -> None:
    """Draw the same images (n, C, H, W) at several steps, a row per step."""
    steps = np.stack([_enlarged(images) for images in rows.values()])
    with figure.opened(1, 1, (8, 0.9 + 0.9 * len(rows))) as (drawn, (axes,)):
        figure.mosaic(axes, steps)
        height = steps.shape[3] + GAP
        axes.set(yticks=[(row + 0.5) * height for row in range(len(rows))], xticks=[], title="Train images")
        axes.set_yticklabels(rows)
        figure.save(drawn, path)


def plot_first_layer(path: Path, loaded: "Checkpoint", image: NDArray[np.uint8]) -> None:
    """Draw the weights of the first layer, each scaled to its own range, and its outputs for one image (C, H, W)."""
    layer, filters = first_layer(loaded.net), filters_of(loaded)
    panels = {f"Weights of the first layer ({len(filters)} of {len(layer.weight)})": filters}
    if isinstance(layer, nn.Conv2d):
        outputs = _outputs(loaded, layer, image)
        maps = _as_pixels(outputs[:MOST_FILTERS, None])
        panels[f"Its outputs for the first test image ({len(maps)} of {len(outputs)})"] = maps
    with figure.opened(1, len(panels), (5 * len(panels), 4)) as (drawn, places):
        for axes, (title, pixels) in zip(places, panels.items(), strict=True):
            figure.mosaic(axes, _grid(pixels))
            axes.set(xticks=[], yticks=[])
            axes.set_title(title, fontsize=10)
        figure.save(drawn, path)


def first_layer(net: nn.Module) -> nn.Conv2d | nn.Linear:
    """Return the first convolution or fully connected layer of a net."""
    return next(module for module in net.modules() if isinstance(module, (nn.Conv2d, nn.Linear)))


def filters_of(loaded: "Checkpoint") -> NDArray[np.uint8]:
    """Return the weights of the first units or filters as images (n, channels, height, width).

    A fully connected layer has one weight per pixel, so each of its units is an image; a permutation is undone.
    """
    layer = first_layer(loaded.net)
    weights = layer.weight.detach()[:MOST_FILTERS]
    if isinstance(layer, nn.Conv2d):
        return _as_pixels(weights)
    filters = _as_pixels(weights.reshape(-1, *loaded.spec.image_shape))
    permutation = loaded.spec.permutation
    return unpermute(filters, None if permutation is None else np.asarray(permutation))


def _outputs(loaded: "Checkpoint", layer: nn.Module, image: NDArray[np.uint8]) -> Tensor:
    """Return what the layer computes for one image, without the batch dimension."""
    seen: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        seen.append(output)

    handle = layer.register_forward_hook(keep)
    with torch.inference_mode():
        loaded.net(loaded.normalize(torch.from_numpy(image[None].copy())))
    handle.remove()
    return seen[0][0].float()


def _as_pixels(values: Tensor) -> NDArray[np.uint8]:
    """Scale each of n tensors (n, C, H, W) to the range 0..255; other than one or three channels become their mean."""
    if values.shape[1] not in {1, 3}:
        values = values.mean(dim=1, keepdim=True)
    flat = values.flatten(1)
    low, high = flat.amin(dim=1)[:, None, None, None], flat.amax(dim=1)[:, None, None, None]
    return ((values - low) / (high - low).clamp_min(1e-12) * 255).round().to(torch.uint8).numpy()


def _enlarged(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Repeat the pixels of small images (n, C, H, W), next to which the gaps of a grid would look large."""
    times = max(1, SIDE // max(images.shape[2:]))
    return images.repeat(times, axis=2).repeat(times, axis=3)


def _grid(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Arrange images (n, C, H, W) in rows of `COLUMNS`; the rest of the last row is white."""
    images = _enlarged(images)
    columns = min(COLUMNS, len(images))
    rows = math.ceil(len(images) / columns)
    blank = np.full((rows * columns - len(images), *images.shape[1:]), 255, np.uint8)
    return np.concatenate([images, blank]).reshape(rows, columns, *images.shape[1:])
