"""Raw files of a data set: from our own cache, a mirror, or the official addresses, checked by SHA-256.

A file comes under its final name only when it is whole and right. What was fetched once is kept by
its SHA-256 outside DVC's outputs, because DVC deletes `data/raw` before each re-run of `download`.
"""

import errno
import fcntl
import importlib.util
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import platformdirs
import requests
import urllib3
from tqdm import tqdm

from imageclf import files, paths
from imageclf.datasets import Archive, Source
from imageclf.errors import UserError

TIMEOUT_S = (10, 30)
"""Seconds to connect, and between two bytes: a stalled server is left for the next one."""
SLOWEST, GRACE_S = 10_000, 30.0
"""Bytes a second, on average, that a server must send from the first so many seconds on: it too is left otherwise."""
TRIES = 3
PAUSE_S = 1.0

_NO_FILE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


def fetch(name: str, source: Source, folder: Path, mirror: str | None, progress: bool) -> None:
    """Make `folder` hold exactly the files of data set `name`, fetching only what the cache lacks.

    Raises `UserError` naming each place that was tried and what was wrong there.
    """
    files.keep_only(folder, set(source.files))
    kept = cache()
    _sweep(kept)
    whole = {file for file, archive in source.files.items() if _is_whole(kept / archive.sha256, archive)}
    keeps = not _in_package(source) and (whole == set(source.files) or _writable(kept))
    for file, archive in source.files.items():
        places = list(_places(name, source, mirror))
        if file not in whole:
            _obtain(file, archive, places, kept / archive.sha256 if keeps else folder / file, progress)
        if file in whole or keeps:
            with files.replacing(folder / file) as temporary:
                shutil.copyfile(kept / archive.sha256, temporary)


def cache() -> Path:
    """Folder of the verified archives: `IMAGECLF_CACHE`, else the user's cache folder; relative if there is no home."""
    if chosen := os.environ.get("IMAGECLF_CACHE"):
        return paths.repository() / chosen
    try:
        return platformdirs.user_cache_path("imageclf")
    except RuntimeError:  # no HOME, and a user whom the system does not know; some versions return "~/..." instead
        return Path("~")


def _in_package(source: Source) -> bool:
    """Tell whether an installed package has the data set: keeping a second copy of it would gain nothing."""
    return any(place.startswith("package:") for place in source.addresses)


def _is_whole(path: Path, archive: Archive) -> bool:
    try:
        return path.is_file() and files.sha256(path) == archive.sha256
    except OSError:  # a folder that we may not read
        return False


def _writable(folder: Path) -> bool:
    """Tell whether `folder` can hold archives, and create it.

    The user's cache folder may be missing or read-only, in a container for example: that is reported, and costs
    one more download when the stage runs again. Raises `UserError` for an `IMAGECLF_CACHE` that cannot be written.
    """
    try:
        if not folder.is_absolute():
            raise FileNotFoundError(errno.ENOENT, "there is no home folder")
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        problem = f"cannot write to {folder} ({error.strerror})"
        if os.environ.get("IMAGECLF_CACHE"):
            raise UserError(f"IMAGECLF_CACHE: {problem}; set it to another folder, or unset it") from None
        print(
            f"{problem}: archives are not kept for the next time; set IMAGECLF_CACHE to a folder for them", flush=True
        )
        return False
    return True


def _places(name: str, source: Source, mirror: str | None) -> Iterator[str]:
    mirror = os.environ.get("IMAGECLF_MIRROR") or mirror
    if mirror:
        root = mirror.rstrip("/") if _is_url(mirror) else str(paths.repository() / Path(mirror).expanduser())
        yield f"{root}/{name}"
        yield root
    yield from source.addresses


def _is_url(place: str) -> bool:
    return place.startswith(("http://", "https://"))


def _obtain(file: str, archive: Archive, places: list[str], target: Path, progress: bool) -> None:
    """Write `file` to `target` from the first place that has the right one."""
    failures: list[str] = []
    for place in places:
        address = f"{place}/{file}"
        try:
            with files.replacing(target) as temporary, _held(temporary):
                _copy(address, archive, temporary, progress)
                _check(temporary, archive)
        except (ValueError, *_NO_FILE, requests.RequestException) as error:
            failures.append(f"  {address}: {_reason(error)}")
        else:
            return
    raise UserError(
        f"{file} could not be had:\n" + "\n".join(failures) + "\n"
        "Set runtime.mirror in params.yaml, or IMAGECLF_MIRROR, to a folder or URL that holds it."
    )


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """Hold a lock on a new file, which the kernel releases however this process ends."""
    with path.open("wb") as file:
        with suppress(OSError):  # some network disks know no locks, and so `_sweep` deletes nothing there
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sweep(folder: Path) -> None:
    """Delete what killed downloads have left in `folder`, if we may; downloads that are running hold their locks."""
    for path in folder.glob(".*.tmp"):
        with suppress(OSError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


def _check(path: Path, archive: Archive) -> None:
    if (size := path.stat().st_size) != archive.size:
        raise ValueError(f"{size} bytes, not {archive.size}: not the file it should be")
    if files.sha256(path) != archive.sha256:
        raise ValueError("its SHA-256 is not the published one")


_REASONS = (
    (_NO_FILE, "no such file"),
    (requests.exceptions.InvalidSchema, "redirects from https to plain http, which is refused"),
    (requests.exceptions.SSLError, "its certificate is not trusted"),
    (requests.Timeout, "no answer in time"),
    (requests.exceptions.ChunkedEncodingError, "the connection broke off"),
    (requests.ConnectionError, "cannot be reached"),
)


def _reason(error: Exception) -> str:
    if "timed out" in str(error):  # requests calls a stall half way a lost connection
        return "no answer in time"
    return next((reason for kind, reason in _REASONS if isinstance(error, kind)), str(error))


def _copy(address: str, archive: Archive, target: Path, progress: bool) -> None:
    if _is_url(address):
        _download(address, archive, target, progress)
    elif address.startswith("package:"):
        package, _, inner = address.removeprefix("package:").partition("/")
        spec = importlib.util.find_spec(package)  # finds without importing, which would take a second
        if spec is None or not spec.submodule_search_locations:
            raise FileNotFoundError(address)
        shutil.copyfile(Path(spec.submodule_search_locations[0], inner), target)
    else:
        shutil.copyfile(address, target)


def _download(url: str, archive: Archive, target: Path, progress: bool) -> None:
    """Stream `url` into `target`; never more than the expected size and one chunk."""
    for attempt in range(1, TRIES + 1):
        try:
            _stream(url, archive, target, progress)
        except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError):
            if attempt == TRIES:
                raise
            time.sleep(PAUSE_S * attempt)
        else:
            return


def _stream(url: str, archive: Archive, target: Path, progress: bool) -> None:
    with requests.Session() as session:
        if url.startswith("https://"):
            del session.adapters["http://"]  # a redirect to plain http then fails
        with session.get(url, stream=True, timeout=TIMEOUT_S, headers={"Accept-Encoding": "identity"}) as response:
            response.raise_for_status()
            response.raw.headers.pop("Content-Encoding", None)  # some servers call an archive's own gzip one
            bar = tqdm(
                desc=f"downloading {url}",
                total=archive.size,
                unit="B",
                unit_scale=True,
                disable=None if progress else True,
            )
            start = time.monotonic()
            with bar, target.open("wb") as file:
                for block in _blocks(response):
                    bar.update(file.write(block))
                    if file.tell() > archive.size:
                        raise ValueError(f"more than {archive.size} bytes: not the file it should be")
                    if (passed := time.monotonic() - start) > GRACE_S and file.tell() < SLOWEST * passed:
                        raise ValueError(f"slower than {SLOWEST} bytes a second")


def _blocks(response: requests.Response) -> Iterator[bytes]:
    """The body as it comes: `iter_content` would wait until a block is full, byte by byte for as long as it takes."""
    try:
        while block := response.raw.read1(1 << 16):
            yield block
    except urllib3.exceptions.HTTPError as error:
        raise requests.exceptions.ChunkedEncodingError(error) from error
