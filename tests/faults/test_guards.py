"""Where DVC trusts and we do not: a tampered cache; and what the record says of the machine: nothing."""

import hashlib
import json
import shutil
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
    """A clone after `dvc repro`, run by somebody with secrets in the environment."""
    made = Project(tmp_path_factory.mktemp("guards"), epochs="1", model="mlp", hidden="[16]")
    home = tmp_path_factory.mktemp(CANARY)
    made.run("dvc", "repro", **{**SECRETS, "HOME": str(home)})
    made.commit()
    return made


def test_no_name_token_or_home_is_in_what_is_kept(project: Project) -> None:
    """In no byte of it: outputs, metrics, lock, MLflow's database and artifacts, DVC's cache."""
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
def test_a_file_tampered_with_in_dvcs_cache_is_refused_and_made_again(
    project: Project, output: str, folder: str, made_by: str
) -> None:
    """DVC does not hash a read-only file of its cache again, and gives it out."""
    whole, scores = (project.root / output).read_bytes(), (project.root / "metrics/test.json").read_bytes()
    digest = hashlib.md5(whole, usedforsecurity=False).hexdigest()
    shutil.rmtree(project.root / folder)
    tamper(project.root / ".dvc/cache/files/md5" / digest[:2] / digest[2:])
    project.run("dvc", "checkout", folder)
    said = project.run("dvc", "repro", "--force", "--single-item", "evaluate", code=255)
    assert f"{output} is not what {made_by} wrote" in said
    assert "Traceback" not in said
    assert not (project.root / "metrics/test.json").exists()  # DVC took it away before, and no score of a lie came
    command = said.split("make it again by `")[1].split("`")[0]
    project.run("sh", "-c", command)
    assert (project.root / output).read_bytes() == whole
    project.run("dvc", "repro")
    assert (project.root / "metrics/test.json").read_bytes() == scores


def tamper(cached: Path) -> None:
    """Flip the last byte of a file in the cache, which stays read-only."""
    content = cached.read_bytes()
    cached.chmod(0o644)
    cached.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    cached.chmod(0o444)


@pytest.mark.parametrize("name", ["; touch marker", "$(touch marker)", "`touch marker`", "-rf", "a && touch marker"])
def test_a_folder_by_the_name_of_a_command_is_a_name(project: Project, name: str) -> None:
    """`folder` is the parameter that dvc.yaml mentions, and here its classes have such names as well."""
    for kind in (name, "plain"):
        image = project.root / name / "train" / kind / f"{name}.bmp"
        image.parent.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(image)
    project.set(dataset="folder", folder=json.dumps(name))
    try:
        assert "2 files of 2 classes" in project.run("dvc", "repro", "download")
        manifest = json.loads((project.root / "data/raw/manifest.json").read_text())
    finally:
        project.run("git", "checkout", "-q", "--", ".")
        shutil.rmtree(project.root / name)
    assert manifest["classes"] == sorted([name, "plain"])
    assert list(project.root.rglob("marker")) == []
