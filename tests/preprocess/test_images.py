"""Tests that image files give the documented pixels or a reason, and that bad files cost neither time nor memory."""

import io
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import peak_below
from helpers import decode, encode, noise, png, png_chunk
from imports import ROOT, SOURCE
from numpy.typing import NDArray
from PIL import Image

from imageclf.core.errors import UserError
from imageclf.preprocess import members as many
from imageclf.preprocess import pool
from imageclf.preprocess.images import HEADER, Trait, UnreadableError, is_gray16, to_rgb
from imageclf.preprocess.members import Member, decode_members, measure_gray16, shape_of_first

# The corner, the edges and the rest differ, so that each turned or mirrored image is different.
SCENE = np.full((6, 8, 3), (200, 40, 90), np.uint8)
SCENE[0, 0], SCENE[0, 1:], SCENE[1:, 0] = (255, 255, 255), (0, 0, 0), (10, 220, 130)


def planes(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return pixels (height, width, 3) as (3, height, width)."""
    return pixels.transpose(2, 0, 1)


def gray(levels: Sequence[Sequence[int]]) -> NDArray[np.uint8]:
    """Return gray levels as an image of three equal channels."""
    return np.array([levels] * 3, np.uint8)


def reason(data: bytes) -> str:
    """Return the reason why a file cannot be decoded."""
    with pytest.raises(UnreadableError) as caught:
        decode(data)
    return str(caught.value)


# --- formats ---


@pytest.mark.parametrize(
    ("kind", "options"),
    [("PNG", {}), ("BMP", {}), ("WEBP", {"lossless": True}), ("PNG", {"interlace": 1}), ("PNG", {"compress_level": 0})],
)
def test_lossless_formats_give_the_exact_pixels(kind: str, options: dict[str, Any]) -> None:
    pixels = decode(encode(SCENE, kind, **options))
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, planes(SCENE))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 95, "subsampling": 0}])
def test_jpeg_gives_what_pillow_gives(options: dict[str, Any]) -> None:
    data = encode(SCENE, "JPEG", **options)
    assert np.array_equal(decode(data), planes(np.asarray(Image.open(io.BytesIO(data)))))


def test_bytes_after_an_image_are_ignored() -> None:
    assert np.array_equal(decode(encode(SCENE) + b"appended"), planes(SCENE))


# --- modes ---


def test_gray_becomes_three_equal_planes() -> None:
    assert np.array_equal(decode(encode(np.array([[0, 7, 255]], np.uint8))), gray([[0, 7, 255]]))


def test_one_bit_is_black_and_white() -> None:
    image = Image.fromarray(np.array([[0, 255, 0]], np.uint8)).convert("1")
    assert np.array_equal(decode(encode(image)), gray([[0, 255, 0]]))


def test_16_bit_gray_is_scaled_and_not_clipped_to_white() -> None:
    image = Image.fromarray(np.array([[0, 255, 256, 32768, 65535]]).astype("<u2"))
    assert image.mode == "I;16"
    assert np.array_equal(decode(encode(image)), gray([[0, 0, 1, 128, 255]]))


def test_16_bit_color_is_scaled_in_the_same_way() -> None:
    levels = np.array([0, 255, 256, 32768, 65535], ">u2")
    data = png_of(5, 1, depth=16, color=2, rows=np.repeat(levels, 3).tobytes())
    assert np.array_equal(decode(data), gray([[0, 0, 1, 128, 255]]))


@pytest.mark.parametrize("bits", [8, 9, 12, 16])
def test_16_bit_gray_is_scaled_from_its_range_and_clipped_above(bits: int) -> None:
    top = 2**bits - 1
    values = np.array([[0, 1, top // 2, top, min(top + 1, 65535), 65535]]).astype("<u2")
    expected = [0, 1 >> (bits - 8), 127, 255, 255, 255]
    assert np.array_equal(decode(encode(Image.fromarray(values)), gray16_bits=bits), gray([expected]))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_16_bit_gray_is_turned_upright(orientation: int) -> None:
    scene = Image.fromarray((SCENE[:, :, 0].astype("<u2") << 8) + 7)
    turn, exif = TURNS[orientation - 1], Image.Exif()
    exif[0x0112] = orientation
    turned = scene if turn is None else scene.transpose(turn)
    assert np.array_equal(decode(encode(turned, exif=exif.tobytes())), gray(SCENE[:, :, 0].tolist()))


def test_a_16_bit_gray_value_that_is_named_transparent_becomes_black() -> None:
    image = Image.fromarray(np.array([[300, 4095, 65535]]).astype("<u2"))
    assert np.array_equal(decode(encode(image, transparency=65535), gray16_bits=12), gray([[18, 255, 0]]))


@pytest.mark.parametrize(
    ("color", "values", "traits"),
    [
        (0, 1, Trait.GRAY | Trait.GRAY16),
        (2, 3, Trait.COLOR16),
        (4, 2, Trait.COLOR16 | Trait.TRANSPARENT),
        (6, 4, Trait.COLOR16 | Trait.TRANSPARENT),
    ],
)
def test_the_traits_of_every_kind_of_16_bit_png(color: int, values: int, traits: Trait) -> None:
    data = png_of(2, 1, depth=16, color=color, rows=np.full(2 * values, 4095, ">u2").tobytes())
    assert to_rgb(data, None, gray16_bits=16).traits == traits
    assert is_gray16(data[:HEADER]) == (color == 0)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_largest_16_bit_gray_value_is_found_among_all_kinds_of_files(
    workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "POOL_FROM", 1)
    monkeypatch.setattr(many, "BATCH", 2)
    deep = {f"{top}": encode(Image.fromarray(np.array([[top, 3]]).astype("<u2"))) for top in (9, 700, 1023, 12)}
    others = {"8": encode(SCENE), "jpeg": encode(SCENE, "JPEG"), "text": b"text", "empty": b"", "cut": deep["9"][:40]}
    assert measure_gray16(tmp_path / "f", member_file(tmp_path / "f", others | deep), workers) == 10
    assert measure_gray16(tmp_path / "f", member_file(tmp_path / "f", {"9": deep["9"]}), workers) == 8
    assert measure_gray16(tmp_path / "f", member_file(tmp_path / "f", {"8": others["8"]}), workers) is None


def test_a_gif_that_is_damaged_after_its_first_frame_is_an_image() -> None:
    frames = [Image.new("L", (4, 4), level) for level in (9, 99, 199)]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    first = to_rgb(data, None, gray16_bits=16)
    assert first.traits & Trait.ANIMATED
    for end in range(len(data) - 60, len(data)):
        cut = to_rgb(data[:end], None, gray16_bits=16)
        assert np.array_equal(np.asarray(cut.image), np.asarray(first.image))


def test_a_palette_is_looked_up() -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.putdata([2, 0, 1])
    assert decode(encode(image))[:, 0].T.tolist() == [[70, 80, 90], [10, 20, 30], [40, 50, 60]]


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_transparent_color_of_a_palette_becomes_black(kind: str) -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.putdata([2, 0, 1])
    pixels = decode(encode(image, kind, transparency=1))
    assert pixels[:, 0].T.tolist() == [[70, 80, 90], [10, 20, 30], [0, 0, 0]]


def test_a_palette_with_a_transparency_for_each_color_is_placed_on_black() -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([100, 100, 100, 200, 200, 200, 50, 50, 50])
    image.putdata([0, 1, 2])
    assert decode(encode(image, transparency=bytes([255, 51, 0])))[0].tolist() == [[100, 40, 0]]


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_transparency_is_placed_on_black(kind: str) -> None:
    pixels = np.zeros((1, 3, 4), np.uint8)
    pixels[0, :, :3], pixels[0, :, 3] = (200, 100, 50), (255, 51, 0)
    pixels = decode(encode(pixels, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {})))
    assert pixels[:, 0].T.tolist() == [[200, 100, 50], [40, 20, 10], [0, 0, 0]]


def test_transparent_gray_is_placed_on_black() -> None:
    image = Image.merge("LA", [Image.new("L", (1, 1), 200), Image.new("L", (1, 1), 51)])
    assert np.array_equal(decode(encode(image)), gray([[40]]))


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_color_that_is_named_transparent_becomes_black(mode: str) -> None:
    image = Image.new("L", (2, 1), 9)
    image.putpixel((1, 0), 7)
    pixels = decode(encode(image.convert(mode), transparency=9 if mode == "L" else (9, 9, 9)))
    assert np.array_equal(pixels, gray([[0, 7]]))


def test_cmyk_becomes_rgb() -> None:
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    red = decode(encode(image, "JPEG", quality=95))[:, 8, 8].astype(int)
    assert np.all(abs(red - [255, 0, 0]) <= 3)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_an_animation_gives_its_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in ((250, 0, 0), (0, 250, 0), (0, 0, 250))]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], duration=50, **options)
    assert np.array_equal(decode(data), planes(np.asarray(frames[0])))


# --- orientation ---

TURNS = [
    None,
    Image.Transpose.FLIP_LEFT_RIGHT,
    Image.Transpose.ROTATE_180,
    Image.Transpose.FLIP_TOP_BOTTOM,
    Image.Transpose.TRANSPOSE,
    Image.Transpose.ROTATE_90,
    Image.Transpose.TRANSVERSE,
    Image.Transpose.ROTATE_270,
]
"""Transposition of the upright scene for EXIF orientations 1 to 8."""


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_the_eight_exif_orientations_give_the_same_upright_image(kind: str) -> None:
    scene = Image.fromarray(SCENE if kind != "JPEG" else SCENE.repeat(8, 0).repeat(8, 1))
    seen: list[NDArray[np.uint8]] = []
    for orientation, turn in enumerate(TURNS, start=1):
        exif = Image.Exif()
        exif[0x0112] = orientation
        turned = scene if turn is None else scene.transpose(turn)
        options = {"lossless": True} if kind == "WEBP" else {"quality": 100, "subsampling": 0}
        seen.append(decode(encode(turned, kind, exif=exif.tobytes(), **options)))
    assert seen[0].shape == (3, scene.height, scene.width)
    slack = 3 if kind == "JPEG" else 0  # the rounding of a block depends on its orientation
    assert all(abs(other.astype(int) - seen[0]).max() <= slack for other in seen)
    assert abs(seen[0].astype(int) - planes(np.asarray(scene))).max() <= slack + 3 * (kind == "JPEG")


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\x01\0"])
def test_damaged_exif_data_is_ignored(exif: bytes) -> None:
    data = encode(SCENE, "JPEG")
    marked = data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]
    assert np.array_equal(decode(marked), decode(data))


# --- size ---


def test_image_size_stretches_to_a_square_as_pillow_does() -> None:
    pixels = decode(encode(SCENE), image_size=5)
    assert pixels.shape == (3, 5, 5)
    assert np.array_equal(pixels, planes(np.asarray(Image.fromarray(SCENE).resize((5, 5), Image.Resampling.BILINEAR))))


def test_image_size_leaves_an_image_of_that_size() -> None:
    square = SCENE[:, :6]
    assert np.array_equal(decode(encode(square), image_size=6), planes(square))


def test_a_smaller_image_is_antialiased() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    assert abs(decode(encode(stripes), image_size=8)[:, :, 1:-1].astype(int) - 127).max() <= 2


# --- not an image ---


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        b"a note about these images",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
        b"8BPS\0\1" + bytes(100),
        b"SIMPLE  =                    T" + bytes(3000),
        encode(SCENE, "TIFF"),
        encode(SCENE, "PPM"),
        encode(SCENE, "TGA"),
        encode(Image.fromarray(SCENE), "ICO"),
        encode(SCENE, "PCX"),
        encode(Image.fromarray(SCENE), "PDF"),
        encode(Image.fromarray(SCENE), "EPS"),
        b"\x89PNG\r\n\x1a",
        b"RIFF\0\0\0\0WEBX",
    ],
    ids=range(16),
)
def test_the_content_decides_what_is_an_image(data: bytes) -> None:
    assert reason(data) == "not a PNG, JPEG, BMP, GIF or WEBP image"


KINDS = ["PNG", "JPEG", "BMP", "GIF", "WEBP"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
def test_a_truncated_image_is_refused(kind: str, share: float) -> None:
    data = encode(noise(0, 40, 50), kind)
    assert reason(data[: int(len(data) * share)])


@pytest.mark.parametrize("kind", KINDS)
def test_changed_bytes_give_an_image_or_a_reason(kind: str) -> None:
    data = encode(SCENE, kind)
    random = np.random.default_rng(0)
    for _ in range(300):
        flipped = bytearray(data)
        for position in random.integers(len(data), size=3):
            flipped[position] ^= 1 << random.integers(8)
        try:
            assert decode(bytes(flipped)).dtype == np.uint8
        except UnreadableError as error:
            assert str(error)  # noqa: PT017 - both are right


# --- bombs ---


def png_of(width: int, height: int, depth: int, color: int, rows: bytes) -> bytes:
    """Return a PNG file of these rows, without filters."""
    length = len(rows) // height
    return png(
        width,
        height,
        depth=depth,
        color=color,
        data=zlib.compress(b"".join(b"\0" + rows[start : start + length] for start in range(0, len(rows), length))),
    )


@pytest.mark.parametrize(
    ("width", "height"), [(7072, 7072), (9000, 9000), (50_000_001, 1), (65_000, 65_000), (2**31 - 1, 2**31 - 1)]
)
def test_a_bomb_is_refused_by_its_header(width: int, height: int) -> None:
    assert reason(png(width, height)) == "more than 50 million pixels"


def test_a_gif_whose_frame_is_larger_than_its_screen_is_refused() -> None:
    data = bytearray(encode(Image.new("L", (4, 4)), "GIF"))
    frame = data.index(b"\x2c")
    data[frame + 5 : frame + 9] = struct.pack("<HH", 60_000, 60_000)
    assert reason(bytes(data)) == "more than 50 million pixels"


def test_a_bomb_costs_no_memory(tmp_path: Path) -> None:
    """The file of 300 kB has 49,000 x 49,000 pixels of one bit: 300 MB, or 9.6 GB in RGB."""
    side = 49_000
    stream = zlib.compressobj(9)
    row = bytes(1 + (side + 7) // 8)
    data = b"".join(stream.compress(row) for _ in range(side)) + stream.flush()
    (tmp_path / "bomb.png").write_bytes(png(side, side, depth=1, color=0, data=data))
    program = f"""
import resource, sys; sys.path.insert(0, {str(SOURCE)!r})
from imageclf.preprocess.images import UnreadableError, to_rgb
data = open({str(tmp_path / "bomb.png")!r}, "rb").read()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    to_rgb(data, None, 16)
except UnreadableError as error:
    print(error, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, sep=";")
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    message, growth_kb = done.stdout.strip().split(";")
    assert message == "more than 50 million pixels"
    assert int(growth_kb) < 10_000


def test_text_that_inflates_is_refused() -> None:
    text = png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(200 * 2**20), 9))
    data = png_of(1, 1, 8, 2, b"abc")
    with peak_below(2**24):
        assert "damaged" in reason(data[:33] + text + data[33:])


# --- many ---


def member_file(path: Path, contents: dict[str, bytes]) -> list[Member]:
    """Write files one after the other to `path`; return their positions."""
    members, offset = [], 0
    for name, content in contents.items():
        members.append(Member(name, offset, len(content)))
        offset += len(content)
    path.write_bytes(b"".join(contents.values()))
    return members


def first_of(path: Path, members: list[Member], image_size: int | None = None) -> tuple[str, tuple[int, int, int]]:
    """Return the name and shape of the first image, which must exist."""
    found = shape_of_first(path, members, image_size)
    assert found is not None
    return found


def numbered(count: int) -> dict[str, bytes]:
    """Return constant images of 3x2 pixels; every seventh file is damaged."""
    files = {f"{number:04}.png": encode(np.full((2, 3), number % 256, np.uint8)) for number in range(count)}
    return {name: b"broken" if number % 7 == 3 else data for number, (name, data) in enumerate(files.items())}


@pytest.mark.parametrize("workers", [1, 2])
def test_members_are_in_order_for_any_number_of_workers(
    tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "POOL_FROM", 1)
    monkeypatch.setattr(many, "BATCH", 16)
    members = member_file(tmp_path / "images", numbered(300))
    example = first_of(tmp_path / "images", members)
    assert example == ("0000.png", (3, 2, 3))
    batches = list(decode_members(tmp_path / "images", members, example, None, workers))
    assert max(len(batch.pixels) for batch in batches) <= 16
    pixels = np.concatenate([batch.pixels for batch in batches])
    good = [number for number in range(300) if number % 7 != 3]
    assert pixels.shape == (len(good), 3, 2, 3)
    assert np.array_equal(pixels[:, 1, 1, 2], np.array(good) % 256)
    broken = {name: why for batch in batches for name, why in batch.unreadable.items()}
    assert list(broken) == [f"{number:04}.png" for number in range(300) if number % 7 == 3]
    assert set(broken.values()) == {"not a PNG, JPEG, BMP, GIF or WEBP image"}


@pytest.mark.parametrize("workers", [1, 2])
def test_sizes_that_differ_are_refused_with_two_examples(
    tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "POOL_FROM", 1)
    sizes = {"broken": b"", "a": encode(SCENE), "b": encode(SCENE[:5]), "c": encode(SCENE[:4])}
    members = member_file(tmp_path / "images", sizes)
    example = first_of(tmp_path / "images", members)
    assert example == ("a", (3, 6, 8))
    with pytest.raises(UserError, match=r"'a' has 8x6 pixels, 'b' has 8x5; set image_size to resize them"):
        list(decode_members(tmp_path / "images", members, example, None, workers))
    example = first_of(tmp_path / "images", members, 4)
    assert example == ("a", (3, 4, 4))
    (batch,) = decode_members(tmp_path / "images", members, example, 4, workers)
    assert batch.pixels.shape == (3, 3, 4, 4)


def test_without_an_image_there_is_no_shape(tmp_path: Path) -> None:
    members = member_file(tmp_path / "images", {"a": b"", "b": b"text"})
    assert shape_of_first(tmp_path / "images", members, None) is None


def test_the_workers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    members = member_file(tmp_path / "images", numbered(40))
    program = f"""
import os, signal, sys; sys.path.insert(0, {str(SOURCE)!r})
from pathlib import Path
from imageclf.preprocess import members as many, pool
if __name__ == "__main__":
    pool.POOL_FROM, many.BATCH = 1, 1
    members = [many.Member(*member) for member in {[tuple(member) for member in members]!r}]
    batches = many.decode_members(Path({str(tmp_path / "images")!r}), members, ("a", (3, 2, 3)), None, 2)
    next(batches)
    import multiprocessing
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    path = tmp_path / "program.py"
    path.write_text(program)
    with subprocess.Popen([sys.executable, path], cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        children = [int(pid) for pid in parent.stdout.readline().split()]
        parent.stdout.read()  # ends with the last process that has it open
    assert len(children) == 2
    assert not any(os.path.exists(f"/proc/{pid}/exe") for pid in children)  # noqa: PTH110 - a broken link
