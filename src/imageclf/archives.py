"""A tar or zip as a list of entries: never extracted, and no link followed that leads out of it.

An archive may be a stranger's, so all that it can cost is bounded: the bytes it unpacks to, the number
of its entries, the length of a header, and where a header may send tarfile (backwards: CVE-2025-8194).
"""

import bz2
import gzip
import lzma
import os
import posixpath
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from functools import partial
from typing import IO, Any

from imageclf.entries import DamagedError, Entry
from imageclf.errors import UserError

MAX_BYTES, FREE_BYTES, MAX_RATIO = 64 * 2**30, 2**30, 100
"""An archive may unpack to the first, and beyond the second to this many times its own size: images hardly shrink."""

MAX_ENTRIES = 2_000_000
"""What an archive may list."""

MAX_HEADER = 2**16
"""Bytes that tarfile may read to know of one entry: its name and what else is said of it."""

UTF_8_FLAG, UNICODE_PATH = 0x800, 0x7075
"""In a zip: the bit that says that a name is UTF-8, and the extra field that holds it again as UTF-8."""


def read_zip(archive: zipfile.ZipFile, size: int) -> Iterator[Entry]:
    """Yield the entries of a zip of `size` bytes."""
    infos = archive.infolist()
    _check_count(len(infos))
    _check_size(sum(info.file_size for info in infos), size)
    for info in infos:
        problem, name = None, _zip_name(info)
        if stat.S_IFMT(info.external_attr >> 16) not in {0, stat.S_IFREG, stat.S_IFDIR}:
            problem = "a link or device"
        elif info.flag_bits & 1:
            problem = "encrypted"
        elif info.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
            problem = "compressed otherwise than by deflate"  # by zipfile without a bound, in bz2 and lzma
        yield Entry(name, info.file_size, partial(_read_zipped, archive, info), name.endswith("/"), problem)


def _zip_name(info: zipfile.ZipInfo) -> str:
    """Return the name that the writer meant: macOS writes UTF-8 without the flag, old Windows tools backslashes."""
    raw = info.orig_filename.encode("utf-8" if info.flag_bits & UTF_8_FLAG else "cp437")
    try:
        name = (_unicode_path(info.extra, zlib.crc32(raw)) or raw).decode("utf-8")
    except UnicodeDecodeError:
        name = info.orig_filename
    name = name.partition("\0")[0]
    return name.replace("\\", "/") if info.create_system == 0 else name


def _unicode_path(extra: bytes, checksum: int) -> bytes | None:
    """Return the name in the Info-ZIP extra field, if there is one for the name with this CRC-32."""
    while len(extra) >= 4:
        kind, size = struct.unpack_from("<HH", extra)
        field, extra = extra[4 : 4 + size], extra[4 + size :]
        if kind == UNICODE_PATH and field[:5] == struct.pack("<BI", 1, checksum):
            return field[5:]
    return None


def _read_zipped(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    try:
        with archive.open(info) as stream:
            return stream.read(info.file_size)  # `archive.read` inflates whatever there is
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise DamagedError(str(error).partition(" for file ")[0]) from None


def plain_tar(file: IO[bytes], magic: bytes, scratch: IO[bytes]) -> IO[bytes]:
    """Return the tar itself, whose members can be read in any order: unpacked into `scratch` if it is compressed."""
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


def read_tar(file: IO[bytes]) -> Iterator[Entry]:
    """Yield the entries of a tar that is not compressed, links last: they stand for the members that they name."""
    forward: Any = _Forward(file)
    members: dict[str, Entry] = {}
    links: list[tuple[str, str]] = []
    try:
        with tarfile.open(fileobj=forward, mode="r:", encoding="utf-8", errors="surrogateescape") as tar:
            for count, member in enumerate(tar, start=1):
                _check_count(count)
                forward.left = MAX_HEADER
                if member.issym() or member.islnk():
                    links.append((member.name, _target(member)))
                    continue
                entry = _tar_entry(file.fileno(), member)
                members.setdefault(posixpath.normpath(entry.name), entry)
                yield entry
            # A header that is none ends the list as if nothing followed; two blocks of zeros really do.
            if os.pread(file.fileno(), tarfile.BLOCKSIZE, tar.offset).strip(b"\0"):
                raise tarfile.ReadError(f"the header at byte {tar.offset} is damaged")
    except (ValueError, OverflowError) as error:  # what tarfile meets in false headers
        raise tarfile.ReadError(str(error)) from None
    targets = {posixpath.normpath(name): target for name, target in links}
    total, size = 0, os.fstat(file.fileno()).st_size
    for name, target in links:
        entry = _resolve(name, target, targets, members)
        total += entry.size
        _check_size(total, size)
        yield entry


def _tar_entry(descriptor: int, member: tarfile.TarInfo) -> Entry:
    problem = None
    if not (member.isdir() or member.isfile()) or member.issparse() or member.size < 0:
        problem = "not a plain file"
    read = partial(os.pread, descriptor, member.size, member.offset_data)
    return Entry(member.name, member.size, read, member.isdir(), problem)


def _target(link: tarfile.TarInfo) -> str:
    """Return the name of the member that a link names: a hard link from the top, a symbolic one from its folder."""
    folder = posixpath.dirname(link.name) if link.issym() else ""
    return posixpath.normpath(posixpath.join(folder, link.linkname))


def _resolve(name: str, target: str, targets: dict[str, str], members: dict[str, Entry]) -> Entry:
    """Return the entry for a link, which may name a further link."""
    passed: set[str] = set()
    while target in targets and target not in passed:
        passed.add(target)
        target = targets[target]
    entry = members.get(target)
    if entry is None or entry.is_folder:
        return Entry(name, 0, bytes, problem="a link to no file in the archive")
    return entry._replace(name=name)


def _check_count(entries: int) -> None:
    if entries > MAX_ENTRIES:
        raise UserError(f"folder: the archive lists more than {MAX_ENTRIES:,} files")


def _check_size(unpacked: int, packed: int) -> None:
    if unpacked > min(MAX_BYTES, FREE_BYTES + MAX_RATIO * packed):
        raise UserError("folder: the archive unpacks to suspiciously much; unpack it and name the directory instead")
