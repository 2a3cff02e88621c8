"""The contract of shards: train images on a server, which preprocess writes and the other stages read.

A shard is a .npy file, uint8 (n, channels, height, width). Its name is its SHA-256, so several experiments can share a
folder, and nothing in it is ever replaced. Readers fetch whole shards into a local folder of limited size. The address
of a folder is any that fsspec knows, such as `s3://bucket/folder`, or a path.
"""

import asyncio
import itertools
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from imageclf.contracts.preparation import Shape
from imageclf.core import files, paths, process
from imageclf.core.errors import UserError, first_line

PATIENCE_S = 600
"""Seconds for which a server may fail."""
ATTEMPT_S = 120
"""Seconds for one attempt. The clients wait for minutes, or forever, for a server that is silent."""
LONGEST_PAUSE_S = 16
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


class Folder:
    """A folder of shards at an address. Raises `UserError` if nothing on this machine can read such an address."""

    def __init__(self, address: str) -> None:
        from fsspec.core import url_to_fs  # takes 50 ms

        place, options = address, dict[str, Any](use_listings_cache=False)
        if "://" not in address:
            place, options = str(paths.repository() / Path(address).expanduser()), {"auto_mkdir": True}
        try:
            found: tuple[Any, str] = url_to_fs(place, **options)
        except (ImportError, ValueError) as error:
            raise UserError(
                f"shards: {address} cannot be used ({first_line(error)}); for S3, run `uv sync --group remotes`"
            ) from None
        self.address = address
        self._files, self._folder = found

    def check(self) -> None:
        """Raise `UserError` at once if no file can be written there."""
        self._patiently(self._check, patience_s=0)

    def _check(self) -> None:
        path = f"{self._folder}/check-{uuid4().hex}"
        self._call("pipe_file", path, b"")
        self._call("rm_file", path)

    def put(self, path: Path, sha256: str) -> None:
        """Upload a shard, unless it is there."""
        self._patiently(lambda: self._put(path, sha256))

    def _put(self, path: Path, sha256: str) -> None:
        target = f"{self._folder}/{sha256}.npy"
        with suppress(FileNotFoundError):
            if self._call("size", target) == path.stat().st_size:
                return
        self._call("put_file", str(path), target)

    def get(self, sha256: str, target: Path, size: int) -> None:
        """Download a shard of at least `size` bytes. Raises `UserError` if it is not what preprocess wrote."""
        self._patiently(lambda: self._get(sha256, target, size))
        if files.sha256(target) != sha256:
            remedy = "delete it there, and run `uv run dvc repro --force --single-item preprocess`"
            raise UserError(f"{self.address}/{sha256}.npy is not what preprocess wrote (its SHA-256 differs): {remedy}")

    def _get(self, sha256: str, target: Path, size: int) -> None:
        self._call("get_file", f"{self._folder}/{sha256}.npy", str(target))
        if target.stat().st_size < size:
            raise OSError(f"{sha256}.npy arrived in part")

    def _call(self, method: str, *arguments: object) -> object:
        """Call a method of the file system, for `ATTEMPT_S` at most if it is one over a network."""
        if not self._files.async_impl:
            return getattr(self._files, method)(*arguments)

        async def limited() -> object:
            return await asyncio.wait_for(getattr(self._files, f"_{method}")(*arguments), ATTEMPT_S)

        from fsspec.asyn import sync

        return sync(self._files.loop, limited)

    def _patiently(self, action: Callable[[], None], patience_s: float = PATIENCE_S) -> None:
        """Do it, and if it fails, again for `patience_s`: a server may be restarted."""
        start = time.monotonic()
        for attempt in itertools.count():
            try:
                action()
            except PermissionError as error:
                raise UserError(f"shards: {self.address} refuses access ({first_line(error)})") from None
            except Exception as error:  # each kind of server has its own
                problem = f"shards: {self.address} fails ({type(error).__name__}: {first_line(error)})"
                if time.monotonic() - start > patience_s:
                    raise UserError(f"{problem}; the same command continues when it works again") from error
                if attempt == 0:
                    print(f"{problem}; trying again for {patience_s // 60} minutes", flush=True)
            else:
                return
            if process.stopping.wait(min(2**attempt, LONGEST_PAUSE_S)):
                raise UserError(problem)


class ShardedImages:
    """Images (N, channels, height, width) in shards; indexing with rows fetches what is not on this machine.

    cache_gib: GiB of fetched shards to keep; the ones not used for the longest time are deleted.
    """

    def __init__(self, shards: ShardList, count: int, shape: Shape, cache_gib: int) -> None:
        self.shards = shards
        self.shape = (count, *shape)
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
        size = self.nbytes // len(self)
        with self._open(shard) as file:
            header = os.fstat(file.fileno()).st_size - self._images_in(shard) * size
            yield file.fileno(), header + within * size

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
        size = self._images_in(shard) * (self.nbytes // len(self))
        self._cache.mkdir(parents=True, exist_ok=True)
        # Of several processes, one fetches. A lock may also be that of another shard: there are 256 in all.
        with FileLock(self._cache / f"{path.name[:2]}.lock"):
            if not path.exists():
                _make_room(self._cache, self._cache_bytes - size)
                with files.replacing(path) as temporary:
                    self._folder.get(self.shards.sha256[shard], temporary, size)

    @cached_property
    def _folder(self) -> Folder:
        return Folder(self.shards.address)


def _make_room(folder: Path, most: int) -> None:
    """Delete the shards not used for the longest time until the others have at most `most` bytes.

    A temporary file is deleted if nobody has written to it for `PATIENCE_S`: its process was killed.
    """
    found: list[tuple[os.stat_result, Path]] = []
    for path in folder.glob("*.npy*"):
        with suppress(FileNotFoundError):
            status = path.stat()
            if path.suffix == ".npy" or time.time() - status.st_mtime > PATIENCE_S:
                found.append((status, path))
    left = sum(status.st_size for status, _ in found)
    for status, path in sorted(found, key=lambda each: each[0].st_mtime):
        if left <= most:
            return
        path.unlink(missing_ok=True)
        left -= status.st_size
