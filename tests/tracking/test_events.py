"""Tests of the events of a run: the names and the values that MLflow gets."""

import errno
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import new_spec

from imageclf.contracts import model
from imageclf.core.errors import UserError
from imageclf.tracking import events
from imageclf.tracking.client import Recorder
from imageclf.training.fit import Epoch


def test_missing_scores_of_an_epoch_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder, recorded = Recorder(None), []
    monkeypatch.setattr(recorder, "metrics", lambda values, step: recorded.append((values, step)))
    events.epoch_ended(recorder, Epoch(1, 0.1, 0.25, 0.875, None, None), Epoch(2, 0.1, 0.25, 0.875, 0.5, 0.75))
    scores = {"epoch/lr": 0.1, "epoch/train_loss": 0.25, "epoch/train_accuracy": 0.875}
    assert recorded == [(scores, 1), ({**scores, "epoch/val_loss": 0.5, "epoch/val_accuracy": 0.75}, 2)]


def test_flatten_joins_names_with_slashes_and_leaves_out_text() -> None:
    assert events.flatten({"test": {"loss": 1, "note": "x"}, "epoch": 3}) == {"test/loss": 1.0, "epoch": 3.0}


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), UserError("the disk is full")])
def test_a_model_of_an_epoch_that_cannot_be_written_is_reported_and_leaves_no_file(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def half_written(folder: Path, *_: Any) -> None:
        folder.mkdir()
        (folder / "half").write_bytes(b"x")
        raise error

    recorded: list[int] = []
    recorder = SimpleNamespace(records=True, epoch_model=lambda _folder, _name, epoch, _keep: recorded.append(epoch))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    arguments: Any = (recorder, new_spec(epoch=3), {}, SimpleNamespace(whitening=None), 2)
    with monkeypatch.context() as failing:
        failing.setattr(model, "write", half_written)
        events.epoch_model(*arguments)
    assert f"the model of epoch 3 is not recorded: {error}" in capsys.readouterr().out
    assert (recorded, list(tmp_path.iterdir())) == ([], [])
    monkeypatch.setattr(model, "write", lambda folder, *_: folder.mkdir())
    events.epoch_model(*arguments)  # the next one
    assert recorded == [3]
    assert [path.name for path in tmp_path.glob("*/*")] == ["model"]
