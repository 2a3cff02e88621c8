"""A folder of files on a server that may fail for minutes, at any address that fsspec knows, or at a path."""

import itertools
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from imageclf.core import files, paths, process
from imageclf.core.errors import UserError, first_line

PATIENCE_S = 600
"""Seconds for which a server may fail."""
ATTEMPT_S = 120
"""Seconds for one attempt. The clients wait for minutes, or forever, for a server that is silent."""
LONGEST_PAUSE_S = 16


class RemoteFolder:
    """A folder of shards at an address. Raises `UserError` if nothing on this machine can read such an address."""

    def __init__(self, address: str) -> None:
        from fsspec.core import url_to_fs  # takes 50 ms

        place, options = address, dict[str, Any](use_listings_cache=False)
        if "://" not in address:
            place, options = str(paths.repository() / Path(address).expanduser()), {"auto_mkdir": True}
        try:
            found: tuple[Any, str] = url_to_fs(place, **options)
        except (ImportError, ValueError) as error:
            raise UserError(
                f"shards: {address} cannot be used ({first_line(error)}); for S3, run `uv sync --group remotes`"
            ) from None
        self.address = address
        self._files, self._folder = found

    def check(self) -> None:
        """Raise `UserError` at once if no file can be written there."""
        self._patiently(self._check, patience_s=0)

    def _check(self) -> None:
        path = f"{self._folder}/check-{os.urandom(8).hex()}"
        self._call("pipe_file", path, b"")
        self._call("rm_file", path)

    def put(self, path: Path, sha256: str) -> None:
        """Upload a shard, unless it is there."""
        self._patiently(lambda: self._put(path, sha256))

    def _put(self, path: Path, sha256: str) -> None:
        target = f"{self._folder}/{sha256}.npy"
        with suppress(FileNotFoundError):
            if self._call("size", target) == path.stat().st_size:
                return
        self._call("put_file", str(path), target)

    def get(self, sha256: str, target: Path, size: int) -> None:
        """Download a shard of at least `size` bytes. Raises `UserError` if it is not what preprocess wrote."""
        self._patiently(lambda: self._get(sha256, target, size))
        if files.sha256(target) != sha256:
            remedy = "delete it there, and run `uv run dvc repro --force --single-item preprocess`"
            raise UserError(f"{self.address}/{sha256}.npy is not what preprocess wrote (its SHA-256 differs): {remedy}")

    def _get(self, sha256: str, target: Path, size: int) -> None:
        self._call("get_file", f"{self._folder}/{sha256}.npy", str(target))
        if target.stat().st_size < size:
            raise OSError(f"{sha256}.npy arrived in part")

    def _call(self, method: str, *arguments: object) -> object:
        """Call a method of the file system, for `ATTEMPT_S` at most if it is one over a network."""
        if not self._files.async_impl:
            return getattr(self._files, method)(*arguments)
        import asyncio

        from fsspec.asyn import sync

        async def limited() -> object:
            return await asyncio.wait_for(getattr(self._files, f"_{method}")(*arguments), ATTEMPT_S)

        return sync(self._files.loop, limited)

    def _patiently(self, action: Callable[[], None], patience_s: float = PATIENCE_S) -> None:
        """Do it, and if it fails, again for `patience_s`: a server may be restarted."""
        start = time.monotonic()
        for attempt in itertools.count():
            try:
                action()
            except PermissionError as error:
                raise UserError(f"shards: {self.address} refuses access ({first_line(error)})") from None
            except Exception as error:  # each kind of server has its own
                problem = f"shards: {self.address} fails ({type(error).__name__}: {first_line(error)})"
                if time.monotonic() - start > patience_s:
                    raise UserError(f"{problem}; the same command continues when it works again") from error
                if attempt == 0:
                    print(f"{problem}; trying again for {patience_s // 60} minutes", flush=True)
            else:
                return
            if process.stopping.wait(min(2**attempt, LONGEST_PAUSE_S)):
                raise UserError(problem)
