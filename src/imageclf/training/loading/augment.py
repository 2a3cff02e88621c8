"""Augmentation of a batch on the device: random crop, colors, shift, flip and cutout per image.

The random draws are a table of integers, the same for every device. Applying them is a pure function of images and
draws.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

FINENESS = 2**24
"""Number of values of a draw that stands for a fraction from 0 to 1."""
GATHER, CROP, COLORS = slice(0, 5), slice(5, 9), slice(-3, None)
"""Columns of the draws: shift, flip and cutout; crop; colors. The last two exist only if they are on."""
LARGEST_ASPECT = 4 / 3
"""Largest ratio of width to height of a crop, relative to that of the image, and of height to width."""
LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in gray (ITU-R 601)."""


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Random crop, colors, shift, flip and cutout, in this order; all fields but `fill` are parameters."""

    shift: int
    flip: bool
    cutout: int
    fill: int
    """Gray level inside a cutout: the mean of the train split, which normalization maps to about 0."""
    crop: float = 0.0
    color_jitter: float = 0.0

    def __bool__(self) -> bool:
        """Return True if any augmentation is on."""
        return bool(self._gathers or self.crop or self.color_jitter)

    @property
    def _gathers(self) -> bool:
        return bool(self.shift or self.flip or self.cutout)

    def draw(self, count: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
        """Draw a row per image of `size` (height, width): int64 (count, 5 to 12), on the CPU.

        Columns: dy, dx, flip, cut y, cut x; with `crop`, area, aspect, y, x; with `color_jitter`, brightness, contrast,
        saturation.
        """
        ranges = [
            (-self.shift, self.shift + 1),
            (-self.shift, self.shift + 1),
            (0, 1 + self.flip),
            (0, size[0]),
            (0, size[1]),
        ]
        ranges += [(0, FINENESS)] * (4 * bool(self.crop) + 3 * bool(self.color_jitter))
        return torch.stack([torch.randint(*bounds, (count,), generator=generator) for bounds in ranges], dim=1)

    def apply(self, images: Tensor, draws: Tensor) -> Tensor:
        """Return the images, uint8 (N, C, H, W), augmented according to their draws (N, columns)."""
        if self.crop:
            images = _cropped(images, draws[:, CROP] / FINENESS, self.crop)
        if self.color_jitter:
            images = _recolored(images, draws[:, COLORS] / FINENESS, self.color_jitter)
        return self._gathered(images, draws[:, GATHER]) if self._gathers else images

    def _gathered(self, images: Tensor, draws: Tensor) -> Tensor:
        """Shift, flip and cut out according to the draws (N, 5)."""
        height, width = images.shape[2:]
        dy, dx, flip, cut_y, cut_x = draws[:, :, None].unbind(1)
        rows = torch.arange(height, device=images.device)
        columns = torch.arange(width, device=images.device)
        source_rows = _reflect(rows + dy, height)
        source_columns = _reflect(torch.where(flip > 0, width - 1 - columns, columns) + dx, width)
        image = torch.arange(len(images), device=images.device)[:, None, None, None]
        channel = torch.arange(images.shape[1], device=images.device)[:, None, None]
        moved = images[image, channel, source_rows[:, None, :, None], source_columns[:, None, None, :]]
        if self.cutout == 0:
            return moved
        in_rows = _covered(rows, cut_y, self.cutout)[:, None, :, None]
        in_columns = _covered(columns, cut_x, self.cutout)[:, None, None, :]
        return torch.where(in_rows & in_columns, self.fill, moved)


def _reflect(index: Tensor, size: int) -> Tensor:
    """Map indices outside 0..size-1 back by reflection at the edges, without repeating the edge pixel."""
    period = max(2 * (size - 1), 1)
    index = index.remainder(period)
    return torch.minimum(index, period - index).clamp_(max=size - 1)


def _covered(positions: Tensor, center: Tensor, side: int) -> Tensor:
    """Return a mask of the positions inside a window of `side` around each center; it may extend beyond the edge."""
    start = center - side // 2
    return (positions >= start) & (positions < start + side)


def _cropped(images: Tensor, fractions: Tensor, least: float) -> Tensor:
    """Return a rectangle of each image, resized to the whole image by bilinear interpolation.

    Of `fractions` (N, 4), the first gives the rectangle's area, from `least` to 1 of the image's, the second its aspect
    ratio, as far as it fits into the image, the others its place. An area of 1 leaves an image unchanged.
    """
    area = least + (1 - least) * fractions[:, 0]
    most = torch.minimum(-area.log(), torch.full_like(area, math.log(LARGEST_ASPECT)))
    stretch = ((2 * fractions[:, 1] - 1) * most / 2).exp()
    height, width = area.sqrt() / stretch, area.sqrt() * stretch
    matrix = images.new_zeros(len(images), 2, 3, dtype=torch.float32)
    matrix[:, 0, 0], matrix[:, 0, 2] = width, (2 * fractions[:, 3] - 1) * (1 - width)
    matrix[:, 1, 1], matrix[:, 1, 2] = height, (2 * fractions[:, 2] - 1) * (1 - height)
    grid = functional.affine_grid(matrix, list(images.shape), align_corners=False)
    cropped = functional.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
    return _as_pixels(cropped)


def _recolored(images: Tensor, fractions: Tensor, strength: float) -> Tensor:
    """Change brightness, contrast and, in images of three channels, saturation, each by a factor around 1.

    The factors are from 1 - `strength` to 1 + `strength`, according to `fractions` (N, 3).
    """
    factors = (1 + strength * (2 * fractions - 1))[:, :, None, None, None]
    brightness, contrast, saturation = factors.unbind(1)
    pixels = (images * brightness).clamp_(0, 255)
    pixels = pixels.mean(dim=(1, 2, 3), keepdim=True).lerp(pixels, contrast).clamp_(0, 255)
    if images.shape[1] == 3:
        gray = (pixels * pixels.new_tensor(LUMA)[:, None, None]).sum(dim=1, keepdim=True)
        pixels = gray + saturation * (pixels - gray)
    return _as_pixels(pixels)


def _as_pixels(values: Tensor) -> Tensor:
    return values.round_().clamp_(0, 255).to(torch.uint8)
