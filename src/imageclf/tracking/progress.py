"""Progress of a training: a bar on a terminal; elsewhere a line per epoch and, in a long epoch, every 10 seconds."""

import sys
import time
from types import TracebackType
from typing import Self

from tqdm import tqdm

from imageclf.training.fit import Epoch, Position

STEPS_PER_READING = 100
"""Steps between two readings of loss and accuracy; a reading waits for the device."""
LINE_S = 10.0
"""Minimum of the seconds between two lines if there is no bar."""


class Progress:
    """Shows the progress of `fit`: `steps` per epoch, of which all but the last ones may be `done` already."""

    def __init__(self, epochs: int, steps: int, *, done: int = 0, bar: bool) -> None:
        self._epochs, self._steps = epochs, steps
        self._bar = tqdm(total=epochs * steps, initial=done, unit="step", disable=None if bar else True)
        self._printed_at = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def step(self, at: Position) -> None:
        """Show one more step; from time to time, also the mean loss and the accuracy of the epoch so far."""
        self._bar.update()
        if at.step % STEPS_PER_READING == 0 and (
            not self._bar.disable or time.monotonic() - self._printed_at >= LINE_S
        ):
            assert at.losses is not None
            assert at.correct is not None
            scores = f"loss {at.losses[: at.step].mean().item():.4f}, accuracy {at.correct.item() / at.images:.2%}"
            self._bar.set_postfix_str(scores, refresh=False)
            if self._bar.disable:
                print(f"epoch {at.epoch}/{self._epochs}, step {at.step}/{self._steps}: {scores}", flush=True)
                self._printed_at = time.monotonic()

    def epoch(self, epoch: Epoch) -> None:
        """Print a line for the epoch, above the bar if there is one."""
        val = (
            f", val loss {epoch.val_loss:.4f}, accuracy {epoch.val_accuracy:.2%}" if epoch.val_loss is not None else ""
        )
        tqdm.write(
            f"epoch {epoch.number}/{self._epochs}: "
            f"train loss {epoch.train_loss:.4f}, accuracy {epoch.train_accuracy:.2%}{val}",
            file=sys.stdout,
        )
        self._printed_at = time.monotonic()
