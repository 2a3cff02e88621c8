"""AlexNet (Krizhevsky 2012) and its sibling ZFNet (Zeiler and Fergus 2013), cut for small images."""

import math
from typing import NamedTuple

from torch import nn

from imageclf.models.mlp import dense


class Convolution(NamedTuple):
    """One layer of a plan: its filters, the side of its window, its stride."""

    channels: int
    kernel: int
    stride: int = 1


# Both papers begin with windows made for 224x224: 11x11 in steps of 4, and 7x7 in steps of 2. Here they are halved.
ALEXNET = (Convolution(64, 5, 2), Convolution(192, 5), Convolution(384, 3), Convolution(256, 3), Convolution(256, 3))
ZFNET = (Convolution(96, 3), Convolution(256, 5, 2), Convolution(384, 3), Convolution(384, 3), Convolution(256, 3))


class AlexNet(nn.Sequential):
    """The five convolutions of `plan`, 3x3 max-pools in steps of 2 after three of them, then dense 4096, 4096.

    AlexNet's channels are those of the one-tower version (Krizhevsky 2014) that torchvision has too, ZFNet's are its
    paper's. Neither net has the papers' response normalization, in which VGG's authors found no use. Convolutions and
    pools are padded, so that each step of 2 halves a map (rounded up), and a pool that would leave less than 2 pixels
    a side is left out: 32x32 ends as 2x2, and the dense layers take what there is where the papers have 6x6.
    `dropout` acts on both 4096s. Weights start with He's spread: with torch's own the signal fades over eight layers
    without batch norm, and plain SGD then stays at chance for whole epochs (seen on digits).
    """

    def __init__(
        self,
        plan: tuple[Convolution, ...],
        image_shape: tuple[int, int, int],
        num_classes: int,
        *,
        dropout: float,
    ) -> None:
        before, height, width = image_shape
        layers: list[nn.Module] = []
        for number, (channels, kernel, stride) in enumerate(plan, start=1):
            layers += [nn.Conv2d(before, channels, kernel, stride, padding=kernel // 2), nn.ReLU()]
            before, height, width = channels, math.ceil(height / stride), math.ceil(width / stride)
            if number in {1, 2, 5} and min(height, width) >= 4:
                layers.append(nn.MaxPool2d(kernel_size=3, stride=2, padding=1))
                height, width = math.ceil(height / 2), math.ceil(width / 2)
        features = before * height * width
        super().__init__(*layers, nn.Flatten(), *dense([features, 4096, 4096, num_classes], dropout))
        for layer in self:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
