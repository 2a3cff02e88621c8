"""Decode the image files in a tar on several cores."""

import hashlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imageclf.contracts.raw import FACTS, Member, Pixels, chunk_length
from imageclf.core.errors import UserError
from imageclf.preprocess.images import (
    HEADER,
    Trait,
    UnreadableError,
    is_gray16,
    largest_gray16,
    to_rgb,
    without_warnings,
)

BATCH = 256
"""Maximum number of images in a task."""

POOL_FROM = 2000
"""Minimum number of files for a process pool, which takes half a second to start."""

FLAT_LEVELS = 255 / 10
"""Maximum difference between the levels of a FLAT image: a tenth of the range."""

Result = TypeVar("Result")


class Batch(NamedTuple):
    """Decoded images (n, 3, height, width), their `FACTS` (n,), and the reason for each file that could not be read."""

    pixels: Pixels
    facts: NDArray[np.void]
    unreadable: dict[str, str]


class _Task(NamedTuple):
    path: Path
    members: list[Member]
    width: int
    height: int
    example: str
    """Name of the first image, whose size all images must have."""
    image_size: int | None
    gray16_bits: int


@without_warnings()
def shape_of_first(
    path: Path, members: Sequence[Member], image_size: int | None
) -> tuple[str, tuple[int, int, int]] | None:
    """Return the name and shape (3, height, width) of the first member that is an image; None if there is none."""
    with path.open("rb") as file:
        for member in members:
            try:
                image = to_rgb(os.pread(file.fileno(), member.size, member.offset), image_size, gray16_bits=16).image
            except UnreadableError:
                continue
            return member.name, (3, image.height, image.width)
    return None


def measure_gray16(path: Path, members: Sequence[Member], workers: int) -> int | None:
    """Return the number of bits (8 to 16) of the largest value in 16-bit gray images; None without such images.

    Only the headers of other images are read.
    """
    with path.open("rb") as file:
        deep = [member for member in members if is_gray16(os.pread(file.fileno(), HEADER, member.offset))]
    if not deep:
        return None
    tasks = ((path, deep[start : start + BATCH]) for start in range(0, len(deep), BATCH))
    return max(8, max(_spread(_largest_value, tasks, len(deep), workers)).bit_length())


def decode_members(
    path: Path,
    members: Sequence[Member],
    example: tuple[str, tuple[int, int, int]],
    image_size: int | None,
    workers: int,
    *,
    gray16_bits: int = 16,
) -> Iterator[Batch]:
    """Yield all images among `members` of the file `path`, in order, decoded by `workers` processes.

    Raises `UserError` if an image differs in size from `example`, the result of `shape_of_first`.
    """
    name, (_, height, width) = example
    left = iter(members)
    most = min(BATCH, chunk_length(example[1]))
    tasks = (
        _Task(path, batch, width, height, name, image_size, gray16_bits)
        for batch in iter(lambda: list(islice(left, most)), [])
    )
    return _spread(_decode, tasks, len(members), workers)


def _spread(
    function: Callable[..., Result], tasks: Iterator[tuple[object, ...]], files: int, workers: int
) -> Iterator[Result]:
    """Yield the results of `function` for the tasks, in order; use `workers` processes if there are many files."""
    if workers == 1 or files < POOL_FROM:
        yield from map(function, tasks)
        return
    # Not forked, because a fork does not copy the threads of numpy and of the caller.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_in_worker) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for task in tasks:
                waiting.append(pool.submit(function, task))
                if len(waiting) > 2 * workers:  # bounds the memory
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _in_worker() -> None:
    """Ignore Ctrl-C, which the parent handles, and exit when the parent ends, even if it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


@without_warnings()
def _largest_value(task: tuple[Path, list[Member]]) -> int:
    path, members = task
    largest = 0
    with path.open("rb") as file:
        for member in members:
            try:
                largest = max(largest, largest_gray16(os.pread(file.fileno(), member.size, member.offset)))
            except UnreadableError:
                continue  # `_decode` reports it
    return largest


@without_warnings()
def _decode(task: _Task) -> Batch:
    # One tall canvas: converting each small image to an array would take 20% of the time.
    canvas = Image.new("RGB", (task.width, task.height * len(task.members)))
    unreadable: dict[str, str] = {}
    facts: list[tuple[int, int]] = []
    with task.path.open("rb") as file:
        for member in task.members:
            data = os.pread(file.fileno(), member.size, member.offset)
            try:
                image, traits = to_rgb(data, task.image_size, task.gray16_bits)
            except UnreadableError as error:
                unreadable[member.name] = str(error)
                continue
            if image.size != (task.width, task.height):
                raise UserError(
                    f"the images differ in size: {task.example!r} has {task.width}x{task.height} pixels, "
                    f"{member.name!r} has {image.width}x{image.height}; set image_size to resize them"
                )
            canvas.paste(image, (0, task.height * len(facts)))
            facts.append((int.from_bytes(hashlib.sha256(data).digest()[:8], "little"), traits))
    pixels = np.asarray(canvas)[: task.height * len(facts)].reshape(-1, task.height, task.width, 3)
    found = np.array(facts, FACTS)
    flat = pixels.reshape(len(pixels), -1)
    found["traits"][np.ptp(flat, axis=1) < FLAT_LEVELS] |= int(Trait.FLAT)
    return Batch(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)), found, unreadable)
