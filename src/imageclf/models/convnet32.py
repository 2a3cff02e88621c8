"""A small convolutional net without pools, made for 32x32 images; any size from 5x5 works."""

from torch import nn

from imageclf.core.errors import UserError
from imageclf.models.activations import ACTIVATIONS
from imageclf.models.mlp import dense


class ConvNet32(nn.Sequential):
    """Two 3x3 convolutions of 6 and 16 filters without padding, then dense layers of 512 and 64.

    A 32x32 image shrinks to 30x30 and 28x28, which gives 16 * 28 * 28 = 12544 features.
    Raises `UserError` if the images are smaller than 5x5.
    """

    def __init__(
        self, image_shape: tuple[int, int, int], num_classes: int, *, activation: str = "relu", dropout: float
    ) -> None:
        inputs, height, width = image_shape
        if min(height, width) < 5:
            raise UserError(
                f"model convnet32: the images have {height}x{width} pixels, but two 3x3 convolutions without padding "
                "need at least 5x5; increase pad or image_size"
            )
        super().__init__(
            nn.Conv2d(inputs, 6, kernel_size=3),
            ACTIVATIONS[activation](),
            nn.Conv2d(6, 16, kernel_size=3),
            ACTIVATIONS[activation](),
            nn.Flatten(),
            *dense([16 * (height - 4) * (width - 4), 512, 64, num_classes], dropout, activation),
        )
