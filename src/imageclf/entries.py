"""Something with a name in a directory or archive, and the names that a system leaves there."""

import unicodedata
from collections.abc import Callable
from typing import NamedTuple

LITTER = {
    *("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r"),
    *("__macosx", "lost+found", "$recycle.bin", "system volume information"),
    *("@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot"),
}
"""What Windows, macOS and network storages leave among images, in lower case; and names that begin with a dot."""


class DamagedError(Exception):
    """An entry that cannot be read; the message is the reason, without the name of the entry."""


class Entry(NamedTuple):
    """A file or folder.

    name: its path below the directory or in the archive; bytes that are not UTF-8 are surrogates.
    read: returns the content; raises `DamagedError`.
    problem: the reason why the content must not be taken, if there is one.
    identity: differs if the content differs: device, inode, size and times of a file in a directory.
    """

    name: str
    size: int
    read: Callable[[], bytes]
    is_folder: bool = False
    problem: str | None = None
    identity: str = ""


def is_litter(part: str) -> bool:
    """Return True for the name of a file or folder that a system or tool keeps for itself."""
    return part.startswith(".") or part.casefold() in LITTER


def readable(name: str) -> str:
    """Return a name as text: what is not UTF-8 is taken for Windows-1252."""
    return "/".join(part if part.isprintable() else _text(part) for part in name.split("/"))


def _text(part: str) -> str:
    raw = part.encode("utf-8", "surrogateescape")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return unicodedata.normalize("NFC", raw.decode("cp1252", "backslashreplace"))
