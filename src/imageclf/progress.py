"""How far training is: a bar on a terminal, a plain line every 100 steps elsewhere."""

import sys
from types import TracebackType
from typing import Self

from torch import Tensor
from tqdm import tqdm

from imageclf.fit import Epoch

EVERY = 100
"""Steps between two readings of loss and accuracy: each waits for the device."""


class Progress:
    """Follows `fit`: `step` after each step, `epoch` after each epoch."""

    def __init__(self, epochs: int, steps: int, *, bar: bool) -> None:
        self._epochs, self._steps, self._number = epochs, steps, 1
        self._bar = tqdm(total=epochs * steps, unit="step", disable=None if bar else True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def step(self, step: int, images: int, sums: Tensor) -> None:
        """`sums` are the epoch's so far: loss, correct."""
        self._bar.update()
        if step % EVERY == 0:
            loss, correct = sums.tolist()
            said = f"loss {loss / images:.4f}, accuracy {correct / images:.2%}"
            self._bar.set_postfix_str(said, refresh=False)
            if self._bar.disable:
                print(f"epoch {self._number}/{self._epochs}, step {step}/{self._steps}: {said}", flush=True)

    def epoch(self, epoch: Epoch) -> None:
        """A line for the epoch, above the bar if there is one."""
        val = (
            "" if epoch.val_accuracy is None else f", val loss {epoch.val_loss:.4f}, accuracy {epoch.val_accuracy:.2%}"
        )
        self._number = epoch.number + 1
        tqdm.write(
            f"epoch {epoch.number}/{self._epochs}: "
            f"train loss {epoch.train_loss:.4f}, accuracy {epoch.train_accuracy:.2%}{val}",
            file=sys.stdout,
        )
