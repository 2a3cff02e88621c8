"""Many image files that stand in one larger file, to pixels, on all cores."""

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

from imageclf.errors import UserError
from imageclf.images import HEADER, Trait, UnreadableError, is_gray16, largest_gray16, to_rgb, without_warnings
from imageclf.raw import FACTS, Pixels, chunk_length

BATCH = 256
"""Images decoded by one task of the pool, at most."""

POOL_FROM = 2000
"""Files from which a pool is worth the half second that it takes to start."""

FLAT_LEVELS = 255 / 10
"""An image whose levels all lie closer together is FLAT: it uses less than a tenth of the range."""

Result = TypeVar("Result")


class Member(NamedTuple):
    """A file inside of a larger one: where its bytes stand."""

    name: str
    offset: int
    size: int


class Batch(NamedTuple):
    """The images of some members, (n, 3, height, width), their `FACTS`, (n,), and why each of the others gave none."""

    pixels: Pixels
    facts: NDArray[np.void]
    unreadable: dict[str, str]


class _Task(NamedTuple):
    path: Path
    members: list[Member]
    width: int
    height: int
    example: str
    """The image whose size all must have."""
    image_size: int | None
    gray16_bits: int


@without_warnings()
def shape_of_first(
    path: Path, members: Sequence[Member], image_size: int | None
) -> tuple[str, tuple[int, int, int]] | None:
    """The name of the first member of the file `path` that is an image, and its (3, height, width); None without."""
    with path.open("rb") as file:
        for member in members:
            try:
                image = to_rgb(os.pread(file.fileno(), member.size, member.offset), image_size, gray16_bits=16).image
            except UnreadableError:
                continue
            return member.name, (3, image.height, image.width)
    return None


def measure_gray16(path: Path, members: Sequence[Member], workers: int) -> int | None:
    """The bits, 8 to 16, that the largest value of the 16-bit gray images among `members` needs; None without any.

    Of every other image no more than the header is read.
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
    """All images among `members` of the file `path`, in their order, decoded by `workers` processes.

    Raises `UserError` if a size differs from that of the `example` that `shape_of_first` gave.
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
    """The results of `function` for the tasks, in their order, from `workers` processes if there are many files."""
    if workers == 1 or files < POOL_FROM:
        yield from map(function, tasks)
        return
    # Not forked: numpy's threads do not survive that, and a caller may have more.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_in_worker) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for task in tasks:
                waiting.append(pool.submit(function, task))
                if len(waiting) > 2 * workers:  # what bounds the memory
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _in_worker() -> None:
    """Leave Ctrl-C to the parent, and end when it does: a killed parent ends nobody."""
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
    # One tall canvas, since making an array of each small image would take a fifth of the time.
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
                    f"{member.name!r} has {image.width}x{image.height}; image_size resizes them all to one"
                )
            canvas.paste(image, (0, task.height * len(facts)))
            facts.append((int.from_bytes(hashlib.sha256(data).digest()[:8], "little"), traits))
    pixels = np.asarray(canvas)[: task.height * len(facts)].reshape(-1, task.height, task.width, 3)
    found = np.array(facts, FACTS)
    flat = pixels.reshape(len(pixels), -1)
    found["traits"][np.ptp(flat, axis=1) < FLAT_LEVELS] |= int(Trait.FLAT)
    return Batch(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)), found, unreadable)
