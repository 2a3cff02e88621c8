"""One's own images come as the same bytes from every form, and a hostile archive gives its images and nothing else."""

import bz2
import gzip
import io
import json
import lzma
import os
import random
import shutil
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import names, peak_below
from imports import ROOT
from PIL import Image

from imageclf import archives, folder, images, layout, origins, pack, splits
from imageclf.errors import UserError
from imageclf.raw import RawData
from stages import download, preprocess
from stages import list as list_stage

CIFAR = ROOT.parent / "shared" / "datasets" / "cifar10-images.tar.xz"

Files = dict[str, bytes]


def picture(seed: int, height: int = 6, width: int = 5) -> bytes:
    """A PNG of noise."""
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(256, size=(height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def made(**more: bytes) -> Files:
    """Twelve images to train on and four to test with, of two classes."""
    files = {f"train/{name}/{number}.png": picture(number) for number in range(6) for name in ("cat", "dog")}
    return files | {f"test/{name}/{number}.png": picture(90 + number) for number in range(2) for name in ("cat", "dog")}


# --- the forms in which a folder may come ---


def as_directory(path: Path, files: Files) -> Path:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def tar_bytes(files: Files, *extra: tarfile.TarInfo, prefix: str = "", **options: Any) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", **options) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(prefix + name)
            member.size, member.mtime, member.mode, member.uid = len(content), 1_700_000_000, 0o777, 1000
            tar.addfile(member, io.BytesIO(content))
        for member in extra:
            tar.addfile(member, io.BytesIO(bytes(max(member.size, 0))) if member.isreg() else None)
    return stream.getvalue()


def as_tar(path: Path, files: Files, compress: Callable[[bytes], bytes] = bytes, **options: Any) -> Path:
    path.write_bytes(compress(tar_bytes(files, **options)))
    return path


def as_zip(path: Path, files: Files, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def shuffled(files: Files) -> Files:
    order = list(files.items())
    random.Random(3).shuffle(order)
    return dict(order)


FORMS: dict[str, Callable[[Path, Files], Path]] = {
    "directory": as_directory,
    "tar": as_tar,
    "tar in pax": lambda path, files: as_tar(path, files, format=tarfile.PAX_FORMAT),
    "tar from ./": lambda path, files: as_tar(path, files, prefix="./"),
    "tar.gz": lambda path, files: as_tar(path, files, gzip.compress),
    "tar.bz2": lambda path, files: as_tar(path, files, bz2.compress),
    "tar.xz": lambda path, files: as_tar(path, files, lzma.compress),
    "zip": as_zip,
    "zip, stored": lambda path, files: as_zip(path, files, zipfile.ZIP_STORED),
}


def packed(origin: Path, raw: Path) -> dict[str, Any]:
    """The manifest of a packed folder."""
    return pack.pack(origin, raw, progress=False)


def read(raw: Path, image_size: int | None = None) -> RawData:
    return folder.read(raw, image_size, workers=1, progress=False)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return tmp_path / "data" / "raw"


@pytest.mark.parametrize("form", FORMS)
def test_every_form_in_every_order_gives_the_same_bytes(form: str, tmp_path: Path, raw: Path) -> None:
    as_directory(tmp_path / "reference", made())
    packed(tmp_path / "reference", tmp_path / "reference_raw")
    packed(FORMS[form](tmp_path / "origin", shuffled(made())), raw)
    assert names(raw) == ["images.tar", "manifest.json"]
    for name in names(raw):
        assert (raw / name).read_bytes() == (tmp_path / "reference_raw" / name).read_bytes()


def test_the_tar_holds_names_and_bytes_and_nothing_else(tmp_path: Path, raw: Path) -> None:
    manifest = packed(as_tar(tmp_path / "origin", shuffled(made())), raw)
    with tarfile.open(raw / "images.tar") as tar:
        members = tar.getmembers()
        assert [member.name for member in members] == sorted(made())
        assert {(member.mode, member.uid, member.gid, member.mtime) for member in members} == {(0o644, 0, 0, 0)}
        for member, (name, offset, size) in zip(members, manifest["members"], strict=True):
            assert (member.name, member.offset_data, member.size) == (name, offset, size)
            stream = tar.extractfile(member)
            assert stream is not None
            assert stream.read() == made()[name]


def test_the_images_and_labels_are_read_in_the_order_of_names(tmp_path: Path, raw: Path) -> None:
    packed(as_zip(tmp_path / "origin", shuffled(made())), raw)
    data = read(raw)
    assert (data.classes, data.image_shape, data.skipped) == (("cat", "dog"), (3, 6, 5), ())
    for split in ("train", "test"):
        files = {name: content for name, content in sorted(made().items()) if name.startswith(split)}
        expected = np.stack([images.decode(content) for content in files.values()])
        assert np.array_equal(np.concatenate(list(data.splits[split].chunks())), expected)
        assert data.splits[split].labels.tolist() == [int("dog" in name) for name in files]


def test_names_are_kept_verbatim(tmp_path: Path, raw: Path) -> None:
    strange = ["-rf", "$(touch X)", "; touch X", "a\nb", "Käfer", "two words", "'\"`", "x" * 120]
    files = {f"train/{name}/{name}.png": picture(1) for name in strange}
    for form in (as_directory, as_tar, as_zip):
        manifest = packed(form(tmp_path / form.__name__, files), raw)
        assert manifest["classes"] == sorted(strange)
        assert [member[0] for member in manifest["members"]] == sorted(files)
        assert read(raw).classes == tuple(sorted(strange))
    assert not (tmp_path / "X").exists()
    assert not Path("X").exists()


def test_a_file_name_that_is_not_utf_8_is_packed_as_text_and_such_a_class_refused(tmp_path: Path, raw: Path) -> None:
    origin = as_directory(tmp_path / "origin", made())
    os.rename(origin / "train/cat/0.png", os.fsencode(origin) + b"/train/cat/K\xe4tzchen.png")  # noqa: PTH104 - bytes
    (origin / "train/cat/1.png").rename(origin / "train/cat/K\u00e4tzchen.png")
    assert {"train/cat/K\u00e4tzchen.png", "train/cat/K\u00e4tzchen (2).png"} < {
        name for name, *_ in packed(origin, raw)["members"]
    }
    assert len(read(raw).splits["train"].labels) == 12
    os.rename(origin / "train/dog", os.fsencode(origin) + b"/train/H\xfcndchen")  # noqa: PTH104 - bytes
    shutil.rmtree(origin / "test")
    with pytest.raises(
        UserError, match=r"the name of the class 'H\\udcfcndchen' is not UTF-8; rename it, to 'H\u00fcndchen'"
    ):
        packed(origin, raw)


def test_a_folder_without_test_images_is_one_pool(tmp_path: Path, raw: Path) -> None:
    packed(as_tar(tmp_path / "origin", {name: data for name, data in made().items() if "test" not in name}), raw)
    assert set(read(raw).splits) == {"train"}


def test_a_second_packing_replaces_the_first(tmp_path: Path, raw: Path) -> None:
    raw.mkdir(parents=True)
    (raw / "train-images-idx3-ubyte.gz").touch()
    first = packed(as_tar(tmp_path / "first", made()), raw)
    second = packed(as_tar(tmp_path / "second", made() | {"train/cat/7.png": picture(7)}), raw)
    assert first != second
    assert names(raw) == ["images.tar", "manifest.json"]


def test_another_tar_than_the_manifests_is_refused(tmp_path: Path, raw: Path) -> None:
    packed(as_tar(tmp_path / "origin", made()), raw)
    content = bytearray((raw / "images.tar").read_bytes())
    content[600] ^= 1
    (raw / "images.tar").write_bytes(content)
    with pytest.raises(UserError, match=r"images\.tar is not what download wrote"):
        read(raw)
    (raw / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"manifest\.json is missing: run `dvc repro download`"):
        read(raw)


# --- what is passed over, left out, refused ---


def test_hidden_files_and_litter_are_passed_over(tmp_path: Path, raw: Path) -> None:
    litter = dict.fromkeys(
        (
            ".gitkeep",
            ".git/config",
            "train/.DS_Store",
            "train/.ipynb_checkpoints/0.png",
            "train/cat/.0.png.swp",
            "train/cat/Thumbs.db",
            "train/dog/desktop.ini",
            "__MACOSX/train/cat/._0.png",
        ),
        b"x",
    )
    for form in (as_directory, as_tar, as_zip):
        manifest = packed(form(tmp_path / form.__name__, made() | litter), raw)
        assert manifest["classes"] == ["cat", "dog"]
        assert len(manifest["members"]) == len(made())
        assert manifest["skipped"] == []


def test_what_is_not_in_its_place_is_left_out_and_listed(tmp_path: Path, raw: Path) -> None:
    stray = dict.fromkeys(("README.md", "train/a.png", "other/cat/0.png", "test/labels/0.txt"), b"x")
    for form in (as_directory, as_tar, as_zip):
        manifest = packed(form(tmp_path / form.__name__, made() | stray), raw)
        assert manifest["classes"] == ["cat", "dog"]
        assert manifest["found"] == len(made()) + len(stray)
        assert manifest["skipped"] == [
            ("README.md", "not in the folder of a class"),
            ("other/cat/0.png", "not in train/, val/ or test/"),
            ("test/labels/0.txt", "in a folder without images"),
            ("train/a.png", "not in the folder of a class"),
        ]


def test_the_directory_itself_may_be_a_link(tmp_path: Path, raw: Path) -> None:
    (tmp_path / "link").symlink_to(as_directory(tmp_path / "origin", made()))
    assert len(packed(tmp_path / "link", raw)["members"]) == len(made())


def member(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, target: str = "") -> tarfile.TarInfo:
    """A member of a tar, as hostile as one likes."""
    made = tarfile.TarInfo(name)
    made.type, made.size, made.linkname = kind, size, target
    return made


NO_MEMBER = "a link to no file in the archive"
HOSTILE = [
    (member("/train/cat/absolute.png", size=3), "a path that leads elsewhere"),
    (member("//train/cat/absolute.png", size=3), "a path that leads elsewhere"),
    (member("../escaped.png", size=3), "a path that leads elsewhere"),
    (member("train/../../escaped.png", size=3), "a path that leads elsewhere"),
    (member("train/cat/../dog/moved.png", size=3), "a path that leads elsewhere"),
    (member("train/cat/symlink.png", tarfile.SYMTYPE, target="/etc/passwd"), NO_MEMBER),
    (member("train/cat/hardlink.png", tarfile.LNKTYPE, target="../../../etc/passwd"), NO_MEMBER),
    (member("train/folder", tarfile.SYMTYPE, target="/tmp"), NO_MEMBER),
    (member("train/cat/self.png", tarfile.SYMTYPE, target="self.png"), NO_MEMBER),
    (member("train/cat/hidden.png", tarfile.LNKTYPE, target="train/cat/pipe"), "not a plain file"),
    (member("train/cat/null", tarfile.CHRTYPE), "not a plain file"),
    (member("train/cat/disk", tarfile.BLKTYPE), "not a plain file"),
    (member("train/cat/pipe", tarfile.FIFOTYPE), "not a plain file"),
    (member("train/cat/0.png", size=3), "a second file of this name"),
    (member("train//cat/./0.png", size=3), "a second file of this name"),
    (member("train\\cat\\1.png", size=3), "not in the folder of a class"),
]


def test_hostile_members_of_a_tar_are_left_out_and_listed(tmp_path: Path, raw: Path) -> None:
    (tmp_path / "origin").write_bytes(gzip.compress(tar_bytes(made(), *(hostile for hostile, _ in HOSTILE))))
    manifest = packed(tmp_path / "origin", raw)
    assert [name for name, *_ in manifest["members"]] == sorted(made())
    assert manifest["skipped"] == sorted((hostile.name, problem) for hostile, problem in HOSTILE)
    assert names(tmp_path) == ["data", "origin"]
    assert names(raw) == ["images.tar", "manifest.json"]
    assert np.array_equal(next(read(raw).splits["train"].chunks())[0], images.decode(made()["train/cat/0.png"]))


def test_hostile_members_of_a_zip_are_left_out_and_listed(tmp_path: Path, raw: Path) -> None:
    as_zip(tmp_path / "origin", made())
    link = zipfile.ZipInfo("train/cat/link.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "origin", "a") as archive:
        archive.writestr(link, "/etc/passwd")
        archive.writestr("../escaped.png", b"x")
        archive.writestr("/train/cat/absolute.png", b"x")
        archive.writestr("train/cat/damaged.png", b"PIXELS" * 9)
    content = bytearray((tmp_path / "origin").read_bytes())
    content[content.index(b"PIXELS")] ^= 1
    (tmp_path / "origin").write_bytes(content)
    manifest = packed(tmp_path / "origin", raw)
    assert [name for name, *_ in manifest["members"]] == sorted(made())
    assert manifest["skipped"] == [
        ("../escaped.png", "a path that leads elsewhere"),
        ("/train/cat/absolute.png", "a path that leads elsewhere"),
        ("train/cat/damaged.png", "damaged: Bad CRC-32"),
        ("train/cat/link.png", "a link or device"),
    ]


def test_an_encrypted_file_of_a_zip_is_left_out(tmp_path: Path, raw: Path) -> None:
    as_zip(tmp_path / "origin", made() | {"train/cat/secret.png": b"x"})
    content = bytearray((tmp_path / "origin").read_bytes())
    for signature, flags in ((b"PK\1\2", 8), (b"PK\3\4", 6)):
        content[content.rindex(signature, 0, content.rindex(b"train/cat/secret.png")) + flags] |= 1
    (tmp_path / "origin").write_bytes(content)
    assert packed(tmp_path / "origin", raw)["skipped"] == [("train/cat/secret.png", "encrypted")]


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_file_of_a_zip_that_cannot_be_unpacked_in_bounds_is_left_out(method: int, tmp_path: Path, raw: Path) -> None:
    as_zip(tmp_path / "origin", made())
    with zipfile.ZipFile(tmp_path / "origin", "a", method) as archive:
        archive.writestr("train/cat/other.png", b"x")
    assert packed(tmp_path / "origin", raw)["skipped"] == [
        ("train/cat/other.png", "compressed otherwise than by deflate")
    ]


@pytest.mark.parametrize("form", ["directory", "tar", "tar.xz", "zip"])
def test_a_file_that_is_too_large_is_left_out(
    form: str, tmp_path: Path, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "MAX_FILE", 2**20)
    origin = FORMS[form](tmp_path / "origin", made() | {"train/cat/large.bmp": bytes(2**20 + 1)})
    assert packed(origin, raw)["skipped"] == [("train/cat/large.bmp", "more than 1 MiB")]


# --- archives that would cost too much ---


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_a_tar_that_unpacks_to_too_much_is_refused_in_time(
    compress: Callable[[bytes], bytes], tmp_path: Path, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "FREE_BYTES", 2**20)
    bomb = made() | {f"train/cat/zeros{number}.bmp": bytes(2**22) for number in range(16)}
    as_tar(tmp_path / "origin", bomb, compress)
    written: list[int] = []
    real = archives._check_size
    monkeypatch.setattr(
        archives, "_check_size", lambda unpacked, size: (written.append(unpacked), real(unpacked, size))
    )
    with pytest.raises(UserError, match="unpacks to suspiciously much; unpack it and name the directory instead"):
        packed(tmp_path / "origin", raw)
    assert max(written) < 2**20 + 100 * (tmp_path / "origin").stat().st_size + 2**21
    assert names(raw) == []


def test_a_zip_that_unpacks_to_too_much_is_refused_unread(
    tmp_path: Path, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "FREE_BYTES", 2**20)
    as_zip(tmp_path / "origin", made() | {"train/cat/zeros.bmp": bytes(2**26)})
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda *_: pytest.fail("it was read"))
    with pytest.raises(UserError, match="unpacks to suspiciously much"):
        packed(tmp_path / "origin", raw)


def test_a_zip_whose_directory_lies_about_a_size_is_read_to_that_size(tmp_path: Path, raw: Path) -> None:
    as_zip(tmp_path / "origin", made() | {"train/cat/zeros.bmp": bytes(2**26)})
    content = (tmp_path / "origin").read_bytes()
    (tmp_path / "origin").write_bytes(content.replace(struct.pack("<I", 2**26), struct.pack("<I", 9)))
    with peak_below(2**23):
        assert packed(tmp_path / "origin", raw)["skipped"][0].reason.startswith("damaged")


@pytest.mark.parametrize("form", ["tar", "zip"])
def test_too_many_entries_are_refused(form: str, tmp_path: Path, raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_ENTRIES", 15)
    with pytest.raises(UserError, match="lists more than 15 files"):
        packed(FORMS[form](tmp_path / "origin", made()), raw)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
def test_a_header_of_many_bytes_is_not_read_into_memory(kind: bytes, tmp_path: Path, raw: Path) -> None:
    header = member("long", kind, size=2**27).tobuf()
    as_tar(tmp_path / "origin", made(), lambda content: gzip.compress(header + bytes(2**27) + content, 1))
    with peak_below(2**23), pytest.raises(UserError, match="a header is too large"):
        packed(tmp_path / "origin", raw)


def negative(size: int) -> bytes:
    """A tar header whose size is below zero, as tarfile reads it (CVE-2025-8194)."""
    header = bytearray(member("train/cat/negative.png").tobuf())
    header[124:136] = size.to_bytes(12, "big", signed=True)
    header[148:156] = b"%06o\0 " % (256 + sum(header[:148]) + sum(header[156:]))
    return bytes(header[:512])


@pytest.mark.parametrize("size", [-512, -1024, -10_000])
def test_a_header_that_points_backwards_ends_the_reading(size: int, tmp_path: Path, raw: Path) -> None:
    as_tar(tmp_path / "origin", made(), lambda content: content[:-10240] + negative(size) + bytes(1024))
    with pytest.raises(UserError, match="origin is not a tar or zip archive that can be read: a header points back"):
        packed(tmp_path / "origin", raw)


def test_a_small_negative_size_is_no_file(tmp_path: Path, raw: Path) -> None:
    files = tar_bytes(made()).rstrip(b"\0")
    padded = files + bytes(-len(files) % 512)
    (tmp_path / "origin").write_bytes(padded + negative(-5) + bytes(1024))
    assert packed(tmp_path / "origin", raw)["skipped"] == [("train/cat/negative.png", "not a plain file")]


@pytest.mark.parametrize("form", ["tar", "tar.gz", "tar.bz2", "tar.xz", "zip"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_truncated_archive_is_refused(form: str, share: float, tmp_path: Path, raw: Path) -> None:
    origin = FORMS[form](tmp_path / "origin", made())
    content = origin.read_bytes().rstrip(b"\0") if form == "tar" else origin.read_bytes()
    origin.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UserError, match="is not a tar or zip archive that can be read"):
        packed(origin, raw)
    assert names(raw) == []


def test_a_damaged_header_does_not_end_the_list_in_silence(tmp_path: Path, raw: Path) -> None:
    content = bytearray(tar_bytes(made()))
    content[content.index(b"train/dog/4.png")] ^= 1
    (tmp_path / "origin").write_bytes(content)
    with pytest.raises(UserError, match=r"the header at byte \d+ is damaged"):
        packed(tmp_path / "origin", raw)


@pytest.mark.parametrize("content", [b"", b"\0no archive", b"\xff" * 4096, b"PK\3\4", b"\x1f\x8b", b"BZh9"])
def test_what_is_no_archive_is_refused(content: bytes, tmp_path: Path, raw: Path) -> None:
    (tmp_path / "origin").write_bytes(content)
    with pytest.raises(UserError, match=r"folder: .*origin is not a tar or zip archive that can be read: "):
        packed(tmp_path / "origin", raw)


# --- what cannot be learnt from ---


NO_CLASS = "origin has no train/<class>/<image> and no <class>/<image>"


@pytest.mark.parametrize("form", ["directory", "tar", "zip"])
@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({}, f"{NO_CLASS}$"),
        ({".gitkeep": b""}, f"{NO_CLASS}$"),
        ({"0.png": b"", "1.png": b""}, f"{NO_CLASS}; it has '0.png', not in the folder of a class$"),
        ({"train/0.png": b"", "test/1.png": b""}, f"{NO_CLASS}; it has 'test/1.png', not in the folder of a class$"),
        ({"all.tar": b"", "readme.txt": b""}, f"{NO_CLASS}; it has the archive 'all.tar': unpack that first$"),
        ({"test/cat/0.png": b"", "test/dog/0.png": b""}, f"{NO_CLASS}$"),
        ({"train/cat/0.png": b""}, "origin has the one class 'cat'; there must be another to tell it from"),
        (
            {"train/cat/0.png": b"", "train/dog/0.png": b"", "test/cow/0.png": b""},
            "origin has 'test/cow', a class that train/ lacks",
        ),
        (
            {"train/cat/0.png": b"", "train/dog/0.png": b"", "val/cow/0.png": b""},
            "origin has 'val/cow', a class that train/ lacks; rename it or take it away$",
        ),
        (
            {"Train/cat/0.png": b"", "train/dog/0.png": b""},
            "origin has both 'Train' and 'train'; put their images into",
        ),
        (
            {"cat/0.png": b"", "dog/0.png": b"", "test/cat/0.png": b""},
            "has 'test' next to classes; put the classes into",
        ),
        (
            {"2020/train/cat/0.png": b"", "2021/train/dog/0.png": b""},
            "has '2020/train' next to other folders; name the",
        ),
        (
            {"seg_test/cat/0.png": b"", "seg_train/cat/0.png": b""},
            "has 'seg_test' and 'seg_train'; rename them to train",
        ),
    ],
)
def test_a_folder_that_cannot_be_learnt_from_is_refused(
    form: str, files: Files, sentence: str, tmp_path: Path, raw: Path
) -> None:
    (tmp_path / "origin").mkdir() if form == "directory" else None
    with pytest.raises(UserError, match=sentence):
        packed(FORMS[form](tmp_path / "origin", files), raw)
    assert names(raw) == []


def test_an_empty_class_is_refused(tmp_path: Path, raw: Path) -> None:
    (as_directory(tmp_path / "origin", made()) / "train/cow").mkdir()
    with pytest.raises(UserError, match="has no image in the class 'cow'; put some there or take it away"):
        packed(tmp_path / "origin", raw)
    (tmp_path / "tar").write_bytes(tar_bytes(made(), member("train/cow/", tarfile.DIRTYPE)))
    with pytest.raises(UserError, match="has no image in the class 'cow'"):
        packed(tmp_path / "tar", raw)


def test_a_copy_of_the_project_says_why_it_has_no_images(
    tmp_path: Path, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_ROOT", "/elsewhere")
    (tmp_path / "origin").mkdir()
    with pytest.raises(UserError, match="experiment lacks what git ignores, unless its path is absolute"):
        packed(tmp_path / "origin", raw)


# --- what cannot be decoded ---


def test_broken_files_are_left_out_and_listed(tmp_path: Path, raw: Path) -> None:
    broken = {"train/cat/note.txt": b"text", "test/dog/cut.png": picture(5)[:-30], "train/dog/empty.jpg": b""}
    packed(as_tar(tmp_path / "origin", made() | broken | {"stray": b""}), raw)
    data = read(raw)
    assert [name for name, _ in data.skipped] == ["stray", *sorted(broken)]
    assert data.skipped[-1] == ("train/dog/empty.jpg", "not a PNG, JPEG, BMP, GIF or WEBP image")
    assert {split: len(part.labels) for split, part in data.splits.items()} == {"train": 12, "test": 4}
    assert {split: sum(map(len, part.chunks())) for split, part in data.splits.items()} == {"train": 12, "test": 4}


@pytest.mark.parametrize("place", ["train/cow", "test/dog"])
def test_a_class_whose_files_are_all_broken_is_refused(place: str, tmp_path: Path, raw: Path) -> None:
    files = {name: content for name, content in made().items() if not name.startswith(place)}
    files |= {"test/cow/0.png": picture(0), "train/cow/0.png": picture(0)}
    packed(as_tar(tmp_path / "origin", files | {f"{place}/0.png": b"x", f"{place}/1.png": b"y"}), raw)
    with pytest.raises(UserError, match=f"{place}: none of its 2 files is an image that can be read"):
        read(raw)


def test_a_class_whose_files_are_all_damaged_in_a_zip_is_refused(tmp_path: Path, raw: Path) -> None:
    as_zip(tmp_path / "origin", made() | {"train/cow/0.png": b"PIXELS"}, zipfile.ZIP_STORED)
    (tmp_path / "origin").write_bytes((tmp_path / "origin").read_bytes().replace(b"PIXELS", b"PIXELZ"))
    packed(tmp_path / "origin", raw)
    with pytest.raises(UserError, match="train/cow: none of its 0 files is an image that can be read"):
        read(raw)


def test_a_folder_whose_files_are_all_broken_is_refused(tmp_path: Path, raw: Path) -> None:
    packed(as_tar(tmp_path / "origin", dict.fromkeys(made(), b"x")), raw)
    with pytest.raises(UserError, match=r"none of the 16 files in .* is an image that can be read"):
        read(raw)


def test_images_of_different_size_need_image_size(tmp_path: Path, raw: Path) -> None:
    packed(as_tar(tmp_path / "origin", made() | {"train/dog/9.png": picture(9, height=7)}), raw)
    with pytest.raises(UserError, match=r"'test/cat/0.png' has 5x6 pixels, 'train/dog/9.png' has 5x7; image_size"):
        read(raw)
    data = read(raw, image_size=4)
    assert data.image_shape == (3, 4, 4)
    assert len(data.splits["train"].labels) == 13


def test_reading_leaves_no_file(tmp_path: Path, raw: Path) -> None:
    packed(as_tar(tmp_path / "origin", made()), raw)
    data = read(raw)
    assert names(raw.parent) == ["raw"]
    assert names(raw) == ["images.tar", "manifest.json"]
    assert len(next(data.splits["train"].chunks())) == 12


# --- both stages ---


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to run the first two stages in."""
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return tmp_path / "project"


def prepare(project: Path, origin: Path, **knobs: str) -> splits.Prepared:
    """Run both stages on `origin`."""
    text = (ROOT / "params.yaml").read_text()
    for key, value in {"dataset": "folder", "folder": json.dumps(str(origin)), **knobs}.items():
        start = text.index(f"\n{key}:")
        text = text[:start] + f"\n{key}: {value}" + text[text.index("\n", start + 1) :]
    (project / "params.yaml").write_text(text)
    list_stage.main()
    download.main()
    preprocess.main()
    return splits.read(project / "data" / "processed")


def test_the_order_of_creation_changes_no_bit_of_the_prepared_data(project: Path, tmp_path: Path) -> None:
    first = prepare(project, as_directory(tmp_path / "first", made()))
    for form in ("directory", "tar.xz", "zip"):
        assert prepare(project, FORMS[form](tmp_path / form, shuffled(made()))).sha256 == first.sha256


def test_skipped_files_are_counted_printed_and_listed(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = {f"train/cat/broken{number:02}.png": b"\x1b[31m" for number in range(12)}
    prepared = prepare(project, as_tar(tmp_path / "origin", made() | broken | {"a\nnote": b""}))
    assert len(prepared.manifest["skipped"]) == 13
    lines = capsys.readouterr().out.split("\n")
    assert lines[:3] == [
        "28 of 29 files; 2 classes: 'cat', 'dog'",
        "skipped 1 files, all listed in data/raw/manifest.json:",
        "  1: not in the folder of a class: 'a\\nnote'",
    ]
    assert "skipped 13 files, all listed in data/processed/dataset.json:" in lines
    (line,) = (line for line in lines if "broken" in line)
    listed = ", ".join(f"'train/cat/broken{number:02}.png'" for number in range(3))
    assert line == f"  12: not a PNG, JPEG, BMP, GIF or WEBP image: {listed}, ..."


def test_the_manifest_tells_what_was_done_to_the_pixels(project: Path, tmp_path: Path) -> None:
    origin = as_tar(tmp_path / "origin", made())
    as_they_are = prepare(project, origin).manifest
    assert (as_they_are["dataset"], as_they_are["raw_shape"], as_they_are["image_size"]) == ("folder", [3, 6, 5], None)
    resized = prepare(project, origin, image_size="4", grayscale="true", pad="1")
    assert (resized.manifest["raw_shape"], resized.image_shape) == ([3, 4, 4], (1, 6, 6))
    assert resized.preparation == {"grayscale": True, "image_size": None, "pad": 1}


def test_a_fifth_is_held_back_where_there_is_no_test(project: Path, tmp_path: Path) -> None:
    files = {f"train/{name}/{number}.png": picture(number) for number in range(20) for name in ("cat", "dog")}
    prepared = prepare(project, as_tar(tmp_path / "origin", files))
    assert prepared.manifest["counts"] == {"train": 29, "val": 3, "test": 8}
    assert np.bincount(prepared["test"].labels).tolist() == [4, 4]


# --- the real thing ---


@pytest.mark.realdata
@pytest.mark.skipif(not CIFAR.is_file(), reason=f"{CIFAR} is not on this machine")
def test_the_listing_of_real_images(tmp_path: Path) -> None:
    with origins.opened(CIFAR, scratch=tmp_path) as entries:
        classes, chosen, skipped = layout.arrange(CIFAR, entries)
        assert (len(classes), len(chosen), skipped) == (10, 60_000, [])
        for name in list(chosen)[::6000]:
            assert images.decode(chosen[name].read()).shape == (3, 32, 32)
