"""Tests of the events of a run: the names and the values that MLflow gets."""

import pytest

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
