"""The training loop: a generator of epochs that knows nothing of files, YAML or MLflow.

Whoever consumes it logs, writes, keeps the best and decides when to stop.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from imageclf.batches import Batches
from imageclf.errors import UserError
from imageclf.losses import Loss, smooth
from imageclf.optim import Optimizer, Schedule
from imageclf.runtime import derive
from imageclf.scoring import class_indices, score

FLOAT32 = nullcontext()
"""The forward pass as it is, without mixed precision."""

OnStep = Callable[[int, Tensor], None]
"""Called after each step with its number in the epoch, from 1, and the running sums (loss, correct, images)."""


@dataclass(frozen=True)
class Epoch:
    """What an epoch gave: `number` from 1, the `lr` of its last step, means over its images.

    The train scores are taken while the net learns, with dropout on; the val scores after it, without.
    """

    number: int
    lr: float
    train_loss: float
    train_accuracy: float
    val_loss: float | None
    val_accuracy: float | None

    def better_than(self, other: "Epoch") -> bool:
        """By validation accuracy, then validation loss; without validation the later epoch is the better one."""
        if self.val_accuracy is None or other.val_accuracy is None or self.val_loss is None or other.val_loss is None:
            return self.number > other.number
        return (self.val_accuracy, -self.val_loss) > (other.val_accuracy, -other.val_loss)


def fit(
    net: nn.Module,
    optimizer: Optimizer,
    schedule: Schedule,
    loss: Loss,
    *,
    train: Batches,
    val: Batches | None,
    epochs: int,
    seed: int,
    label_smoothing: float = 0.0,
    autocast: AbstractContextManager[object] = FLOAT32,
    on_step: OnStep | None = None,
) -> Iterator[Epoch]:
    """Train `net` in place; yields after each epoch, the net then being as that epoch left it.

    Raises `UserError` when the loss of an epoch is not a finite number.
    """
    lr = base_lr = optimizer.param_groups[0]["lr"]
    steps = epochs * len(train)
    for number in range(1, epochs + 1):
        torch.manual_seed(derive(seed, number, 0))  # dropout
        sums = torch.zeros(3, dtype=torch.float64, device=next(net.parameters()).device)
        net.train()
        for step, (images, targets) in enumerate(train.shuffled(derive(seed, number, 1)), 1):
            lr = base_lr * schedule(((number - 1) * len(train) + step - 1) / steps)
            for group in optimizer.param_groups:
                group["lr"] = lr
            with autocast:
                logits = net(images)
                batch_loss = loss(logits, smooth(targets, logits, label_smoothing))
            optimizer.zero_grad()
            batch_loss.backward()
            optimizer.step()
            correct = (logits.detach().argmax(dim=1) == class_indices(targets)).sum()
            sums += torch.stack([batch_loss.detach() * len(targets), correct, sums.new_tensor(len(targets))])
            if on_step is not None:
                on_step(step, sums)
        train_loss, train_accuracy = (sums[:2] / sums[2]).tolist()
        val_scores = score(net, val, loss) if val is not None else None
        for found in (train_loss, val_scores.loss if val_scores else 0.0):  # the last step may be what broke the net
            if not math.isfinite(found):
                raise UserError(f"the loss of epoch {number} is {found}: try a smaller lr than {base_lr}")
        yield Epoch(
            number,
            lr,
            train_loss,
            train_accuracy,
            val_scores.loss if val_scores else None,
            val_scores.accuracy if val_scores else None,
        )
