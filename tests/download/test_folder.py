"""Tests of packing your own images: every form gives the same bytes, and malicious archives do no harm."""

import bz2
import gzip
import json
import lzma
import os
import shutil
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import names, peak_below
from helpers import (
    FORMS,
    UNCHANGED,
    Files,
    as_directory,
    as_tar,
    as_zip,
    decode,
    decoded,
    noise_png,
    packed,
    pets,
    shuffle,
    tar_bytes,
    tar_member,
)
from imports import ROOT

from imageclf.contracts import dataset
from imageclf.contracts.raw import RawData
from imageclf.core.errors import UserError
from imageclf.download import archives, layout, origins
from imageclf.preprocess import folder
from stages import download, preprocess
from stages import list as list_stage

CIFAR = ROOT.parent / "shared" / "datasets" / "cifar10-images.tar.xz"


def read(raw: Path, image_size: int | None = None) -> RawData:
    return folder.read(raw, image_size, workers=1, progress=False)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return tmp_path / "data" / "raw"


@pytest.mark.parametrize("form", FORMS)
def test_every_form_in_every_order_gives_the_same_bytes(form: str, tmp_path: Path, raw: Path) -> None:
    as_directory(tmp_path / "reference", pets())
    packed(tmp_path / "reference", tmp_path / "reference_raw")
    packed(FORMS[form](tmp_path / "origin", shuffle(pets())), raw)
    assert names(raw) == ["images.tar", "manifest.json"]
    for name in names(raw):
        assert (raw / name).read_bytes() == (tmp_path / "reference_raw" / name).read_bytes()


def test_the_tar_has_no_times_modes_and_owners(tmp_path: Path, raw: Path) -> None:
    manifest = packed(as_tar(tmp_path / "origin", shuffle(pets())), raw)
    with tarfile.open(raw / "images.tar") as tar:
        members = tar.getmembers()
        assert [member.name for member in members] == sorted(pets())
        assert {(member.mode, member.uid, member.gid, member.mtime) for member in members} == {(0o644, 0, 0, 0)}
        for member, (name, offset, size) in zip(members, manifest["members"], strict=True):
            assert (member.name, member.offset_data, member.size) == (name, offset, size)
            stream = tar.extractfile(member)
            assert stream is not None
            assert stream.read() == pets()[name]


def test_images_and_labels_are_sorted_by_name(tmp_path: Path, raw: Path) -> None:
    packed(as_zip(tmp_path / "origin", shuffle(pets())), raw)
    data = read(raw)
    assert (data.classes, data.image_shape, data.skipped) == (("cat", "dog"), (3, 6, 5), ())
    for split in ("train", "test"):
        files = {name: content for name, content in sorted(pets().items()) if name.startswith(split)}
        expected = np.stack([decode(content) for content in files.values()])
        assert np.array_equal(decoded(data.splits[split]), expected)
        assert data.splits[split].labels.tolist() == [int("dog" in name) for name in files]


def test_names_do_not_change(tmp_path: Path, raw: Path) -> None:
    strange = ["-rf", "$(touch X)", "; touch X", "a\nb", "Käfer", "two words", "'\"`", "x" * 120]
    files = {f"train/{name}/{name}.png": noise_png(1) for name in strange}
    for form in (as_directory, as_tar, as_zip):
        manifest = packed(form(tmp_path / form.__name__, files), raw)
        assert manifest["classes"] == sorted(strange)
        assert [member[0] for member in manifest["members"]] == sorted(files)
        assert read(raw).classes == tuple(sorted(strange))
    assert not (tmp_path / "X").exists()
    assert not Path("X").exists()


def test_a_file_name_that_is_not_utf_8_is_packed_as_text_and_such_a_class_refused(tmp_path: Path, raw: Path) -> None:
    origin = as_directory(tmp_path / "origin", pets())
    os.rename(origin / "train/cat/0.png", os.fsencode(origin) + b"/train/cat/K\xe4tzchen.png")  # noqa: PTH104 - bytes
    (origin / "train/cat/1.png").rename(origin / "train/cat/K\u00e4tzchen.png")
    assert {"train/cat/K\u00e4tzchen.png", "train/cat/K\u00e4tzchen (2).png"} < {
        name for name, *_ in packed(origin, raw)["members"]
    }
    assert len(read(raw).splits["train"].labels) == 12
    os.rename(origin / "train/dog", os.fsencode(origin) + b"/train/H\xfcndchen")  # noqa: PTH104 - bytes
    shutil.rmtree(origin / "test")
    with pytest.raises(
        UserError,
        match=r"the name of the class 'H\\udcfcndchen' is not UTF-8; rename it, for example to 'H\u00fcndchen'",
    ):
        packed(origin, raw)


def test_a_folder_without_test_images_has_only_a_train_split(tmp_path: Path, raw: Path) -> None:
    packed(as_tar(tmp_path / "origin", {name: data for name, data in pets().items() if "test" not in name}), raw)
    assert set(read(raw).splits) == {"train"}


def test_a_second_packing_replaces_the_first(tmp_path: Path, raw: Path) -> None:
    raw.mkdir(parents=True)
    (raw / "train-images-idx3-ubyte.gz").touch()
    first = packed(as_tar(tmp_path / "first", pets()), raw)
    second = packed(as_tar(tmp_path / "second", pets() | {"train/cat/7.png": noise_png(7)}), raw)
    assert first != second
    assert names(raw) == ["images.tar", "manifest.json"]


def test_a_changed_tar_is_refused(tmp_path: Path, raw: Path) -> None:
    packed(as_tar(tmp_path / "origin", pets()), raw)
    content = bytearray((raw / "images.tar").read_bytes())
    content[600] ^= 1
    (raw / "images.tar").write_bytes(content)
    with pytest.raises(UserError, match=r"images\.tar is not what download wrote"):
        read(raw)
    (raw / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"manifest\.json is missing: run `uv run dvc repro download`"):
        read(raw)


# --- ignored, skipped and refused files ---


def test_hidden_files_and_system_files_are_ignored(tmp_path: Path, raw: Path) -> None:
    system_files = dict.fromkeys(
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
        manifest = packed(form(tmp_path / form.__name__, pets() | system_files), raw)
        assert manifest["classes"] == ["cat", "dog"]
        assert len(manifest["members"]) == len(pets())
        assert manifest["skipped"] == []


def test_files_outside_of_classes_are_skipped_and_listed(tmp_path: Path, raw: Path) -> None:
    stray = dict.fromkeys(("README.md", "train/a.png", "other/cat/0.png", "test/labels/0.txt"), b"x")
    for form in (as_directory, as_tar, as_zip):
        manifest = packed(form(tmp_path / form.__name__, pets() | stray), raw)
        assert manifest["classes"] == ["cat", "dog"]
        assert manifest["found"] == len(pets()) + len(stray)
        assert manifest["skipped"] == [
            ("README.md", "not in the folder of a class"),
            ("other/cat/0.png", "not in train/, val/ or test/"),
            ("test/labels/0.txt", "in a folder without images"),
            ("train/a.png", "not in the folder of a class"),
        ]


def test_the_directory_itself_may_be_a_link(tmp_path: Path, raw: Path) -> None:
    (tmp_path / "link").symlink_to(as_directory(tmp_path / "origin", pets()))
    assert len(packed(tmp_path / "link", raw)["members"]) == len(pets())


NO_MEMBER = "a link to no file in the archive"
MALICIOUS = [
    (tar_member("/train/cat/absolute.png", size=3), "an absolute path, or a path with .."),
    (tar_member("//train/cat/absolute.png", size=3), "an absolute path, or a path with .."),
    (tar_member("../escaped.png", size=3), "an absolute path, or a path with .."),
    (tar_member("train/../../escaped.png", size=3), "an absolute path, or a path with .."),
    (tar_member("train/cat/../dog/moved.png", size=3), "an absolute path, or a path with .."),
    (tar_member("train/cat/symlink.png", tarfile.SYMTYPE, target="/etc/passwd"), NO_MEMBER),
    (tar_member("train/cat/hardlink.png", tarfile.LNKTYPE, target="../../../etc/passwd"), NO_MEMBER),
    (tar_member("train/folder", tarfile.SYMTYPE, target="/tmp"), NO_MEMBER),
    (tar_member("train/cat/self.png", tarfile.SYMTYPE, target="self.png"), NO_MEMBER),
    (tar_member("train/cat/hidden.png", tarfile.LNKTYPE, target="train/cat/pipe"), "not a plain file"),
    (tar_member("train/cat/null", tarfile.CHRTYPE), "not a plain file"),
    (tar_member("train/cat/disk", tarfile.BLKTYPE), "not a plain file"),
    (tar_member("train/cat/pipe", tarfile.FIFOTYPE), "not a plain file"),
    (tar_member("train/cat/0.png", size=3), "a second file of this name"),
    (tar_member("train//cat/./0.png", size=3), "a second file of this name"),
    (tar_member("train\\cat\\1.png", size=3), "not in the folder of a class"),
]


def test_malicious_members_of_a_tar_are_skipped_and_listed(tmp_path: Path, raw: Path) -> None:
    (tmp_path / "origin").write_bytes(gzip.compress(tar_bytes(pets(), *(malicious for malicious, _ in MALICIOUS))))
    manifest = packed(tmp_path / "origin", raw)
    assert [name for name, *_ in manifest["members"]] == sorted(pets())
    assert manifest["skipped"] == sorted((malicious.name, problem) for malicious, problem in MALICIOUS)
    assert names(tmp_path) == ["data", "origin"]
    assert names(raw) == ["images.tar", "manifest.json"]
    assert np.array_equal(next(read(raw).splits["train"].chunks())[0], decode(pets()["train/cat/0.png"]))


def test_malicious_members_of_a_zip_are_skipped_and_listed(tmp_path: Path, raw: Path) -> None:
    as_zip(tmp_path / "origin", pets())
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
    assert [name for name, *_ in manifest["members"]] == sorted(pets())
    assert manifest["skipped"] == [
        ("../escaped.png", "an absolute path, or a path with .."),
        ("/train/cat/absolute.png", "an absolute path, or a path with .."),
        ("train/cat/damaged.png", "damaged: Bad CRC-32"),
        ("train/cat/link.png", "a link or device"),
    ]


def test_an_encrypted_file_of_a_zip_is_skipped(tmp_path: Path, raw: Path) -> None:
    as_zip(tmp_path / "origin", pets() | {"train/cat/secret.png": b"x"})
    content = bytearray((tmp_path / "origin").read_bytes())
    for signature, flags in ((b"PK\1\2", 8), (b"PK\3\4", 6)):
        content[content.rindex(signature, 0, content.rindex(b"train/cat/secret.png")) + flags] |= 1
    (tmp_path / "origin").write_bytes(content)
    assert packed(tmp_path / "origin", raw)["skipped"] == [("train/cat/secret.png", "encrypted")]


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_file_of_a_zip_with_another_compression_is_skipped(method: int, tmp_path: Path, raw: Path) -> None:
    as_zip(tmp_path / "origin", pets())
    with zipfile.ZipFile(tmp_path / "origin", "a", method) as archive:
        archive.writestr("train/cat/other.png", b"x")
    assert packed(tmp_path / "origin", raw)["skipped"] == [
        ("train/cat/other.png", "compressed by another method than deflate")
    ]


@pytest.mark.parametrize("form", ["directory", "tar", "tar.xz", "zip"])
def test_a_file_that_is_too_large_is_skipped(
    form: str, tmp_path: Path, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "MAX_FILE", 2**20)
    origin = FORMS[form](tmp_path / "origin", pets() | {"train/cat/large.bmp": bytes(2**20 + 1)})
    assert packed(origin, raw)["skipped"] == [("train/cat/large.bmp", "more than 1 MiB")]


# --- archives that are too large ---


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_a_tar_whose_content_is_too_large_is_refused_before_it_is_unpacked(
    compress: Callable[[bytes], bytes], tmp_path: Path, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "FREE_BYTES", 2**20)
    bomb = pets() | {f"train/cat/zeros{number}.bmp": bytes(2**22) for number in range(16)}
    as_tar(tmp_path / "origin", bomb, compress)
    written: list[int] = []
    real = archives._check_size
    monkeypatch.setattr(
        archives, "_check_size", lambda unpacked, size: (written.append(unpacked), real(unpacked, size))
    )
    with pytest.raises(
        UserError, match="the unpacked archive is suspiciously large; unpack it and name the directory instead"
    ):
        packed(tmp_path / "origin", raw)
    assert max(written) < 2**20 + 100 * (tmp_path / "origin").stat().st_size + 2**21
    assert names(raw) == []


def test_a_zip_whose_content_is_too_large_is_refused_unread(
    tmp_path: Path, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "FREE_BYTES", 2**20)
    as_zip(tmp_path / "origin", pets() | {"train/cat/zeros.bmp": bytes(2**26)})
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda *_: pytest.fail("it was read"))
    with pytest.raises(UserError, match="the unpacked archive is suspiciously large"):
        packed(tmp_path / "origin", raw)


def test_a_file_of_a_zip_is_read_up_to_the_listed_size(tmp_path: Path, raw: Path) -> None:
    as_zip(tmp_path / "origin", pets() | {"train/cat/zeros.bmp": bytes(2**26)})
    content = (tmp_path / "origin").read_bytes()
    (tmp_path / "origin").write_bytes(content.replace(struct.pack("<I", 2**26), struct.pack("<I", 9)))
    with peak_below(2**23):
        assert packed(tmp_path / "origin", raw)["skipped"][0].reason.startswith("damaged")


@pytest.mark.parametrize("form", ["tar", "zip"])
def test_too_many_entries_are_refused(form: str, tmp_path: Path, raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_ENTRIES", 15)
    with pytest.raises(UserError, match="lists more than 15 files"):
        packed(FORMS[form](tmp_path / "origin", pets()), raw)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
def test_a_large_header_is_not_read_into_memory(kind: bytes, tmp_path: Path, raw: Path) -> None:
    header = tar_member("long", kind, size=2**27).tobuf()
    as_tar(tmp_path / "origin", pets(), lambda content: gzip.compress(header + bytes(2**27) + content, 1))
    with peak_below(2**23), pytest.raises(UserError, match="a header is too large"):
        packed(tmp_path / "origin", raw)


def negative(size: int) -> bytes:
    """Return a tar header with a negative size (CVE-2025-8194)."""
    header = bytearray(tar_member("train/cat/negative.png").tobuf())
    header[124:136] = size.to_bytes(12, "big", signed=True)
    header[148:156] = b"%06o\0 " % (256 + sum(header[:148]) + sum(header[156:]))
    return bytes(header[:512])


@pytest.mark.parametrize("size", [-512, -1024, -10_000])
def test_a_header_that_points_backwards_ends_the_reading(size: int, tmp_path: Path, raw: Path) -> None:
    as_tar(tmp_path / "origin", pets(), lambda content: content[:-10240] + negative(size) + bytes(1024))
    with pytest.raises(UserError, match="origin is not a tar or zip archive that can be read: a header points back"):
        packed(tmp_path / "origin", raw)


def test_a_file_of_negative_size_is_skipped(tmp_path: Path, raw: Path) -> None:
    files = tar_bytes(pets()).rstrip(b"\0")
    padded = files + bytes(-len(files) % 512)
    (tmp_path / "origin").write_bytes(padded + negative(-5) + bytes(1024))
    assert packed(tmp_path / "origin", raw)["skipped"] == [("train/cat/negative.png", "not a plain file")]


@pytest.mark.parametrize("form", ["tar", "tar.gz", "tar.bz2", "tar.xz", "zip"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_truncated_archive_is_refused(form: str, share: float, tmp_path: Path, raw: Path) -> None:
    origin = FORMS[form](tmp_path / "origin", pets())
    content = origin.read_bytes().rstrip(b"\0") if form == "tar" else origin.read_bytes()
    origin.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UserError, match="is not a tar or zip archive that can be read"):
        packed(origin, raw)
    assert names(raw) == []


def test_a_damaged_header_is_an_error(tmp_path: Path, raw: Path) -> None:
    content = bytearray(tar_bytes(pets()))
    content[content.index(b"train/dog/4.png")] ^= 1
    (tmp_path / "origin").write_bytes(content)
    with pytest.raises(UserError, match=r"the header at byte \d+ is damaged"):
        packed(tmp_path / "origin", raw)


@pytest.mark.parametrize("content", [b"", b"\0no archive", b"\xff" * 4096, b"PK\3\4", b"\x1f\x8b", b"BZh9"])
def test_a_file_that_is_not_an_archive_is_refused(content: bytes, tmp_path: Path, raw: Path) -> None:
    (tmp_path / "origin").write_bytes(content)
    with pytest.raises(UserError, match=r"folder: .*origin is not a tar or zip archive that can be read: "):
        packed(tmp_path / "origin", raw)


# --- folders without usable classes ---


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
        ({"train/cat/0.png": b""}, "origin has only one class, 'cat'; at least two are needed"),
        (
            {"train/cat/0.png": b"", "train/dog/0.png": b"", "test/cow/0.png": b""},
            "origin has 'test/cow', but train/ does not have this class",
        ),
        (
            {"train/cat/0.png": b"", "train/dog/0.png": b"", "val/cow/0.png": b""},
            "origin has 'val/cow', but train/ does not have this class; rename or remove it$",
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
def test_a_folder_without_usable_classes_is_refused(
    form: str, files: Files, sentence: str, tmp_path: Path, raw: Path
) -> None:
    (tmp_path / "origin").mkdir() if form == "directory" else None
    with pytest.raises(UserError, match=sentence):
        packed(FORMS[form](tmp_path / "origin", files), raw)
    assert names(raw) == []


def test_an_empty_class_is_refused(tmp_path: Path, raw: Path) -> None:
    (as_directory(tmp_path / "origin", pets()) / "train/cow").mkdir()
    with pytest.raises(UserError, match="has no image in the class 'cow'; add images, or remove the class"):
        packed(tmp_path / "origin", raw)
    (tmp_path / "tar").write_bytes(tar_bytes(pets(), tar_member("train/cow/", tarfile.DIRTYPE)))
    with pytest.raises(UserError, match="has no image in the class 'cow'"):
        packed(tmp_path / "tar", raw)


def test_the_error_in_a_copy_of_the_project_names_the_cause(
    tmp_path: Path, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_ROOT", "/elsewhere")
    (tmp_path / "origin").mkdir()
    with pytest.raises(
        UserError, match="experiment does not see files that git ignores, unless `folder` is an absolute path"
    ):
        packed(tmp_path / "origin", raw)


# --- damaged files ---


def test_damaged_files_are_skipped_and_listed(tmp_path: Path, raw: Path) -> None:
    damaged = {"train/cat/note.txt": b"text", "test/dog/cut.png": noise_png(5)[:-30], "train/dog/empty.jpg": b""}
    packed(as_tar(tmp_path / "origin", pets() | damaged | {"stray": b""}), raw)
    data = read(raw)
    assert [name for name, _ in data.skipped] == ["stray", *sorted(damaged)]
    assert data.skipped[-1] == ("train/dog/empty.jpg", "not a PNG, JPEG, BMP, GIF or WEBP image")
    assert {split: len(part.labels) for split, part in data.splits.items()} == {"train": 12, "test": 4}
    assert {split: sum(map(len, part.chunks())) for split, part in data.splits.items()} == {"train": 12, "test": 4}


@pytest.mark.parametrize("place", ["train/cow", "test/dog"])
def test_a_class_whose_files_are_all_damaged_is_refused(place: str, tmp_path: Path, raw: Path) -> None:
    files = {name: content for name, content in pets().items() if not name.startswith(place)}
    files |= {"test/cow/0.png": noise_png(0), "train/cow/0.png": noise_png(0)}
    packed(as_tar(tmp_path / "origin", files | {f"{place}/0.png": b"x", f"{place}/1.png": b"y"}), raw)
    with pytest.raises(UserError, match=f"{place}: none of its 2 files is an image that can be read"):
        read(raw)


def test_a_class_whose_files_are_all_damaged_in_a_zip_is_refused(tmp_path: Path, raw: Path) -> None:
    as_zip(tmp_path / "origin", pets() | {"train/cow/0.png": b"PIXELS"}, zipfile.ZIP_STORED)
    (tmp_path / "origin").write_bytes((tmp_path / "origin").read_bytes().replace(b"PIXELS", b"PIXELZ"))
    packed(tmp_path / "origin", raw)
    with pytest.raises(UserError, match="train/cow: none of its 0 files is an image that can be read"):
        read(raw)


def test_a_folder_whose_files_are_all_damaged_is_refused(tmp_path: Path, raw: Path) -> None:
    packed(as_tar(tmp_path / "origin", dict.fromkeys(pets(), b"x")), raw)
    with pytest.raises(UserError, match=r"none of the 16 files in .* is an image that can be read"):
        read(raw)


def test_images_of_different_size_need_image_size(tmp_path: Path, raw: Path) -> None:
    packed(as_tar(tmp_path / "origin", pets() | {"train/dog/9.png": noise_png(9, height=7)}), raw)
    with pytest.raises(UserError, match=r"'test/cat/0.png' has 5x6 pixels, 'train/dog/9.png' has 5x7; set image_size"):
        read(raw)
    data = read(raw, image_size=4)
    assert data.image_shape == (3, 4, 4)
    assert len(data.splits["train"].labels) == 13


def test_reading_leaves_no_file(tmp_path: Path, raw: Path) -> None:
    packed(as_tar(tmp_path / "origin", pets()), raw)
    data = read(raw)
    assert names(raw.parent) == ["raw"]
    assert names(raw) == ["images.tar", "manifest.json"]
    assert len(next(data.splits["train"].chunks())) == 12


# --- stages ---


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create a folder for the first stages."""
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return tmp_path / "project"


def prepare(project: Path, origin: Path, **changes: str) -> dataset.Prepared:
    """Run list, download and preprocess on `origin`, with changes of params.yaml."""
    text = (ROOT / "params.yaml").read_text()
    for key, value in {"dataset": "folder", "folder": json.dumps(str(origin)), **changes}.items():
        start = text.index(f"\n{key}:")
        text = text[:start] + f"\n{key}: {value}" + text[text.index("\n", start + 1) :]
    (project / "params.yaml").write_text(text)
    list_stage.main()
    download.main()
    preprocess.main()
    return dataset.read(project / "data" / "processed")


def test_the_order_of_creation_changes_no_bit_of_the_prepared_data(project: Path, tmp_path: Path) -> None:
    first = prepare(project, as_directory(tmp_path / "first", pets()))
    for form in ("directory", "tar.xz", "zip"):
        assert prepare(project, FORMS[form](tmp_path / form, shuffle(pets()))).manifest.sha256 == first.manifest.sha256


def test_skipped_files_are_counted_printed_and_listed(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = {f"train/cat/damaged{number:02}.png": b"\x1b[31m" for number in range(12)}
    prepared = prepare(project, as_tar(tmp_path / "origin", pets() | damaged | {"a\nnote": b""}))
    assert len(prepared.manifest.skipped) == 13
    lines = capsys.readouterr().out.split("\n")
    assert lines[:3] == [
        "28 of 29 files; 2 classes: 'cat', 'dog'",
        "skipped 1 files, all listed in data/raw/manifest.json:",
        "  1: not in the folder of a class: 'a\\nnote'",
    ]
    assert "skipped 13 files, all listed in data/processed/dataset.json:" in lines
    (line,) = (line for line in lines if "damaged" in line)
    listed = ", ".join(f"'train/cat/damaged{number:02}.png'" for number in range(3))
    assert line == f"  12: not a PNG, JPEG, BMP, GIF or WEBP image: {listed}, ..."


def test_the_manifest_has_the_preparation(project: Path, tmp_path: Path) -> None:
    origin = as_tar(tmp_path / "origin", pets())
    unchanged = prepare(project, origin).manifest
    assert (unchanged.dataset, unchanged.raw_shape, unchanged.preparation) == ("folder", (3, 6, 5), UNCHANGED)
    resized = prepare(project, origin, image_size="4", grayscale="true", pad="1")
    assert (resized.manifest.raw_shape, resized.manifest.image_shape) == ((3, 4, 4), (1, 6, 6))
    assert resized.manifest.preparation == replace(UNCHANGED, grayscale=True, pad=1)


def test_a_fifth_is_held_out_if_there_is_no_test_split(project: Path, tmp_path: Path) -> None:
    files = {f"train/{name}/{number}.png": noise_png(number) for number in range(20) for name in ("cat", "dog")}
    prepared = prepare(project, as_tar(tmp_path / "origin", files))
    assert prepared.manifest.counts == {"train": 29, "val": 3, "test": 8}
    assert np.bincount(prepared["test"].labels).tolist() == [4, 4]


# --- real images ---


@pytest.mark.realdata
@pytest.mark.skipif(not CIFAR.is_file(), reason=f"{CIFAR} does not exist")
def test_the_listing_of_real_images(tmp_path: Path) -> None:
    with origins.opened(CIFAR, scratch=tmp_path) as entries:
        classes, chosen, skipped = layout.arrange(CIFAR, entries)
        assert (len(classes), len(chosen), skipped) == (10, 60_000, [])
        for name in list(chosen)[::6000]:
            assert decode(chosen[name].read()).shape == (3, 32, 32)
