"""The nets by name. Each takes `image_shape` (channels, height, width), `num_classes` and its own knobs.

All map normalized float images (N, C, H, W) to logits (N, num_classes).
"""

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from imageclf.models.cnn import CNN
from imageclf.models.mlp import MLP

MODELS: dict[str, Callable[..., nn.Module]] = {
    "cnn": CNN,
    "mlp": MLP,
}


def knobs(name: str) -> list[str]:
    """The names of the parameters of params.yaml that the net `name` takes."""
    return [key for key in inspect.signature(MODELS[name]).parameters if key not in {"image_shape", "num_classes"}]


def build(name: str, image_shape: tuple[int, int, int], num_classes: int, **arguments: Any) -> nn.Module:
    """The net `name`, freshly initialized from torch's global generator; `UserError` if the images are too small."""
    return MODELS[name](image_shape=image_shape, num_classes=num_classes, **arguments)
