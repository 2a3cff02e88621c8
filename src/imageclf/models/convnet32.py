"""A small convolutional net that never pools: for 32x32 images, though any size from 5x5 fits."""

from torch import nn

from imageclf.errors import UserError
from imageclf.models.mlp import dense


class ConvNet32(nn.Sequential):
    """Convolutions of 6 and 16 filters, 3x3 without padding, then dense layers of 512 and 64.

    32x32 shrinks to 30x30 and 28x28, which makes 16 * 28 * 28 = 12544 features; other sizes make more or fewer.
    Raises `UserError` where nothing would be left.
    """

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int, *, dropout: float) -> None:
        inputs, height, width = image_shape
        if min(height, width) < 5:
            raise UserError(
                f"model convnet32: two 3x3 convolutions without padding need images of at least 5x5 pixels, "
                f"these have {height}x{width}; raise pad or image_size in params.yaml"
            )
        super().__init__(
            nn.Conv2d(inputs, 6, kernel_size=3),
            nn.ReLU(),
            nn.Conv2d(6, 16, kernel_size=3),
            nn.ReLU(),
            nn.Flatten(),
            *dense([16 * (height - 4) * (width - 4), 512, 64, num_classes], dropout),
        )
