"""A folder of one's own images, a directory or an archive of it, to one tar in data/raw.

    images.tar       train/<class>/<file>, val/... and test/..., uncompressed, in the order of their names
    manifest.json    found (how many files, without litter), classes, members [name, offset, size], skipped
                     [name, reason], and the SHA-256 of the tar and of itself; found = members + skipped

The same files give the same bytes, however they came and in whatever order. Hidden files and what systems
leave among images are passed over; whatever else is not an image in its place is left out and listed.
"""

import io
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from imageclf import files
from imageclf.entries import DamagedError, Entry
from imageclf.layout import arrange
from imageclf.origins import opened
from imageclf.raw import IMAGES_MANIFEST, IMAGES_TAR, LeftOut


def pack(origin: Path, folder: Path, progress: bool) -> dict[str, Any]:
    """Make `folder` hold the images of `origin`, as images.tar and manifest.json; returns the manifest.

    Raises `UserError` if there is nothing to tell apart: no images, one class, an empty class.
    """
    files.keep_only(folder, {IMAGES_TAR, IMAGES_MANIFEST})
    with opened(origin, scratch=folder) as entries, files.replacing(folder / IMAGES_TAR) as temporary:
        classes, chosen, skipped = arrange(origin, entries)
        bar = tqdm(sorted(chosen), desc=f"packing {origin}", unit=" files", disable=None if progress else True)
        with bar, tarfile.open(temporary, "w", format=tarfile.GNU_FORMAT, encoding="utf-8") as tar:
            members = list(_add_all(tar, ((name, chosen[name]) for name in bar), skipped))
        digest = files.sha256(temporary)
    manifest = {
        "found": len(members) + len(skipped),
        "classes": classes,
        "members": members,
        "skipped": sorted(skipped),
        "files": {IMAGES_TAR: digest},
    }
    files.write_manifest(folder / IMAGES_MANIFEST, manifest)
    return manifest


def _add_all(
    tar: tarfile.TarFile, chosen: Iterable[tuple[str, Entry]], skipped: list[LeftOut]
) -> Iterator[tuple[str, int, int]]:
    """Add the files, with nothing about them but names and bytes; gives (name, offset of its bytes, size) of each."""
    for name, entry in chosen:
        try:
            content = entry.read()
        except DamagedError as error:
            skipped.append(LeftOut(name, f"damaged: {error}"))
            continue
        member = tarfile.TarInfo(name)  # mode 0644, owner 0, time 0
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
        padded = -(-len(content) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        yield name, tar.offset - padded, len(content)
