"""Files that are complete or absent, and whose content is verified by SHA-256.

Outputs may be hard links into DVC's cache, so a write in place would change the cache.
Therefore each file is written under a temporary name in its folder, and then renamed over the old one.
"""

import csv
import errno
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from imageclf.core.errors import UserError

Parsed = TypeVar("Parsed")

DIGITS = 6
"""Significant digits in CSV files: enough to distinguish any two accuracies, too few to show rounding errors."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`; on success, sync it to disk and rename it to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    except OSError as error:
        # A full disk names no file; a failed copy names its source and the temporary file. Name `path` instead.
        if error.errno is not None and (error.filename is None or str(error.filename2) == str(temporary)):
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


_NO_SYNC = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EBADF, errno.EACCES, errno.EISDIR}
"""Errors of network and FUSE disks that cannot sync a folder (or a file) at all."""


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
    """Create `folder`, and delete everything in it except `names`, such as the files of an earlier run."""
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
    """Write `content` as indented JSON, atomically. Raises `ValueError` for NaN and infinity, which JSON lacks."""
    write_text(path, _render(content))


def write_csv(path: Path, header: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write a CSV file, atomically: floats with `DIGITS` significant digits, None as an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([f"{cell:.{DIGITS}g}" if isinstance(cell, float) else cell for cell in row] for row in rows)
    write_text(path, text.getvalue())


def sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(path: Path, content: dict[str, Any]) -> str:
    """Write `content` with the SHA-256 of its own canonical form under the key `sha256`; return that SHA-256."""
    digest = _digest(content)
    write_json(path, {**content, "sha256": digest})
    return digest


def read_manifest(path: Path, made_by: str, parse: Callable[[dict[str, Any]], Parsed]) -> Parsed:
    """Read what `write_manifest` wrote, and return the result of `parse` on the content, which includes `sha256`.

    Raises `UserError` with the stage to run, `made_by`, if the file is missing, damaged, or of another version.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing: run `uv run dvc repro {made_by}`")
    signed = _read_signed(path.read_bytes())
    if signed is None:
        raise UserError(damaged(path, made_by))
    try:
        return parse(signed)
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path} was written by another version of the code ({error}): run `uv run dvc repro {made_by}`"
        ) from None


def _read_signed(raw: bytes) -> dict[str, Any] | None:
    """Return the content of a manifest, or None if it is damaged."""
    try:
        content = json.loads(raw)
        claimed = content.pop("sha256")
        signed = {**content, "sha256": claimed}
        # The text is compared too: a changed byte of white space is also damage.
        if claimed == _digest(content) and raw.decode() == _render(signed):
            return signed
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    return None


def verify(path: Path, expected: str, made_by: str) -> None:
    """Raise `UserError` with the stage to run, `made_by`, unless the file's SHA-256 is `expected`."""
    if not path.is_file():
        raise UserError(f"{path} is missing: run `uv run dvc repro {made_by}`")
    if sha256(path) != expected:
        raise UserError(damaged(path, made_by))


def damaged(path: Path, made_by: str) -> str:
    """Return the message for a file that differs from what its stage wrote.

    The damaged file may be the copy in DVC's cache. DVC does not check read-only copies, and would restore this one
    over the new output: the chmod makes DVC check it.
    """
    return (
        f"{path} is not what {made_by} wrote (its SHA-256 differs): make it again with "
        f'`chmod -R u+w "$(uv run dvc cache dir)"; uv run dvc repro --force --single-item {made_by}`'
    )


def _render(content: object) -> str:
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def _digest(content: dict[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()
