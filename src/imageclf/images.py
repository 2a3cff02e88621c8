"""One image file to pixels.

The content decides what a file is, never its name. Whatever the file holds becomes upright 8-bit RGB:

    palette, gray, 1-bit, CMYK    converted; color profiles are not applied
    transparency                  laid over black
    16-bit gray                   the lowest `gray16_bits` bits are scaled to 8, what is larger becomes white
    16-bit color                  its high byte, as Pillow reads it
    EXIF orientation              applied
    animations                    the first frame

What was done, and could matter to a person, is noted in the image's `Trait`s.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntFlag, auto
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from imageclf.raw import Pixels

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP")
"""What Pillow may try: its other decoders are rarely needed and have had most of its security holes."""

MAX_PIXELS = 50_000_000
"""A larger image is refused by its header alone: this many pixels decode to 200 MB."""

HEADER = 26
"""Bytes of a PNG file up to its color type: what `is_gray16` needs."""

ORIENTATION = int(ExifTags.Base.Orientation)

SQUEEZED = 2
"""Times that the long side of an image must be the short one for `Trait.SQUEEZED`."""


class UnreadableError(Exception):
    """A file that gives no image; the message is the reason."""


class Trait(IntFlag):
    """What an image file holds beyond upright 8-bit color; a set of these fits into 16 bits."""

    GRAY = auto()
    GRAY16 = auto()
    COLOR16 = auto()
    CLIPPED = auto()
    """16-bit gray with values above the range."""
    TRANSPARENT = auto()
    CMYK = auto()
    TURNED = auto()
    ANIMATED = auto()
    SQUEEZED = auto()
    FLAT = auto()
    """All pixels within a tenth of the 256 levels."""


class Decoded(NamedTuple):
    """An upright RGB image, and the `Trait`s of its file."""

    image: Image.Image
    traits: int


@contextmanager
def without_warnings() -> Iterator[None]:
    """Silence what Pillow only warns of: it can decode it. Enter once for many images, since that takes a while."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@without_warnings()
def decode(data: bytes, image_size: int | None = None, gray16_bits: int = 16) -> Pixels:
    """A file's image, upright, (3, height, width); `image_size` makes it a square of that side (antialiased bilinear).

    Raises `UnreadableError`.
    """
    return np.ascontiguousarray(np.asarray(to_rgb(data, image_size, gray16_bits).image).transpose(2, 0, 1))


def to_rgb(data: bytes, image_size: int | None, gray16_bits: int) -> Decoded:
    """As `decode`, but to a Pillow image; the trait FLAT is left to those who have many pixels at hand."""
    try:
        image = _load(data)
        traits = Trait.ANIMATED if _is_animated(image, data) else 0
        if image.getexif().get(ORIENTATION) in range(2, 9):
            traits |= Trait.TURNED
            ImageOps.exif_transpose(image, in_place=True)
        rgb, converted = _convert(image, gray16_bits)
        if is_deep(data) and not converted & Trait.GRAY16:
            traits |= Trait.COLOR16
    except Exception as error:  # noqa: BLE001 - a broken file makes Pillow's parsers raise whatever they meet
        raise _reason(error) from None
    if image_size is not None and rgb.size != (image_size, image_size):
        if max(rgb.size) > SQUEEZED * min(rgb.size):
            traits |= Trait.SQUEEZED
        rgb = rgb.resize((image_size, image_size), Image.Resampling.BILINEAR)
    return Decoded(rgb, traits | converted if traits else converted)


def is_deep(data: bytes) -> bool:
    """Tell whether this is the beginning of a PNG file with 16 bits per value."""
    return data[24:25] == b"\x10" and data.startswith(b"\x89PNG")


def is_gray16(header: bytes) -> bool:
    """Tell by the first `HEADER` bytes of a file whether it is a PNG in 16-bit gray."""
    return is_deep(header) and header[25:26] == b"\0"


def largest_gray16(data: bytes) -> int:
    """The largest value of a 16-bit gray image, transparent pixels aside; raises `UnreadableError`."""
    try:
        image = _load(data)
        values = np.asarray(image)
    except Exception as error:  # noqa: BLE001 - as in `to_rgb`
        raise _reason(error) from None
    return int(values[values != image.info.get("transparency", -1)].max(initial=0))


def _reason(error: Exception) -> UnreadableError:
    """Why a file gives no image; raises what is no fault of the file."""
    match error:
        case MemoryError():
            raise error
        case Image.DecompressionBombError():
            return UnreadableError(f"more than {MAX_PIXELS // 10**6} million pixels")
        case UnidentifiedImageError():
            return UnreadableError(f"not a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} image")
        case _:
            return UnreadableError(f"damaged: {str(error) or type(error).__name__}")


def _load(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    if image.width * image.height > MAX_PIXELS:
        raise Image.DecompressionBombError
    image.load()
    return image


def _is_animated(image: Image.Image, data: bytes) -> bool:
    if image.format != "GIF":
        return getattr(image, "is_animated", False)
    try:  # A GIF must be read on to know; what is damaged behind the first frame does not spoil that.
        return Image.open(io.BytesIO(data), formats=["GIF"]).is_animated  # type: ignore[attr-defined]
    except Exception:  # noqa: BLE001
        return False


def _convert(image: Image.Image, gray16_bits: int) -> Decoded:
    if image.mode == "RGB" and not image.has_transparency_data:
        return Decoded(image, 0)
    if image.mode.startswith("I"):
        return _scale(image, gray16_bits)
    traits = Trait.GRAY if image.mode in {"1", "L", "LA"} else Trait.CMYK if image.mode == "CMYK" else 0
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
        if alpha.getextrema()[0] < 255:  # type: ignore[operator] - one channel has one pair
            traits |= Trait.TRANSPARENT
        black = Image.new("RGB", image.size)
        black.paste(image, mask=alpha)
        return Decoded(black, traits)
    return Decoded(image.convert("RGB"), traits)


def _scale(image: Image.Image, bits: int) -> Decoded:
    """16-bit gray to RGB: `convert` would clip everything above 255 to white."""
    values = np.asarray(image)
    transparent = values == image.info.get("transparency", -1)
    scaled = np.where(transparent, 0, (values >> (bits - 8)).clip(0, 255)).astype(np.uint8)
    traits = Trait.GRAY | Trait.GRAY16
    if transparent.any():
        traits |= Trait.TRANSPARENT
    if (values[~transparent] >> bits).any():
        traits |= Trait.CLIPPED
    return Decoded(Image.fromarray(scaled).convert("RGB"), traits)
