"""Tests with real DVC in a folder of a larger Git repository, in a Git worktree, and on a disk without links."""

import re
import shutil
import sys
from pathlib import Path

import pytest
from project import Project, clean_environment

import stages

pytestmark = pytest.mark.pipeline

NO_LINKS = """
import errno, os, stat

synced = os.fsync


def refused(*_, **__):
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


def sync_file(descriptor):
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    synced(descriptor)


os.link = os.symlink = refused
os.fsync = sync_file
"""
"""Code that makes links and syncing a folder fail, as on a FAT disk or a network share."""

HOSTILE = {"HOME": "/sys", "XDG_CACHE_HOME": "", "TERM": "dumb", "LC_ALL": "C", "OMP_NUM_THREADS": "garbage"}
"""An environment as in a container or a cron job, with a home folder in which not even root can write."""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Return the project as a folder of a larger repository; its path has a space and a quote."""
    repository = tmp_path_factory.mktemp("larger")
    made = Project(repository / "Pia's project" / "imageclf", epochs="1", model="mlp", hidden="[8]")
    params = made.root / "params.yaml"
    params.write_text(params.read_text().replace("tracking: true", "tracking: false"))
    shutil.move(made.root / ".git", repository)
    (repository / "another.txt").write_text("another project\n")
    made.commit()
    return made


def test_a_folder_of_a_larger_repository_on_a_disk_without_links(project: Project, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(NO_LINKS)
    hostile = ("env", "-u", "IMAGECLF_CACHE", *(f"{key}={value}" for key, value in HOSTILE.items()))
    hostile += (f"PYTHONPATH={tmp_path}", "dvc")
    output = project.run(*hostile, "repro")
    assert project.stages_run(output)[-5:] == ["download", "preprocess", "weights", "train", "evaluate"]
    assert "Traceback" not in output
    assert (project.root / "data/model/model.safetensors").stat().st_nlink == 1
    project.commit()
    output = project.run(*hostile, "exp", "run", "--temp", "-n", "copied", "-S", "seed=3")
    assert project.stages_run(output) == ["train", "evaluate"]
    assert "copied" in project.run(sys.executable, "-m", "imageclf.compare", "copied")


def test_a_git_worktree(project: Project, tmp_path: Path) -> None:
    project.run("git", "worktree", "add", "-q", "-b", "side", str(tmp_path / "tree"))
    tree = object.__new__(Project)
    tree.root = tmp_path / "tree" / project.root.relative_to(project.root.parents[1])
    output = tree.run("dvc", "exp", "run", "-n", "grown", "-S", "seed=4")
    assert tree.stages_run(output)[-2:] == ["train", "evaluate"]
    assert "grown" in tree.run(sys.executable, "-m", "imageclf.compare", "grown")
    assert tree.run("git", "symbolic-ref", "HEAD") == "refs/heads/side\n"


def test_the_error_of_another_python_has_the_remedy(project: Project, tmp_path: Path) -> None:
    """DVC is started by its full path, as by pipx or an editor; the first `python` lacks our packages."""
    (tmp_path / "python").symlink_to(getattr(sys, "_base_executable", sys.executable))
    search = f"{tmp_path}:{clean_environment()['PATH']}"
    dvc = shutil.which("dvc")
    assert dvc is not None
    output = project.run(dvc, "repro", "-f", "-s", "download", code=255, PATH=search)
    assert re.search(rf"has no module \w+; {re.escape(stages.REMEDY)}", output)
    assert "Traceback" not in output


def test_autocrlf_does_not_change_text_files(project: Project, tmp_path: Path) -> None:
    repository = str(project.root.parents[1])
    project.run("git", "clone", "-q", "-c", "core.autocrlf=true", repository, str(tmp_path / "clone"))
    copy = tmp_path / "clone" / project.root.relative_to(repository)
    for name in ("params.yaml", "dvc.yaml", "dvc.lock", "src/imageclf/training/fit.py", "docs/recipes.png"):
        assert (copy / name).read_bytes() == (project.root / name).read_bytes(), name
