"""Batches of a split: rows of one uint8 array, on the device.

There is no DataLoader, no worker process and no Python code per image: a batch is one gather. A split that fits into
memory stays on the device. A larger one stays memory-mapped, and each batch is read from the file. Whoever uses a batch
normalizes it with `Batches.normalize`, so that a compiled training step includes the normalization.
"""

import copy
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from imageclf.contracts.dataset import Split
from imageclf.training.augment import Augmentation

Normalization = tuple[list[float], list[float]]
"""Mean and standard deviation per channel, with pixels scaled to 0..1."""

Whitening = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Mean (d,) and matrix (d, d) for the d = C * H * W values of an image, scaled to 0..1."""


class Normalize(nn.Module):
    """Normalization of uint8 pixels (N, C, H, W) to the net's input, float32. All code that normalizes uses it.

    If `whitening` is given, x = (pixels / 255 - mean) @ matrix, else x = pixels / 255. The result is (x - mean) / std
    per channel.
    """

    scale: Tensor
    offset: Tensor
    whitening_mean: Tensor
    whitening: Tensor | None

    def __init__(self, normalization: Normalization, whitening: Whitening | None = None) -> None:
        super().__init__()
        mean, std = (torch.tensor(values)[:, None, None] for values in normalization)
        # (pixel / 255 - mean) / std as one multiplication and one subtraction.
        unit = 1.0 if whitening else 255.0
        self.register_buffer("scale", 1 / (unit * std))
        self.register_buffer("offset", mean / std)
        self.register_buffer("whitening_mean", torch.from_numpy(whitening[0]) if whitening else None)
        self.register_buffer("whitening", torch.from_numpy(whitening[1]) if whitening else None)

    def forward(self, images: Tensor) -> Tensor:
        """Return the normalized images as a new tensor."""
        values = images.float()
        if self.whitening is not None:
            values = ((values.flatten(1) / 255 - self.whitening_mean) @ self.whitening).view(images.shape)
        return values.mul_(self.scale).sub_(self.offset)


class Batches:
    """A split as batches of pixels, uint8 (n, C, H, W), and targets: one-hot float32 (n, K) or indices int64 (n,).

    `augmentation` is applied to the pixels of `shuffled` batches. With `resident`, the images are copied to the
    device's memory once; otherwise each batch is read from `split.images`, which may be memory-mapped. Both give the
    same bits.
    """

    def __init__(
        self,
        split: Split,
        normalize: Normalize,
        batch_size: int,
        device: torch.device,
        *,
        augmentation: Augmentation | None = None,
        resident: bool = True,
    ) -> None:
        self.batch_size = batch_size
        self.device = device
        self.normalize = normalize.to(device)
        self._augmentation = augmentation or None
        self._images = torch.from_numpy(split.images)
        self._targets = torch.from_numpy(split.targets).to(device)
        if resident:
            self._images = self._images.to(device, copy=True)

    def resized(self, batch_size: int) -> "Batches":
        """Return the same images in batches of another size; both share the memory."""
        other = copy.copy(self)
        other.batch_size = batch_size
        return other

    def __len__(self) -> int:
        """Return the number of batches per epoch, including a last batch that may be smaller."""
        return (self.num_images + self.batch_size - 1) // self.batch_size

    @property
    def num_images(self) -> int:
        """Number of images in the split."""
        return len(self._targets)

    def shuffled(self, seed: int, skip: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every image once, in random order and augmented; `seed` decides both, the same on every device.

        The first `skip` batches are left out; the others do not change.
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
            # index_select copies whole images, in a third of the time of indexing by [].
            images = self._images.index_select(0, in_memory[rows]).to(self.device, non_blocking=True)
            if self._augmentation is not None and draws is not None:
                images = self._augmentation.apply(images, draws[rows])
            yield images, _as_float(self._targets.index_select(0, on_device[rows]))

    def in_order(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every image once, in stored order and without augmentation."""
        for images, targets in zip(
            self._images.split(self.batch_size), self._targets.split(self.batch_size), strict=True
        ):
            yield images.to(self.device), _as_float(targets)


def _as_float(targets: Tensor) -> Tensor:
    """Return one-hot targets as float32, and class indices unchanged."""
    return targets if targets.ndim == 1 else targets.float()
