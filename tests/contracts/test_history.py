"""Tests of the table of epochs that train writes and others read."""

from pathlib import Path

from imageclf.contracts import history
from imageclf.training.fit import Epoch


def test_history_has_the_columns_that_others_read(tmp_path: Path) -> None:
    history.write(tmp_path / "history.csv", [Epoch(1, 0.001, 0.5, 0.75, 2.0, 1.0), Epoch(2, 1e-7, 0.5, 0.75, 2.0, 1.0)])
    assert (tmp_path / "history.csv").read_bytes().decode() == (
        "epoch,lr,train_loss,train_accuracy,val_loss,val_accuracy\n1,0.001,0.5,0.75,2,1\n2,1e-07,0.5,0.75,2,1\n"
    )


def test_history_without_validation_has_empty_cells_which_are_left_out_when_read(tmp_path: Path) -> None:
    history.write(tmp_path / "history.csv", [Epoch(1, 0.1, 0.5, 0.25, None, None)])
    assert (tmp_path / "history.csv").read_text().splitlines()[1] == "1,0.1,0.5,0.25,,"
    assert history.read(tmp_path / "history.csv") == [
        {"epoch": 1, "lr": 0.1, "train_loss": 0.5, "train_accuracy": 0.25}
    ]
