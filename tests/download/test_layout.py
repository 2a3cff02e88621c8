"""Tests of the layouts of folders: splits and classes are found, and every file is used or listed."""

import gzip
import os
import socket
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest
from helpers import (
    FORMS,
    Files,
    as_directory,
    as_tar,
    as_zip,
    noise_png,
    packed,
    pets,
    shuffle,
    tar_bytes,
    tar_member,
    zip_bytes,
)

from imageclf.core.errors import UserError
from imageclf.download import origins

POOL = {f"{name}/{number}.png": noise_png(number) for number in range(3) for name in ("cat", "dog")}
"""Three images in each of two classes."""


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return tmp_path / "data" / "raw"


def below(folder: str, files: Files = POOL) -> Files:
    return {f"{folder}/{name}": content for name, content in files.items()}


def members(manifest: dict[str, Any]) -> list[str]:
    return [name for name, *_ in manifest["members"]]


NEAR = dict.fromkeys(("labels.csv", "README.roboflow.txt", "train.json"), b"x")
TRAIN, VAL, TEST = (sorted(below(split)) for split in ("train", "val", "test"))

LAYOUTS: dict[str, tuple[Files, list[str]]] = {
    # name: (the files, the members that they give); other files must be listed
    "classes": (POOL | NEAR, TRAIN),
    "train alone": (below("train"), TRAIN),
    "train, val": (below("train") | below("val"), TRAIN + VAL),
    "train, valid, test": (below("train") | below("valid") | below("test") | NEAR, TEST + TRAIN + VAL),
    "training, validation, testing": (below("training") | below("validation") | below("testing"), TEST + TRAIN + VAL),
    "train, dev": (below("train") | below("dev"), TRAIN + VAL),
    "capitals": (below("Train") | below("VALID") | below("Test"), TEST + TRAIN + VAL),
    "a folder around": (below("pets/train") | below("pets/test") | NEAR, TEST + TRAIN),
    "two folders around": (below("a/b/train") | {"a/note.txt": b"x", "a/b/x.png": b"x"}, TRAIN),
    "a folder around classes": (below("pets") | {"pets/classes.txt": b"x"}, TRAIN),
    "annotations": (POOL | {"annotations/cat.xml": b"x", "annotations/dog.json": b"x"}, TRAIN),
    "a class named train": (
        POOL | {"train/0.png": noise_png(0)},
        [*(name for name in TRAIN), "train/train/0.png"],
    ),
    "deeper": (
        below("train") | {"train/cat/2021/may/x.png": noise_png(8), "train/cat/2021__may__x.png": noise_png(9)},
        [*TRAIN[:3], "train/cat/2021__may__x (2).png", "train/cat/2021__may__x.png", *TRAIN[3:]],
    ),
    "astray": (below("train") | below("other") | {"train/0.png": b"x", "test/0.png": b"x"}, TRAIN),
}


@pytest.mark.parametrize("form", ["directory", "tar.gz", "zip"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_gives_its_members_and_every_file_is_used_or_listed(
    name: str, form: str, tmp_path: Path, raw: Path
) -> None:
    files, expected = LAYOUTS[name]
    manifest = packed(FORMS[form](tmp_path / "origin", shuffle(files)), raw)
    assert members(manifest) == sorted(expected)
    assert manifest["classes"] == sorted({member.split("/")[1] for member in expected})
    assert manifest["found"] == len(files) == len(manifest["members"]) + len(manifest["skipped"])


def test_files_of_the_operating_system_are_not_counted(tmp_path: Path, raw: Path) -> None:
    folders = ("__MACOSX", ".ipynb_checkpoints", "@eaDir", "$RECYCLE.BIN", "lost+found", ".Trashes", ".git", "#recycle")
    names = ("Thumbs.db", "desktop.ini", "ehthumbs.db", ".DS_Store", "._0.png")
    system_files = {f"{folder}/cat/0.png": b"x" for folder in folders} | {f"cat/{name}": b"x" for name in names}
    for form in ("directory", "tar.gz", "zip"):
        manifest = packed(FORMS[form](tmp_path / form, POOL | system_files), raw)
        assert members(manifest) == TRAIN
        assert manifest["found"] == len(POOL)


# --- names ---


class _NoFlag(zipfile.ZipInfo):
    """An entry whose name is written as these bytes, without the UTF-8 flag."""

    raw: bytes = b""

    def _encodeFilenameFlags(self) -> tuple[bytes, int]:  # noqa: N802 - zipfile's name
        return self.raw, self.flag_bits & ~0x800


def as_zip_with_names(path: Path, files: dict[bytes, bytes], extra: dict[bytes, str], system: int = 3) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for number, (raw_name, content) in enumerate(files.items()):
            info = _NoFlag(f"{number}")
            info.raw, info.create_system = raw_name, system
            if raw_name in extra:
                field = struct.pack("<BI", 1, zlib.crc32(raw_name)) + extra[raw_name].encode()
                info.extra = struct.pack("<HH", 0x5455, 1) + b"\1" + struct.pack("<HH", 0x7075, len(field)) + field
            archive.writestr(info, content)
    return path


def test_the_same_images_give_the_same_bytes_for_all_encodings_of_names(tmp_path: Path, raw: Path) -> None:
    composed = {f"train/{name}/Ä{number}.png": noise_png(number) for number in range(3) for name in ("Käfer", "Biene")}
    decomposed = {unicodedata.normalize("NFD", name): content for name, content in composed.items()}
    assert not set(composed) & set(decomposed)
    plain = {name.encode(): content for name, content in decomposed.items()}
    dos = {name.replace("/", "\\").encode("cp437"): content for name, content in composed.items()}
    named = {f"train\\{number}".encode(): content for number, content in enumerate(composed.values())}
    fields = dict(zip(named, composed, strict=True))
    origins_made = [
        as_directory(tmp_path / "nfc", composed),
        as_directory(tmp_path / "nfd", decomposed),
        as_tar(tmp_path / "nfd.tar", decomposed),
        as_zip(tmp_path / "flagged.zip", composed),
        as_zip_with_names(tmp_path / "mac.zip", plain, {}),
        as_zip_with_names(tmp_path / "dos.zip", dos, {}, system=0),
        as_zip_with_names(tmp_path / "info-zip.zip", named, fields),
    ]
    seen: set[bytes] = set()
    for origin in origins_made:
        assert packed(origin, raw)["classes"] == ["Biene", "Käfer"]
        seen.add((raw / "images.tar").read_bytes() + (raw / "manifest.json").read_bytes())
    assert len(seen) == 1


def test_a_class_in_two_unicode_forms_is_one_class_with_all_images(tmp_path: Path, raw: Path) -> None:
    files = {f"train/Käfer/{name}.png": noise_png(number) for number, name in enumerate("äb")}
    files |= {unicodedata.normalize("NFD", name): content for name, content in files.items()}
    files |= below("train") | {"test/Käfer/0.png": noise_png(3)}
    for form in ("directory", "tar", "zip"):
        manifest = packed(FORMS[form](tmp_path / form, shuffle(files)), raw)
        assert manifest["classes"] == ["Käfer", "cat", "dog"]
        assert {"train/Käfer/ä.png", "train/Käfer/ä (2).png", "train/Käfer/b (2).png", "test/Käfer/0.png"} < set(
            members(manifest)
        )
        assert manifest["skipped"] == []


# --- links ---


def test_safe_links_in_a_directory_are_followed(tmp_path: Path, raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    origin = as_directory(tmp_path / "origin", below("train"))
    outside = as_directory(
        tmp_path / "outside", {"cow/1.png": noise_png(77), "cow/key": b"secret", "x.png": noise_png(78)}
    )
    (outside / "cow/back").symlink_to(origin)
    (outside / "cow/link.png").symlink_to(outside / "x.png")
    (origin / "train/cow").symlink_to(outside / "cow")
    (origin / "train/cat/link.png").symlink_to(outside / "x.png")
    (origin / "train/cat/key.png").symlink_to(outside / "cow/key")
    (origin / "train/cat/nowhere.png").symlink_to("/nowhere")
    (origin / "train/cat/self.png").symlink_to("self.png")
    (origin / "train/cat/loop").symlink_to(origin)
    (origin / "train/cat/root").symlink_to("/")
    (origin / "train/cat/system").symlink_to("/proc/self")
    (origin / "train/dog/cats").symlink_to("../cat")
    os.mkfifo(origin / "train/cat/pipe.png")
    (origin / "train/cat/pipe2.png").symlink_to("pipe.png")
    with monkeypatch.context() as there, socket.socket(socket.AF_UNIX) as unix:
        there.chdir(origin / "train/cat")  # the address of a socket has about 100 characters at most
        unix.bind("socket.png")
    manifest = packed(origin, raw)
    linked = ["train/cat/link.png", "train/cow/1.png", "train/cow/link.png"]
    assert members(manifest) == sorted([*TRAIN, *linked])
    counted = "a link to a folder that is counted already, or that holds this one"
    assert dict(manifest["skipped"]) == {
        "train/cat/key.png": "a link to a file that is not an image",
        "train/cat/loop": counted,
        "train/cat/nowhere.png": "a link to a file that does not exist",
        "train/cat/pipe.png": "not a plain file",
        "train/cat/pipe2.png": "not a plain file",
        "train/cat/root": counted,
        "train/cat/self.png": "a link to itself",
        "train/cat/socket.png": "not a plain file",
        "train/cat/system": "a link into /proc, /sys, /dev or /etc",
        "train/cow/back": counted,
        "train/cow/key": "a link to a file that is not an image",
        "train/dog/cats": counted,
    }
    assert manifest["found"] == len(POOL) + len(linked) + 12


def test_a_split_made_of_links_gives_the_same_bytes(tmp_path: Path, raw: Path) -> None:
    files = below("train") | below("test")
    packed(as_directory(tmp_path / "files", files), raw)
    expected = (raw / "images.tar").read_bytes()
    for split in ("train", "test"):
        (tmp_path / "links" / split / "dog").mkdir(parents=True)
        (tmp_path / "links" / split / "cat").symlink_to(tmp_path / "files" / split / "cat")
        for path in (tmp_path / "files" / split / "dog").iterdir():
            (tmp_path / "links" / split / "dog" / path.name).symlink_to(path)
    (tmp_path / "whole").symlink_to(tmp_path / "links")
    packed(tmp_path / "whole", raw)
    assert (raw / "images.tar").read_bytes() == expected


def test_links_inside_a_tar_give_the_members_that_they_name(tmp_path: Path, raw: Path) -> None:
    packed(as_directory(tmp_path / "files", below("train") | {"train/cat/9.png": POOL["cat/0.png"]}), raw)
    expected = (raw / "images.tar").read_bytes()
    for links in (
        [tar_member("train/cat/9.png", tarfile.LNKTYPE, target="train/cat/0.png")],
        [tar_member("train/cat/9.png", tarfile.LNKTYPE, target="./train/cat/0.png")],
        [tar_member("train/cat/9.png", tarfile.SYMTYPE, target="../cat/0.png")],
        [
            tar_member("train/cat/9.png", tarfile.SYMTYPE, target="../../.pool/0.png"),
            tar_member(".pool/0.png", tarfile.LNKTYPE, target="train/cat/0.png"),
        ],
    ):
        (tmp_path / "origin").write_bytes(gzip.compress(tar_bytes(below("train"), *links)))
        assert packed(tmp_path / "origin", raw)["skipped"] == []
        assert (raw / "images.tar").read_bytes() == expected


def test_links_inside_a_tar_cannot_make_it_suspiciously_large(tmp_path: Path, raw: Path) -> None:
    links = [tar_member(f"train/cat/l{number}.png", tarfile.LNKTYPE, target="train/cat/0.png") for number in range(9)]
    content = tar_bytes(below("train") | {"train/cat/0.png": bytes(2**20)}, *links)
    (tmp_path / "origin").write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("imageclf.download.archives.MAX_BYTES", 2**22)
        with pytest.raises(UserError, match="the unpacked archive is suspiciously large"):
            packed(tmp_path / "origin", raw)


# --- neither a directory nor an archive ---


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"Rar!\x1a\x07\1\0", "is a RAR archive; unpack it and name the directory instead"),
        (b"7z\xbc\xaf\x27\x1c\0\4", "is a 7z archive; unpack it and name the directory instead"),
        (b"\x28\xb5\x2f\xfd\0", "is compressed with Zstandard; unpack it"),
        (gzip.compress(noise_png(1)), "is one compressed file, not an archive of a folder; unpack it"),
        (b"\xef\xbb\xbf\n<!DOCTYPE html><html>", "is a web page, not an archive: the download went wrong"),
        (b"<html><body>", "is a web page, not an archive"),
        (noise_png(1), "is an image; name the directory that holds the folders of the classes"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer, not the archive itself; run `git lfs"),
        (b"outs:\n- md5: 0\n", "is a text file; name a directory, or a tar or zip archive"),
        (zip_bytes({"pets.tar": tar_bytes(pets())}), "has no .*; it has the archive 'pets.tar': unpack that first"),
    ],
)
def test_another_kind_of_file_is_named_with_the_remedy(
    content: bytes, sentence: str, tmp_path: Path, raw: Path
) -> None:
    (tmp_path / "origin.zip").write_bytes(content)
    with pytest.raises(UserError, match=f"folder: .*origin.zip {sentence}"):
        packed(tmp_path / "origin.zip", raw)


def test_a_tar_whose_first_name_begins_like_an_image_is_a_tar(tmp_path: Path, raw: Path) -> None:
    files = {"BMW/0.png": noise_png(0), "GIF8/0.png": noise_png(1), "Rar!/0.png": noise_png(2)}
    for first, content in files.items():
        manifest = packed(as_tar(tmp_path / "origin", {first: content, **files}), raw)
        assert manifest["classes"] == ["BMW", "GIF8", "Rar!"]


def test_the_folder_is_found_at_home_in_the_project_and_from_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("home/pets", "repository/images", "copy"):
        (tmp_path / place).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "copy")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "repository"))
    assert origins.locate("~/pets") == tmp_path / "home/pets"
    assert origins.locate("images") == tmp_path / "repository/images"
    (tmp_path / "copy/images").mkdir()
    assert origins.locate("images") == Path("images")
    with pytest.raises(UserError, match="folder: nowhere does not exist; name a directory, or a tar or zip archive"):
        origins.locate("nowhere")
    (tmp_path / "copy/pets.dvc").touch()
    with pytest.raises(UserError, match=r"folder: pets does not exist; run `uv run dvc pull pets.dvc`"):
        origins.locate("pets")
    with pytest.raises(UserError, match="folder: the home folder in '~nobody-at-all/pets' does not exist"):
        origins.locate("~nobody-at-all/pets")
    os.mkfifo(tmp_path / "copy/pipe")
    with pytest.raises(UserError, match="folder: pipe is neither a file nor a directory"):
        origins.locate("pipe")
