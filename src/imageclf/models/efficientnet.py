"""EfficientNet-Lite0 (Tan and Le 2019; without squeeze-and-excite and with ReLU6: Liu 2020), for any image size."""

from torch import Tensor, nn
from torch.nn import functional

STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
"""Side of the windows, stride of the first block, expansion, channels, and number of blocks of each stage."""


class Conv2d(nn.Conv2d):
    """A convolution without bias and with TensorFlow's padding, of which an odd pixel goes to the right and below."""

    def __init__(self, inputs: int, outputs: int, side: int = 1, stride: int = 1, groups: int = 1) -> None:
        padding = side // 2 if stride == 1 else 0
        super().__init__(inputs, outputs, side, stride, padding, groups=groups, bias=False)
        nn.init.kaiming_normal_(self.weight, mode="fan_out")  # as in torchvision

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - its name in torch
        """Return the maps, of the input's side divided by the stride, rounded up."""
        side, stride = self.kernel_size[0], self.stride[0]
        if stride == 1:
            return super().forward(input)
        totals = [max((-(-length // stride) - 1) * stride + side - length, 0) for length in input.shape[:1:-1]]
        pads = [pad for total in totals for pad in (total // 2, total - total // 2)]
        return super().forward(functional.pad(input, pads))


class _Block(nn.Module):
    """An inverted residual block: widen, filter each channel, narrow; the input is added if the shape allows it."""

    def __init__(self, inputs: int, outputs: int, side: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = inputs * expansion
        self._residual = stride == 1 and inputs == outputs
        if expansion > 1:
            self._expand_conv, self._bn0 = Conv2d(inputs, width), nn.BatchNorm2d(width, eps=1e-3)
        self._depthwise_conv = Conv2d(width, width, side, stride, groups=width)
        self._bn1 = nn.BatchNorm2d(width, eps=1e-3)
        self._project_conv, self._bn2 = Conv2d(width, outputs), nn.BatchNorm2d(outputs, eps=1e-3)

    def forward(self, maps: Tensor) -> Tensor:
        wide = functional.relu6(self._bn0(self._expand_conv(maps))) if hasattr(self, "_bn0") else maps
        narrow = self._bn2(self._project_conv(functional.relu6(self._bn1(self._depthwise_conv(wide)))))
        return maps + narrow if self._residual else narrow


class EfficientNetLite0(nn.Module):
    """The net whose tensors have the names of the weights that were published for PyTorch.

    A stride of 2 that would leave a map smaller than 2x2 becomes 1, so that batch norm can average even a batch of one
    image. `dropout` acts on the head's input.
    """

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int, *, dropout: float) -> None:
        super().__init__()
        channels, *sides = image_shape
        side, inputs, blocks = min(sides), 32, list[nn.Module]()
        stride, side = _stride(2, side)
        self._conv_stem, self._bn0 = Conv2d(channels, inputs, 3, stride), nn.BatchNorm2d(inputs, eps=1e-3)
        for window, first_stride, expansion, outputs, count in STAGES:
            for number in range(count):
                stride, side = _stride(first_stride if number == 0 else 1, side)
                blocks.append(_Block(inputs, outputs, window, stride, expansion))
                inputs = outputs
        self._blocks = nn.Sequential(*blocks)
        self._conv_head, self._bn1 = Conv2d(inputs, 1280), nn.BatchNorm2d(1280, eps=1e-3)
        self._dropout, self._fc = nn.Dropout(dropout), nn.Linear(1280, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (N, num_classes)."""
        maps = self._blocks(functional.relu6(self._bn0(self._conv_stem(images))))
        return self._fc(self._dropout(functional.relu6(self._bn1(self._conv_head(maps))).mean(dim=(2, 3))))


def _stride(planned: int, side: int) -> tuple[int, int]:
    """Return the stride for a map of this side, and the side of the next map."""
    stride = planned if side >= 3 else 1
    return stride, -(-side // stride)
