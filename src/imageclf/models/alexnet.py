"""AlexNet (Krizhevsky 2012) and ZFNet (Zeiler and Fergus 2013), adapted to small images."""

import math
from typing import NamedTuple

from torch import nn

from imageclf.models.mlp import dense


class Convolution(NamedTuple):
    """One convolution: number of output channels, kernel size, stride."""

    channels: int
    kernel: int
    stride: int = 1


# The first convolutions of the papers are made for 224x224 images: 11x11 with stride 4 (AlexNet) and 7x7 with
# stride 2 (ZFNet). Kernel sizes and strides are halved here.
ALEXNET = (Convolution(64, 5, 2), Convolution(192, 5), Convolution(384, 3), Convolution(256, 3), Convolution(256, 3))
ZFNET = (Convolution(96, 3), Convolution(256, 5, 2), Convolution(384, 3), Convolution(384, 3), Convolution(256, 3))


class AlexNet(nn.Sequential):
    """Five convolutions, three 3x3 max-pools with stride 2, then dense layers of 4096, 4096 and `num_classes`.

    AlexNet has the channels of the one-tower version (Krizhevsky 2014), like torchvision's; ZFNet has those of its
    paper. The local response normalization of both papers is left out: the VGG paper found that it does not help.
    Convolutions and pools are padded, so that each stride of 2 halves a map (rounded up). A pool that would leave a
    map smaller than 2x2 is left out. A 32x32 image ends as a 2x2 map (the papers: 6x6), which sets the size of the
    first dense layer. `dropout` acts on the outputs of both layers of 4096.

    Weights are initialized by He's method: with torch's default initialization the signal fades over eight layers
    without batch norm, and plain SGD stays at chance for whole epochs (seen on digits).
    """

    def __init__(
        self,
        plan: tuple[Convolution, ...],
        image_shape: tuple[int, int, int],
        num_classes: int,
        *,
        dropout: float,
    ) -> None:
        inputs, height, width = image_shape
        layers: list[nn.Module] = []
        for number, (channels, kernel, stride) in enumerate(plan, start=1):
            layers += [nn.Conv2d(inputs, channels, kernel, stride, padding=kernel // 2), nn.ReLU()]
            inputs, height, width = channels, math.ceil(height / stride), math.ceil(width / stride)
            if number in {1, 2, 5} and min(height, width) >= 4:
                layers.append(nn.MaxPool2d(kernel_size=3, stride=2, padding=1))
                height, width = math.ceil(height / 2), math.ceil(width / 2)
        features = inputs * height * width
        super().__init__(*layers, nn.Flatten(), *dense([features, 4096, 4096, num_classes], dropout))
        for layer in self:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
