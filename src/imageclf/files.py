"""Files that are whole or absent, and that prove what they hold.

Outputs may be hard links into DVC's cache: opened in place they would be written through into it.
So every file is written under a temporary name in its folder and renamed over the old one.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from imageclf.errors import UserError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is synced to disk and renamed over `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    except OSError as error:
        # A full disk does not say whose; and to a copy it says whence, with the temporary name beside.
        if error.errno is not None and (error.filename is None or str(error.filename2) == str(temporary)):
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


_NO_SYNC = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EBADF, errno.EACCES, errno.EISDIR}
"""How network and FUSE disks answer if they cannot sync a folder (or a file) at all."""


def _sync(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


def keep_only(folder: Path, names: set[str]) -> None:
    """Make `folder`, and take away whatever it holds beside `names`: an earlier run's files, if run by hand."""
    folder.mkdir(parents=True, exist_ok=True)
    for entry in folder.iterdir():
        if entry.name in names:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: object) -> None:
    """Write `content` as indented JSON, atomically. Not-a-number is refused: it is not JSON."""
    write_text(path, _render(content))


def sha256(path: Path) -> str:
    """The hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(path: Path, content: dict[str, Any]) -> None:
    """Write `content` with the SHA-256 of its own canonical form under the key `sha256`."""
    write_json(path, {**content, "sha256": _digest(content)})


def read_manifest(path: Path, made_by: str) -> dict[str, Any]:
    """Read what `write_manifest` wrote, its `sha256` included.

    Raises `UserError` naming the stage `made_by` when it is absent or is not what was written.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing: run `dvc repro {made_by}`")
    raw = path.read_bytes()
    try:
        content = json.loads(raw)
        claimed = content.pop("sha256")
        signed = {**content, "sha256": claimed}
        # The rendering too: a flipped byte of white space is still not what was written.
        if claimed == _digest(content) and raw.decode() == _render(signed):
            return signed
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise UserError(damaged(path, made_by))


def verify(path: Path, expected: str, made_by: str) -> None:
    """Raise `UserError` naming the stage `made_by` unless the file's SHA-256 is `expected`."""
    if not path.is_file():
        raise UserError(f"{path} is missing: run `dvc repro {made_by}`")
    if sha256(path) != expected:
        raise UserError(damaged(path, made_by))


def damaged(path: Path, made_by: str) -> str:
    """The sentence for a file that is not what its writer wrote.

    DVC's cached copy may be the damaged one, and DVC then puts it back over what the stage has made anew: it
    trusts what is read-only, hence the chmod.
    """
    return (
        f"{path} is not what {made_by} wrote (its SHA-256 differs): make it again by "
        f'`chmod -R u+w "$(dvc cache dir)"; dvc repro --force --single-item {made_by}`'
    )


def _render(content: object) -> str:
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def _digest(content: dict[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()
