"""Fully connected net: the order of the pixels does not matter to it."""

import itertools
import math

from torch import nn

from imageclf.models.activations import ACTIVATIONS
from imageclf.models.linear import Linear


def dense(widths: list[int], dropout: float, activation: str = "relu") -> list[nn.Module]:
    """Return linear layers from each width to the next, with activation and dropout after each but the last."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [Linear(inputs, outputs), ACTIVATIONS[activation](), nn.Dropout(dropout)]
    return layers[:-2]


class MLP(nn.Sequential):
    """Dense layers of the `hidden` widths; an empty list gives softmax regression."""

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_classes: int,
        *,
        hidden: list[int],
        activation: str = "relu",
        dropout: float,
    ) -> None:
        widths = [math.prod(image_shape), *hidden, num_classes]
        super().__init__(nn.Flatten(), *dense(widths, dropout, activation))
