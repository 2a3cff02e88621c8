"""Tests of the benchmark next to a busy process: when the process runs, and the arithmetic."""

import subprocess
from pathlib import Path
from typing import Self

import pytest

from benchmarks import neighbor, projects
from imageclf.core import files, paths


def test_every_second_training_runs_next_to_a_busy_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Counted(subprocess.Popen[bytes]):
        def __init__(self, command: list[str]) -> None:
            super().__init__(command)
            started.append(self)

    def make(folder: Path, *_: object) -> None:
        folder.mkdir()
        files.write_json(folder / paths.PARAMS, {"epochs": 40})

    def epoch_seconds(project: Path, _: str) -> float:
        assert (project / paths.PARAMS).read_text().split() == ["{", '"epochs":', str(neighbor.EPOCHS), "}"]
        return 5.0 if started and started[-1].poll() is None else 2.0

    monkeypatch.setattr(subprocess, "Popen", Counted)
    monkeypatch.setattr(projects, "make", make)
    monkeypatch.setattr(neighbor, "epoch_seconds", epoch_seconds)
    monkeypatch.setattr(neighbor, "RECIPES", {"fc500": None})
    monkeypatch.setattr(neighbor, "SPIN_COUNTS", ("1",))
    found = neighbor.measure(tmp_path, tmp_path, rounds=2)
    assert found == {"fc500": {"1": {"alone": [2.0, 2.0], "next to a busy process": [5.0, 5.0], "factor": 2.5}}}
    assert [process.poll() for process in started] == [-9, -9]


def test_epochs_of_the_warm_up_are_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stage:
        returncode = 0
        stdout = ("preparing", *(f"epoch {number}/6: ..." for number in range(1, 7)))

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    times = iter([0.0, 10.0, 20.0, 21.0, 24.0, 29.0])
    monkeypatch.setattr(projects, "start", lambda *_, **__: Stage())
    monkeypatch.setattr(neighbor.time, "perf_counter", lambda: next(times))
    assert neighbor.epoch_seconds(tmp_path, "1000") == 3.0
