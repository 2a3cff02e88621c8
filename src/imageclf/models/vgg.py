"""VGG with batch norm (Simonyan and Zisserman 2014; Ioffe and Szegedy 2015), adapted to small images."""

from collections.abc import Iterator, Sequence

from torch import nn

from imageclf.core.errors import UserError
from imageclf.models.activations import ACTIVATIONS


class VGG(nn.Sequential):
    """Blocks of 3x3 convolutions, each followed by a max-pool, then one dense layer.

    `blocks` gives the number of convolutions per block. `width` multiplies their 64 to 512 channels (rounded, at
    least 1). Two rules adapt the net to any image size: a pool that would leave a map smaller than 2x2 is left out,
    so that batch norm can average even a batch of one image, and the last pool covers the whole map. For 32x32 images
    these are the usual five 2x2 pools. The head is one layer of 512 inputs for every size (the paper: 4096, 4096 and
    `num_classes` for 224x224). `dropout` acts on the head's input.

    `vgg_layers` replaces the layers of `blocks`: a number is the channels of a convolution, "M" a 2x2 max-pool. A pool
    of the whole map takes the place of an "M" at the end, or follows the last convolution. Raises `UserError` if the
    images are too small for that many pools.
    """

    def __init__(
        self,
        blocks: tuple[int, int, int, int, int],
        image_shape: tuple[int, int, int],
        num_classes: int,
        *,
        activation: str = "relu",
        vgg_layers: Sequence[int | str] | None = None,
        width: float,
        dropout: float,
    ) -> None:
        inputs, *sides = image_shape
        if vgg_layers:
            _check_size(vgg_layers, *sides)
        plan = list(vgg_layers or _plan(blocks))
        if plan[-1] == "M":
            plan.pop()
        layers: list[nn.Module] = []
        for channels in plan:
            if isinstance(channels, int):
                outputs = max(1, round(channels * width))
                layers += _convolution(inputs, outputs, activation)
                inputs = outputs
            elif min(sides) >= 4:
                layers.append(nn.MaxPool2d(2))
                sides = [side // 2 for side in sides]
        whole_map = nn.MaxPool2d((sides[0], sides[1]))
        super().__init__(*layers, whole_map, nn.Flatten(), nn.Dropout(dropout), nn.Linear(inputs, num_classes))


def _plan(blocks: Sequence[int]) -> Iterator[int | str]:
    """Yield the layers of a net of the paper, in the form of `vgg_layers`."""
    for depth, channels in zip(blocks, (64, 128, 256, 512, 512), strict=True):
        yield from [channels] * depth
        yield "M"


def _check_size(layers: Sequence[int | str], height: int, width: int) -> None:
    """Raise `UserError` unless each pool but one at the end leaves a map of at least 2x2."""
    pools = layers.count("M")
    smallest = 2 ** (pools if layers[-1] == "M" else pools + 1)
    if min(height, width) < smallest:
        raise UserError(
            f"vgg_layers: {pools} M need images of at least {smallest}x{smallest} pixels, and these have "
            f"{height}x{width}; use fewer M, or increase pad or image_size"
        )


def _convolution(inputs: int, outputs: int, activation: str) -> list[nn.Module]:
    """Return a 3x3 convolution, batch norm and activation, initialized like torchvision's VGG.

    The convolution has no bias, because batch norm would subtract it. Its weights are initialized for ReLU with every
    activation, because batch norm undoes their scale.
    """
    convolution = nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return [convolution, nn.BatchNorm2d(outputs), ACTIVATIONS[activation]()]
