"""Augmentation of a batch on the device: a random shift, flip and cutout per image, in one gather.

The random draws are a table of integers, the same for every device. Applying them is a pure function of images and
draws.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Random shift, horizontal flip and cutout; the first three fields are the parameters of these names."""

    shift: int
    flip: bool
    cutout: int
    fill: int
    """Gray level inside a cutout: the mean of the train split, which normalization maps to about 0."""

    def __bool__(self) -> bool:
        """Return True if any augmentation is on."""
        return bool(self.shift or self.flip or self.cutout)

    def draw(self, count: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
        """Draw rows (dy, dx, flip, cut y, cut x) for images of `size` (height, width): int64 (count, 5), on the CPU."""
        ranges = (
            (-self.shift, self.shift + 1),
            (-self.shift, self.shift + 1),
            (0, 1 + self.flip),
            (0, size[0]),
            (0, size[1]),
        )
        return torch.stack([torch.randint(*bounds, (count,), generator=generator) for bounds in ranges], dim=1)

    def apply(self, images: Tensor, draws: Tensor) -> Tensor:
        """Return the images, uint8 (N, C, H, W), augmented according to the draws (N, 5)."""
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
