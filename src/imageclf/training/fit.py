"""The training loop: a generator of epochs, independent of files, YAML and MLflow.

The caller logs, writes, keeps the best weights and decides when to stop.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from imageclf.core.errors import UserError
from imageclf.training.gradients import FLOAT32, GradientAccumulator, Step
from imageclf.training.loading.batches import Batches
from imageclf.training.losses import Loss, weighted
from imageclf.training.optim import Optimizer, Schedule
from imageclf.training.runtime import derive, set_random_state
from imageclf.training.scoring import score
from imageclf.training.transfer import freeze, train_mode


@dataclass(frozen=True)
class Position:
    """A point of the training: `step` steps of epoch `epoch` (counted from 1) are done.

    These steps have seen `images` images; `losses` (steps per epoch,) holds their losses, `correct` () the number of
    images that they classified correctly, both on the device. `random` is the state of the random generator; only
    resuming within an epoch needs it.
    """

    epoch: int = 1
    step: int = 0
    images: int = 0
    losses: Tensor | None = None
    correct: Tensor | None = None
    random: Tensor | None = None


OnStep = Callable[[Position], None]
"""Called after each step, when the net and the optimizer are updated."""


@dataclass(frozen=True)
class Epoch:
    """Results of an epoch: its `number` from 1, the `lr` of its last step, means over the images of a split.

    The train scores are measured during the epoch, with dropout; the val scores after it, without dropout.
    """

    number: int
    lr: float
    train_loss: float
    train_accuracy: float
    val_loss: float | None
    val_accuracy: float | None

    def better_than(self, other: "Epoch") -> bool:
        """Return True if the validation accuracy is higher, or equal with a lower validation loss.

        Without validation, the later epoch is better.
        """
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
    class_weights: Tensor | None = None,
    freeze_epochs: int = 0,
    autocast: AbstractContextManager[object] = FLOAT32,
    compiled: bool = False,
    start: Position = Position(),
    on_step: OnStep | None = None,
) -> Iterator[Epoch]:
    """Train `net` in place and yield the results of each epoch, with the net as this epoch left it.

    `class_weights` (K,) weight the loss of each train image by its class, not the validation loss. In the first
    `freeze_epochs` epochs, only the head is trained; the statistics of batch norm do not change.
    With `compiled`, torch.compile makes one program of a whole step (see `Step`); a smaller last batch runs without it.
    Training resumes from `start` to the same bits if `net` and `optimizer` have their state from there. Raises
    `UserError` if a loss is not finite. Losses are checked at the end of an epoch, because reading one from the device
    waits for it.
    """
    base_lr = optimizer.param_groups[0]["lr"]
    train_loss_of = loss if class_weights is None else weighted(loss, class_weights.to(train.device))
    take_step: Step | None = None

    def lr_at(epoch: int, step: int) -> float:
        return base_lr * schedule(((epoch - 1) * len(train) + step - 1) / (epochs * len(train)))

    for number in range(start.epoch, epochs + 1):
        begin = start if number == start.epoch else Position(number)
        frozen = number <= freeze_epochs
        if take_step is None or number == freeze_epochs + 1:
            freeze(net, frozen=frozen)
            gradients = GradientAccumulator(net, train, train_loss_of, label_smoothing, autocast)
            take_step = Step(gradients, optimizer, compiled=compiled)
        train_mode(net, frozen=frozen)
        losses, train_accuracy = _train_epoch(
            net, optimizer, take_step, train, start=begin, lr_at=lr_at, seed=seed, on_step=on_step
        )
        train_loss = mean_loss(losses, train, number, base_lr)
        val_loss, val_accuracy = None, None
        if val is not None:
            val_scores = score(net, val, loss)
            val_loss, val_accuracy = val_scores.loss, val_scores.accuracy
        check_finite(val_loss or 0.0, f"epoch {number}", base_lr)  # the last step may have broken the net
        yield Epoch(number, lr_at(number, len(train)), train_loss, train_accuracy, val_loss, val_accuracy)


def _train_epoch(
    net: nn.Module,
    optimizer: Optimizer,
    take_step: Step,
    train: Batches,
    *,
    start: Position,
    lr_at: Callable[[int, int], float],
    seed: int,
    on_step: OnStep | None,
) -> tuple[Tensor, float]:
    """Run the steps of an epoch from `start` on, with the net in train mode; return their losses and its accuracy."""
    device, epoch, images_seen = next(net.parameters()).device, start.epoch, start.images
    losses = torch.zeros(len(train), device=device) if start.losses is None else start.losses.to(device)
    correct = torch.zeros((), dtype=torch.int64, device=device) if start.correct is None else start.correct.to(device)
    torch.manual_seed(derive(seed, epoch, 0))  # dropout
    if start.random is not None:
        set_random_state(start.random, device)
    for step, (images, targets) in enumerate(train.shuffled(derive(seed, epoch, 1), start.step), start.step + 1):
        for group in optimizer.param_groups:
            group["lr"] = lr_at(epoch, step)
        if train.ranks.size > 1:  # each rank has its own dropout, which does not depend on what it did before
            torch.manual_seed(derive(seed, epoch, 0, step, train.ranks.rank))
        whole = min(train.batch_size, train.num_images - (step - 1) * train.batch_size)
        batch_loss, batch_correct = take_step(images, targets, whole)
        losses[step - 1] = batch_loss
        correct += batch_correct
        images_seen += whole
        if on_step is not None:
            on_step(Position(epoch, step, images_seen, losses, correct))
    return losses, correct.item() / images_seen


def mean_loss(losses: Tensor, train: Batches, epoch: int, lr: float) -> float:
    """Return the mean over the images of an epoch from the losses of its steps.

    Raises `UserError`, which names the step, if one is not finite.
    """
    values = losses.cpu().double()  # on the CPU, because mps has no float64
    if not values.isfinite().all():
        step = int(values.isfinite().logical_not().nonzero()[0]) + 1
        check_finite(values[step - 1].item(), f"epoch {epoch}, step {step}", lr)
    sizes = torch.full_like(values, train.batch_size)
    sizes[-1] = train.num_images - train.batch_size * (len(train) - 1)
    return (values @ sizes).item() / train.num_images


def check_finite(loss: float, name: str, lr: float) -> None:
    """Raise `UserError` if the loss of `name` is not finite."""
    if not math.isfinite(loss):
        raise UserError(f"the loss of {name} is {loss}: try a smaller lr than {lr}")
