"""The contract between download and preprocess: your own images in a tar, and labeled images read in chunks.

Images that are slow to decode are decoded once and kept in a `Spool`: labels, counts and shape are then known
before any output is written, and the images need not fit into memory.
"""

import math
import os
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from imageclf.core import files

CHUNK = 4096
"""Maximum number of images in a chunk."""

CHUNK_BYTES = 16 * 2**20
"""Maximum number of bytes in a chunk, unless a single image has more."""

IMAGES_TAR, IMAGES_MANIFEST = "images.tar", "manifest.json"
"""The files in `data/raw` for your own images: `download.pack` writes them, `preprocess.folder` reads them."""

Pixels = NDArray[np.uint8]

FACTS = np.dtype([("digest", np.uint64), ("traits", np.uint16)])
"""Facts about an image file: the first eight bytes of its SHA-256, and its `preprocess.images.Trait`s."""


@dataclass(frozen=True)
class Images:
    """Labeled images in the order of their archive.

    labels: class indices, (N,) int64.
    chunks: each call starts at the first image; each chunk is (n, channels, height, width) uint8, n <= CHUNK.
    facts: `FACTS` of each image's file, (N,); None for published sets.
    """

    labels: NDArray[np.int64]
    chunks: Callable[[], Iterator[Pixels]]
    facts: NDArray[np.void] | None = None


class LeftOut(NamedTuple):
    """A file that was found but is not used, and the reason."""

    name: str
    reason: str

    def line(self) -> str:
        """Return `name: reason`, the form in a manifest. The reason loses its own colons, so that `parse` is exact."""
        return f"{self.name}: {self.reason.replace(': ', ', ')}"

    @classmethod
    def parse(cls, line: str) -> "LeftOut":
        """Return what `line` wrote."""
        name, reason = line.rsplit(": ", 1)
        return cls(name, reason)


class Member(NamedTuple):
    """A file inside a larger file: its name, the position of its first byte, and its number of bytes."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True, kw_only=True)
class PackedManifest:
    """Content of `manifest.json`.

    found: number of files, without those of the operating system; the sum of members and skipped files.
    classes: class names, in the order of their indices.
    members: the files in the tar, named `<split>/<class>/<file>`, in the order of their names.
    skipped: each file that was left out, with the reason.
    files: SHA-256 by file name.
    """

    found: int
    classes: list[str]
    members: list[Member]
    skipped: list[LeftOut]
    files: dict[str, str]


def write_packed(folder: Path, manifest: PackedManifest) -> None:
    """Write `manifest.json`."""
    content = {**asdict(manifest), "skipped": [each.line() for each in manifest.skipped]}
    files.write_manifest(folder / IMAGES_MANIFEST, content)


def read_packed(folder: Path) -> PackedManifest:
    """Read `manifest.json`, and verify the tar. Raises `UserError` if one of them is missing or damaged."""
    manifest = files.read_manifest(folder / IMAGES_MANIFEST, made_by="download", parse=_parse)
    files.verify(folder / IMAGES_TAR, manifest.files[IMAGES_TAR], made_by="download")
    return manifest


def _parse(content: dict[str, Any]) -> PackedManifest:
    del content["sha256"]
    members = [Member(*member) for member in content.pop("members")]
    return PackedManifest(members=members, skipped=list(map(LeftOut.parse, content.pop("skipped"))), **content)


@dataclass(frozen=True)
class RawData:
    """The content of `data/raw`: `splits` has `train` and, if the source has them, `val` and `test`.

    image_shape: (channels, height, width) of every image.
    skipped: each file that was found but is not used.
    found: number of files of your own images; None for published data sets.
    gray16_bits: number of bits of 16-bit gray images that are used.
    """

    splits: dict[str, Images]
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    skipped: tuple[LeftOut, ...] = ()
    found: int | None = None
    gray16_bits: int = 16


def chunk_length(image_shape: tuple[int, int, int]) -> int:
    """Return the number of images of this shape in a chunk."""
    return max(1, min(CHUNK, CHUNK_BYTES // math.prod(image_shape)))


class Spool:
    """Decoded images of one shape, kept in an unnamed temporary file in `folder`, which ends with the process."""

    def __init__(self, folder: Path, image_shape: tuple[int, int, int]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._shape = image_shape
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - open as long as this object
        weakref.finalize(self, self._file.close)
        self._count = 0

    def append(self, images: Pixels) -> None:
        """Append images (n, channels, height, width)."""
        self._file.write(np.ascontiguousarray(images).data)
        self._count += len(images)

    def __len__(self) -> int:
        return self._count

    def chunks(self, first: int, last: int) -> Iterator[Pixels]:
        """Yield the images with indices first <= index < last, in chunks."""
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
        # repr, because names and reasons may contain line breaks and control characters.
        more = ", ..." if len(group) > examples else ""
        lines.append(f"  {len(group):,}: {repr(reason)[1:-1]}: {', '.join(map(repr, group[:examples]))}{more}")
    return "\n".join(lines) + "\n"
