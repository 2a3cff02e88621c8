"""The recipes' nets as a tutorial writes them, from one list of layers for torch and for Keras.

Nothing of `imageclf.models` is in them: a contestant brings its own layers, and a test counts the parameters of both.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from imageclf.params import Params

Layer = tuple[Any, ...]
"""A kind, and what it takes: conv (filters, side, padding, bias), dense (units); all others nothing."""

VGG11 = ((64,), (128,), (256, 256), (512, 512), (512, 512))
"""Filters of each block's convolutions; a pool ends the block."""


def layers(knobs: Params, num_classes: int) -> list[Layer]:
    """The net of a recipe, from the image to the logits."""
    return [*_PLANS[knobs.model](knobs), ("dense", num_classes)]


def _mlp(knobs: Params) -> list[Layer]:
    return [("flatten",), *(layer for units in knobs.hidden for layer in (("dense", units), ("relu",)))]


def _cnn(knobs: Params) -> list[Layer]:
    plan: list[Layer] = []
    for filters in knobs.channels:
        plan += [("conv", filters, knobs.kernel_size, knobs.conv_padding, True), ("relu",), ("pool",)]
    return plan + _mlp(knobs)


def _vgg11(_knobs: Params) -> list[Layer]:
    plan: list[Layer] = []
    for block in VGG11:
        for filters in block:
            plan += [("conv", filters, 3, "same", False), ("norm",), ("relu",)]
        plan.append(("pool",))
    return [*plan, ("flatten",)]


_PLANS: dict[str, Callable[[Params], list[Layer]]] = {"mlp": _mlp, "cnn": _cnn, "vgg11": _vgg11}

_TORCH: dict[str, Callable[..., nn.Module]] = {
    "conv": lambda inputs, filters, side, padding, bias: nn.Conv2d(inputs, filters, side, padding=padding, bias=bias),
    "norm": nn.BatchNorm2d,
    "relu": lambda _inputs: nn.ReLU(),
    "pool": lambda _inputs: nn.MaxPool2d(2),
    "flatten": lambda _inputs: nn.Flatten(),
    "dense": nn.Linear,
}


def torch_net(plan: list[Layer], image_shape: tuple[int, int, int]) -> nn.Sequential:
    """The layers in torch; each takes as many inputs as the layers before it give for `image_shape`."""
    net = nn.Sequential().eval()
    for kind, *sizes in plan:
        with torch.no_grad():
            inputs = net(torch.zeros(1, *image_shape)).shape[1]
        net.append(_TORCH[kind](inputs, *sizes).eval())
    return net.train()


def keras_net(plan: list[Layer], image_shape: tuple[int, int, int]) -> Any:
    """The layers in Keras, which takes images (N, H, W, C)."""
    from keras import Input, Sequential  # pyright: ignore[reportMissingImports]
    from keras import layers as kit  # pyright: ignore[reportMissingImports]

    make: dict[str, Callable[..., Any]] = {
        "conv": lambda filters, side, padding, bias: kit.Conv2D(filters, side, padding=padding, use_bias=bias),
        "norm": kit.BatchNormalization,
        "relu": kit.ReLU,
        "pool": kit.MaxPooling2D,
        "flatten": kit.Flatten,
        "dense": kit.Dense,
    }
    channels, height, width = image_shape
    return Sequential([Input((height, width, channels)), *(make[kind](*sizes) for kind, *sizes in plan)])
