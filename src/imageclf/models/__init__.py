"""The nets by name. Each takes `image_shape` (channels, height, width), `num_classes` and its own parameters.

Every net maps normalized float images (N, C, H, W) to logits (N, num_classes).
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from imageclf.models.alexnet import ALEXNET, ZFNET, AlexNet
from imageclf.models.cnn import CNN
from imageclf.models.convnet32 import ConvNet32
from imageclf.models.efficientnet import EfficientNetLite0
from imageclf.models.googlenet import googlenet
from imageclf.models.mlp import MLP
from imageclf.models.resnet import resnet
from imageclf.models.vgg import VGG

MODELS: dict[str, Callable[..., nn.Module]] = {
    "cnn": CNN,
    "mlp": MLP,
    "convnet32": ConvNet32,
    "vgg11": partial(VGG, (1, 1, 2, 2, 2)),
    "vgg13": partial(VGG, (2, 2, 2, 2, 2)),
    "vgg16": partial(VGG, (2, 2, 3, 3, 3)),
    "vgg19": partial(VGG, (2, 2, 4, 4, 4)),
    "alexnet": partial(AlexNet, ALEXNET),
    "zfnet": partial(AlexNet, ZFNET),
    "googlenet": googlenet,
    "resnet18": partial(resnet, "resnet18"),
    "resnet34": partial(resnet, "resnet34"),
    "resnet50": partial(resnet, "resnet50"),
    "efficientnet_lite0": EfficientNetLite0,
}


def parameter_names(name: str) -> list[str]:
    """Return the parameters of params.yaml that the net `name` takes."""
    return [key for key in inspect.signature(MODELS[name]).parameters if key not in {"image_shape", "num_classes"}]


def build(name: str, image_shape: tuple[int, int, int], num_classes: int, **arguments: Any) -> nn.Module:
    """Return the net `name`, initialized with torch's global random generator.

    Raises `UserError` if the images are too small for the net.
    """
    return MODELS[name](image_shape=image_shape, num_classes=num_classes, **arguments)
