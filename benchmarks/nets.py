"""Nets of the recipes as a tutorial writes them, from one list of layers for torch and for Keras.

They use nothing of `imageclf.models`, because the competitors do not have it; a test compares the numbers of weights.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from imageclf.params import Params

Layer = tuple[Any, ...]
"""A kind and its arguments: conv (filters, kernel size, padding, bias), dense (units); the others take none."""

VGG11 = ((64,), (128,), (256, 256), (512, 512), (512, 512))
"""Filters of the convolutions in each block; a pool ends each block."""


def layers(parameters: Params, num_classes: int) -> list[Layer]:
    """Return the layers of a recipe's net, from the image to the logits."""
    return [*_PLANS[parameters.model](parameters), ("dense", num_classes)]


def _mlp(parameters: Params) -> list[Layer]:
    return [("flatten",), *(layer for units in parameters.hidden for layer in (("dense", units), ("relu",)))]


def _cnn(parameters: Params) -> list[Layer]:
    plan: list[Layer] = []
    for filters in parameters.channels:
        plan += [("conv", filters, parameters.kernel_size, parameters.conv_padding, True), ("relu",), ("pool",)]
    return plan + _mlp(parameters)


def _vgg11(_parameters: Params) -> list[Layer]:
    plan: list[Layer] = []
    for block in VGG11:
        for filters in block:
            plan += [("conv", filters, 3, "same", False), ("norm",), ("relu",)]
        plan.append(("pool",))
    return [*plan, ("flatten",)]


_PLANS: dict[str, Callable[[Params], list[Layer]]] = {"mlp": _mlp, "cnn": _cnn, "vgg11": _vgg11}

_TORCH: dict[str, Callable[..., nn.Module]] = {
    "conv": lambda inputs, filters, size, padding, bias: nn.Conv2d(inputs, filters, size, padding=padding, bias=bias),
    "norm": nn.BatchNorm2d,
    "relu": lambda _inputs: nn.ReLU(),
    "pool": lambda _inputs: nn.MaxPool2d(2),
    "flatten": lambda _inputs: nn.Flatten(),
    "dense": nn.Linear,
}


def torch_net(plan: list[Layer], image_shape: tuple[int, int, int]) -> nn.Sequential:
    """Return the layers as a torch net for images of `image_shape` (C, H, W)."""
    net = nn.Sequential().eval()
    for kind, *sizes in plan:
        with torch.no_grad():
            inputs = net(torch.zeros(1, *image_shape)).shape[1]
        net.append(_TORCH[kind](inputs, *sizes).eval())
    return net.train()


def keras_net(plan: list[Layer], image_shape: tuple[int, int, int]) -> Any:
    """Return the layers as a Keras net, which takes images (N, H, W, C); `image_shape` is (C, H, W)."""
    from keras import Input, Sequential  # pyright: ignore[reportMissingImports]
    from keras import layers as kit  # pyright: ignore[reportMissingImports]

    make: dict[str, Callable[..., Any]] = {
        "conv": lambda filters, size, padding, bias: kit.Conv2D(filters, size, padding=padding, use_bias=bias),
        "norm": kit.BatchNormalization,
        "relu": kit.ReLU,
        "pool": kit.MaxPooling2D,
        "flatten": kit.Flatten,
        "dense": kit.Dense,
    }
    channels, height, width = image_shape
    return Sequential([Input((height, width, channels)), *(make[kind](*sizes) for kind, *sizes in plan)])
