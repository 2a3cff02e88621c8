"""The contract of shards: train images on a server, which preprocess writes and the other stages read.

A shard is a .npy file, uint8 (n, channels, height, width). Its name is its SHA-256, so several experiments can share a
folder, and nothing in it is ever replaced. Readers fetch whole shards into a local folder of limited size.
"""

import itertools
import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from imageclf.contracts.preparation import Shape
from imageclf.core import files, paths
from imageclf.core.remote import RemoteFolder

ABANDONED_S = 600
"""Seconds after which a temporary file that nobody has written to was left by a process that was killed."""
GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class ShardList:
    """The shards of a split.

    address: address of their folder.
    rows: number of images in a shard; the last one may have fewer.
    sha256: SHA-256 of each shard, in the order of the images.
    """

    address: str
    rows: int
    sha256: list[str]


class ShardedImages:
    """Images (N, channels, height, width) in shards; indexing with rows fetches what is not on this machine.

    cache_gib: GiB of fetched shards to keep; the ones not used for the longest time are deleted.
    """

    def __init__(self, shards: ShardList, count: int, shape: Shape, cache_gib: int) -> None:
        self.shards = shards
        self.shape = (count, *shape)
        self._image_bytes = math.prod(shape)
        self._cache, self._cache_bytes = paths.cache() / "shards", cache_gib * GIB

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        """Number of bytes of all images."""
        return math.prod(self.shape)

    def __getitem__(self, rows: slice | Sequence[int] | NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the images of a slice or of some rows."""
        numbers = range(len(self))[rows] if isinstance(rows, slice) else list(map(int, rows))
        images = np.empty((len(numbers), *self.shape[1:]), np.uint8)
        for shard, places in itertools.groupby(range(len(numbers)), lambda place: numbers[place] // self.shards.rows):
            into = list(places)
            with self.opened(shard * self.shards.rows) as (file, start):
                shape = (self._images_in(shard), *self.shape[1:])
                stored = np.memmap(os.fdopen(file, "rb", closefd=False), np.uint8, "r", start, shape)
                images[into] = stored[[numbers[place] % self.shards.rows for place in into]]
        return images

    @contextmanager
    def opened(self, row: int) -> Iterator[tuple[int, int]]:
        """Give the descriptor of the file with an image, and the place of the image in it, in bytes."""
        shard, within = divmod(row, self.shards.rows)
        with self._open(shard) as file:
            header = os.fstat(file.fileno()).st_size - self._images_in(shard) * self._image_bytes
            yield file.fileno(), header + within * self._image_bytes

    def _images_in(self, shard: int) -> int:
        return min(self.shards.rows, len(self) - shard * self.shards.rows)

    def _open(self, shard: int) -> BinaryIO:
        """Open a shard. An open file stays readable when another process deletes it to make room."""
        path = self._cache / f"{self.shards.sha256[shard]}.npy"
        while True:
            with suppress(FileNotFoundError):
                os.utime(path)
                return path.open("rb")
            self._fetch(shard, path)

    def _fetch(self, shard: int, path: Path) -> None:
        size = self._images_in(shard) * self._image_bytes
        from filelock import FileLock  # takes 13 ms

        self._cache.mkdir(parents=True, exist_ok=True)
        # Of several processes, one fetches. A lock may also be that of another shard: there are 256 in all.
        with FileLock(self._cache / f"{path.name[:2]}.lock"):
            if not path.exists():
                _make_room(self._cache, self._cache_bytes - size)
                with files.replacing(path) as temporary:
                    self._folder.get(self.shards.sha256[shard], temporary, size)

    @cached_property
    def _folder(self) -> RemoteFolder:
        return RemoteFolder(self.shards.address)


def _make_room(folder: Path, most: int) -> None:
    """Delete the shards not used for the longest time until the others have at most `most` bytes.

    A temporary file is deleted if it is `ABANDONED_S` old.
    """
    found: list[tuple[os.stat_result, Path]] = []
    for path in folder.glob("*.npy*"):
        with suppress(FileNotFoundError):
            status = path.stat()
            if path.suffix == ".npy" or time.time() - status.st_mtime > ABANDONED_S:
                found.append((status, path))
    left = sum(status.st_size for status, _ in found)
    for status, path in sorted(found, key=lambda each: each[0].st_mtime):
        if left <= most:
            return
        path.unlink(missing_ok=True)
        left -= status.st_size
