"""Batches of a split: rows of one uint8 array, normalized as they reach the device.

No loader, no workers, no per-image Python: a batch is a gather. A split that fits stays on the device;
a larger one stays memory-mapped and is read row by row of the shuffled order.
"""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from imageclf.augment import Augmentation
from imageclf.splits import Split

RESIDENT_BYTES = 512 * 2**20
"""Images up to this size are kept in the device's memory."""


Normalization = tuple[list[float], list[float]]
"""Mean and std of each channel, pixels on a scale of 0..1."""

Whitening = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Mean (d,) and matrix (d, d) over the d = C * H * W pixels of an image, on a scale of 0..1."""


class Normalize(nn.Module):
    """Pixels uint8 (N, C, H, W) to what a net sees, float32: the one place where it happens.

    Whitened if there is a whitening: (pixels / 255 - mean) @ matrix. Then per channel (x - mean) / std.
    """

    scale: Tensor
    offset: Tensor
    whitening_mean: Tensor
    whitening: Tensor | None

    def __init__(self, normalization: Normalization, whitening: Whitening | None = None) -> None:
        super().__init__()
        mean, std = (torch.tensor(values)[:, None, None] for values in normalization)
        # (pixel / 255 - mean) / std in one product and one difference.
        unit = 1.0 if whitening else 255.0
        self.register_buffer("scale", 1 / (unit * std))
        self.register_buffer("offset", mean / std)
        self.register_buffer("whitening_mean", torch.from_numpy(whitening[0]) if whitening else None)
        self.register_buffer("whitening", torch.from_numpy(whitening[1]) if whitening else None)

    def forward(self, images: Tensor) -> Tensor:
        """Normalized images, a tensor of their own."""
        values = images.float()
        if self.whitening is not None:
            values = ((values.flatten(1) / 255 - self.whitening_mean) @ self.whitening).view(images.shape)
        return values.mul_(self.scale).sub_(self.offset)


class Batches:
    """A split in batches of normalized images and of targets, one-hot float32 (n, K) or indices int64 (n,).

    `augmentation` acts on the pixels of `shuffled` batches, before normalization.
    """

    def __init__(
        self,
        split: Split,
        normalize: Normalize,
        batch_size: int,
        device: torch.device,
        *,
        augmentation: Augmentation | None = None,
        resident_bytes: int = RESIDENT_BYTES,
    ) -> None:
        self.batch_size = batch_size
        self.device = device
        self._normalize = normalize.to(device)
        self._augmentation = augmentation or None
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

    def shuffled(self, seed: int, skip: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Every image once, in the order and augmented as `seed` gives it, the same on every device.

        The first `skip` batches are left out, and the others are what they would have been.
        """
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(self.num_images, generator=generator)
        draws = None
        if self._augmentation is not None:
            height, width = self._images.shape[2:]
            draws = self._augmentation.draw(self.num_images, (height, width), generator).to(self.device)
        on_device = order.to(self.device)
        in_memory = on_device if self._images.device == self.device else order
        for start in range(skip * self.batch_size, self.num_images, self.batch_size):
            rows = slice(start, start + self.batch_size)
            # Not by []: index_select copies whole images, and takes a third of the time.
            images = self._images.index_select(0, in_memory[rows]).to(self.device, non_blocking=True)
            if self._augmentation is not None and draws is not None:
                images = self._augmentation.apply(images, draws[rows])
            yield self._batch(images, self._targets.index_select(0, on_device[rows]))

    def in_order(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Every image once, as stored."""
        for images, targets in zip(
            self._images.split(self.batch_size), self._targets.split(self.batch_size), strict=True
        ):
            yield self._batch(images.to(self.device), targets)

    def _batch(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return self._normalize(images), targets if targets.ndim == 1 else targets.float()
