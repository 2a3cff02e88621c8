"""Tests that a changed file in DVC's cache is refused, and that outputs contain nothing about the user."""

import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from project import Project

pytestmark = [pytest.mark.faults, pytest.mark.pipeline]

CANARY = "canary-7f3a9c"
SECRETS: dict[str, Any] = {
    "HOME": f"/nowhere/{CANARY}-home",
    "USER": f"{CANARY}-user",
    "LOGNAME": f"{CANARY}-login",
    "HF_TOKEN": f"{CANARY}-token",
    "AWS_SECRET_ACCESS_KEY": f"{CANARY}-key",
    "MLFLOW_TRACKING_PASSWORD": f"{CANARY}-password",
    "HOSTNAME": f"{CANARY}-host",
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Create a project after `dvc repro` by a user with secrets in the environment."""
    made = Project(tmp_path_factory.mktemp("guards"), epochs="1", model="mlp", hidden="[16]")
    home = tmp_path_factory.mktemp(CANARY)
    made.run("dvc", "repro", **{**SECRETS, "HOME": str(home)})
    made.commit()
    return made


def test_no_user_name_token_or_home_folder_is_in_any_output(project: Project) -> None:
    kept = [project.root / name for name in ("dvc.lock", "mlflow.db", "data", "metrics", "mlartifacts", ".dvc/cache")]
    found = [path for place in kept for path in (place.rglob("*") if place.is_dir() else [place]) if path.is_file()]
    assert len(found) > 30
    for path in found:
        content = path.read_bytes()
        assert CANARY.encode() not in content, path
        assert b"somebody@example.org" not in content, path


@pytest.mark.parametrize(
    ("output", "folder", "made_by"),
    [
        ("data/model/model.safetensors", "data/model", "train"),
        ("data/processed/test_images.npy", "data/processed", "preprocess"),
    ],
)
def test_a_changed_file_in_the_cache_is_refused_and_the_printed_command_repairs_it(
    project: Project, output: str, folder: str, made_by: str
) -> None:
    """DVC does not verify a read-only file in its cache before it restores it."""
    content, scores = (project.root / output).read_bytes(), (project.root / "metrics/test.json").read_bytes()
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
    shutil.rmtree(project.root / folder)
    change_last_byte(project.root / ".dvc/cache/files/md5" / digest[:2] / digest[2:])
    project.run("dvc", "checkout", folder)
    output_text = project.run("dvc", "repro", "--force", "--single-item", "evaluate", code=255)
    assert f"{output} is not what {made_by} wrote" in output_text
    assert "Traceback" not in output_text
    assert not (project.root / "metrics/test.json").exists()  # deleted by DVC before the stage, which wrote no scores
    command = output_text.split("make it again with `")[1].split("`")[0]
    project.run("sh", "-c", command, UV_NO_SYNC="1", UV_PROJECT_ENVIRONMENT=sys.prefix)  # the environment of this test
    assert (project.root / output).read_bytes() == content
    project.run("dvc", "repro")
    assert (project.root / "metrics/test.json").read_bytes() == scores


def change_last_byte(cached: Path) -> None:
    """Change the last byte of a file in the cache, and leave it read-only."""
    content = cached.read_bytes()
    cached.chmod(0o644)
    cached.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    cached.chmod(0o444)


@pytest.mark.parametrize("name", ["; touch marker", "$(touch marker)", "`touch marker`", "-rf", "a && touch marker"])
def test_a_folder_named_like_a_command_runs_nothing(project: Project, name: str) -> None:
    """The folder, a class and a file have this name."""
    for kind in (name, "plain"):
        image = project.root / name / "train" / kind / f"{name}.bmp"
        image.parent.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(image)
    project.set(dataset="folder", folder=json.dumps(name))
    try:
        assert "2 of 2 files; 2 classes" in project.run("dvc", "repro", "download")
        manifest = json.loads((project.root / "data/raw/manifest.json").read_text())
    finally:
        project.run("git", "checkout", "-q", "--", ".")
        shutil.rmtree(project.root / name)
    assert manifest["classes"] == sorted([name, "plain"])
    assert list(project.root.rglob("marker")) == []
