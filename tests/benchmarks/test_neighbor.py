"""Tests of the benchmark next to a busy process: when the process runs, what the trainings run, and the arithmetic."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from imports import ROOT

from benchmarks import neighbor, turns


def test_both_trainings_take_turns_alone_and_next_to_a_busy_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy: list[subprocess.Popen[bytes]] = []

    class Counted(subprocess.Popen[bytes]):
        def __init__(self, command: list[str]) -> None:
            super().__init__(command)
            busy.append(self)

    class Training:
        def __init__(self, seconds: float) -> None:
            self.seconds = seconds

        def turn(self, epochs: int) -> float:
            assert epochs == 3
            return self.seconds + 10 * bool(busy and busy[-1].poll() is None)

    @contextmanager
    def training(folder: Path, changes: dict[str, Any], command: Sequence[str]) -> Iterator[Training]:
        assert (folder.name, command) in neighbor.COMMANDS.items()
        assert changes == {"compile": True}
        yield Training({"fixed": 1.0, "adaptive": 2.0}[folder.name])

    monkeypatch.setattr(subprocess, "Popen", Counted)
    monkeypatch.setattr(turns, "training", training)
    folders = {name: tmp_path / name for name in neighbor.COMMANDS}
    assert neighbor.measure(folders, rounds=2, epochs=3, changes={"compile": True}) == {
        "fixed": {"alone": [1.0, 1.0], "next to a busy process": [11.0, 11.0]},
        "adaptive": {"alone": [2.0, 2.0], "next to a busy process": [12.0, 12.0]},
    }
    assert [process.poll() for process in busy] == [-9, -9]


def test_a_line_of_the_table_has_medians_factors_and_the_cost_of_adapting() -> None:
    seconds = {
        "fixed": {"alone": [2.0, 4.0, 1.0], "next to a busy process": [9.0, 8.0, 10.0]},
        "adaptive": {"alone": [2.2, 4.0, 1.5], "next to a busy process": [3.3, 3.0, 9.0]},
    }
    assert neighbor.row("fc500", seconds) == ["fc500", "2.00", "9.00", "2.20", "3.30", "4.5", "1.5", "1.10"]


def test_the_fixed_training_runs_the_stage_without_adapting(tmp_path: Path) -> None:
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages/train.py").write_text(
        "from imageclf.core import spinning\nprint(__name__, spinning.adapt(print), spinning.adapt.__name__)"
    )
    done = subprocess.run(
        [sys.executable, *neighbor.COMMANDS["fixed"]],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "__main__ None <lambda>\n"
