"""The steps that preprocess applies to pixels: one record for the parameters, the manifest and the model spec."""

from dataclasses import dataclass, replace

Shape = tuple[int, int, int]
"""Channels, height and width of an image."""


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """Gray-scale, resize, pad and permute, in this order; the defaults change nothing. See `preprocess.transform`.

    grayscale: replace colors by their luma.
    image_size: resize to a square of this many pixels per side, if it is not None.
    pad: add this many black pixels on each side.
    permute_seed: permute the pixels in an order drawn with this seed, if it is not None.
    """

    grayscale: bool = False
    image_size: int | None = None
    pad: int = 0
    permute_seed: int | None = None

    def effective(self, raw_shape: Shape) -> "Preparation":
        """Return the preparation without the steps that do not change images of `raw_shape`."""
        channels, height, width = raw_shape
        return replace(
            self,
            grayscale=self.grayscale and channels == 3,
            image_size=None if (height, width) == (self.image_size, self.image_size) else self.image_size,
        )

    def output_shape(self, raw_shape: Shape) -> Shape:
        """Return the shape after the preparation of images of `raw_shape`."""
        channels, height, width = raw_shape
        if self.image_size is not None:
            height, width = self.image_size, self.image_size
        return (1 if self.grayscale and channels == 3 else channels, height + 2 * self.pad, width + 2 * self.pad)
