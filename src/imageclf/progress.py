"""How far training is: a bar on a terminal, elsewhere a plain line per epoch and, in long ones, every 10 seconds."""

import sys
import time
from types import TracebackType
from typing import Self

from tqdm import tqdm

from imageclf.fit import Epoch, Position

EVERY = 100
"""Steps between two readings of loss and accuracy: each waits for the device."""
PAUSE_S = 10.0
"""Seconds, at least, between two lines when there is no bar."""


class Progress:
    """Follows `fit`: `step` after each step, `epoch` after each epoch; `done` steps were made by an earlier run."""

    def __init__(self, epochs: int, steps: int, *, done: int = 0, bar: bool) -> None:
        self._epochs, self._steps = epochs, steps
        self._bar = tqdm(total=epochs * steps, initial=done, unit="step", disable=None if bar else True)
        self._said_at = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def step(self, at: Position) -> None:
        """After each step; the losses and the count of correct images are the epoch's so far."""
        self._bar.update()
        if at.step % EVERY == 0 and (not self._bar.disable or time.monotonic() - self._said_at >= PAUSE_S):
            assert at.losses is not None
            assert at.correct is not None
            said = f"loss {at.losses[: at.step].mean().item():.4f}, accuracy {at.correct.item() / at.images:.2%}"
            self._bar.set_postfix_str(said, refresh=False)
            if self._bar.disable:
                print(f"epoch {at.epoch}/{self._epochs}, step {at.step}/{self._steps}: {said}", flush=True)
                self._said_at = time.monotonic()

    def epoch(self, epoch: Epoch) -> None:
        """A line for the epoch, above the bar if there is one."""
        val = (
            "" if epoch.val_accuracy is None else f", val loss {epoch.val_loss:.4f}, accuracy {epoch.val_accuracy:.2%}"
        )
        tqdm.write(
            f"epoch {epoch.number}/{self._epochs}: "
            f"train loss {epoch.train_loss:.4f}, accuracy {epoch.train_accuracy:.2%}{val}",
            file=sys.stdout,
        )
        self._said_at = time.monotonic()
