"""Write data/listing.json: a digest of your own folder, from which DVC knows when to pack it again.

DVC itself never reads the folder: it would fail on a broken link and on a name that is not UTF-8, and would wait
forever on a named pipe. For a published data set, the listing says that there is no folder.
"""

import hashlib
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from imageclf.core import files, paths
from imageclf.core.errors import UserError
from imageclf.download import directories, origins
from imageclf.download.entries import Entry
from imageclf.download.layout import arrange

NO_FOLDER = {"folder": None}
CACHE = Path(".dvc/tmp/imageclf")
"""Folder in the repository for the digests of files; it may be deleted at any time."""

RECENT_NS = 2 * 10**9
"""Minimum age in nanoseconds of a file whose digest is kept: a later change within one clock tick would be missed."""


def write(path: Path, folder: str | None, progress: bool) -> None:
    """Write the listing of `folder`, or of a published data set if it is None."""
    files.write_json(path, NO_FOLDER if folder is None else of_folder(folder, progress))


def of_folder(folder: str, progress: bool) -> dict[str, Any]:
    """Return the listing of `folder`: the SHA-256 of an archive, or of everything that is packed from a directory."""
    origin = origins.locate(folder)
    if origin.is_file():
        return {"folder": {"sha256": files.sha256(origin)}}
    _, chosen, skipped = arrange(origin, directories.walk(origin))
    cache = paths.repository() / CACHE / f"{hashlib.sha256(folder.encode()).hexdigest()[:16]}.json"
    with tqdm(sorted(chosen), desc=f"listing {origin}", unit=" files", disable=None if progress else True) as names:
        digests = _digests((chosen[name] for name in names), cache)
    content = json.dumps([list(zip(sorted(chosen), digests, strict=True)), skipped])
    return {
        "folder": {
            "images": len(chosen),
            "left_out": len(skipped),
            "sha256": hashlib.sha256(content.encode()).hexdigest(),
        }
    }


def check(path: Path, folder: str, progress: bool) -> None:
    """Raise `UserError` unless the listing at `path` is that of `folder` as it is now."""
    try:
        listed = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        listed = None
    if listed != of_folder(folder, progress):
        raise UserError(f"folder: {folder} has changed since it was listed in {path}; run `uv run dvc repro` again")


def _digests(entries: Iterable[Entry], cache: Path) -> list[str]:
    """Return the SHA-256 of each entry; those of unchanged files come from `cache`."""
    try:
        known = files.read_manifest(cache, made_by="list", parse=dict)["digests"]
    except UserError:  # missing or damaged
        known = {}
    digests, kept = list[str](), dict[str, str]()
    for entry in entries:
        digest = known.get(entry.identity) or hashlib.sha256(entry.read()).hexdigest()
        digests.append(digest)
        changed_ns = int(entry.identity.rpartition(" ")[2])
        if time.time_ns() - changed_ns > RECENT_NS:
            kept[entry.identity] = digest
    if kept != known:
        files.write_manifest(cache, {"digests": kept})
    return digests
