"""Read the image files that the user names, in chunks, on several cores. This module needs no torch."""

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from imageclf.contracts.preparation import Shape
from imageclf.contracts.raw import LeftOut, Pixels, chunk_length
from imageclf.download import directories
from imageclf.download.entries import Entry
from imageclf.download.layout import MAX_FILE
from imageclf.inference import reading
from imageclf.inference.reading import InputError
from imageclf.preprocess.pool import spread

CHUNK = 256
"""Maximum number of files in a chunk."""


class Chunk(NamedTuple):
    """Names and raw pixels (n, channels, height, width) of images, and the files that were refused."""

    names: list[str]
    pixels: Pixels
    refused: list[LeftOut]


class _Task(NamedTuple):
    entries: list[Entry]
    raw_shape: Shape
    gray16_bits: int


def entries(named: Iterable[Path]) -> Iterator[Entry]:
    """Yield the files that are named, and those in the folders that are named, without hidden ones."""
    for path in named:
        if not path.is_dir():
            yield directories.single(path)
            continue
        for entry in directories.walk(path, skip_unreadable=True):
            if not entry.is_folder:
                yield entry._replace(name=os.path.join(path, entry.name))  # noqa: PTH118 - a Path per file is slow


def read(files: Iterator[Entry], count: int, raw_shape: Shape, gray16_bits: int, workers: int) -> Iterator[Chunk]:
    """Yield all files in order, decoded to `raw_shape`; `count` is their number. The memory is that of a few chunks."""
    most = min(CHUNK, chunk_length(raw_shape))
    batches = iter(lambda: list(islice(files, most)), [])
    return spread(_decode, (_Task(batch, raw_shape, gray16_bits) for batch in batches), count, workers)


def _decode(task: _Task) -> Chunk:
    names: list[str] = []
    refused: list[LeftOut] = []
    pixels = np.empty((len(task.entries), *task.raw_shape), np.uint8)
    for entry in task.entries:
        try:
            pixels[len(names)] = reading.read(_content(entry), task.raw_shape, task.gray16_bits)
        except InputError as error:
            refused.append(LeftOut(entry.name, str(error)))
        else:
            names.append(entry.name)
    return Chunk(names, pixels[: len(names)], refused)


def _content(entry: Entry) -> bytes:
    """Return the bytes of a file. Raises `InputError` if it cannot be read."""
    if entry.problem is None and entry.size > MAX_FILE:
        raise InputError(f"more than {MAX_FILE // 2**20} MiB")
    if entry.problem is not None:
        raise InputError(entry.problem)
    try:
        return entry.read()
    except OSError as error:
        raise InputError(error.strerror or type(error).__name__) from None
