"""Plain convolutional net: blocks of convolution, activation and 2x2 pool, then dense layers."""

import itertools
from collections.abc import Callable

from torch import nn

from imageclf.core.errors import UserError
from imageclf.models.activations import ACTIVATIONS
from imageclf.models.mlp import dense

POOLINGS: dict[str, Callable[[int], nn.Module]] = {"max": nn.MaxPool2d, "average": nn.AvgPool2d}
"""Pools by name, each made from the side of its window."""


class CNN(nn.Sequential):
    """One block of convolution, activation and pool per entry of `channels`, then dense layers of `hidden` widths.

    Raises `UserError` if the images are too small for that many convolutions and pools.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        *,
        channels: list[int],
        kernel_size: int,
        conv_padding: str,
        pooling: str = "max",
        hidden: list[int],
        activation: str = "relu",
        dropout: float,
    ) -> None:
        inputs, height, width = image_shape
        shrink = 0 if conv_padding == "same" else kernel_size - 1
        for _ in channels:
            height, width = (height - shrink) // 2, (width - shrink) // 2
        if min(height, width) < 1:
            raise UserError(
                f"model cnn: {len(channels)} convolutions of {kernel_size}x{kernel_size} ({conv_padding} padding), "
                f"each pooled 2x2, need larger images than {image_shape[1]}x{image_shape[2]}; "
                "use fewer channels, conv_padding: same, or image_size"
            )
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise([inputs, *channels]):
            convolution = nn.Conv2d(before, after, kernel_size, padding=conv_padding)
            layers += [convolution, ACTIVATIONS[activation](), POOLINGS[pooling](2)]
        features = channels[-1] * height * width
        super().__init__(*layers, nn.Flatten(), *dense([features, *hidden, num_classes], dropout, activation))
