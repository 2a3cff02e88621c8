"""Tests of the progress output: the right numbers and, without a terminal, few plain lines."""

import sys
from types import SimpleNamespace

import pytest
import torch

from imageclf.tracking import progress
from imageclf.tracking.progress import Progress
from imageclf.training.fit import Epoch, Position

EPOCH = Epoch(1, 0.1, 0.25, 0.875, 0.5, 0.75)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Replace the clock of the progress output by one that only the test moves."""
    moved = SimpleNamespace(now=0.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: moved.now))
    return moved


def report(epochs: int, steps: int, *, bar: bool, clock: SimpleNamespace, step_s: float = 0.125) -> None:
    """Report the steps and epochs of a training: loss 0.5 per step, more in the first; 3 of 4 images are right."""
    with Progress(epochs, steps, bar=bar) as shown:
        for number in range(1, epochs + 1):
            losses = torch.full((steps,), 0.5, dtype=torch.float64)
            losses[0] += 0.125 * number
            for step in range(1, steps + 1):
                clock.now += step_s
                shown.step(Position(number, step, 8 * step, losses, torch.tensor(6 * step)))
            shown.epoch(Epoch(number, 0.1, 0.25, 0.875, 0.5, 0.75))


@pytest.mark.parametrize("bar", [True, False], ids=["with bar", "without bar"])
def test_without_a_terminal_there_is_a_line_per_epoch_and_one_every_ten_seconds(
    bar: bool, clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    report(2, 250, bar=bar, clock=clock)
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [
        "epoch 1/2, step 100/250: loss 0.5012, accuracy 75.00%",
        "epoch 1/2, step 200/250: loss 0.5006, accuracy 75.00%",
        "epoch 1/2: train loss 0.2500, accuracy 87.50%, val loss 0.5000, accuracy 75.00%",
        "epoch 2/2, step 100/250: loss 0.5025, accuracy 75.00%",
        "epoch 2/2, step 200/250: loss 0.5012, accuracy 75.00%",
        "epoch 2/2: train loss 0.2500, accuracy 87.50%, val loss 0.5000, accuracy 75.00%",
    ]
    assert printed.err == ""


@pytest.mark.parametrize(("steps", "step_s"), [(1000, 0.0099), (99, 1.0)], ids=["short epochs", "few steps"])
def test_short_epochs_and_epochs_of_few_steps_have_one_line_each(
    steps: int, step_s: float, clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    report(3, steps, bar=True, clock=clock, step_s=step_s)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]


def test_without_validation_no_val_scores_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(1, 1, bar=False) as shown:
        shown.epoch(Epoch(1, 0.1, 0.25, 0.875, None, None))
    assert capsys.readouterr().out == "epoch 1/1: train loss 0.2500, accuracy 87.50%\n"


def test_a_terminal_gets_a_bar_and_the_lines_of_the_epochs(
    clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    report(2, 250, bar=True, clock=clock)
    printed = capsys.readouterr()
    assert "500/500" in printed.err
    assert "loss 0.5012, accuracy 75.00%" in printed.err
    assert [line.split(":")[0] for line in printed.out.splitlines()] == ["epoch 1/2", "epoch 2/2"]


def test_a_terminal_without_a_bar_gets_the_lines(
    clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    report(1, 100, bar=False, clock=clock)
    printed = capsys.readouterr()
    assert printed.out.startswith("epoch 1/1, step 100/100: loss 0.5012, accuracy 75.00%\n")
    assert printed.err == ""


def test_the_device_is_read_only_for_a_line(clock: SimpleNamespace) -> None:
    """Reading waits for the device, which costs time."""
    read: list[int] = []

    class Correct(torch.Tensor):
        def item(self) -> float:
            read.append(1)
            return 1.0

    with Progress(1, 250, bar=False) as shown:
        for step in range(1, 251):
            clock.now += 0.125
            shown.step(Position(1, step, 32 * step, torch.zeros(250), Correct()))
    assert len(read) == 2
