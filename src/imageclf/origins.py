"""A directory, tar or zip as a list of entries: never extracted, and no link followed.

An archive may be a stranger's, so all that it can cost is bounded: the bytes it unpacks to, the number
of its entries, the length of a header, and where a header may send tarfile (backwards: CVE-2025-8194).
"""

import bz2
import gzip
import lzma
import os
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn

from imageclf.errors import UserError

MAX_BYTES, FREE_BYTES, MAX_RATIO = 64 * 2**30, 2**30, 100
"""An archive may unpack to the first, and beyond the second to this many times its own size: images hardly shrink."""

MAX_ENTRIES = 2_000_000
"""What an archive may list."""

MAX_HEADER = 2**16
"""Bytes that tarfile may read to know of one entry: its name and what else is said of it."""


class DamagedError(Exception):
    """An entry that cannot be read; the message is the reason."""


class Entry(NamedTuple):
    """Something with a name; `problem` says why its content must not be taken, if so."""

    name: str
    size: int
    read: Callable[[], bytes]
    is_folder: bool = False
    problem: str | None = None


@contextmanager
def opened(origin: Path, scratch: Path) -> Iterator[Iterator[Entry]]:
    """The entries of `origin`, readable in any order while the context lasts; `scratch` is for temporary files.

    Raises `UserError` where there is no such thing, and as the entries are listed, where it is damaged.
    """
    if origin.is_dir():
        yield _directory(origin)
        return
    if not origin.is_file():
        raise UserError(f"folder: {origin} is not there; name a directory, or a tar or zip archive")
    with ExitStack() as stack:
        file = stack.enter_context(origin.open("rb"))
        magic = file.read(6)
        file.seek(0)
        try:
            if magic.startswith(b"PK"):
                yield _zip(stack.enter_context(zipfile.ZipFile(file)), origin.stat().st_size)
            else:
                yield _tar(_plain(file, magic, stack.enter_context(tempfile.TemporaryFile(dir=scratch))))
        except (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError, OSError) as error:
            if getattr(error, "errno", None) is not None:
                raise  # a disk, not the archive
            raise UserError(f"folder: {origin} is not a tar or zip archive that can be read: {error}") from None


def _directory(root: Path) -> Iterator[Entry]:
    def fail(error: OSError) -> NoReturn:
        raise error

    for place, folders, names in os.walk(root, onerror=fail):
        for name in (*folders, *names):
            path = Path(place, name)
            status = path.lstat()
            is_folder = stat.S_ISDIR(status.st_mode)
            problem = None
            if stat.S_ISLNK(status.st_mode):
                problem = "a link"
            elif not (is_folder or stat.S_ISREG(status.st_mode)):
                problem = "not a plain file"
            yield Entry(path.relative_to(root).as_posix(), status.st_size, path.read_bytes, is_folder, problem)


def _zip(archive: zipfile.ZipFile, size: int) -> Iterator[Entry]:
    infos = archive.infolist()
    _check_count(len(infos))
    _check_size(sum(info.file_size for info in infos), size)
    for info in infos:
        problem = None
        if stat.S_IFMT(info.external_attr >> 16) not in {0, stat.S_IFREG, stat.S_IFDIR}:
            problem = "a link or device"
        elif info.flag_bits & 1:
            problem = "encrypted"
        elif info.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
            problem = "compressed otherwise than by deflate"  # by zipfile without a bound, in bz2 and lzma
        yield Entry(info.filename, info.file_size, partial(_read_zip, archive, info), info.is_dir(), problem)


def _read_zip(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    try:
        with archive.open(info) as stream:
            return stream.read(info.file_size)  # `archive.read` inflates whatever there is
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise DamagedError(str(error)) from None


def _plain(file: IO[bytes], magic: bytes, scratch: IO[bytes]) -> IO[bytes]:
    """The tar itself, whose members can be read in any order: unpacked into `scratch` if it is compressed."""
    for start, unpack in ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\0", lzma.open)):
        if magic.startswith(start):
            size = os.fstat(file.fileno()).st_size
            with unpack(file) as stream:
                while block := stream.read(2**20):
                    scratch.write(block)
                    _check_size(scratch.tell(), size)
            scratch.seek(0)
            return scratch
    return file


class _Forward:
    """What tarfile sees of a tar: it reads no more than `left` bytes, and cannot go back."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.tell = file.tell
        self.left = MAX_HEADER

    def seek(self, position: int) -> None:
        if position < self.tell():
            raise tarfile.ReadError("a header points backwards")
        self._file.seek(position)

    def read(self, size: int) -> bytes:
        self.left -= size
        if self.left < 0:
            raise tarfile.ReadError("a header is too large")
        return self._file.read(size)


def _tar(file: IO[bytes]) -> Iterator[Entry]:
    forward: Any = _Forward(file)
    try:
        with tarfile.open(fileobj=forward, mode="r:", encoding="utf-8", errors="surrogateescape") as tar:
            for count, member in enumerate(tar, start=1):
                _check_count(count)
                forward.left = MAX_HEADER
                yield _tar_entry(file.fileno(), member)
            # A header that is none ends the list as if nothing followed; two blocks of zeros really do.
            if os.pread(file.fileno(), tarfile.BLOCKSIZE, tar.offset).strip(b"\0"):
                raise tarfile.ReadError(f"the header at byte {tar.offset} is damaged")
    except (ValueError, OverflowError) as error:  # what tarfile meets in false headers
        raise tarfile.ReadError(str(error)) from None


def _tar_entry(descriptor: int, member: tarfile.TarInfo) -> Entry:
    problem = None
    if member.issym() or member.islnk():
        problem = "a link"
    elif not (member.isdir() or member.isfile()) or member.issparse() or member.size < 0:
        problem = "not a plain file"
    read = partial(os.pread, descriptor, member.size, member.offset_data)
    return Entry(member.name, member.size, read, member.isdir(), problem)


def _check_count(entries: int) -> None:
    if entries > MAX_ENTRIES:
        raise UserError(f"folder: the archive lists more than {MAX_ENTRIES:,} files")


def _check_size(unpacked: int, packed: int) -> None:
    if unpacked > min(MAX_BYTES, FREE_BYTES + MAX_RATIO * packed):
        raise UserError("folder: the archive unpacks to suspiciously much; unpack it and name the directory instead")
