"""Tests of a full or read-only disk: one error names the file, earlier outputs do not change, and a rerun succeeds."""

import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from disks import fill, mounted
from stage_run import PIPELINE, outputs, run_stage, run_until, temporary_files, write_params

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a folder in which all stages have run."""
    root = tmp_path_factory.mktemp("finished")
    write_params(root)
    run_until(root, "evaluate")
    return root


@pytest.fixture
def root(finished: Path, tmp_path: Path) -> Path:
    """Create a copy of this folder."""
    return Path(shutil.copytree(finished, tmp_path / "root"))


LIMITS = {"download": 20_000, "preprocess": 5_000, "weights": 100, "train": 1_000, "evaluate": 2_000}
"""Maximum file size in bytes, less than the largest output of the stage."""


def limit(size: int) -> Callable[[], None]:
    """Return a function that limits the file size: a write then fails in the middle with EFBIG, like a full disk."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.parametrize("stage", PIPELINE)
def test_a_file_that_does_not_fit_is_named_and_earlier_outputs_stay(root: Path, stage: str) -> None:
    before = {each: outputs(root, each) for each in PIPELINE}
    write_params(root, seed="1", normalize="unit")  # new outputs would differ
    result = run_stage(root, stage, limit(LIMITS[stage]))
    assert result.code == 1
    assert result.error.startswith(("data/", "metrics/", str(root)))
    assert "File too large" in result.error
    assert temporary_files(root) == []
    kept = outputs(root, stage)
    # Files are replaced one by one: each exists, and is the complete old or new one.
    assert kept.keys() == before[stage].keys()
    assert {each: outputs(root, each) for each in PIPELINE if each != stage} == {
        each: files for each, files in before.items() if each != stage
    }
    write_params(root)
    assert run_stage(root, stage).code == 0
    assert outputs(root, stage) == before[stage]


# --- a real full disk ---


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a disk of 8 MB."""
    with mounted(tmp_path / "disk", "8m") as place:
        yield place


@pytest.mark.parametrize("stage", PIPELINE)
def test_a_full_disk_is_one_error_and_a_rerun_succeeds(finished: Path, disk: Path, stage: str) -> None:
    root = Path(shutil.copytree(finished, disk / "root"))
    before = outputs(root, stage)
    ballast = fill(disk, 0)
    result = run_stage(root, stage)
    assert result.code == 1
    assert result.error.startswith(("data/", "metrics/", str(root)))
    assert "No space left on device" in result.error
    assert outputs(root, stage) == before
    assert temporary_files(root) == []
    ballast.unlink()
    assert run_stage(root, stage).code == 0
    assert outputs(root, stage) == before


@pytest.mark.parametrize("stage", PIPELINE)
def test_a_read_only_folder_is_one_error(finished: Path, disk: Path, stage: str) -> None:
    root = Path(shutil.copytree(finished, disk / "root"))
    before = outputs(root, stage)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    result = run_stage(root, stage)
    assert result.code == 1
    assert "Read-only file system" in result.error
    assert outputs(root, stage) == before
