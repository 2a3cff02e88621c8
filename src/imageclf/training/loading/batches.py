"""Batches of a split: rows of one uint8 array, on the device.

There is no DataLoader, no worker process and no Python code per image: a batch is one gather. A split that fits into
memory stays on the device. A larger one stays in its file: each batch is read through a memory map, or, if the split is
`blocks.LARGE` or in shards, a window of many batches is read ahead. Whoever uses a batch normalizes it with
`Batches.normalize`, so that a compiled training step includes the normalization.
"""

import copy
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from imageclf.contracts.dataset import Split
from imageclf.contracts.shards import ShardedImages
from imageclf.training.loading.augment import Augmentation
from imageclf.training.loading.blocks import BlockOrder, Reader, Window, one_ahead
from imageclf.training.ranks import ALONE, Ranks

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
    device's memory once; otherwise they are read from `split.images`, which may be memory-mapped. Both give the same
    bits. `shuffled` gives each of several `ranks` its part of every batch.
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
        ranks: Ranks = ALONE,
    ) -> None:
        self.batch_size = batch_size
        self.ranks = ranks
        self.device = device
        self.normalize = normalize.to(device)
        self._augmentation = augmentation or None
        self._images = split.images if isinstance(split.images, ShardedImages) else torch.from_numpy(split.images)
        self._targets = torch.from_numpy(split.targets).to(device)
        self._order = BlockOrder.of(split.images)
        self._reader = None
        if resident and isinstance(self._images, Tensor):
            self._images = self._images.to(device, copy=True)
        elif self._order and isinstance(split.images, np.memmap | ShardedImages):
            self._reader = Reader(split.images, self._order)

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
        if self._order is None:
            yield from self._shuffled_at_once(seed, skip)
        else:
            yield from self._shuffled_in_blocks(self._order, seed, skip)

    def _shuffled_at_once(self, seed: int, skip: int) -> Iterator[tuple[Tensor, Tensor]]:
        assert isinstance(self._images, Tensor)
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(self.num_images, generator=generator)
        draws = self._draw(self.num_images, generator)
        on_device = order.to(self.device)
        in_memory = on_device if self._images.device == self.device else order
        for start in range(skip * self.batch_size, self.num_images, self.batch_size):
            rows = self.ranks.share(start, min(start + self.batch_size, self.num_images))
            # index_select copies whole images, in a third of the time of indexing by [].
            images = self._images.index_select(0, in_memory[rows]).to(self.device, non_blocking=True)
            yield self._augmented(images, draws, rows), _as_float(self._targets.index_select(0, on_device[rows]))

    def _shuffled_in_blocks(self, order: BlockOrder, seed: int, skip: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield this rank's part of each batch. A batch may begin in one window and end in the next one."""
        windows = order.windows(seed, skip * self.batch_size)
        begun: list[tuple[Tensor, Tensor]] = []
        for window, pieces, stored, places in one_ahead(map(partial(self._read, skip), windows)):
            draws = self._draw(len(window.rows), window.generator)
            targets = self._targets.index_select(0, window.rows.to(self.device))
            for piece, is_last in pieces:
                images = stored.index_select(0, places[piece]).to(self.device)
                begun.append((self._augmented(images, draws, piece), _as_float(targets[piece])))
                if is_last:
                    yield _cat(begun)
                    begun = []

    def _pieces(self, window: Window, skip: int) -> Iterator[tuple[slice, bool]]:
        """Yield the images of this rank in a window, a slice per batch, and whether the batch ends in this window."""
        count = len(window.rows)
        begin = max(skip, window.first // self.batch_size) * self.batch_size
        for start in range(begin, window.first + count, self.batch_size):
            stop = min(start + self.batch_size, self.num_images)
            part = self.ranks.share(start, stop)
            first, last = (min(max(0, place - window.first), count) for place in (part.start, part.stop))
            yield slice(first, last), stop <= window.first + count

    def _read(self, skip: int, window: Window) -> tuple[Window, list[tuple[slice, bool]], Tensor, Tensor]:
        """Return a window, this rank's pieces of it, stored images, and the places of the window's images among them.

        If the images are read from a file, these are only the blocks that this rank needs.
        """
        pieces = list(self._pieces(window, skip))
        if self._reader is None:
            assert isinstance(self._images, Tensor)
            return window, pieces, self._images, window.rows.to(self._images.device)
        on_gpu = self.device.type == "cuda"
        mine = torch.cat([torch.arange(piece.start, piece.stop) for piece, _ in pieces])
        stored, found = self._reader.read(window.rows[mine], pinned=on_gpu)
        stored = stored.to(self.device, non_blocking=on_gpu)
        places = torch.zeros_like(window.rows)
        places[mine] = found
        return window, pieces, stored, places.to(self.device)

    def _draw(self, count: int, generator: torch.Generator) -> Tensor | None:
        """Return the random draws of the augmentation for `count` images."""
        if self._augmentation is None:
            return None
        height, width = self._images.shape[2:4]
        return self._augmentation.draw(count, (height, width), generator).to(self.device)

    def _augmented(self, images: Tensor, draws: Tensor | None, rows: slice) -> Tensor:
        if self._augmentation is None or draws is None:
            return images
        return self._augmentation.apply(images, draws[rows])

    def in_order(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every image once, in stored order and without augmentation."""
        parts = (self._images[start : start + self.batch_size] for start in range(0, self.num_images, self.batch_size))
        if isinstance(self._images, ShardedImages):
            parts = one_ahead(parts)
        for images, targets in zip(parts, self._targets.split(self.batch_size), strict=True):
            yield torch.as_tensor(images, device=self.device), _as_float(targets)


def _cat(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    if len(parts) == 1:
        return parts[0]
    images, targets = zip(*parts, strict=True)
    return torch.cat(images), torch.cat(targets)


def _as_float(targets: Tensor) -> Tensor:
    """Return one-hot targets as float32, and class indices unchanged."""
    return targets if targets.ndim == 1 else targets.float()
