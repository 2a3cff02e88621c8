"""What reading a source gives: labelled images, chunk by chunk, and what they are.

Images that are costly to decode are decoded once and wait in a `Spool`, so that labels, counts and
shape are known before any output is begun and no set has to fit in memory.
"""

import math
import os
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

CHUNK = 4096
"""Images read at a time, at most: what bounds the memory of `preprocess`."""

CHUNK_BYTES = 16 * 2**20
"""Bytes of pixels read at a time, unless a single image has more."""

IMAGES_TAR, IMAGES_MANIFEST = "images.tar", "manifest.json"
"""What `data/raw` holds of a folder of one's own images: see `pack`, which writes them, and `folder`, which reads."""

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Images:
    """Labelled images in the order of their archive.

    labels: class indices, (N,) int64.
    chunks: starts over from the first image; each chunk is (n, channels, height, width) uint8, n <= CHUNK.
    """

    labels: NDArray[np.int64]
    chunks: Callable[[], Iterator[Pixels]]


class LeftOut(NamedTuple):
    """A file that was found and is not among the images, and the reason."""

    name: str
    reason: str


@dataclass(frozen=True)
class RawData:
    """Everything that `data/raw` holds: `splits` has `train` and, where the source names one, `test`.

    image_shape: (channels, height, width) of every image.
    skipped: each file that was found and is not among the images.
    """

    splits: dict[str, Images]
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    skipped: tuple[LeftOut, ...] = ()


def chunk_length(image_shape: tuple[int, int, int]) -> int:
    """How many images of that shape make a chunk."""
    return max(1, min(CHUNK, CHUNK_BYTES // math.prod(image_shape)))


class Spool:
    """Images of one shape in a file in `folder` that has no name and is gone with the process, however that ends."""

    def __init__(self, folder: Path, image_shape: tuple[int, int, int]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._shape = image_shape
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - read for as long as this object lives
        weakref.finalize(self, self._file.close)
        self._count = 0

    def append(self, images: Pixels) -> None:
        """Add (n, channels, height, width) images at the end."""
        self._file.write(np.ascontiguousarray(images).data)
        self._count += len(images)

    def __len__(self) -> int:
        return self._count

    def chunks(self, first: int, last: int) -> Iterator[Pixels]:
        """The images `first` to `last` (not included), in chunks."""
        self._file.flush()
        size, most = math.prod(self._shape), chunk_length(self._shape)
        for start in range(first, last, most):
            count = min(most, last - start)
            pixels = np.frombuffer(os.pread(self._file.fileno(), count * size, start * size), np.uint8)
            yield pixels.reshape(count, *self._shape)


def list_skipped(skipped: Sequence[LeftOut], where: Path, examples: int = 3) -> str:
    """Return one line per reason with the count and the first names, most frequent first; "" if nothing was skipped."""
    if not skipped:
        return ""
    names: dict[str, list[str]] = {}
    for name, reason in skipped:
        names.setdefault(reason, []).append(name)
    lines = [f"skipped {len(skipped):,} files, all listed in {where}:"]
    for reason, group in sorted(names.items(), key=lambda item: (-len(item[1]), item[0])):
        # Names and reasons may be a stranger's: repr, so that they stay text on one line.
        more = ", ..." if len(group) > examples else ""
        lines.append(f"  {len(group):,}: {repr(reason)[1:-1]}: {', '.join(map(repr, group[:examples]))}{more}")
    return "\n".join(lines) + "\n"
