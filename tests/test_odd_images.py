"""Forty-odd files in one folder, read as the pipeline reads them: each gives its documented pixels or its reason.

Nothing is silent: every file is an image, or is listed with a reason; only hidden ones are passed over.
What `images.decode` makes of each kind in detail is in test_images.py.
"""

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import peak_below
from numpy.typing import NDArray
from PIL import Image

from imageclf import folder, pack
from imageclf.raw import RawData

SIDE = 8
SCENE = np.full((SIDE, SIDE, 3), (200, 40, 90), np.uint8)
SCENE[0, 0], SCENE[0, 1:], SCENE[1:, 0] = (255, 255, 255), (0, 0, 0), (10, 220, 130)
GREY = np.linspace(0, 255, SIDE * SIDE).round().astype(np.uint8).reshape(SIDE, SIDE)

NO_IMAGE = "not a PNG, JPEG, BMP, GIF or WEBP image"
TURNS: list[Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = [
    lambda upright: upright,
    np.fliplr,
    lambda upright: np.rot90(upright, 2),
    np.flipud,
    lambda upright: upright.swapaxes(0, 1),
    lambda upright: np.rot90(upright, 1),
    lambda upright: np.rot90(upright, 2).swapaxes(0, 1),
    lambda upright: np.rot90(upright, -1),
]
"""How the pixels are stored for EXIF's orientations 1 to 8."""


def encoded(image: Image.Image | NDArray[Any], kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(stream, kind, **options)
    return stream.getvalue()


def turned(orientation: int) -> bytes:
    """The scene as a camera stores it, with the way to turn it back."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(np.ascontiguousarray(TURNS[orientation - 1](SCENE)), exif=exif)


def transparent(mode: str) -> Image.Image:
    """The scene, or its grey, with its left half fully transparent."""
    alpha = np.full((SIDE, SIDE), 255, np.uint8)
    alpha[:, : SIDE // 2] = 0
    image = Image.fromarray(GREY if mode == "LA" else SCENE)
    image.putalpha(Image.fromarray(alpha))
    return image


def right_half(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """With black in the place of the left half."""
    half = pixels.copy()
    half[:, : SIDE // 2] = 0
    return half


def palette() -> Image.Image:
    return Image.fromarray(SCENE).quantize(4, dither=Image.Dither.NONE)


def animated(kind: str) -> bytes:
    frames = [Image.fromarray(np.full_like(SCENE, level)) for level in (9, 99, 199)]
    return encoded(
        frames[0], kind, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "WEBP" else {})
    )


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header promises that many pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def fits() -> bytes:
    """An image of astronomers, which Pillow could read."""
    cards = ["SIMPLE  =                    T", "BITPIX  =                    8", "NAXIS   =                    2"]
    cards += ["NAXIS1  =                    8", "NAXIS2  =                    8", "END"]
    return "".join(card.ljust(80) for card in cards).ljust(2880).encode() + bytes(2880)


PSD = b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, SIDE, SIDE, 8, 3) + bytes(12) + bytes(2 + 3 * SIDE * SIDE)
RGB_GREY = np.repeat(GREY[:, :, None], 3, axis=2)
CMYK = Image.fromarray(SCENE).convert("CMYK")
WIDE = GREY.astype("<u2") * 257
"""16-bit gray that uses the whole range."""
ONE_BIT = np.where(GREY[:, :, None] > 127, 255, 0).astype(np.uint8).repeat(3, axis=2)

ODD: dict[str, tuple[bytes, NDArray[np.uint8] | str]] = {
    # name: (content, its pixels (height, width, 3), or the reason why it gives none)
    **{f"exif-{number}.png": (turned(number), SCENE) for number in range(1, 9)},
    "grey.png": (encoded(GREY), RGB_GREY),
    "16-bit-grey.png": (encoded(WIDE), RGB_GREY),
    "palette.png": (encoded(palette()), SCENE),
    "palette.gif": (encoded(palette(), "GIF"), SCENE),
    "palette-transparent.png": (encoded(palette(), transparency=bytes(4)), np.zeros_like(SCENE)),
    "la.png": (encoded(transparent("LA")), right_half(RGB_GREY)),
    "rgba.png": (encoded(transparent("RGBA")), right_half(SCENE)),
    "rgba.webp": (encoded(transparent("RGBA"), "WEBP", lossless=True), right_half(SCENE)),
    "cmyk.jpg": (encoded(CMYK, "JPEG", quality=100), np.asarray(CMYK.convert("RGB"))),
    "1-bit.png": (encoded(Image.fromarray(ONE_BIT[:, :, 0]).convert("1", dither=Image.Dither.NONE)), ONE_BIT),
    "1-bit.bmp": (encoded(Image.fromarray(ONE_BIT[:, :, 0]).convert("1", dither=Image.Dither.NONE), "BMP"), ONE_BIT),
    "animated.gif": (animated("GIF"), np.full_like(SCENE, 9)),
    "animated.png": (animated("PNG"), np.full_like(SCENE, 9)),
    "animated.webp": (animated("WEBP"), np.full_like(SCENE, 9)),
    "wrong-extension.jpg": (encoded(SCENE), SCENE),
    "no-extension": (encoded(SCENE), SCENE),
    "text-extension.txt": (encoded(SCENE), SCENE),
    "appended.png": (encoded(SCENE) + b"<?php", SCENE),
    "bomb.png": (bomb(65_000, 65_000), "more than 50 million pixels"),
    "bomb-of-one-row.png": (bomb(2**31 - 1, 1), "more than 50 million pixels"),
    "truncated.jpg": (encoded(SCENE, "JPEG")[:-40], "damaged: "),
    "truncated.png": (encoded(SCENE)[:-30], "damaged: "),
    "truncated.gif": (encoded(palette(), "GIF")[:-12], "damaged: "),
    "header-only.png": (encoded(SCENE)[:8], NO_IMAGE),
    "empty.png": (b"", NO_IMAGE),
    "zeros.png": (bytes(1000), NO_IMAGE),
    "text.png": (b"no image", NO_IMAGE),
    "svg.png": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", NO_IMAGE),
    "eps.jpg": (encoded(SCENE, "EPS"), NO_IMAGE),
    "psd.jpg": (PSD, NO_IMAGE),
    "fits.jpg": (fits(), NO_IMAGE),
    "tiff.png": (encoded(SCENE, "TIFF"), NO_IMAGE),
    "ico.png": (encoded(SCENE, "ICO"), NO_IMAGE),
    "pdf.png": (encoded(SCENE, "PDF"), NO_IMAGE),
    "ppm.png": (encoded(SCENE, "PPM"), NO_IMAGE),
    "\udcff.png": (encoded(SCENE), SCENE),  # a name that is not UTF-8: packed as Windows-1252 reads it
    "-rf": (encoded(SCENE), SCENE),
    "a\nb; $(touch X).png": (encoded(SCENE), SCENE),
}

LINKS = {
    "loop": (".", "a link to a folder that is counted already, or that holds this one"),
    "outside": ("/etc/hostname", "a link into /proc, /sys, /dev or /etc"),
    "nowhere.png": ("/nowhere", "a link to a file that does not exist"),
    "self.png": ("self.png", "a link to itself"),
    "text.link.png": (__file__, "a link to a file that is not an image"),
}
HIDDEN = {".hidden.png", "Thumbs.db"}


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], RawData]:
    """The names of the packed files and what is read of them."""
    root = tmp_path_factory.mktemp("odd")
    odd, plain = root / "origin/train/odd", root / "origin/train/plain"
    for place in (odd, plain, odd.parent / ".ipynb_checkpoints"):
        place.mkdir(parents=True)
        (place / "0.png").write_bytes(encoded(SCENE))
    for name, (content, _) in ODD.items():
        (odd / name).write_bytes(content)
    for name, (target, _) in LINKS.items():
        (odd / name).symlink_to(target)
    for name in HIDDEN:
        (odd / name).write_bytes(encoded(SCENE))
    manifest = pack.pack(root / "origin", root / "data/raw", progress=False)
    with peak_below(2**26):
        data = folder.read(root / "data/raw", None, workers=1, progress=False)
    return [name for name, *_ in manifest["members"]], data


def test_there_are_forty() -> None:
    assert len(ODD) >= 40


@pytest.mark.parametrize("name", ODD, ids=ascii)
def test_an_odd_file_gives_its_documented_result(name: str, read: tuple[list[str], RawData]) -> None:
    members, data = read
    path, (_, result) = f"train/odd/{name.replace(chr(0xDCFF), 'ÿ')}", ODD[name]
    listed = [reason for name, reason in data.skipped if name == path]
    if isinstance(result, str):
        assert len(listed) == 1
        assert listed[0].startswith(result)
        return
    assert listed == []
    skipped = {name for name, _ in data.skipped}
    left = [member for member in members if member not in skipped]
    pixels = np.concatenate(list(data.splits["train"].chunks()))
    found = pixels[left.index(path)].transpose(1, 2, 0).astype(int)
    assert np.abs(found - result).max() <= (3 if name.endswith(".jpg") else 0)


def test_every_file_is_an_image_or_is_listed(read: tuple[list[str], RawData]) -> None:
    members, data = read
    images, refused = len(data.splits["train"].labels), sum(isinstance(result, str) for _, result in ODD.values())
    assert len(members) == len(ODD) + 2
    assert images == len(members) - refused
    assert len(data.skipped) == refused + len(LINKS)
    assert data.classes == ("odd", "plain")


@pytest.mark.parametrize("name", LINKS)
def test_a_link_to_no_image_is_listed_and_not_followed(name: str, read: tuple[list[str], RawData]) -> None:
    members, data = read
    assert (f"train/odd/{name}", LINKS[name][1]) in data.skipped
    assert not [member for member in members if member.startswith(f"train/odd/{name}")]


@pytest.mark.parametrize("name", sorted(HIDDEN))
def test_what_is_hidden_is_passed_over(name: str, read: tuple[list[str], RawData]) -> None:
    members, data = read
    assert f"train/odd/{name}" not in members
    assert not [listed for listed, _ in data.skipped if name in listed]
    assert not [member for member in members if "checkpoints" in os.fspath(Path(member))]
