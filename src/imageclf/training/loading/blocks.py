"""Shuffling of images that are too many to be read one by one, in random order, from a disk.

A file is cut into blocks of neighboring images. An epoch reads the blocks in random order, many at a time: these are a
window, whose images are shuffled in memory. Blocks of 64 KiB read about as fast as whole files, and a window mixes
thousands of them, so that also images that are stored class by class come well mixed. If the images are on a server,
each shard, which is mixed already, is a block.
"""

import os
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from imageclf.contracts.shards import ShardedImages
from imageclf.training.runtime import derive

T = TypeVar("T")

LARGE = 2 * 2**30
"""Bytes of images from which on a split is shuffled in blocks. It depends on the data alone, never on the memory of the
machine, because the order decides the bits of the trained weights."""

BLOCK_BYTES, WINDOW_BYTES = 2**16, 2**28
"""Bytes of a block and of a window; two windows are in memory at a time."""

READERS = 4
"""Threads that read blocks at the same time."""


FileOfImages: TypeAlias = "np.memmap[tuple[int, int, int, int], np.dtype[np.uint8]]"


@dataclass(frozen=True)
class Window:
    """Some consecutive images of an epoch.

    rows: their numbers in the split, (n,) int64, in the order in which they are used.
    first: the number of images of the epoch before them.
    generator: for further random draws, for example of augmentation.
    """

    rows: Tensor
    first: int
    generator: torch.Generator


@dataclass(frozen=True)
class BlockOrder:
    """The order of a split in an epoch: `block` neighboring images form a block, and `window` blocks a window."""

    num_images: int
    block: int
    window: int

    @classmethod
    def of(cls, images: NDArray[np.uint8] | ShardedImages) -> "BlockOrder | None":
        """Return the order for a split of these images, (N, C, H, W); None if all of them are shuffled at once."""
        size = images.nbytes // len(images)
        if isinstance(images, ShardedImages):
            block = images.shards.rows
        elif images.nbytes <= LARGE:
            return None
        else:
            block = max(1, BLOCK_BYTES // size)
        return cls(len(images), block, max(1, WINDOW_BYTES // (block * size)))

    def windows(self, seed: int, skip: int = 0) -> Iterator[Window]:
        """Yield the windows of an epoch; together they have every image once.

        Windows whose images are all among the first `skip` images are left out.
        """
        starts = torch.arange(0, self.num_images, self.block)
        starts = starts[torch.randperm(len(starts), generator=torch.Generator().manual_seed(seed))]
        first = 0
        for number, begins in enumerate(starts.split(self.window)):
            rows = (begins.sort().values[:, None] + torch.arange(self.block)).flatten()
            rows = rows[rows < self.num_images]  # the last block of the file may be shorter
            if first + len(rows) > skip:
                generator = torch.Generator().manual_seed(derive(seed, number))
                yield Window(rows[torch.randperm(len(rows), generator=generator)], first, generator)
            first += len(rows)


class Reader:
    """Reads blocks of images (N, C, H, W) with several threads, from the file of a memory-mapped array or from shards.

    The memory map is not used: the kernel would read megabytes for every image. Pinned memory lets a GPU copy a window
    while it computes.
    """

    def __init__(self, images: "FileOfImages | ShardedImages", order: BlockOrder) -> None:
        self._order = order
        self._shape = images.shape[1:]
        self._opened = images.opened if isinstance(images, ShardedImages) else self._open_once(images)

    def read(self, rows: Tensor, *, pinned: bool) -> tuple[Tensor, Tensor]:
        """Return the images of all blocks that have one of the rows, and the places of the rows among them."""
        size = self._order.block
        blocks, which = torch.unique(rows // size, return_inverse=True)
        # Sorted: a disk reads blocks faster in the order of the file, and the last one, which may be shorter, is last.
        last = min(size, self._order.num_images - int(blocks[-1]) * size) if len(blocks) else 0
        count = max(0, len(blocks) - 1) * size + last
        images = torch.empty(count, *self._shape, dtype=torch.uint8, pin_memory=pinned)
        with ThreadPoolExecutor(READERS) as threads:
            list(threads.map(self._read_block, images.split(size), (blocks * size).tolist()))
        return images, which * size + rows % size

    def _open_once(self, images: "FileOfImages") -> Callable[[int], AbstractContextManager[tuple[int, int]]]:
        """Return a function that gives the file of an array, and the place of an image in it, in bytes."""
        file = os.open(str(images.filename), os.O_RDONLY)
        weakref.finalize(self, os.close, file)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)  # no reading ahead
        offset, size = images.offset, images.nbytes // len(images)
        return lambda row: nullcontext((file, offset + row * size))

    def _read_block(self, images: Tensor, first: int) -> None:
        buffer, done = images.numpy().data.cast("B"), 0
        with self._opened(first) as (file, place):
            while done < len(buffer):
                count = os.preadv(file, [buffer[done:]], place + done)
                if not count:
                    raise EOFError(f"the file of images {first} to {first + len(images) - 1} ends early")
                done += count


def one_ahead(items: Iterable[T]) -> Iterator[T]:
    """Yield the items of an iterable, none of which is None; a thread computes the next one meanwhile."""
    iterator = iter(items)
    with ThreadPoolExecutor(1) as thread:
        ahead = thread.submit(next, iterator, None)
        while (item := ahead.result()) is not None:
            ahead = thread.submit(next, iterator, None)
            yield item
