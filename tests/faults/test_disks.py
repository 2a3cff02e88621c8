"""A full or read-only disk ends a stage in one sentence that names the file; what was good stays, and a rerun heals."""

import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from stage_run import PIPELINE, litter, outputs, run_stage, run_until, write_params

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which all stages have run."""
    root = tmp_path_factory.mktemp("finished")
    write_params(root)
    run_until(root, "evaluate")
    return root


@pytest.fixture
def root(finished: Path, tmp_path: Path) -> Path:
    """A copy of it, to be broken."""
    return Path(shutil.copytree(finished, tmp_path / "root"))


LIMITS = {"download": 20_000, "preprocess": 5_000, "train": 1_000, "evaluate": 2_000}
"""Bytes that fit into a file: fewer than the stage's largest output has."""


def limit(size: int) -> Callable[[], None]:
    """What a process does to be told EFBIG, in the middle of a write, as a full disk tells ENOSPC."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.parametrize("stage", PIPELINE)
def test_a_file_that_does_not_fit_is_named_and_the_earlier_ones_stay(root: Path, stage: str) -> None:
    before = {each: outputs(root, each) for each in PIPELINE}
    write_params(root, seed="1", normalize="unit")  # so that new outputs would differ
    ended = run_stage(root, stage, limit(LIMITS[stage]))
    assert ended.code == 1
    assert ended.sentence.startswith(("data/", "metrics/", str(root)))
    assert "File too large" in ended.sentence
    assert litter(root) == []
    kept = outputs(root, stage)
    # Files are replaced one by one: each is the old one or the new one, whole; and none is gone.
    assert kept.keys() == before[stage].keys()
    assert {each: outputs(root, each) for each in PIPELINE if each != stage} == {
        each: files for each, files in before.items() if each != stage
    }
    write_params(root)
    assert run_stage(root, stage).code == 0
    assert outputs(root, stage) == before[stage]


# --- a real full disk ---


def mounted(place: Path, size: str) -> None:
    """Mount a small disk in memory, or skip where that is not allowed."""
    place.mkdir(exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 8 MB."""
    mounted(tmp_path / "disk", "8m")
    yield tmp_path / "disk"
    subprocess.run(["umount", tmp_path / "disk"], check=True)


def fill(disk: Path, left: int) -> Path:
    """A file that takes all of the disk but about `left` bytes."""
    ballast = disk / "ballast"
    with ballast.open("wb") as file:
        file.write(bytes(shutil.disk_usage(disk).free - left))
    return ballast


@pytest.mark.parametrize("stage", PIPELINE)
def test_a_full_disk_is_a_sentence_and_a_rerun_heals(finished: Path, disk: Path, stage: str) -> None:
    root = Path(shutil.copytree(finished, disk / "root"))
    before = outputs(root, stage)
    ballast = fill(disk, 0)
    ended = run_stage(root, stage)
    assert ended.code == 1
    assert ended.sentence.startswith(("data/", "metrics/", str(root)))
    assert "No space left on device" in ended.sentence
    assert outputs(root, stage) == before
    assert litter(root) == []
    ballast.unlink()
    assert run_stage(root, stage).code == 0
    assert outputs(root, stage) == before


@pytest.mark.parametrize("stage", PIPELINE)
def test_a_read_only_folder_is_a_sentence(finished: Path, disk: Path, stage: str) -> None:
    root = Path(shutil.copytree(finished, disk / "root"))
    before = outputs(root, stage)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    ended = run_stage(root, stage)
    assert ended.code == 1
    assert "Read-only file system" in ended.sentence
    assert outputs(root, stage) == before
