"""Fetch published files from a cache, a mirror or the official addresses, and verify their SHA-256.

A file gets its final name only after it is verified. Fetched files are kept in a cache, named by their SHA-256,
because DVC deletes `data/raw` before it runs `download` again.
"""

import errno
import fcntl
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from imageclf.core import files, paths
from imageclf.core.errors import UserError
from imageclf.download.datasets import Archive, Published

_NO_FILE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


def fetch(name: str, source: Published, folder: Path, mirror: str | None, progress: bool) -> None:
    """Write the files of `source` to `folder`, and delete other files there. Fetch what the cache lacks.

    mirror: a folder or URL that is tried before the official addresses, first its folder `name`.

    Raises `UserError` with each address that was tried and its error.
    """
    files.keep_only(folder, set(source.files))
    archives = paths.cache()
    _delete_temporary_files(archives)
    cached = {file for file, archive in source.files.items() if _is_verified(archives / archive.sha256, archive)}
    use_cache = not _in_package(source) and (cached == set(source.files) or _writable(archives))
    for file, archive in source.files.items():
        places = list(_places(name, source, mirror))
        if file not in cached:
            _obtain(file, archive, places, archives / archive.sha256 if use_cache else folder / file, progress)
        if file in cached or use_cache:
            with files.replacing(folder / file) as temporary:
                shutil.copyfile(archives / archive.sha256, temporary)


def _in_package(source: Published) -> bool:
    """Return True if an installed package contains the files, so that a cached copy is not useful."""
    return any(place.startswith("package:") for place in source.addresses)


def _is_verified(path: Path, archive: Archive) -> bool:
    try:
        return path.is_file() and files.sha256(path).startswith(archive.sha256)
    except OSError:  # no permission to read the folder
        return False


def _writable(folder: Path) -> bool:
    """Create `folder`; return False, and print why, if it cannot be written.

    The user's cache folder may be missing or read-only, in a container for example; archives are then downloaded
    again at each run. Raises `UserError` if the folder is `IMAGECLF_CACHE`.
    """
    try:
        if not folder.is_absolute():
            raise FileNotFoundError(errno.ENOENT, "the home folder does not exist")
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        problem = f"cannot write to {folder} ({error.strerror})"
        if os.environ.get("IMAGECLF_CACHE"):
            raise UserError(f"IMAGECLF_CACHE: {problem}; set it to another folder, or unset it") from None
        print(f"{problem}: archives are not kept for the next run; set IMAGECLF_CACHE to a folder for them", flush=True)
        return False
    return True


def _places(name: str, source: Published, mirror: str | None) -> Iterator[str]:
    mirror = os.environ.get("IMAGECLF_MIRROR") or mirror
    if mirror:
        root = mirror.rstrip("/") if _is_url(mirror) else str(paths.repository() / Path(mirror).expanduser())
        yield f"{root}/{name}"
        yield root
    yield from source.addresses


def _is_url(place: str) -> bool:
    return place.startswith(("http://", "https://"))


def _obtain(file: str, archive: Archive, places: list[str], target: Path, progress: bool) -> None:
    """Write `file` to `target` from the first place that has it with the right SHA-256."""
    failures: list[str] = []
    for place in places:
        address = f"{place}/{file}"
        try:
            with files.replacing(target) as temporary, _locked(temporary):
                _copy(address, archive, temporary, progress)
                _check(temporary, archive)
        except _NO_FILE:
            failures.append(f"  {address}: no such file")
        except ValueError as error:
            failures.append(f"  {address}: {error}")
        else:
            return
    raise UserError(
        f"{file} could not be downloaded:\n" + "\n".join(failures) + "\n"
        "Set runtime.mirror in params.yaml, or IMAGECLF_MIRROR, to a folder or URL that holds it."
    )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Create a file and lock it; the kernel releases the lock when this process ends, even if it is killed."""
    with path.open("wb") as file:
        with suppress(OSError):  # network disks without locks: no file is deleted there
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _delete_temporary_files(folder: Path) -> None:
    """Delete the temporary files of killed downloads; running downloads have locked theirs."""
    for path in folder.glob(".*.tmp"):
        with suppress(OSError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


def _check(path: Path, archive: Archive) -> None:
    if archive.size is not None and (size := path.stat().st_size) != archive.size:
        raise ValueError(f"{size} bytes, not {archive.size}: this is another file")
    if not files.sha256(path).startswith(archive.sha256):
        raise ValueError("its SHA-256 is not the published one")


def _copy(address: str, archive: Archive, target: Path, progress: bool) -> None:
    if _is_url(address):
        from imageclf.download import http  # the import of requests takes 40 ms

        http.download(address, archive.size, target, progress)
    elif address.startswith("package:"):
        package, _, inner = address.removeprefix("package:").partition("/")
        spec = importlib.util.find_spec(package)  # without an import, which takes a second
        if spec is None or not spec.submodule_search_locations:
            raise FileNotFoundError(address)
        shutil.copyfile(Path(spec.submodule_search_locations[0], inner), target)
    else:
        shutil.copyfile(address, target)
