"""Batches of a split: rows of one uint8 array, normalized as they reach the device.

No loader, no workers, no per-image Python: a batch is a gather. A split that fits stays on the device;
a larger one stays memory-mapped and is read row by row of the shuffled order.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from imageclf.splits import Split

RESIDENT_BYTES = 512 * 2**20
"""Images up to this size are kept in the device's memory."""


def normalize(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Pixels uint8 (N, C, H, W) to floats: (pixel / 255 - mean) / std per channel. The one place where it happens."""
    scale = 1 / (255 * std)
    return images.float().mul_(scale[:, None, None]).sub_((mean / std)[:, None, None])


class Batches:
    """A split in batches of normalized images and of targets, one-hot float32 (n, K) or indices int64 (n,)."""

    def __init__(
        self,
        split: Split,
        normalization: tuple[list[float], list[float]],
        batch_size: int,
        device: torch.device,
        resident_bytes: int = RESIDENT_BYTES,
    ) -> None:
        self.batch_size = batch_size
        self._device = device
        self._mean, self._std = (torch.tensor(values, device=device) for values in normalization)
        self._images = torch.from_numpy(split.images)
        self._targets = torch.from_numpy(split.targets).to(device)
        if split.images.nbytes <= resident_bytes:
            self._images = self._images.to(device, copy=True)

    def __len__(self) -> int:
        """Batches in an epoch, a short last one included."""
        return (self.num_images + self.batch_size - 1) // self.batch_size

    @property
    def num_images(self) -> int:
        """Images in the split."""
        return len(self._targets)

    def shuffled(self, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Every image once, in the order that `seed` gives, the same on every device."""
        order = torch.randperm(self.num_images, generator=torch.Generator().manual_seed(seed))
        for rows in order.to(self._images.device).split(self.batch_size):
            yield self._batch(self._images[rows], self._targets[rows.to(self._device)])

    def in_order(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Every image once, as stored."""
        for images, targets in zip(
            self._images.split(self.batch_size), self._targets.split(self.batch_size), strict=True
        ):
            yield self._batch(images, targets)

    def _batch(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        images = normalize(images.to(self._device, non_blocking=True), self._mean, self._std)
        return images, targets if targets.ndim == 1 else targets.float()
