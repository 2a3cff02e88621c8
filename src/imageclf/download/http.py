"""Download a file over HTTP, without trust in the server: its speed, its size and its redirects are limited."""

import time
from collections.abc import Iterator
from pathlib import Path

import requests
import urllib3
from tqdm import tqdm

TIMEOUT_S = (10, 30)
"""Timeouts in seconds: to connect, and between two packets."""
SLOWEST, GRACE_S = 10_000, 30.0
"""Minimum average bytes per second of a server, checked after this many seconds."""
MOST = 2**30
"""Maximum size in bytes of a file of unknown size."""
TRIES = 3
PAUSE_S = 1.0


def download(url: str, size: int | None, target: Path, progress: bool) -> None:
    """Download a file to `target`: of `size` bytes, or of an unknown size up to `MOST`.

    Raises `ValueError` with the reason if that fails.
    """
    try:
        _download(url, size, target, progress)
    except requests.RequestException as error:
        raise ValueError(_reason(error)) from None


def _download(url: str, size: int | None, target: Path, progress: bool) -> None:
    """Try again if the connection fails."""
    for attempt in range(1, TRIES + 1):
        try:
            _stream(url, size, target, progress)
        except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError):
            if attempt == TRIES:
                raise
            time.sleep(PAUSE_S * attempt)
        else:
            return


def _stream(url: str, size: int | None, target: Path, progress: bool) -> None:
    with requests.Session() as session:
        if url.startswith("https://"):
            del session.adapters["http://"]  # a redirect to plain http then fails
        with session.get(url, stream=True, timeout=TIMEOUT_S, headers={"Accept-Encoding": "identity"}) as response:
            response.raise_for_status()
            response.raw.headers.pop("Content-Encoding", None)  # some servers report an archive's own gzip as one
            bar = tqdm(
                desc=f"downloading {url}",
                total=size,
                unit="B",
                unit_scale=True,
                disable=None if progress else True,
            )
            start, most = time.monotonic(), MOST if size is None else size
            with bar, target.open("wb") as file:
                for block in _blocks(response):
                    bar.update(file.write(block))
                    if file.tell() > most:
                        raise ValueError(f"more than {most} bytes: this is another file")
                    if (passed := time.monotonic() - start) > GRACE_S and file.tell() < SLOWEST * passed:
                        raise ValueError(f"slower than {SLOWEST} bytes per second")


def _blocks(response: requests.Response) -> Iterator[bytes]:
    """Yield the body as it arrives. `iter_content` would wait for full blocks, without limit for a slow server."""
    try:
        while block := response.raw.read1(1 << 16):
            yield block
    except urllib3.exceptions.HTTPError as error:
        raise requests.exceptions.ChunkedEncodingError(error) from error


_REASONS = (
    (requests.exceptions.InvalidSchema, "it redirects from https to http, which is not allowed"),
    (requests.exceptions.SSLError, "its certificate is not trusted"),
    (requests.Timeout, "no answer in time"),
    (requests.exceptions.ChunkedEncodingError, "the connection was lost"),
    (requests.ConnectionError, "cannot be reached"),
)


def _reason(error: requests.RequestException) -> str:
    if "timed out" in str(error):  # requests reports a timeout within the body as a lost connection
        return "no answer in time"
    return next((reason for kind, reason in _REASONS if isinstance(error, kind)), str(error))
