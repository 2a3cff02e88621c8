"""List a tar or zip as entries. Nothing is extracted to disk, and links outside the archive are not followed.

An archive may be malicious, so its unpacked size, its number of entries and the length of its headers are bounded,
and no header may send tarfile backwards (CVE-2025-8194).
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

from imageclf.core.errors import UserError
from imageclf.download.entries import DamagedError, Entry

MAX_BYTES, FREE_BYTES, MAX_RATIO = 64 * 2**30, 2**30, 100
"""Maximum unpacked size in bytes, and maximum ratio to the packed size above the second: images hardly compress."""

MAX_ENTRIES = 2_000_000
"""Maximum number of entries of an archive."""

MAX_HEADER = 2**16
"""Maximum number of bytes that tarfile may read for the headers of one entry."""

UTF_8_FLAG, UNICODE_PATH = 0x800, 0x7075
"""The flag of a zip entry whose name is UTF-8, and the extra field that repeats the name as UTF-8."""


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
            problem = "compressed by another method than deflate"  # zipfile unpacks bz2 and lzma without a bound
        yield Entry(name, info.file_size, partial(_read_zipped, archive, info), name.endswith("/"), problem)


def _zip_name(info: zipfile.ZipInfo) -> str:
    """Return the intended name: macOS writes UTF-8 without the flag, and old Windows tools write backslashes."""
    raw = info.orig_filename.encode("utf-8" if info.flag_bits & UTF_8_FLAG else "cp437")
    try:
        name = (_unicode_path(info.extra, zlib.crc32(raw)) or raw).decode("utf-8")
    except UnicodeDecodeError:
        name = info.orig_filename
    name = name.partition("\0")[0]
    return name.replace("\\", "/") if info.create_system == 0 else name


def _unicode_path(extra: bytes, checksum: int) -> bytes | None:
    """Return the name in the Info-ZIP extra field, if it belongs to the name with this CRC-32."""
    while len(extra) >= 4:
        kind, size = struct.unpack_from("<HH", extra)
        field, extra = extra[4 : 4 + size], extra[4 + size :]
        if kind == UNICODE_PATH and field[:5] == struct.pack("<BI", 1, checksum):
            return field[5:]
    return None


def _read_zipped(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    try:
        with archive.open(info) as stream:
            return stream.read(info.file_size)  # `archive.read` has no bound
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise DamagedError(str(error).partition(" for file ")[0]) from None


def plain_tar(file: IO[bytes], magic: bytes, scratch: IO[bytes]) -> IO[bytes]:
    """Return an uncompressed tar, readable in any order: `file` itself, or `scratch` after unpacking `file` to it."""
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


class _ForwardOnly:
    """A file for tarfile that raises an error if it reads more than `left` bytes, or seeks backwards."""

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
    """Yield the entries of an uncompressed tar; links last, each with the content of the member that it names."""
    forward: Any = _ForwardOnly(file)
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
            # tarfile takes a damaged header for the end of the archive; the true end is a block of zeros.
            if os.pread(file.fileno(), tarfile.BLOCKSIZE, tar.offset).strip(b"\0"):
                raise tarfile.ReadError(f"the header at byte {tar.offset} is damaged")
    except (ValueError, OverflowError) as error:  # raised by tarfile for malformed headers
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
    """Return the member that a link names: a hard link relative to the root, a symbolic link to its own folder."""
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
        raise UserError("folder: the unpacked archive is suspiciously large; unpack it and name the directory instead")
