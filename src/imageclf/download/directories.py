"""List a directory as entries. Links are followed if that is safe.

Data sets often consist of links: made by `ln -s`, or by DVC or git-annex with a cache on another disk. So a link counts
as the file or folder that it leads to, and each folder counts once. A file behind a link must begin like an image, so
that a link in a downloaded data set cannot copy a private file.
"""

import errno
import os
import stat
from collections import deque
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from imageclf.download.entries import Entry, is_system_file

SYSTEM, SHARED_MEMORY = tuple(map(Path, ("/proc", "/sys", "/dev", "/etc"))), Path("/dev/shm")  # noqa: S108
"""Folders into which links are not followed, and an exception in /dev: a normal disk in memory."""

IMAGE_STARTS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", b"GIF8", b"RIFF")
"""The first bytes of PNG, JPEG, BMP, GIF and WEBP."""


def walk(root: Path, *, skip_unreadable: bool = False) -> Iterator[Entry]:
    """Yield the files and folders in `root`, without those of the operating system.

    Links to folders come last, so that a folder is listed at its real place rather than at a link to it. A folder that
    cannot be read is yielded with its problem if `skip_unreadable`. Otherwise it raises `OSError`.
    """
    seen: set[tuple[int, int]] = set()
    folders, links = deque([(root, "", False)]), deque[tuple[Path, str, bool]]()
    while folders or links:
        place, name, linked = (folders or links).popleft()
        status = place.stat()
        key = (status.st_dev, status.st_ino)
        if key in seen or (linked and root.resolve().is_relative_to(place.resolve())):
            yield _skipped(name, "a link to a folder that is counted already, or that holds this one")
            continue
        seen.add(key)
        if name:
            yield Entry(name, 0, bytes, is_folder=True)
        try:
            with os.scandir(place) as found:
                items = sorted((item for item in found if not is_system_file(item.name)), key=lambda item: item.name)
        except OSError as error:
            if not skip_unreadable:
                raise
            yield _skipped(name, _reason(error))
            continue
        for item in items:
            path, below = Path(item.path), f"{name}/{item.name}" if name else item.name
            if problem := _problem(item):
                yield _skipped(below, problem)
            elif item.is_dir():
                (links if item.is_symlink() else folders).append((path, below, linked or item.is_symlink()))
            else:
                yield _file(path, below, item.stat(), linked or item.is_symlink())


def single(path: Path) -> Entry:
    """Return the entry of one file, named by its path. It has a problem if it is missing or not a plain file."""
    try:
        status = path.stat()
    except OSError as error:
        return _skipped(str(path), _reason(error))
    if not stat.S_ISREG(status.st_mode):
        return _skipped(str(path), "not a plain file")
    return Entry(str(path), status.st_size, partial(_read, path))


def _skipped(name: str, problem: str) -> Entry:
    return Entry(name, 0, bytes, problem=problem)


def _reason(error: OSError) -> str:
    return (error.strerror or "cannot be read").lower()


def _problem(item: os.DirEntry[str]) -> str | None:
    """Return the reason why an item is neither a file nor a folder, if it is neither; nothing is opened."""
    if item.is_symlink():
        target = Path(os.path.realpath(item.path))
        if any(map(target.is_relative_to, SYSTEM)) and not target.is_relative_to(SHARED_MEMORY):
            return "a link into /proc, /sys, /dev or /etc"
    try:
        mode = item.stat().st_mode
    except OSError as error:
        if not item.is_symlink():
            raise
        reasons = {errno.ENOENT: "a link to a file that does not exist", errno.ELOOP: "a link to itself"}
        return reasons.get(error.errno or 0, "a link that cannot be followed")
    return None if stat.S_ISDIR(mode) or stat.S_ISREG(mode) else "not a plain file"


def _file(path: Path, name: str, status: os.stat_result, linked: bool) -> Entry:
    if linked and not _read(path, most=len(IMAGE_STARTS[0])).startswith(IMAGE_STARTS):
        return _skipped(name, "a link to a file that is not an image")
    numbers = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return Entry(name, status.st_size, partial(_read, path), identity=" ".join(map(str, numbers)))


def _read(path: Path, most: int = -1) -> bytes:
    """Return up to `most` bytes of a file, or all. Never waits, even if the file has been replaced by a named pipe."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        return file.read(most)
