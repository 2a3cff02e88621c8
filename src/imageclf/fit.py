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
from imageclf.scoring import class_indices, score, sum_type

FLOAT32 = nullcontext()
"""The forward pass as it is, without mixed precision."""

OnStep = Callable[[int, int, Tensor], None]
"""Called after each step: its number in the epoch from 1, the images so far and the sums (loss, correct) over them."""


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
    steps, device = epochs * len(train), next(net.parameters()).device
    for number in range(1, epochs + 1):
        torch.manual_seed(derive(seed, number, 0))  # dropout
        sums, seen = torch.zeros(2, dtype=sum_type(device), device=device), 0
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
            sums += torch.stack([batch_loss.detach() * len(targets), correct])
            seen += len(targets)
            if on_step is not None:
                on_step(step, seen, sums)
        train_loss, train_accuracy = (sums / seen).tolist()
        val_loss, val_accuracy = None, None
        if val is not None:
            found = score(net, val, loss)
            val_loss, val_accuracy = found.loss, found.accuracy
        check_finite(train_loss, f"epoch {number}", base_lr)
        check_finite(val_loss or 0.0, f"epoch {number}", base_lr)  # the last step may be what broke the net
        yield Epoch(number, lr, train_loss, train_accuracy, val_loss, val_accuracy)


def check_finite(loss: float, where: str, lr: float) -> None:
    """Raise `UserError` for a loss that is no number."""
    if not math.isfinite(loss):
        raise UserError(f"the loss of {where} is {loss}: try a smaller lr than {lr}")
