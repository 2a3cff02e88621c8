"""Input and output of a competitor."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from imageclf.contracts.dataset import Prepared
from imageclf.params import Params


@dataclass(frozen=True)
class Task:
    """A recipe to train. An epoch is `share` of all batches, and its time is scaled to all of them."""

    recipe: str
    parameters: Params
    data: Prepared
    epochs: int
    """Epochs to time, after those that warm up."""
    share: float

    @property
    def steps(self) -> tuple[int, int]:
        """Number of batches in an epoch here, and in a whole epoch."""
        whole = -(-len(self.data["train"]) // self.parameters.batch_size)
        return max(1, round(self.share * whole)), whole


@dataclass(frozen=True)
class Outcome:
    """Result of a competitor: seconds of each timed epoch, and the test accuracy after `epochs` epochs in all.

    `warm_up` holds the seconds of the epochs before the timed ones, except the first, whose start is not recorded.
    """

    seconds: list[float]
    warm_up: list[float]
    accuracy: float | None
    epochs: float
    threads: int | None


def outcome(task: Task, ends: Sequence[float], accuracy: float, threads: int | None) -> Outcome:
    """Return the outcome from the times at which all epochs ended, in seconds."""
    steps, whole = task.steps
    seconds = [(after - before) * whole / steps for before, after in itertools.pairwise(ends)]
    timed = len(seconds) - task.epochs
    return Outcome(seconds[timed:], seconds[:timed], accuracy, len(ends) * steps / whole, threads)
