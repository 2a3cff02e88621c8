"""Decode one image file to upright 8-bit RGB. The format is recognized by the content, not by the name.

    palette, gray, 1-bit, CMYK    converted without color profiles
    transparency                  on a black background
    16-bit gray                   the lowest `gray16_bits` bits are scaled to 8 bits; larger values become white
    16-bit color                  the high byte, as Pillow reads it
    EXIF orientation              applied
    animations                    the first frame

The conversions that may matter to the user are recorded as `Trait`s.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntFlag, auto
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from imageclf.contracts.raw import Pixels

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP")
"""Formats that Pillow may decode: its other decoders are rarely needed, and had most of its security problems."""

MAX_PIXELS = 50_000_000
"""Maximum number of pixels of an image (200 MB decoded); the header of a larger one is enough to refuse it."""

HEADER = 26
"""Number of bytes of a PNG file up to its color type, which `is_gray16` reads."""

ORIENTATION = int(ExifTags.Base.Orientation)

SQUEEZED = 2
"""Minimum aspect ratio of an image for `Trait.SQUEEZED`."""


class UnreadableError(Exception):
    """A file that cannot be decoded; the message is the reason."""


class Trait(IntFlag):
    """Properties of an image file that differ from upright 8-bit color. A set of them fits into 16 bits."""

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
    HIDDEN = TRANSPARENT | FLAT
    """A dark drawing on transparent pixels, which is lost on the black background; it has no bit of its own."""


class Decoded(NamedTuple):
    """An upright RGB image, and the `Trait`s of its file."""

    image: Image.Image
    traits: int


@contextmanager
def without_warnings() -> Iterator[None]:
    """Ignore warnings of Pillow about images that it can decode. Entering is slow: do it once for many images."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@without_warnings()
def decode_to_size(data: bytes, height: int, width: int, gray16_bits: int) -> Pixels:
    """Return a file's image, upright, as (3, height, width), resized (antialiased bilinear) if its size differs.

    Raises `UnreadableError`.
    """
    image = to_rgb(data, None, gray16_bits).image
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def to_rgb(data: bytes, image_size: int | None, gray16_bits: int) -> Decoded:
    """Return a file's image and its traits, except FLAT, which callers can find faster for many images at once.

    The image is resized (antialiased bilinear) to a square if `image_size` is not None. Raises `UnreadableError`.
    """
    try:
        image = _load(data)
        traits = Trait.ANIMATED if _is_animated(image, data) else 0
        if image.getexif().get(ORIENTATION) in range(2, 9):
            traits |= Trait.TURNED
            ImageOps.exif_transpose(image, in_place=True)
        rgb, converted = _convert(image, gray16_bits)
        if is_deep(data) and not converted & Trait.GRAY16:
            traits |= Trait.COLOR16
    except Exception as error:  # noqa: BLE001 - Pillow's parsers raise errors of many types for damaged files
        raise _reason(error) from None
    if image_size is not None and rgb.size != (image_size, image_size):
        if max(rgb.size) > SQUEEZED * min(rgb.size):
            traits |= Trait.SQUEEZED
        rgb = rgb.resize((image_size, image_size), Image.Resampling.BILINEAR)
    return Decoded(rgb, traits | converted if traits else converted)


def is_deep(data: bytes) -> bool:
    """Return True for the beginning of a PNG file with 16 bits per channel."""
    return data[24:25] == b"\x10" and data.startswith(b"\x89PNG")


def is_gray16(header: bytes) -> bool:
    """Return True for the first `HEADER` bytes of a PNG file in 16-bit gray."""
    return is_deep(header) and header[25:26] == b"\0"


def largest_gray16(data: bytes) -> int:
    """Return the largest value of the opaque pixels of a 16-bit gray image. Raises `UnreadableError`."""
    try:
        image = _load(data)
        values = np.asarray(image)
    except Exception as error:  # noqa: BLE001 - as in `to_rgb`
        raise _reason(error) from None
    return int(values[values != image.info.get("transparency", -1)].max(initial=0))


def _reason(error: Exception) -> UnreadableError:
    """Return the error for a file that cannot be decoded. Raises a `MemoryError` again."""
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
    try:  # The frames of a GIF must be read to count them. Damage after the first frame does not matter.
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
    """Convert 16-bit gray to RGB. `Image.convert` would make all values above 255 white."""
    values = np.asarray(image)
    transparent = values == image.info.get("transparency", -1)
    scaled = np.where(transparent, 0, (values >> (bits - 8)).clip(0, 255)).astype(np.uint8)
    traits = Trait.GRAY | Trait.GRAY16
    if transparent.any():
        traits |= Trait.TRANSPARENT
    if (values[~transparent] >> bits).any():
        traits |= Trait.CLIPPED
    return Decoded(Image.fromarray(scaled).convert("RGB"), traits)
