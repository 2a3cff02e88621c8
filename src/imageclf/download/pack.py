"""Pack your own images, from a directory or an archive, into one tar in data/raw.

    images.tar       train/<class>/<file>, val/... and test/..., uncompressed, sorted by name
    manifest.json    `PackedManifest`

The same files give the same bytes in any order and from any kind of archive. Hidden files and those of the operating
system are ignored; any other file that is not an image in the folder of a class is skipped and listed.
"""

import io
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from tqdm import tqdm

from imageclf.contracts.raw import IMAGES_MANIFEST, IMAGES_TAR, LeftOut, Member, PackedManifest, write_packed
from imageclf.core import files
from imageclf.download.entries import DamagedError, Entry
from imageclf.download.layout import arrange
from imageclf.download.origins import opened


def pack(origin: Path, folder: Path, progress: bool) -> PackedManifest:
    """Write the images of `origin` to `folder`, as images.tar and manifest.json; return the manifest.

    Raises `UserError` if there are no images, only one class, or an empty class.
    """
    files.keep_only(folder, {IMAGES_TAR, IMAGES_MANIFEST})
    with opened(origin, scratch=folder) as entries, files.replacing(folder / IMAGES_TAR) as temporary:
        classes, chosen, skipped = arrange(origin, entries)
        bar = tqdm(sorted(chosen), desc=f"packing {origin}", unit=" files", disable=None if progress else True)
        with bar, tarfile.open(temporary, "w", format=tarfile.GNU_FORMAT, encoding="utf-8") as tar:
            members = list(_add_all(tar, ((name, chosen[name]) for name in bar), skipped))
        digest = files.sha256(temporary)
    manifest = PackedManifest(
        found=len(members) + len(skipped),
        classes=classes,
        members=members,
        skipped=sorted(skipped),
        files={IMAGES_TAR: digest},
    )
    write_packed(folder, manifest)
    return manifest


def _add_all(tar: tarfile.TarFile, chosen: Iterable[tuple[str, Entry]], skipped: list[LeftOut]) -> Iterator[Member]:
    """Add the files to the tar without their times, modes and owners; yield the member of each."""
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
        yield Member(name, tar.offset - padded, len(content))
