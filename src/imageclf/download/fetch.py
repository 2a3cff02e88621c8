"""Fetch the files of a data set from a cache, a mirror or the official addresses, and verify their SHA-256.

A file gets its final name only after it is verified. Fetched files are kept in a cache, named by their SHA-256,
because DVC deletes `data/raw` before it runs `download` again.
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

from imageclf.core import files, paths
from imageclf.core.errors import UserError
from imageclf.download.datasets import Archive, Source

TIMEOUT_S = (10, 30)
"""Timeouts in seconds: to connect, and between two packets."""
SLOWEST, GRACE_S = 10_000, 30.0
"""Minimum average bytes per second of a server, checked after this many seconds."""
TRIES = 3
PAUSE_S = 1.0

_NO_FILE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


def fetch(name: str, source: Source, folder: Path, mirror: str | None, progress: bool) -> None:
    """Write the files of data set `name` to `folder`, and delete other files there. Fetch what the cache lacks.

    mirror: a folder or URL that is tried before the official addresses.

    Raises `UserError` with each address that was tried and its error.
    """
    files.keep_only(folder, set(source.files))
    archives = cache()
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


def cache() -> Path:
    """Return the folder of archives: `IMAGECLF_CACHE`, or the user's cache folder (relative if there is no home)."""
    if chosen := os.environ.get("IMAGECLF_CACHE"):
        return paths.repository() / chosen
    try:
        return platformdirs.user_cache_path("imageclf")
    except RuntimeError:  # without HOME and an entry for the user; some versions return "~/..." instead
        return Path("~")


def _in_package(source: Source) -> bool:
    """Return True if an installed package contains the data set, so that a cached copy is not useful."""
    return any(place.startswith("package:") for place in source.addresses)


def _is_verified(path: Path, archive: Archive) -> bool:
    try:
        return path.is_file() and files.sha256(path) == archive.sha256
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
    """Write `file` to `target` from the first place that has it with the right SHA-256."""
    failures: list[str] = []
    for place in places:
        address = f"{place}/{file}"
        try:
            with files.replacing(target) as temporary, _locked(temporary):
                _copy(address, archive, temporary, progress)
                _check(temporary, archive)
        except (ValueError, *_NO_FILE, requests.RequestException) as error:
            failures.append(f"  {address}: {_reason(error)}")
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
    if (size := path.stat().st_size) != archive.size:
        raise ValueError(f"{size} bytes, not {archive.size}: this is another file")
    if files.sha256(path) != archive.sha256:
        raise ValueError("its SHA-256 is not the published one")


_REASONS = (
    (_NO_FILE, "no such file"),
    (requests.exceptions.InvalidSchema, "it redirects from https to http, which is not allowed"),
    (requests.exceptions.SSLError, "its certificate is not trusted"),
    (requests.Timeout, "no answer in time"),
    (requests.exceptions.ChunkedEncodingError, "the connection was lost"),
    (requests.ConnectionError, "cannot be reached"),
)


def _reason(error: Exception) -> str:
    if "timed out" in str(error):  # requests reports a timeout within the body as a lost connection
        return "no answer in time"
    return next((reason for kind, reason in _REASONS if isinstance(error, kind)), str(error))


def _copy(address: str, archive: Archive, target: Path, progress: bool) -> None:
    if _is_url(address):
        _download(address, archive, target, progress)
    elif address.startswith("package:"):
        package, _, inner = address.removeprefix("package:").partition("/")
        spec = importlib.util.find_spec(package)  # without an import, which takes a second
        if spec is None or not spec.submodule_search_locations:
            raise FileNotFoundError(address)
        shutil.copyfile(Path(spec.submodule_search_locations[0], inner), target)
    else:
        shutil.copyfile(address, target)


def _download(url: str, archive: Archive, target: Path, progress: bool) -> None:
    """Download `url` to `target`; try again if the connection fails."""
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
            response.raw.headers.pop(
                "Content-Encoding", None
            )  # some servers report the gzip of an archive as an encoding
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
                        raise ValueError(f"more than {archive.size} bytes: this is another file")
                    if (passed := time.monotonic() - start) > GRACE_S and file.tell() < SLOWEST * passed:
                        raise ValueError(f"slower than {SLOWEST} bytes per second")


def _blocks(response: requests.Response) -> Iterator[bytes]:
    """Yield the body as it arrives. `iter_content` would wait for full blocks, without limit for a slow server."""
    try:
        while block := response.raw.read1(1 << 16):
            yield block
    except urllib3.exceptions.HTTPError as error:
        raise requests.exceptions.ChunkedEncodingError(error) from error
