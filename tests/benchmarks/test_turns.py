"""Tests of the comparison of two trainings that take turns, with small processes in their place."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import projects, turns
from imageclf.core import files, paths

STAGE = """
import time
from pathlib import Path
print("preparing", flush=True)
for number in range(1, 100000):
    print(f"epoch {number}/100000, step 3/9: ...", flush=True)
    time.sleep(0.01)
    Path("epochs").write_text(str(number))
    print(f"epoch {number}/100000: ...", flush=True)
"""


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    with projects.start(tmp_path, "-c", STAGE) as process:
        yield process
        process.kill()
        process.communicate()


def test_a_training_advances_only_during_its_turns(stage: subprocess.Popen[str], tmp_path: Path) -> None:
    training = turns.Training(stage, warm_up=3)

    def done() -> int:
        time.sleep(0.05)
        first = (tmp_path / "epochs").read_text()
        time.sleep(0.2)
        assert (tmp_path / "epochs").read_text() == first
        return int(first)

    before = done()
    assert before >= 3
    training.turn(4)
    assert done() >= before + 5  # the rest of one epoch, and four timed ones


def test_the_time_between_turns_is_not_measured(stage: subprocess.Popen[str]) -> None:
    training = turns.Training(stage, warm_up=1)
    training.turn(1)
    start = time.perf_counter()
    time.sleep(1)
    assert training.turn(4) <= (time.perf_counter() - start - 1) / 4


def test_a_failed_training_is_an_error_with_its_output(tmp_path: Path) -> None:
    with projects.start(tmp_path, "-c", "print('epoch 1/5: ...'); print('no memory')") as process:
        with pytest.raises(RuntimeError, match="no memory"):
            turns.Training(process, warm_up=2)
        process.communicate()


def test_the_end_of_the_context_ends_a_stopped_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.write_json(tmp_path / paths.PARAMS, {"epochs": 3, "compile": False})
    started: list[subprocess.Popen[str]] = []

    def start(folder: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        assert arguments == ("-m", "stages.train")
        assert environment == {"PYTHONPATH": str(tmp_path / "src")}
        started.append(subprocess.Popen([sys.executable, "-c", STAGE], cwd=folder, stdout=subprocess.PIPE, text=True))
        return started[0]

    monkeypatch.setattr(projects, "start", start)
    with turns.training(tmp_path, {"compile": True}) as training:
        training.turn(1)
        assert '"compile": true' in (tmp_path / paths.PARAMS).read_text()
        assert '"epochs": 100000' in (tmp_path / paths.PARAMS).read_text()
    assert started[0].poll() is not None


def test_the_ratio_is_the_median_of_the_ratios_of_the_rounds() -> None:
    assert turns.row("fc500", [(1.0, 0.5), (2.0, 1.2), (10.0, 9.0)]) == ["fc500", "2", "1.2", "0.60", "0.50 to 0.90"]
