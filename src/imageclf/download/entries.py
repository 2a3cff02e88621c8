"""Entries of a directory or archive, and the names of files that operating systems leave there."""

import unicodedata
from collections.abc import Callable
from typing import NamedTuple

SYSTEM_FILES = {
    *("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r"),
    *("__macosx", "lost+found", "$recycle.bin", "system volume information"),
    *("@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot"),
}
"""Names, in lower case, of files and folders that Windows, macOS and network storage create."""


class DamagedError(Exception):
    """An entry that cannot be read; the message is the reason, without the name of the entry."""


class Entry(NamedTuple):
    """A file or folder.

    name: its path below the directory or in the archive; bytes that are not UTF-8 are surrogate escapes.
    read: returns the content; raises `DamagedError`.
    problem: the reason why the content must not be read, if there is one.
    identity: changes with the content: device, inode, size and times of a file in a directory.
    """

    name: str
    size: int
    read: Callable[[], bytes]
    is_folder: bool = False
    problem: str | None = None
    identity: str = ""


def is_system_file(part: str) -> bool:
    """Return True for a hidden file or folder, and for one that an operating system created."""
    return part.startswith(".") or part.casefold() in SYSTEM_FILES


def readable(name: str) -> str:
    """Return a name as printable text: parts that are not UTF-8 are decoded as Windows-1252."""
    return "/".join(part if part.isprintable() else _text(part) for part in name.split("/"))


def _text(part: str) -> str:
    raw = part.encode("utf-8", "surrogateescape")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return unicodedata.normalize("NFC", raw.decode("cp1252", "backslashreplace"))
