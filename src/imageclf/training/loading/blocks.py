"""Shuffling of images that are too many to be read one by one, in random order, from a disk.

A file is cut into blocks of neighboring images. An epoch reads the blocks in random order, many at a time: these are a
window, whose images are shuffled in memory. Blocks of 64 KiB read about as fast as whole files, and a window mixes
thousands of them, so that also images that are stored class by class come well mixed.
"""

import os
import weakref
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from imageclf.training.runtime import derive

T = TypeVar("T")

LARGE = 2 * 2**30
"""Bytes of images from which on a split is shuffled in blocks. It depends on the data alone, never on the memory of the
machine, because the order decides the bits of the trained weights."""

BLOCK_BYTES, WINDOW_BYTES = 2**16, 2**28
"""Bytes of a block and of a window; two windows are in memory at a time."""

READERS = 4
"""Threads that read blocks at the same time."""


@dataclass(frozen=True)
class Window:
    """Some images of an epoch.

    rows: their numbers in the split, (n,) int64, in the order in which the file is read.
    order: the order in which they are used, a permutation (n,) of their places in `rows`.
    generator: for further random draws, for example of augmentation.
    skip: the number of images at the beginning of the order that are left out.
    """

    rows: Tensor
    order: Tensor
    generator: torch.Generator
    skip: int = 0


@dataclass(frozen=True)
class BlockOrder:
    """The order of a split in an epoch: `block` neighboring images form a block, and `window` blocks a window."""

    num_images: int
    block: int
    window: int

    @classmethod
    def of(cls, images: NDArray[np.uint8]) -> "BlockOrder | None":
        """Return the order for a split of these images, (N, C, H, W); None if all of them are shuffled at once."""
        if images.nbytes <= LARGE:
            return None
        block = max(1, BLOCK_BYTES // images[0].nbytes)
        return cls(len(images), block, max(1, WINDOW_BYTES // (block * images[0].nbytes)))

    def windows(self, seed: int, skip: int = 0) -> Iterator[Window]:
        """Yield the windows of an epoch; together they have every image once.

        Windows whose images are all among the first `skip` images are left out.
        """
        starts = torch.arange(0, self.num_images, self.block)
        starts = starts[torch.randperm(len(starts), generator=torch.Generator().manual_seed(seed))]
        for number, begins in enumerate(starts.split(self.window)):
            # Blocks in the order of the file: a disk reads them faster, and all of them are shuffled below.
            rows = (begins.sort().values[:, None] + torch.arange(self.block)).flatten()
            rows = rows[rows < self.num_images]  # the last block of the file may be shorter
            if len(rows) <= skip:
                skip -= len(rows)
                continue
            generator = torch.Generator().manual_seed(derive(seed, number))
            order = torch.randperm(len(rows), generator=generator)
            yield Window(rows, order, generator, skip)
            skip = 0


class Reader:
    """Reads windows of images from the file of a memory-mapped array (N, C, H, W), with several threads.

    The memory map is not used: the kernel would read megabytes for every image. Pinned memory lets a GPU copy a window
    while it computes.
    """

    def __init__(self, images: "np.memmap[tuple[int, int, int, int], np.dtype[np.uint8]]", order: BlockOrder) -> None:
        self._name = str(images.filename)
        self._file = os.open(self._name, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        self._shape, self._offset, self._block = images.shape[1:], images.offset, order.block
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._file, 0, 0, os.POSIX_FADV_RANDOM)  # no reading ahead

    def read(self, rows: Tensor, *, pinned: bool) -> Tensor:
        """Return the images of a window's rows, (n, C, H, W), in this order."""
        images = torch.empty(len(rows), *self._shape, dtype=torch.uint8, pin_memory=pinned)
        # Only the last block of the file may be shorter; it is the last one of its window.
        with ThreadPoolExecutor(READERS) as threads:
            list(threads.map(self._read_block, images.split(self._block), rows.split(self._block)))
        return images

    def _read_block(self, images: Tensor, rows: Tensor) -> None:
        buffer = images.numpy().data.cast("B")
        place, done = self._offset + int(rows[0]) * images[0].numel(), 0
        while done < len(buffer):
            count = os.preadv(self._file, [buffer[done:]], place + done)
            if not count:
                raise EOFError(f"{self._name} ends early")
            done += count


def one_ahead(items: Iterable[T]) -> Iterator[T]:
    """Yield the items of an iterable, none of which is None; a thread computes the next one meanwhile."""
    iterator = iter(items)
    with ThreadPoolExecutor(1) as thread:
        ahead = thread.submit(next, iterator, None)
        while (item := ahead.result()) is not None:
            ahead = thread.submit(next, iterator, None)
            yield item
