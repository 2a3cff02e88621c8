"""Tests of more than forty unusual files in one folder: each gives the documented pixels, or is listed with a reason.

Only hidden files are not listed. Details of each kind are in test_images.py.
"""

import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import peak_below
from helpers import decoded, encode, png
from numpy.typing import NDArray
from PIL import Image

from imageclf.contracts.raw import RawData
from imageclf.download import pack
from imageclf.preprocess import folder

SIDE = 8
SCENE = np.full((SIDE, SIDE, 3), (200, 40, 90), np.uint8)
SCENE[0, 0], SCENE[0, 1:], SCENE[1:, 0] = (255, 255, 255), (0, 0, 0), (10, 220, 130)
GRAY = np.linspace(0, 255, SIDE * SIDE).round().astype(np.uint8).reshape(SIDE, SIDE)

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
"""Functions that turn an upright image to its stored form, for EXIF orientations 1 to 8."""


def turned(orientation: int) -> bytes:
    """Return the scene as a camera stores it, with its EXIF orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(np.ascontiguousarray(TURNS[orientation - 1](SCENE)), exif=exif)


def transparent(mode: str) -> Image.Image:
    """Return the scene, or the gray image for "LA", with a transparent left half."""
    alpha = np.full((SIDE, SIDE), 255, np.uint8)
    alpha[:, : SIDE // 2] = 0
    image = Image.fromarray(GRAY if mode == "LA" else SCENE)
    image.putalpha(Image.fromarray(alpha))
    return image


def right_half(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the pixels with a black left half."""
    half = pixels.copy()
    half[:, : SIDE // 2] = 0
    return half


def palette() -> Image.Image:
    return Image.fromarray(SCENE).quantize(4, dither=Image.Dither.NONE)


def animated(kind: str) -> bytes:
    frames = [Image.fromarray(np.full_like(SCENE, level)) for level in (9, 99, 199)]
    return encode(
        frames[0], kind, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "WEBP" else {})
    )


def fits() -> bytes:
    """Return a FITS image, a format of astronomy that Pillow could read."""
    cards = ["SIMPLE  =                    T", "BITPIX  =                    8", "NAXIS   =                    2"]
    cards += ["NAXIS1  =                    8", "NAXIS2  =                    8", "END"]
    return "".join(card.ljust(80) for card in cards).ljust(2880).encode() + bytes(2880)


PSD = b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, SIDE, SIDE, 8, 3) + bytes(12) + bytes(2 + 3 * SIDE * SIDE)
RGB_GRAY = np.repeat(GRAY[:, :, None], 3, axis=2)
CMYK = Image.fromarray(SCENE).convert("CMYK")
WIDE = GRAY.astype("<u2") * 257
"""16-bit gray that uses the whole range."""
ONE_BIT = np.where(GRAY[:, :, None] > 127, 255, 0).astype(np.uint8).repeat(3, axis=2)

ODD: dict[str, tuple[bytes, NDArray[np.uint8] | str]] = {
    # name: (content, its pixels (height, width, 3), or the reason why it gives none)
    **{f"exif-{number}.png": (turned(number), SCENE) for number in range(1, 9)},
    "gray.png": (encode(GRAY), RGB_GRAY),
    "16-bit-gray.png": (encode(WIDE), RGB_GRAY),
    "palette.png": (encode(palette()), SCENE),
    "palette.gif": (encode(palette(), "GIF"), SCENE),
    "palette-transparent.png": (encode(palette(), transparency=bytes(4)), np.zeros_like(SCENE)),
    "la.png": (encode(transparent("LA")), right_half(RGB_GRAY)),
    "rgba.png": (encode(transparent("RGBA")), right_half(SCENE)),
    "rgba.webp": (encode(transparent("RGBA"), "WEBP", lossless=True), right_half(SCENE)),
    "cmyk.jpg": (encode(CMYK, "JPEG", quality=100), np.asarray(CMYK.convert("RGB"))),
    "1-bit.png": (encode(Image.fromarray(ONE_BIT[:, :, 0]).convert("1", dither=Image.Dither.NONE)), ONE_BIT),
    "1-bit.bmp": (encode(Image.fromarray(ONE_BIT[:, :, 0]).convert("1", dither=Image.Dither.NONE), "BMP"), ONE_BIT),
    "animated.gif": (animated("GIF"), np.full_like(SCENE, 9)),
    "animated.png": (animated("PNG"), np.full_like(SCENE, 9)),
    "animated.webp": (animated("WEBP"), np.full_like(SCENE, 9)),
    "wrong-extension.jpg": (encode(SCENE), SCENE),
    "no-extension": (encode(SCENE), SCENE),
    "text-extension.txt": (encode(SCENE), SCENE),
    "appended.png": (encode(SCENE) + b"<?php", SCENE),
    "bomb.png": (png(65_000, 65_000), "more than 50 million pixels"),
    "bomb-of-one-row.png": (png(2**31 - 1, 1), "more than 50 million pixels"),
    "truncated.jpg": (encode(SCENE, "JPEG")[:-40], "damaged: "),
    "truncated.png": (encode(SCENE)[:-30], "damaged: "),
    "truncated.gif": (encode(palette(), "GIF")[:-12], "damaged: "),
    "header-only.png": (encode(SCENE)[:8], NO_IMAGE),
    "empty.png": (b"", NO_IMAGE),
    "zeros.png": (bytes(1000), NO_IMAGE),
    "text.png": (b"no image", NO_IMAGE),
    "svg.png": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", NO_IMAGE),
    "eps.jpg": (encode(SCENE, "EPS"), NO_IMAGE),
    "psd.jpg": (PSD, NO_IMAGE),
    "fits.jpg": (fits(), NO_IMAGE),
    "tiff.png": (encode(SCENE, "TIFF"), NO_IMAGE),
    "ico.png": (encode(SCENE, "ICO"), NO_IMAGE),
    "pdf.png": (encode(SCENE, "PDF"), NO_IMAGE),
    "ppm.png": (encode(SCENE, "PPM"), NO_IMAGE),
    "\udcff.png": (encode(SCENE), SCENE),  # a name that is not UTF-8: packed as Windows-1252 reads it
    "-rf": (encode(SCENE), SCENE),
    "a\nb; $(touch X).png": (encode(SCENE), SCENE),
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
    """Pack and read all files; return the names of the packed files, and the images."""
    root = tmp_path_factory.mktemp("odd")
    odd, plain = root / "origin/train/odd", root / "origin/train/plain"
    for place in (odd, plain, odd.parent / ".ipynb_checkpoints"):
        place.mkdir(parents=True)
        (place / "0.png").write_bytes(encode(SCENE))
    for name, (content, _) in ODD.items():
        (odd / name).write_bytes(content)
    for name, (target, _) in LINKS.items():
        (odd / name).symlink_to(target)
    for name in HIDDEN:
        (odd / name).write_bytes(encode(SCENE))
    manifest = pack.pack(root / "origin", root / "data/raw", progress=False)
    with peak_below(2**26):
        data = folder.read(root / "data/raw", None, workers=1, progress=False)
    return [name for name, *_ in manifest.members], data


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
    pixels = decoded(data.splits["train"])
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
def test_hidden_files_are_ignored(name: str, read: tuple[list[str], RawData]) -> None:
    members, data = read
    assert f"train/odd/{name}" not in members
    assert not [listed for listed, _ in data.skipped if name in listed]
    assert not [member for member in members if "checkpoints" in os.fspath(Path(member))]
