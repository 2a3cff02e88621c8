"""Open the directory, tar or zip that `folder` in params.yaml names, or raise an error that names the remedy."""

import lzma
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from imageclf.core import paths
from imageclf.core.errors import UserError
from imageclf.download import archives, directories
from imageclf.download.entries import Entry

UNPACK = "unpack it and name the directory instead"
KINDS = {
    b"Rar!": f"a RAR archive; {UNPACK}",
    b"7z\xbc\xaf\x27\x1c": f"a 7z archive; {UNPACK}",
    b"\x28\xb5\x2f\xfd": f"compressed with Zstandard; {UNPACK}",
    b"\x04\x22\x4d\x18": f"compressed with LZ4; {UNPACK}",
    b"LZIP": f"compressed with lzip; {UNPACK}",
    b"\x1f\x9d": f"compressed with compress; {UNPACK}",
    **dict.fromkeys(directories.IMAGE_STARTS, "an image; name the directory that holds the folders of the classes"),
    b"version https://git-lfs": "a Git LFS pointer, not the archive itself; run `git lfs pull`",
    b"<!doctype html": "a web page, not an archive: the download went wrong; try it again in a browser",
    b"<html": "a web page, not an archive: the download went wrong; try it again in a browser",
}
"""Descriptions of files that are neither tar nor zip, by their first bytes (text in lower case)."""


def locate(folder: str) -> Path:
    """Return the path of `folder`: `~` is the home folder, and a relative path starts in the project.

    DVC runs --temp and --queue experiments in a copy of the project, without the files that git ignores. A folder that
    does not exist in the copy is searched in the user's repository. Raises `UserError` if it does not exist.
    """
    try:
        path = Path(folder).expanduser()
    except RuntimeError:
        raise UserError(f"folder: the home folder in {folder!r} does not exist") from None
    path = next((place for place in (path, paths.repository() / path) if place.exists()), path)
    if path.is_dir() or path.is_file():
        return path
    if path.exists():
        raise UserError(f"folder: {path} is neither a file nor a directory; name a directory, or a tar or zip archive")
    pull = path.with_name(f"{path.name}.dvc")
    remedy = f"run `uv run dvc pull {pull}`" if pull.is_file() else "name a directory, or a tar or zip archive"
    raise UserError(f"folder: {path} does not exist; {remedy}")


@contextmanager
def opened(origin: Path, scratch: Path) -> Iterator[Iterator[Entry]]:
    """Yield the entries of `origin`. They can be read in any order inside the context.

    scratch: folder for temporary files.

    Raises `UserError`, also during iteration over the entries, if `origin` is not an archive, or is damaged.
    """
    if origin.is_dir():
        yield directories.walk(origin)
        return
    with ExitStack() as stack:
        file = stack.enter_context(origin.open("rb"))
        magic = file.read(512)
        file.seek(0)
        try:
            if magic.startswith(b"PK"):
                yield archives.read_zip(stack.enter_context(zipfile.ZipFile(file)), origin.stat().st_size)
            else:
                tar = archives.plain_tar(file, magic, stack.enter_context(tempfile.TemporaryFile(dir=scratch)))
                if not _begins_tar(tar.read(tarfile.BLOCKSIZE)):
                    _check_kind(origin, magic, is_compressed=tar is not file)
                tar.seek(0)
                yield archives.read_tar(tar)
        except (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError, OSError) as error:
            if getattr(error, "errno", None) is not None:
                raise  # an error of the disk
            raise UserError(f"folder: {origin} is not a tar or zip archive that can be read: {error}") from None
        except (UnicodeDecodeError, NotImplementedError) as error:  # raised by zipfile for malformed names and versions
            raise UserError(f"folder: {origin} is not a zip archive that can be read: {error}") from None


def _begins_tar(header: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return not header.strip(b"\0")
    return True


def _check_kind(origin: Path, start: bytes, is_compressed: bool) -> None:
    """Raise `UserError` with the remedy if the file is of a known kind other than tar."""
    if is_compressed:
        raise UserError(f"folder: {origin} is one compressed file, not an archive of a folder; {UNPACK}")
    for magic, kind in KINDS.items():
        if start.startswith(magic) or start.lstrip(b"\xef\xbb\xbf \r\n\t").lower().startswith(magic):
            raise UserError(f"folder: {origin} is {kind}")
    if start and b"\0" not in start and start.isascii():
        raise UserError(f"folder: {origin} is a text file; name a directory, or a tar or zip archive")
