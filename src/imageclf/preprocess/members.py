"""Decode the image files in a tar on several cores."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

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
from imageclf.preprocess.pool import spread

BATCH = 256
"""Maximum number of images in a task."""

FLAT_LEVELS = 255 / 10
"""Maximum difference between the levels of a FLAT image: a tenth of the range."""


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
    return max(8, max(spread(_largest_value, tasks, len(deep), workers)).bit_length())


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
    return spread(_decode, tasks, len(members), workers)


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
