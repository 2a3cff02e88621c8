"""Tests that files are complete or absent, and that damaged files are refused."""

import errno
import os
import stat
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import NoReturn

import pytest
from conftest import names

from imageclf.core import files
from imageclf.core.errors import UserError


def test_new_content_is_complete_and_the_only_file(tmp_path: Path) -> None:
    files.write_text(tmp_path / "new" / "x", "héllo")
    assert (tmp_path / "new" / "x").read_bytes() == "héllo".encode()
    assert names(tmp_path / "new") == ["x"]


def _write_half(path: Path, error: type[BaseException]) -> NoReturn:
    path.write_text("half of the n")
    raise error


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt, SystemExit])
def test_an_error_leaves_the_old_content_and_no_temporary_file(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "x").write_text("old")
    with pytest.raises(error), files.replacing(tmp_path / "x") as temporary:
        _write_half(temporary, error)
    assert (tmp_path / "x").read_text() == "old"
    assert names(tmp_path) == ["x"]


def test_content_that_is_not_json_leaves_the_old_content(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("old")
    with pytest.raises(TypeError):
        files.write_json(tmp_path / "x.json", {"a": object()})
    assert (tmp_path / "x.json").read_text() == "old"


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_a_link_is_replaced_and_its_target_does_not_change(tmp_path: Path, link: Callable[[Path, Path], None]) -> None:
    """Outputs may be links into DVC's cache."""
    (tmp_path / "cached").write_text("old")
    link(tmp_path / "cached", tmp_path / "x")
    files.write_text(tmp_path / "x", "new")
    assert (tmp_path / "x").read_text() == "new"
    assert (tmp_path / "cached").read_text() == "old"


def test_the_file_reaches_the_disk_before_its_name_and_the_name_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def record_fsync(descriptor: int) -> None:
        status = os.fstat(descriptor)
        events.append("fsync folder" if stat.S_ISDIR(status.st_mode) else f"fsync {status.st_size} bytes")
        fsync(descriptor)

    def record_replace(path: Path, target: Path) -> Path:
        events.append("rename")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(Path, "replace", record_replace)
    files.write_text(tmp_path / "x", "whole")
    assert events == ["fsync 5 bytes", "rename", "fsync folder"]


def test_keep_only_creates_the_folder(tmp_path: Path) -> None:
    files.keep_only(tmp_path / "a" / "b", set())
    assert (tmp_path / "a" / "b").is_dir()


def test_keep_only_deletes_everything_else(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    folder = tmp_path / "folder"
    (folder / "subfolder" / "deeper").mkdir(parents=True)
    outside.mkdir()
    for path in (folder / "kept", folder / "stray", folder / ".x.1.tmp", folder / "subfolder" / "x", outside / "x"):
        path.write_text("x")
    (folder / "link").symlink_to(outside)
    files.keep_only(folder, {"kept", "missing"})
    assert names(folder) == ["kept"]
    assert (outside / "x").read_text() == "x"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_are_refused(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "x.json", {"loss": value})
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_manifest(tmp_path / "x.json", {"loss": value})
    assert names(tmp_path) == []


def test_sha256_is_the_published_one(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")  # FIPS 180-2, appendix B.1
    assert files.sha256(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


CONTENT = {"classes": ["ō", 'a "b"'], "mean": [0.1, 1e-07], "none": None, "counts": {"train": 3}}


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Write a manifest with CONTENT; return its path."""
    files.write_manifest(tmp_path / "x.json", CONTENT)
    return tmp_path / "x.json"


def test_a_manifest_reads_back_with_its_digest(manifest: Path) -> None:
    read = files.read_manifest(manifest, made_by="train", parse=dict)
    assert len(read.pop("sha256")) == 64
    assert read == CONTENT


def test_the_digest_depends_on_the_content_and_not_on_the_order_of_keys(manifest: Path) -> None:
    digest = files.read_manifest(manifest, made_by="train", parse=dict)["sha256"]
    files.write_manifest(manifest, dict(reversed(CONTENT.items())))
    assert files.read_manifest(manifest, made_by="train", parse=dict)["sha256"] == digest
    files.write_manifest(manifest, {**CONTENT, "none": 0})
    assert files.read_manifest(manifest, made_by="train", parse=dict)["sha256"] != digest


@pytest.mark.parametrize("mask", [0x01, 0x20, 0x80, 0xFF])
def test_every_flipped_byte_of_a_manifest_is_refused(manifest: Path, mask: int) -> None:
    original = manifest.read_bytes()
    for position in range(len(original)):
        flipped = bytearray(original)
        flipped[position] ^= mask
        manifest.write_bytes(flipped)
        with pytest.raises(UserError, match=r"x\.json is not what train wrote"):
            files.read_manifest(manifest, made_by="train", parse=dict)


def test_every_truncation_of_a_manifest_is_refused(manifest: Path) -> None:
    original = manifest.read_bytes()
    for length in range(len(original)):
        manifest.write_bytes(original[:length])
        with pytest.raises(UserError, match=r"x\.json is not what train wrote"):
            files.read_manifest(manifest, made_by="train", parse=dict)


@pytest.mark.parametrize("text", ["[]", '"sha256"', "3", "null", "{}", '{"sha256": null}', "[" * 10**5, "9" * 5000])
def test_json_that_is_not_a_manifest_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match="uv run dvc repro --force --single-item train"):
        files.read_manifest(tmp_path / "x.json", made_by="train", parse=dict)


def test_a_missing_manifest_names_the_stage_to_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"x\.json is missing: run `uv run dvc repro train`"):
        files.read_manifest(tmp_path / "x.json", made_by="train", parse=dict)


def test_verify_accepts_only_the_right_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    digest = files.sha256(path)
    files.verify(path, digest, made_by="download")
    path.write_bytes(b"abd")
    with pytest.raises(UserError, match="x is not what download wrote"):
        files.verify(path, digest, made_by="download")
    path.unlink()
    with pytest.raises(UserError, match="x is missing: run `uv run dvc repro download`"):
        files.verify(path, digest, made_by="download")


@pytest.mark.parametrize(("number", "fails"), [(errno.EINVAL, False), (errno.EIO, True)])
def test_a_disk_that_cannot_sync_a_folder_is_accepted_and_a_failing_disk_is_an_error(
    number: int, fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="Input/output") if fails else nullcontext():
        files.write_text(tmp_path / "x", "text")
    assert (tmp_path / "x").read_text() == "text"
