"""Tests that DVC packs your own folder again if, and only if, a file that it uses has changed."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers import as_directory, as_zip, noise_png, packed, pets
from project import Project

from imageclf.core import paths
from imageclf.core.errors import UserError
from imageclf.download import directories, listing


@pytest.fixture
def origin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create a folder of 16 images, and work in an empty project."""
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.setattr(listing, "RECENT_NS", -1)
    return as_directory(tmp_path / "origin", pets())


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list to which the name of each file is added when it is read."""
    names: list[str] = []
    real = directories._read
    monkeypatch.setattr(directories, "_read", lambda path, most=-1: (names.append(path.name), real(path, most))[1])
    return names


def listed(origin: Path) -> dict[str, Any]:
    return listing.of_folder(str(origin), progress=False)["folder"]


def cache_file() -> Path:
    (path,) = listing.CACHE.iterdir()
    return path


def test_only_what_is_packed_changes_the_listing(origin: Path) -> None:
    before = listed(origin)
    assert (before["images"], before["left_out"]) == (16, 0)
    for name in (".DS_Store", "Thumbs.db", "train/cat/._0.png", "train/.ipynb_checkpoints/cat/0.png"):
        as_directory(origin, {name: b"x"})
    os.utime(origin / "train/cat/0.png")
    assert listed(origin) == before
    (origin / "README.txt").write_text("left out")
    assert listed(origin)["left_out"] == 1
    assert listed(origin)["sha256"] != before["sha256"]
    (origin / "README.txt").unlink()
    (origin / "train/cat/0.png").rename(origin / "train/cat/00.png")
    assert listed(origin)["sha256"] != before["sha256"]


def test_unchanged_files_are_not_read_again(origin: Path, reads: list[str]) -> None:
    before = listed(origin)
    assert len(reads) == 16
    assert listed(origin) == before
    assert len(reads) == 16
    path = origin / "train/cat/0.png"
    status = path.stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert listed(origin)["sha256"] != before["sha256"]
    assert reads[16:] == ["0.png"]


def test_a_damaged_cache_is_ignored(origin: Path, reads: list[str]) -> None:
    before = listed(origin)
    original = cache_file().read_text()
    for content in (
        "",
        "{}",
        "[",
        original[:-9],
        original.replace(next(iter(json.loads(original)["digests"].values())), "0" * 64),
    ):
        cache_file().write_text(content)
        reads.clear()
        assert listed(origin) == before
        assert len(reads) == 16
    assert cache_file().read_text() == original


def test_a_file_that_has_just_changed_is_read_again(
    origin: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "RECENT_NS", 10**12)
    listed(origin)
    listed(origin)
    assert len(reads) == 32


def test_an_archive_is_listed_by_its_content(origin: Path, tmp_path: Path) -> None:
    first = listed(as_zip(tmp_path / "a.zip", pets()))
    assert listed(shutil.copyfile(tmp_path / "a.zip", tmp_path / "b.zip")) == first
    assert listed(as_zip(tmp_path / "c.zip", pets() | {"train/cat/9.png": noise_png(9)})) != first


def test_a_folder_that_changed_after_it_was_listed_is_refused(origin: Path, tmp_path: Path) -> None:
    path = tmp_path / "listing.json"
    for content in (None, "", json.dumps(listing.NO_FOLDER)):
        if content is not None:
            path.write_text(content)
        with pytest.raises(
            UserError, match=r"has changed since it was listed in .*listing.json; run `uv run dvc repro` again"
        ):
            listing.check(path, str(origin), progress=False)
    path.write_text(json.dumps({"folder": listed(origin)}))
    listing.check(path, str(origin), progress=False)
    (origin / "train/cat/0.png").write_bytes(b"x")
    with pytest.raises(UserError, match=r"has changed since it was listed"):
        listing.check(path, str(origin), progress=False)


# --- with real DVC ---


def difficult(origin: Path, outside: Path) -> Path:
    """Create a folder with files on which DVC itself would fail or hang."""
    as_directory(origin, pets())
    as_directory(outside, {"cow/0.png": noise_png(70), "cow/1.png": noise_png(71)})
    (origin / "train/cow").symlink_to(outside / "cow")
    (origin / "train/cat/gone.png").symlink_to("/nowhere/1.jpg")
    (origin / "train/cat/self.png").symlink_to("self.png")
    (origin / "train/cat/loop").symlink_to(origin)
    os.mkfifo(origin / "train/cat/pipe.png")
    os.rename(origin / "train/cat/0.png", os.fsencode(origin) + b"/train/cat/K\xe4tzchen.png")  # noqa: PTH104 - bytes
    return origin


def manifest(project: Project) -> dict[str, Any]:
    return json.loads((project.root / paths.RAW / "manifest.json").read_text())


@pytest.mark.pipeline
def test_dvc_packs_a_difficult_folder_again_only_if_an_image_changes(tmp_path: Path) -> None:
    origin = difficult(tmp_path / "home/pets", tmp_path / "outside")
    (tmp_path / "project").mkdir()
    project = Project(tmp_path / "project", dataset="folder", folder="~/pets")
    home = str(tmp_path / "home")

    def repro() -> list[str]:
        return project.stages_run(project.run("dvc", "repro", "download", HOME=home))

    output = project.run("dvc", "repro", "download", HOME=home)
    assert project.stages_run(output) == ["check", "list", "download"]
    assert "18 of 22 files; 3 classes: 'cat', 'cow', 'dog'\nskipped 4 files" in output
    assert "  1: not a plain file: 'train/cat/pipe.png'\n" in output
    packed_first = (project.root / paths.RAW / "images.tar").read_bytes()
    project.commit()
    as_directory(origin, {".DS_Store": b"x", "train/cat/Thumbs.db": b"x"})
    assert repro() == ["list"]
    assert project.run("git", "status", "--short") == ""
    (origin / "train/dog/0.png").write_bytes(noise_png(55))
    assert repro() == ["list", "download"]
    (origin / "train/dog/0.png").write_bytes(pets()["train/dog/0.png"])
    assert repro() == ["list"]  # the download comes from DVC's cache
    assert (project.root / paths.RAW / "images.tar").read_bytes() == packed_first
    assert project.run("git", "status", "--short") == ""
    shutil.rmtree(project.root / "data")
    assert repro() == ["check", "list"]
    assert project.run("git", "status", "--short") == ""
    (origin / "train/dog/0.png").write_bytes(noise_png(56))
    refused = project.run("dvc", "repro", "-f", "-s", "download", code=255, HOME=home)
    assert (
        "error: folder: ~/pets has changed since it was listed in data/listing.json; run `uv run dvc repro` again"
        in refused
    )


@pytest.mark.pipeline
def test_images_in_the_project_work_in_all_kinds_of_experiments_and_under_dvc_add(tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    project = Project(tmp_path / "project", dataset="folder")
    as_directory(project.root / "images", pets())
    assert project.run("git", "status", "--short") == ""
    for name, download in (("first", ["download"]), ("second", [])):  # in a copy, without what git ignores
        output = project.run("dvc", "exp", "run", "--temp", "-n", name, "download")
        assert project.stages_run(output) == ["check", "list", *download]
    project.run("dvc", "exp", "run", "download")
    project.commit()
    project.run("dvc", "exp", "run", "download")
    assert project.run("git", "status", "--short") == ""
    packed(project.root / "images", tmp_path / "raw")
    project.run("dvc", "config", "--local", "cache.type", "symlink")
    project.run("dvc", "add", "images")
    project.commit()
    assert (project.root / "images/train/cat/0.png").is_symlink()
    assert project.stages_run(project.run("dvc", "repro", "download")) == ["list"]
    assert (project.root / paths.RAW / "images.tar").read_bytes() == (tmp_path / "raw/images.tar").read_bytes()
    shutil.rmtree(project.root / "images")
    refused = project.run("dvc", "repro", "download", code=255)
    assert "error: folder: images does not exist; run `uv run dvc pull images.dvc`" in refused
    assert project.run("git", "status", "--short") == ""
    project.run("dvc", "checkout", "images.dvc")
    refused = project.run("dvc", "exp", "run", "-S", "dataset=mnits", code=255)
    assert "error: params.yaml: dataset: 'mnits' is not one of digits, mnist, " in refused
    assert "; did you mean 'mnist'?" in refused
    assert project.run("git", "status", "--short") == " M params.yaml\n"
