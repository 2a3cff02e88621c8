"""The nets by name. Each takes `image_shape` (channels, height, width), `num_classes` and its own parameters.

Every net maps normalized float images (N, C, H, W) to logits (N, num_classes).
"""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

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
    "resnet101": partial(resnet, "resnet101"),
    "resnet152": partial(resnet, "resnet152"),
    "efficientnet_lite0": EfficientNetLite0,
}

OF_THE_DATA = {"image_shape", "num_classes", "large_stem"}
"""Arguments of nets that the images, the classes and the learned weights determine, not params.yaml."""


def parameter_names(name: str) -> list[str]:
    """Return the parameters of params.yaml that the net `name` takes.

    If one has a default in the net, that is its value in a `model.json` that is older than the parameter.
    """
    return [key for key in inspect.signature(MODELS[name]).parameters if key not in OF_THE_DATA]


def arguments_for(name: str, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the arguments that make the net `name` fit learned weights, besides its parameters: those of the stem."""
    if "large_stem" not in inspect.signature(MODELS[name]).parameters:
        return {}
    stems = [weights[key] for key in ("conv1.weight", "conv1.conv.weight") if key in weights]
    return {"large_stem": True} if any(stem.shape[-1] == 7 for stem in stems) else {}


def build(name: str, image_shape: tuple[int, int, int], num_classes: int, **arguments: Any) -> nn.Module:
    """Return the net `name`, initialized with torch's global random generator.

    Raises `UserError` if the images are too small for the net.
    """
    return MODELS[name](image_shape=image_shape, num_classes=num_classes, **arguments)
