"""A folder of one's own images, a directory or an archive of it, to one tar in data/raw.

    images.tar       train/<class>/<file> and test/<class>/<file>, uncompressed, in the order of their names
    manifest.json    found (how many files, without litter), classes, members [name, offset, size], skipped
                     [name, reason], and the SHA-256 of the tar and of itself; found = members + skipped

The same files give the same bytes, however they came and in whatever order. Hidden files are passed
over; links, devices, paths that lead out and whatever is not in its place are left out and listed.
"""

import io
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm import tqdm

from imageclf import files, paths
from imageclf.errors import UserError
from imageclf.origins import DamagedError, Entry, opened
from imageclf.raw import IMAGES_MANIFEST, IMAGES_TAR, LeftOut

MAX_FILE = 64 * 2**20
"""Bytes of one image file, at most."""

LITTER = {"Thumbs.db", "desktop.ini", "__MACOSX"}
"""What Windows and macOS leave among images, beside names that begin with a dot."""


def pack(origin: Path, folder: Path, progress: bool) -> dict[str, Any]:
    """Make `folder` hold the images of `origin`, as images.tar and manifest.json; returns the manifest.

    Raises `UserError` where there is nothing to tell apart: no images, one class, an empty class.
    """
    files.keep_only(folder, {IMAGES_TAR, IMAGES_MANIFEST})
    with opened(origin, scratch=folder) as entries, files.replacing(folder / IMAGES_TAR) as temporary:
        chosen, folders, skipped = _choose(entries)
        classes = _classes(origin, set(chosen), folders, skipped)
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


def _choose(entries: Iterable[Entry]) -> tuple[dict[str, Entry], set[str], list[LeftOut]]:
    """The files to pack by their names, the folders in train/ and test/, and what is left out."""
    chosen: dict[str, Entry] = {}
    folders: set[str] = set()
    skipped: list[LeftOut] = []
    for entry in entries:
        parts = PurePosixPath(entry.name).parts  # without "." and doubled slashes
        name = "/".join(parts)
        if ".." not in parts and any(part.startswith(".") or part in LITTER for part in parts):
            continue
        if entry.is_folder:
            folders |= {name} if len(parts) == 2 else set()
        elif problem := entry.problem or _problem(parts, entry.size):
            skipped.append(LeftOut(entry.name, problem))
        elif name in chosen:
            skipped.append(LeftOut(entry.name, "a second file of this name"))
        else:
            chosen[name] = entry
    return chosen, folders, skipped


def _problem(parts: tuple[str, ...], size: int) -> str | None:
    if ".." in parts or (parts and parts[0].startswith("/")):
        return "a path that leads elsewhere"
    if len(parts) != 3 or parts[0] not in {"train", "test"}:
        return "not train/<class>/<file> or test/<class>/<file>"
    return f"more than {MAX_FILE // 2**20} MiB" if size > MAX_FILE else None


def _classes(origin: Path, names: set[str], folders: set[str], skipped: list[LeftOut]) -> list[str]:
    """The classes in the order of their names, which is that of their indices; raises `UserError` for too few."""
    places = {name.rsplit("/", 1)[0] for name in names}
    classes = sorted(place.removeprefix("train/") for place in places if place.startswith("train/"))
    if not classes:
        others = f"; it has {': '.join(min(skipped))!r}" if skipped else ""
        if Path.cwd() != paths.repository():
            others += "; a --temp or --queue experiment lacks what git ignores, unless its path is absolute"
        raise UserError(f"folder: {origin} has no train/<class>/<file>{others}")
    if empty := sorted(place for place in folders - places if place.startswith("train/")):
        raise UserError(f"folder: {origin} has no image in {empty[0]!r}; put some there or take the class away")
    if len(classes) == 1:
        raise UserError(f"folder: {origin} has the one class {classes[0]!r}; there must be another to tell it from")
    if stray := sorted(places - {f"{split}/{name}" for split in ("train", "test") for name in classes}):
        raise UserError(f"folder: {origin} has {stray[0]!r}, a class that train/ lacks")
    for name in classes:
        if name.encode(errors="replace").decode() != name:
            raise UserError(f"folder: {origin} has the class {name!r}, which is not UTF-8; rename it")
    return classes


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
