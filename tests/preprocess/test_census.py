"""Tests that the counts of files, used images and skipped files add up, and that each loss is reported."""

import io
import json
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import encode, noise, prepare_with
from numpy.typing import NDArray
from PIL import Image

from imageclf.contracts import dataset
from imageclf.contracts.dataset import Prepared
from imageclf.contracts.raw import IMAGES_MANIFEST, IMAGES_TAR
from imageclf.core import files
from imageclf.core.errors import UserError
from imageclf.preprocess import folder
from imageclf.preprocess.report.measure import measure


def own(per_class: Mapping[str, int]) -> dict[str, bytes]:
    """Return color images; `per_class` is the number per `<split>/<class>`."""
    names = [f"{place}/{number:03}.png" for place, count in per_class.items() for number in range(count)]
    return {name: encode(noise(seed)) for seed, name in enumerate(names)}


PLAIN = own({"train/cat": 10, "train/dog": 10, "test/cat": 3, "test/dog": 3})


def prepared(root: Path, contents: Mapping[str, bytes], *, skipped: int = 0, **changes: Any) -> Prepared:
    """Prepare these files after a download that skipped some more files."""
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
        "skipped": [f"{number}.lnk: a link" for number in range(skipped)],
        "files": {IMAGES_TAR: files.sha256(raw / IMAGES_TAR)},
    }
    files.write_manifest(raw / IMAGES_MANIFEST, manifest)
    data = folder.read(raw, changes.get("image_size"), workers=1, progress=False)
    prepare_with(data, root / "processed", dataset="folder", **changes)
    return dataset.read(root / "processed")


def balanced(data: Prepared) -> dict[str, Any]:
    """Return the content of dataset.json after checking that its numbers add up."""
    manifest = json.loads((data.folder / dataset.MANIFEST).read_text())
    assert manifest["used"] == sum(manifest["counts"].values())
    assert manifest["found"] == manifest["used"] + len(manifest["skipped"]) + manifest["other_classes"]
    return manifest


# --- counts and splits ---


def test_plain_images_have_only_counts(tmp_path: Path) -> None:
    manifest = balanced(prepared(tmp_path, PLAIN))
    assert (manifest["found"], manifest["used"], manifest["other_classes"]) == (26, 26, 0)
    assert manifest["notes"] == ["26 files found: 26 used"]
    assert (manifest["traits"], manifest["drawn"]) == ({}, {})
    assert manifest["duplicates"] == {"test": 0, "repeated": 0, "relabeled": 0}
    assert "gray16_bits" not in manifest


def test_skipped_files_are_counted_by_reason(tmp_path: Path) -> None:
    contents = {**PLAIN, **own({"train/owl": 5, "test/owl": 2}), "train/cat/note.txt": b"no image", "test/dog/x": b""}
    data = prepared(tmp_path, contents, skipped=4, classes=["dog", "cat"])
    manifest = balanced(data)
    assert (manifest["found"], manifest["used"], manifest["other_classes"]) == (39, 26, 7)
    assert [line.rsplit(": ")[0] for line in manifest["skipped"]][-2:] == ["test/dog/x", "train/cat/note.txt"]
    assert manifest["notes"][0] == "39 files found: 26 used, 6 skipped, 7 of classes that `classes` does not name"
    assert data.manifest.classes == ["dog", "cat"]


def test_a_drawn_test_split_is_reported(tmp_path: Path) -> None:
    contents = own({"train/cat": 20, "train/dog": 20, "train/rare": 1})
    manifest = balanced(prepared(tmp_path, contents, val_fraction=0.25, split_seed=3))
    assert manifest["counts"] == {"train": 25, "test": 8, "val": 8}
    assert manifest["drawn"] == {"test": {"fraction": 0.2, "seed": 0}, "val": {"fraction": 0.25, "seed": 3}}
    assert manifest["notes"][1:] == [
        "test: a stratified fifth of the images, drawn with seed 0",
        "test has no image of 1 class ('rare'): too few images for a share of 0.2",
        "val has no image of 1 class ('rare'): too few images for a share of 0.25",
    ]


def test_your_own_val_split_is_used_unchanged(tmp_path: Path) -> None:
    contents = PLAIN | {name.replace("test/", "val/"): encode(noise(500 + i)) for i, name in enumerate(PLAIN)}
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


def test_published_data_sets_have_no_counts(tmp_path: Path) -> None:
    from imageclf.contracts.raw import Images, RawData

    pixels = np.stack([noise(seed, 4, 4).transpose(2, 0, 1) for seed in range(40)])
    raw = RawData({"train": Images(np.arange(40) % 2, lambda: iter([pixels]))}, ("a", "b"), (3, 4, 4))
    manifest = prepare_with(raw, tmp_path, val_fraction=0.2)
    assert (manifest.notes, manifest.census, manifest.gray16_bits) == ([], None, None)
    content = json.loads((tmp_path / dataset.MANIFEST).read_text())
    assert not {"found", "used", "notes", "drawn", "traits", "duplicates", "gray16_bits"} & content.keys()


def test_classes_are_found_in_both_unicode_forms(tmp_path: Path) -> None:
    contents = own({f"{split}/{name}": 3 for split in ("train", "test") for name in ("Käfer", "Biene", "Laus")})
    for form in ("NFC", "NFD"):
        data = prepared(tmp_path / form, contents, classes=[unicodedata.normalize(form, "Käfer"), "Biene"])
        assert data.manifest.classes == ["Käfer", "Biene"]
    with pytest.raises(UserError, match=r"classes: 'Kafer' is not one of the 3 classes; the nearest is 'Käfer'"):
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


# --- traits ---


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
        "half-transparent.png": encode(half),
        "opaque.png": encode(opaque),
        "frames.gif": encode(frames[0], "GIF", **movie),
        "frames.png": encode(frames[0], "PNG", **movie),
        "frames.webp": encode(frames[0], "WEBP", lossless=True, **movie),
        "one-frame.gif": encode(frames[0], "GIF"),
        "cmyk.jpg": encode(Image.fromarray(noise(5)).convert("CMYK"), "JPEG"),
        "turned.png": encode(noise(6), exif=exif.tobytes()),
        "gray.png": encode(noise(7, channels=1)),
        "gray-alpha.png": encode(Image.fromarray(noise(8, channels=1)).convert("LA")),
        "blank.png": encode(np.full((8, 8, 3), 9, np.uint8)),
        "dim.png": encode(noise(9) // 11),
        "not-dim.png": encode(noise(10) // 9),
    }


def test_conversions_of_unusual_images_are_counted(tmp_path: Path) -> None:
    contents = PLAIN | {f"train/cat/{name}": content for name, content in odd_images().items()}
    manifest = balanced(prepared(tmp_path, contents))
    assert manifest["traits"] == {"gray": 2, "transparent": 1, "cmyk": 1, "turned": 1, "animated": 3, "flat": 2}
    gray, converted, flat = manifest["notes"][1:]
    assert gray == "2 of the 39 images are gray: they become color images with three equal channels"
    assert converted == (
        "images: 1 with transparent pixels, placed on black; 3 with several frames, of which the first is used; "
        "1 in CMYK, converted without color profiles; 1 turned upright as their EXIF data says"
    )
    assert flat.startswith("2 of the 39 images use less than a tenth of the levels 0..255: unless they are blank")


def test_images_that_image_size_squeezes_are_counted(tmp_path: Path) -> None:
    shapes = {"wide": (8, 17), "tall": (17, 8), "twice": (8, 16), "square": (9, 9)}
    contents = PLAIN | {f"train/cat/{name}": encode(noise(99, 17, 17)[:h, :w]) for name, (h, w) in shapes.items()}
    assert balanced(prepared(tmp_path, contents, image_size=8))["traits"] == {"squeezed": 2}


def test_dark_drawings_that_are_lost_on_black_are_counted(tmp_path: Path) -> None:
    dark, bright = Image.new("RGBA", (8, 8)), Image.new("RGBA", (8, 8))
    dark.paste((20, 20, 20, 255), (2, 2, 6, 6))
    bright.paste((200, 20, 20, 255), (2, 2, 6, 6))
    contents = PLAIN | {"train/cat/dark.png": encode(dark), "train/cat/bright.png": encode(bright)}
    data = prepared(tmp_path, contents)
    manifest = balanced(data)
    assert manifest["traits"] == {"transparent": 2, "flat": 1, "hidden": 1}
    assert manifest["notes"][1:] == ["images: 2 with transparent pixels, placed on black"]
    warning = measure(data.folder, data.manifest).warnings[0]
    assert warning.startswith("1 of 28 images show almost nothing, because their transparent pixels become black; put")


def test_only_the_traits_of_used_images_are_counted(tmp_path: Path) -> None:
    contents = PLAIN | {f"train/owl/{number}.png": encode(noise(70 + number, channels=1)) for number in range(3)}
    assert balanced(prepared(tmp_path / "a", contents))["traits"] == {"gray": 3}
    assert balanced(prepared(tmp_path / "b", contents, classes=["cat", "dog"]))["traits"] == {}


# --- 16 bits ---


def deep(top: int, seed: int = 0) -> NDArray[np.uint16]:
    """Return 16-bit gray pixels with largest value `top`."""
    values = np.random.default_rng(seed).integers(top + 1, size=(8, 8)).astype(np.uint16)
    values[0, 0] = top
    return values


@pytest.mark.parametrize(("top", "bits"), [(200, 8), (256, 9), (1023, 10), (4095, 12), (4096, 13), (65535, 16)])
def test_16_bit_gray_is_scaled_by_the_bits_that_train_uses(top: int, bits: int, tmp_path: Path) -> None:
    made = {f"train/{name}/{seed}.png": deep(top, seed + 10 * (name == "b")) for seed in range(4) for name in "ab"}
    made |= {f"test/{name}/0.png": deep(top // 2, 50 + (name == "b")) for name in "ab"}
    data = prepared(tmp_path, {name: encode(values) for name, values in made.items()})
    manifest = balanced(data)
    assert manifest["gray16_bits"] == bits
    for split in ("train", "test"):
        expected = np.stack([made[name] >> (bits - 8) for name in sorted(made) if name.startswith(split)])
        assert np.array_equal(data[split].images, np.repeat(expected[:, None], 3, axis=1))
    assert manifest["notes"][1] == (
        f"10 images in 16-bit gray, scaled from 0..{2**bits - 1:,} to 0..255: "
        f"the {bits} bits that the largest value in train/ needs"
    )


def test_the_range_does_not_depend_on_val_and_test_and_larger_values_become_white(tmp_path: Path) -> None:
    contents = {f"train/{name}/0.png": encode(deep(1000, ord(name))) for name in "ab"}
    contents |= {"test/a/0.png": encode(deep(60_000, 1)), "val/b/0.png": encode(deep(1023, 2))}
    data = prepared(tmp_path, contents)
    manifest = balanced(data)
    assert manifest["gray16_bits"] == 10
    assert manifest["traits"] == {"gray": 4, "gray16": 4, "clipped": 1, "flat": 1}  # almost all of it is white
    assert data["test"].images[0, 0, 0, 0] == 255
    assert "images: 1 with 16-bit values above the range, which become white" in manifest["notes"]


def test_8_and_16_bit_images_have_separate_ranges(tmp_path: Path) -> None:
    contents = PLAIN | {f"train/cat/deep{seed}.png": encode(deep(4095, seed)) for seed in range(2)}
    data = prepared(tmp_path, contents)
    assert data["train"].images[10, 0, 0, 0] == 255
    assert balanced(data)["notes"][1].endswith("; the other 26 images keep their 8 bits")


def test_dark_images_are_reported_if_one_pixel_makes_the_range_too_large(tmp_path: Path) -> None:
    made = {f"train/{name}/{seed}.png": deep(4095, seed + ord(name)) for seed in range(5) for name in "ab"}
    made |= {f"test/{name}/0.png": deep(4095, 3 * ord(name)) for name in "ab"}
    made["train/a/0.png"][3, 3] = 65535
    manifest = balanced(prepared(tmp_path, {name: encode(values) for name, values in made.items()}))
    assert manifest["gray16_bits"] == 16
    assert manifest["traits"]["flat"] == 11
    assert "11 of the 12 images use less than a tenth of the levels" in manifest["notes"][-1]


def test_a_transparent_16_bit_value_is_black_and_does_not_count_for_the_range(tmp_path: Path) -> None:
    """Depth cameras mark missing measurements like this."""
    made = {f"train/{name}/{seed}.png": deep(4095, seed + ord(name)) for seed in range(3) for name in "ab"}
    made |= {f"test/{name}/0.png": deep(4095, 3 * ord(name)) for name in "ab"}
    for values in made.values():
        values[5, 5] = 65535
    data = prepared(tmp_path, {name: encode(values, transparency=65535) for name, values in made.items()})
    manifest = balanced(data)
    assert manifest["gray16_bits"] == 12
    assert manifest["traits"] == {"gray": 8, "gray16": 8, "transparent": 8}
    assert not data["train"].images[:, :, 5, 5].any()
    assert np.all(data["train"].images[:, :, 0, 0] == 255)
