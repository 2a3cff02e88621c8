"""One image file to pixels, and many of them on all cores.

The content decides what a file is, never its name. Whatever the file holds becomes upright 8-bit RGB:

    palette, grey, 1-bit, CMYK    converted; colour profiles are not applied
    transparency                  laid over black
    16-bit grey                   its high byte, as Pillow does with 16-bit colour
    EXIF orientation              applied
    animations                    the first frame
"""

import io
import multiprocessing
import os
import signal
import threading
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from imageclf.errors import UserError
from imageclf.raw import Pixels, chunk_length

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP")
"""What Pillow may try: its other decoders are rarely needed and have had most of its security holes."""

MAX_PIXELS = 50_000_000
"""A larger image is refused by its header alone: this many pixels decode to 200 MB."""

BATCH = 256
"""Images decoded by one task of the pool, at most."""

POOL_FROM = 2000
"""Files from which a pool is worth the half second that it takes to start."""


class UnreadableError(Exception):
    """A file that gives no image; the message is the reason."""


@contextmanager
def _without_warnings() -> Iterator[None]:
    """What Pillow only warns of, it can decode; entered once for many images, since that takes a while."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@_without_warnings()
def decode(data: bytes, image_size: int | None = None) -> Pixels:
    """A file's image, upright, (3, height, width); `image_size` makes it a square of that side (antialiased bilinear).

    Raises `UnreadableError`.
    """
    return np.ascontiguousarray(np.asarray(_open(data, image_size)).transpose(2, 0, 1))


def _open(data: bytes, image_size: int | None) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise Image.DecompressionBombError  # noqa: TRY301 - as Pillow does for larger ones still
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        rgb = _to_rgb(image)
    except MemoryError:
        raise  # no fault of the file
    except Image.DecompressionBombError:
        raise UnreadableError(f"more than {MAX_PIXELS // 10**6} million pixels") from None
    except UnidentifiedImageError:
        raise UnreadableError(f"not a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} image") from None
    except Exception as error:  # noqa: BLE001 - a broken file makes Pillow's parsers raise whatever they meet
        raise UnreadableError(f"damaged: {str(error) or type(error).__name__}") from None
    if image_size is not None and rgb.size != (image_size, image_size):
        rgb = rgb.resize((image_size, image_size), Image.Resampling.BILINEAR)
    return rgb


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode.startswith("I"):  # `convert` would clip everything above 255 to white
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        black = Image.new("RGB", image.size)
        black.paste(image, mask=image.getchannel("A"))
        return black
    return image.convert("RGB")


class Member(NamedTuple):
    """A file inside of a larger one: where its bytes stand."""

    name: str
    offset: int
    size: int


class Batch(NamedTuple):
    """The images of some members, (n, 3, height, width), and the reason for each that gave none."""

    pixels: Pixels
    unreadable: dict[str, str]


class _Task(NamedTuple):
    path: Path
    members: list[Member]
    width: int
    height: int
    example: str
    """The image whose size all must have."""
    image_size: int | None


@_without_warnings()
def shape_of_first(
    path: Path, members: Sequence[Member], image_size: int | None
) -> tuple[str, tuple[int, int, int]] | None:
    """The name of the first member of the file `path` that is an image, and its (3, height, width); None without."""
    with path.open("rb") as file:
        for member in members:
            try:
                image = _open(os.pread(file.fileno(), member.size, member.offset), image_size)
            except UnreadableError:
                continue
            return member.name, (3, image.height, image.width)
    return None


def decode_members(
    path: Path,
    members: Sequence[Member],
    example: tuple[str, tuple[int, int, int]],
    image_size: int | None,
    workers: int,
) -> Iterator[Batch]:
    """All images among `members` of the file `path`, in their order, decoded by `workers` processes.

    Raises `UserError` where a size differs from that of the `example` that `shape_of_first` gave.
    """
    name, shape = example
    left = iter(members)
    most = min(BATCH, chunk_length(shape))
    tasks = (
        _Task(path, batch, shape[2], shape[1], name, image_size) for batch in iter(lambda: list(islice(left, most)), [])
    )
    if workers == 1 or len(members) < POOL_FROM:
        yield from map(_decode_task, tasks)
        return
    # Not forked: numpy's threads do not survive that, and a caller may have more.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_in_worker) as pool:
        waiting: deque[Future[Batch]] = deque()
        try:
            for task in tasks:
                waiting.append(pool.submit(_decode_task, task))
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


@_without_warnings()
def _decode_task(task: _Task) -> Batch:
    # One tall canvas, since making an array of each small image would take a fifth of the time.
    canvas = Image.new("RGB", (task.width, task.height * len(task.members)))
    unreadable: dict[str, str] = {}
    row = 0
    with task.path.open("rb") as file:
        for member in task.members:
            try:
                image = _open(os.pread(file.fileno(), member.size, member.offset), task.image_size)
            except UnreadableError as error:
                unreadable[member.name] = str(error)
                continue
            if image.size != (task.width, task.height):
                raise UserError(
                    f"the images differ in size: {task.example!r} has {task.width}x{task.height} pixels, "
                    f"{member.name!r} has {image.width}x{image.height}; image_size resizes them all to one"
                )
            canvas.paste(image, (0, row))
            row += task.height
    pixels = np.asarray(canvas)[:row].reshape(-1, task.height, task.width, 3)
    return Batch(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)), unreadable)
