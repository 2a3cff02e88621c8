"""VGG with batch norm (Simonyan and Zisserman 2014; Ioffe and Szegedy 2015), cut for small images."""

from torch import nn


class VGG(nn.Sequential):
    """Five blocks of 3x3 convolutions, each block ended by a max-pool, then one dense layer.

    `blocks` counts the convolutions of each block, `width` multiplies their 64 to 512 channels (rounded, at least 1).
    Two rules fit it to any image: a pool that would leave less than 2 pixels a side is left out, and the last pool
    takes the whole map. For 32x32 these are the classic five 2x2 pools; for every size the head is 512 -> classes,
    where the paper has 4096 -> 4096 -> classes for 224x224. No map before the last pool is 1x1, so that batch norm
    has something to average even in a batch of one image. `dropout` acts on the head's input.
    """

    def __init__(
        self,
        blocks: tuple[int, int, int, int, int],
        image_shape: tuple[int, int, int],
        num_classes: int,
        *,
        width: float,
        dropout: float,
    ) -> None:
        before, *sides = image_shape
        layers: list[nn.Module] = []
        for depth, channels in zip(blocks, (64, 128, 256, 512, 512), strict=True):
            if layers and min(sides) >= 4:
                layers.append(nn.MaxPool2d(2))
                sides = [side // 2 for side in sides]
            after = max(1, round(channels * width))
            for _ in range(depth):
                layers += _convolution(before, after)
                before = after
        whole_map = nn.MaxPool2d((sides[0], sides[1]))
        super().__init__(*layers, whole_map, nn.Flatten(), nn.Dropout(dropout), nn.Linear(before, num_classes))


def _convolution(inputs: int, outputs: int) -> list[nn.Module]:
    """3x3, batch norm, ReLU. No bias: batch norm would subtract it. Weights start as torchvision's VGG does."""
    convolution = nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]
