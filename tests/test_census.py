"""Files in, images used, files left out: the numbers always add up, and nothing is lost without a sentence."""

import io
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from imageclf import files, folder, splits
from imageclf.errors import UserError
from imageclf.prepare import prepare
from imageclf.raw import IMAGES_MANIFEST, IMAGES_TAR
from imageclf.splits import Prepared

KNOBS: dict[str, Any] = {
    "dataset": "folder",
    "classes": None,
    "val_fraction": 0.0,
    "split_seed": 0,
    "grayscale": False,
    "image_size": None,
    "pad": 0,
    "normalize": "standard",
    "permute_seed": None,
    "one_hot": False,
}


def encoded(image: Image.Image | NDArray[Any], kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(stream, kind, **options)
    return stream.getvalue()


def noise(seed: int, *, side: int = 8, channels: int = 3) -> NDArray[np.uint8]:
    """An image that no other seed gives."""
    shape = (side, side, channels) if channels > 1 else (side, side)
    return np.random.default_rng(seed).integers(256, size=shape, dtype=np.uint8)


def own(per_class: Mapping[str, int]) -> dict[str, bytes]:
    """So many color images in each `<split>/<class>`."""
    names = [f"{place}/{number:03}.png" for place, count in per_class.items() for number in range(count)]
    return {name: encoded(noise(seed)) for seed, name in enumerate(names)}


PLAIN = own({"train/cat": 10, "train/dog": 10, "test/cat": 3, "test/dog": 3})


def prepared(root: Path, contents: Mapping[str, bytes], *, skipped: int = 0, **knobs: Any) -> Prepared:
    """What preprocess makes of these files, `skipped` further ones having been left out by download."""
    raw, content, members = root / "raw", b"", []
    for name, data in sorted(contents.items()):
        members.append([name, len(content), len(data)])
        content += data
    raw.mkdir(parents=True)
    (raw / IMAGES_TAR).write_bytes(content)
    manifest = {
        "found": len(members) + skipped,
        "classes": sorted({name.split("/")[1] for name in contents if name.startswith("train/")}),
        "members": members,
        "skipped": [[f"{number}.lnk", "a link"] for number in range(skipped)],
        "files": {IMAGES_TAR: files.sha256(raw / IMAGES_TAR)},
    }
    files.write_manifest(raw / IMAGES_MANIFEST, manifest)
    settings = {**KNOBS, **knobs}
    prepare(folder.read(raw, settings["image_size"], workers=1, progress=False), root / "processed", **settings)
    return splits.read(root / "processed")


def balanced(data: Prepared) -> dict[str, Any]:
    """The manifest, whose numbers add up."""
    manifest = data.manifest
    assert manifest["used"] == sum(manifest["counts"].values())
    assert manifest["found"] == manifest["used"] + len(manifest["skipped"]) + manifest["other_classes"]
    return manifest


# --- the balance, and who is where ---


def test_plain_images_have_a_balance_and_nothing_more_to_say(tmp_path: Path) -> None:
    manifest = balanced(prepared(tmp_path, PLAIN))
    assert (manifest["found"], manifest["used"], manifest["other_classes"]) == (26, 26, 0)
    assert manifest["notes"] == ["26 files found: 26 used"]
    assert (manifest["traits"], manifest["drawn"]) == ({}, {})
    assert manifest["duplicates"] == {"test": 0, "repeated": 0, "relabeled": 0}
    assert "gray16_bits" not in manifest


def test_what_is_left_out_is_counted_by_its_reason(tmp_path: Path) -> None:
    contents = {**PLAIN, **own({"train/owl": 5, "test/owl": 2}), "train/cat/note.txt": b"no image", "test/dog/x": b""}
    data = prepared(tmp_path, contents, skipped=4, classes=["dog", "cat"])
    manifest = balanced(data)
    assert (manifest["found"], manifest["used"], manifest["other_classes"]) == (39, 26, 7)
    assert [name for name, _ in manifest["skipped"]][-2:] == ["test/dog/x", "train/cat/note.txt"]
    assert manifest["notes"][0] == "39 files found: 26 used, 6 skipped, 7 of classes that `classes` does not name"
    assert data.classes == ["dog", "cat"]


def test_a_drawn_test_split_is_told_and_recorded(tmp_path: Path) -> None:
    contents = own({"train/cat": 20, "train/dog": 20, "train/rare": 1})
    manifest = balanced(prepared(tmp_path, contents, val_fraction=0.25, split_seed=3))
    assert manifest["counts"] == {"train": 25, "test": 8, "val": 8}
    assert manifest["drawn"] == {"test": {"fraction": 0.2, "seed": 0}, "val": {"fraction": 0.25, "seed": 3}}
    assert manifest["notes"][1:] == [
        "test: a stratified fifth of the images, drawn with seed 0",
        "test has no image of 1 class ('rare'): too few images for a share of 0.2",
        "val has no image of 1 class ('rare'): too few images for a share of 0.25",
    ]


def test_a_val_split_of_ones_own_is_used_as_it_is(tmp_path: Path) -> None:
    contents = PLAIN | {name.replace("test/", "val/"): encoded(noise(500 + i)) for i, name in enumerate(PLAIN)}
    contents |= own({"train/owl": 2})
    data = prepared(tmp_path, contents, val_fraction=0.5, split_seed=9)
    manifest = balanced(data)
    assert manifest["counts"]["val"] == 6
    expected = [np.asarray(Image.open(io.BytesIO(contents[name]))) for name in sorted(contents) if name[0] == "v"]
    assert np.array_equal(data["val"].images.transpose(0, 2, 3, 1), expected)
    assert data["val"].labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert manifest["drawn"] == {}
    assert manifest["notes"][1:4] == [
        "val: the images in val/; val_fraction and split_seed do not apply",
        "val has no image of 1 class ('owl')",
        "test has no image of 1 class ('owl')",
    ]


def test_published_sets_get_no_new_entries(tmp_path: Path) -> None:
    from imageclf.raw import Images, RawData

    pixels = np.stack([noise(seed, side=4).transpose(2, 0, 1) for seed in range(40)])
    raw = RawData({"train": Images(np.arange(40) % 2, lambda: iter([pixels]))}, ("a", "b"), (3, 4, 4))
    manifest = prepare(raw, tmp_path, **{**KNOBS, "val_fraction": 0.2})
    assert not {"found", "used", "notes", "drawn", "traits", "duplicates", "gray16_bits"} & manifest.keys()


def test_classes_are_found_in_either_form_of_their_accents(tmp_path: Path) -> None:
    contents = own({f"{split}/{name}": 3 for split in ("train", "test") for name in ("Käfer", "Biene", "Laus")})
    for form in ("NFC", "NFD"):
        data = prepared(tmp_path / form, contents, classes=[unicodedata.normalize(form, "Käfer"), "Biene"])
        assert data.classes == ["Käfer", "Biene"]
    with pytest.raises(UserError, match=r"classes: 'Kafer' is not among the 3 here; the nearest is 'Käfer'"):
        prepared(tmp_path / "no", contents, classes=["Kafer", "Biene"])


# --- identical files ---


def test_identical_files_are_counted_across_and_within_splits(tmp_path: Path) -> None:
    contents = dict(PLAIN)
    contents["test/cat/000.png"] = contents["test/cat/001.png"] = contents["train/cat/000.png"]
    contents["train/dog/008.png"] = contents["train/dog/009.png"]
    contents["test/dog/002.png"] = contents["train/cat/005.png"]  # in two classes
    contents["val/cat/000.png"] = contents["train/cat/001.png"]
    contents["val/dog/000.png"] = contents["test/dog/001.png"]
    manifest = balanced(prepared(tmp_path, contents))
    assert manifest["duplicates"] == {"val": 1, "test": 4, "repeated": 2, "relabeled": 1}
    assert (
        "identical files: 4 of test are also in train or val, 1 of val is also in train, 2 more within a split, "
        "1 in more than one class"
    ) in manifest["notes"]


# --- what images are ---


def odd_images() -> dict[str, bytes]:
    half = Image.fromarray(noise(1))
    half.putalpha(Image.fromarray(np.repeat(np.array([[0, 255]], np.uint8), 4, axis=1).repeat(8, 0)))
    opaque = Image.fromarray(noise(2))
    opaque.putalpha(255)
    frames = [Image.fromarray(noise(seed)) for seed in (3, 4)]
    exif = Image.Exif()
    exif[0x0112] = 3
    movie: dict[str, Any] = {"save_all": True, "append_images": frames[1:]}
    return {
        "half-transparent.png": encoded(half),
        "opaque.png": encoded(opaque),
        "frames.gif": encoded(frames[0], "GIF", **movie),
        "frames.png": encoded(frames[0], "PNG", **movie),
        "frames.webp": encoded(frames[0], "WEBP", lossless=True, **movie),
        "one-frame.gif": encoded(frames[0], "GIF"),
        "cmyk.jpg": encoded(Image.fromarray(noise(5)).convert("CMYK"), "JPEG"),
        "turned.png": encoded(noise(6), exif=exif.tobytes()),
        "gray.png": encoded(noise(7, channels=1)),
        "gray-alpha.png": encoded(Image.fromarray(noise(8, channels=1)).convert("LA")),
        "blank.png": encoded(np.full((8, 8, 3), 9, np.uint8)),
        "dim.png": encoded(noise(9) // 11),
        "not-dim.png": encoded(noise(10) // 9),
    }


def test_what_was_done_to_unusual_images_is_counted(tmp_path: Path) -> None:
    contents = PLAIN | {f"train/cat/{name}": content for name, content in odd_images().items()}
    manifest = balanced(prepared(tmp_path, contents))
    assert manifest["traits"] == {"gray": 2, "transparent": 1, "cmyk": 1, "turned": 1, "animated": 3, "flat": 2}
    gray, converted, flat = manifest["notes"][1:]
    assert gray == "2 of the 39 images are gray: they become color images with three equal channels"
    assert converted == (
        "images: 1 with transparent pixels, laid over black; 3 with several frames, of which the first is used; "
        "1 in CMYK, converted without color profiles; 1 turned upright as their EXIF data says"
    )
    assert flat.startswith("2 of the 39 images use less than a tenth of the levels 0..255: unless they are blank")


def test_images_that_image_size_squeezes_are_counted(tmp_path: Path) -> None:
    shapes = {"wide": (8, 17), "tall": (17, 8), "twice": (8, 16), "square": (9, 9)}
    contents = PLAIN | {f"train/cat/{name}": encoded(noise(99, side=17)[:h, :w]) for name, (h, w) in shapes.items()}
    assert balanced(prepared(tmp_path, contents, image_size=8))["traits"] == {"squeezed": 2}


def test_traits_are_those_of_the_images_that_are_used(tmp_path: Path) -> None:
    contents = PLAIN | {f"train/owl/{number}.png": encoded(noise(70 + number, channels=1)) for number in range(3)}
    assert balanced(prepared(tmp_path / "a", contents))["traits"] == {"gray": 3}
    assert balanced(prepared(tmp_path / "b", contents, classes=["cat", "dog"]))["traits"] == {}


# --- 16 bits ---


def deep(top: int, seed: int = 0) -> NDArray[np.uint16]:
    """16-bit gray whose largest value is `top`."""
    values = np.random.default_rng(seed).integers(top + 1, size=(8, 8)).astype(np.uint16)
    values[0, 0] = top
    return values


@pytest.mark.parametrize(("top", "bits"), [(200, 8), (256, 9), (1023, 10), (4095, 12), (4096, 13), (65535, 16)])
def test_16_bit_gray_is_scaled_by_the_bits_that_train_uses(top: int, bits: int, tmp_path: Path) -> None:
    made = {f"train/{name}/{seed}.png": deep(top, seed + 10 * (name == "b")) for seed in range(4) for name in "ab"}
    made |= {f"test/{name}/0.png": deep(top // 2, 50 + (name == "b")) for name in "ab"}
    data = prepared(tmp_path, {name: encoded(values) for name, values in made.items()})
    manifest = balanced(data)
    assert manifest["gray16_bits"] == bits
    for split in ("train", "test"):
        expected = np.stack([made[name] >> (bits - 8) for name in sorted(made) if name.startswith(split)])
        assert np.array_equal(data[split].images, np.repeat(expected[:, None], 3, axis=1))
    assert manifest["notes"][1] == (
        f"10 images in 16-bit gray, scaled from 0..{2**bits - 1:,} to 0..255: "
        f"the {bits} bits that the largest value in train/ needs"
    )


def test_test_and_val_have_no_say_in_the_range_and_what_exceeds_it_is_white_and_counted(tmp_path: Path) -> None:
    contents = {f"train/{name}/0.png": encoded(deep(1000, ord(name))) for name in "ab"}
    contents |= {"test/a/0.png": encoded(deep(60_000, 1)), "val/b/0.png": encoded(deep(1023, 2))}
    data = prepared(tmp_path, contents)
    manifest = balanced(data)
    assert manifest["gray16_bits"] == 10
    assert manifest["traits"] == {"gray": 4, "gray16": 4, "clipped": 1, "flat": 1}  # almost all of it is white
    assert data["test"].images[0, 0, 0, 0] == 255
    assert "images: 1 with 16-bit values above the range, which become white" in manifest["notes"]


def test_8_and_16_bit_images_each_keep_their_own_range_and_it_is_said(tmp_path: Path) -> None:
    contents = PLAIN | {f"train/cat/deep{seed}.png": encoded(deep(4095, seed)) for seed in range(2)}
    data = prepared(tmp_path, contents)
    assert data["train"].images[10, 0, 0, 0] == 255
    assert balanced(data)["notes"][1].endswith("; the other 26 images keep their 8 bits")


def test_one_hot_pixel_that_spoils_the_range_is_told_by_the_images_that_became_dark(tmp_path: Path) -> None:
    made = {f"train/{name}/{seed}.png": deep(4095, seed + ord(name)) for seed in range(5) for name in "ab"}
    made |= {f"test/{name}/0.png": deep(4095, 3 * ord(name)) for name in "ab"}
    made["train/a/0.png"][3, 3] = 65535
    manifest = balanced(prepared(tmp_path, {name: encoded(values) for name, values in made.items()}))
    assert manifest["gray16_bits"] == 16
    assert manifest["traits"]["flat"] == 11
    assert "11 of the 12 images use less than a tenth of the levels" in manifest["notes"][-1]


def test_a_transparent_16_bit_value_is_black_and_does_not_count_for_the_range(tmp_path: Path) -> None:
    """As depth cameras mark what they have not measured."""
    made = {f"train/{name}/{seed}.png": deep(4095, seed + ord(name)) for seed in range(3) for name in "ab"}
    made |= {f"test/{name}/0.png": deep(4095, 3 * ord(name)) for name in "ab"}
    for values in made.values():
        values[5, 5] = 65535
    data = prepared(tmp_path, {name: encoded(values, transparency=65535) for name, values in made.items()})
    manifest = balanced(data)
    assert manifest["gray16_bits"] == 12
    assert manifest["traits"] == {"gray": 8, "gray16": 8, "transparent": 8}
    assert not data["train"].images[:, :, 5, 5].any()
    assert np.all(data["train"].images[:, :, 0, 0] == 255)
