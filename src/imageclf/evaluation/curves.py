"""The picture of a training: its learning curves with a verdict, and the learning rate."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imageclf.evaluation import figure

Row = dict[str, float]
"""A row of history.csv: numbers by column name, without empty cells."""

RISE = 1.1
"""A val loss that has risen by a tenth above its lowest value, while the train loss fell, means over-fitting."""
FALL = 0.9
"""A train loss that fell by a tenth or more in the last fifth of the epochs is still falling."""
LATE = 0.2
"""Share of the epochs that count as the last ones."""


def verdict(rows: Sequence[Row]) -> str:
    """Return a sentence: over-fitting, under-fitting (more epochs would help), or neither; "" for too few epochs."""
    if len(rows) < 3:
        return ""
    train, val = [row["train_loss"] for row in rows], [row["val_loss"] for row in rows if "val_loss" in row]
    if val:
        best = val.index(min(val))
        if val[-1] > RISE * val[best] and train[-1] < train[best]:
            return f"over-fitting: after epoch {best + 1} the train loss fell further, and the val loss rose"
    late = max(1, round(LATE * len(train)))
    falling = val or train
    if train[-1] < FALL * train[-1 - late] and falling[-1] <= FALL * falling[-1 - late]:
        return "under-fitting: the loss was still falling at the end; train for more epochs"
    return "neither over-fitting nor under-fitting" if val else "the train loss has settled; there is no val split"


def plot_training(path: Path, rows: Sequence[Row]) -> None:
    """Draw loss and accuracy per epoch, with the gap between train and val shaded, and the learning rate."""
    with figure.opened(1, 3, (10, 3.6)) as (drawn, (loss, accuracy, rate)):
        drawn.suptitle(verdict(rows), fontsize=10)
        for axes, name, scale in ((loss, "loss", 1), (accuracy, "accuracy", 100)):
            _curves(axes, rows, name, scale)
        loss.set(ylabel="loss", ylim=(0, None))
        accuracy.set(ylabel="accuracy, %", ylim=(None, 100))
        epochs = [row["epoch"] for row in rows]
        rate.plot(epochs, [row["lr"] for row in rows], color=figure.GREEN, marker=_marker(rows))
        rate.set(xlabel="epoch", ylabel="learning rate", ylim=(0, None))
        for axes in (loss, accuracy, rate):
            axes.xaxis.get_major_locator().set_params(integer=True)
        figure.save(drawn, path)


def _curves(axes: Any, rows: Sequence[Row], name: str, scale: float) -> None:
    epochs = [row["epoch"] for row in rows]
    train = [scale * row[f"train_{name}"] for row in rows]
    axes.plot(epochs, train, color=figure.BLUE, marker=_marker(rows), label="train (while learning)")
    if all(f"val_{name}" in row for row in rows):
        val = [scale * row[f"val_{name}"] for row in rows]
        axes.plot(epochs, val, color=figure.ORANGE, linestyle="--", marker=_marker(rows), label="val")
        axes.fill_between(epochs, train, val, color=figure.ORANGE, alpha=0.2, linewidth=0, label="gap")
    axes.set_xlabel("epoch")
    axes.legend(fontsize=8)


def _marker(rows: Sequence[Row]) -> str:
    """Return a marker for each epoch if they are few: a line of one epoch would not be visible."""
    return "o" if len(rows) < 10 else ""
