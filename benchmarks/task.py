"""What a contestant is given, and what it gives back."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from imageclf.params import Params
from imageclf.splits import Prepared


@dataclass(frozen=True)
class Task:
    """What to train. An epoch is `share` of all batches, and its time is scaled to all of them."""

    recipe: str
    knobs: Params
    data: Prepared
    epochs: int
    """To time, after those that warm up."""
    share: float

    @property
    def steps(self) -> tuple[int, int]:
        """Batches in an epoch here, and in a whole one."""
        whole = -(-len(self.data["train"]) // self.knobs.batch_size)
        return max(1, round(self.share * whole)), whole


@dataclass(frozen=True)
class Outcome:
    """What a contestant gave: seconds of each timed epoch, and the test accuracy after so many epochs in all.

    Of the epochs that warmed up the first is not among `warm_up`: nobody says when it began.
    """

    seconds: list[float]
    warm_up: list[float]
    accuracy: float | None
    epochs: float
    threads: int | None


def outcome(task: Task, ends: Sequence[float], accuracy: float, threads: int | None) -> Outcome:
    """From the times at which the epochs ended, the one that warms up among them."""
    steps, whole = task.steps
    seconds = [(after - before) * whole / steps for before, after in itertools.pairwise(ends)]
    timed = len(seconds) - task.epochs
    return Outcome(seconds[timed:], seconds[:timed], accuracy, len(ends) * steps / whole, threads)
