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
from imageclf.runtime import derive, set_random_state
from imageclf.scoring import class_indices, score

FLOAT32 = nullcontext()
"""The forward pass as it is, without mixed precision."""


@dataclass(frozen=True)
class Position:
    """A place in the training: `step` steps of epoch `epoch`, which counts from 1, are done.

    Of these: `images`, `losses` (steps of an epoch,) and `correct` (), on the device. `random` is the generator's
    state, which only a training that goes on within an epoch needs.
    """

    epoch: int = 1
    step: int = 0
    images: int = 0
    losses: Tensor | None = None
    correct: Tensor | None = None
    random: Tensor | None = None


OnStep = Callable[[Position], None]
"""Called after each step, the net and the optimizer then being as that step left them."""


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
    start: Position = Position(),
    on_step: OnStep | None = None,
) -> Iterator[Epoch]:
    """Train `net` in place; yields after each epoch, the net then being as that epoch left it.

    Goes on from `start`, to the same bits, if `net` and `optimizer` are as they were there. Raises `UserError` when
    a loss is not a finite number; an epoch's losses are looked at when it ends, as a look waits for the device.
    """
    base_lr, device = optimizer.param_groups[0]["lr"], next(net.parameters()).device

    backward = Backward(net, loss, label_smoothing, autocast)

    def lr_at(number: int, step: int) -> float:
        return base_lr * schedule(((number - 1) * len(train) + step - 1) / (epochs * len(train)))

    for number in range(start.epoch, epochs + 1):
        at = start if number == start.epoch else Position(number)
        losses = torch.zeros(len(train), device=device) if at.losses is None else at.losses.to(device)
        correct = torch.zeros((), dtype=torch.int64, device=device) if at.correct is None else at.correct.to(device)
        images_seen = at.images
        torch.manual_seed(derive(seed, number, 0))  # dropout
        if at.random is not None:
            set_random_state(at.random, device)
        net.train()
        for step, (images, targets) in enumerate(train.shuffled(derive(seed, number, 1), at.step), at.step + 1):
            for group in optimizer.param_groups:
                group["lr"] = lr_at(number, step)
            batch_loss, batch_correct = backward(images, targets)
            optimizer.step()
            losses[step - 1] = batch_loss
            correct += batch_correct
            images_seen += len(targets)
            if on_step is not None:
                on_step(Position(number, step, images_seen, losses, correct))
        train_loss = mean_loss(losses, train, number, base_lr)
        val_loss, val_accuracy = None, None
        if val is not None:
            found = score(net, val, loss)
            val_loss, val_accuracy = found.loss, found.accuracy
        check_finite(val_loss or 0.0, f"epoch {number}", base_lr)  # the last step may be what broke the net
        yield Epoch(number, lr_at(number, len(train)), train_loss, correct.item() / images_seen, val_loss, val_accuracy)


class Backward:
    """A batch's gradients, in one piece, or in as many as the device's memory needs."""

    def __init__(
        self, net: nn.Module, loss: Loss, label_smoothing: float, autocast: AbstractContextManager[object]
    ) -> None:
        self._net, self._loss, self._label_smoothing, self._autocast = net, loss, label_smoothing, autocast
        self._pieces = 1

    def __call__(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Leave the gradients of the mean loss in the net; returns that loss and the count of correct images.

        Where memory runs out, a net whose images do not meet goes on with pieces of half the size: the same
        gradients but for rounding. Batch norm would see other statistics: raises `UserError` naming what fits.
        """
        while True:
            try:
                return self._accumulate(images, targets)
            except torch.OutOfMemoryError:
                self._net.zero_grad()
            if len(targets) <= self._pieces:
                raise UserError("the device's memory does not hold one image: use a smaller model or image_size")
            if any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in self._net.modules()):  # noqa: SLF001
                raise UserError(
                    f"batch_size: {len(targets)} images do not fit into the device's memory, {self._fitting(images)} do"
                )
            self._pieces *= 2
            print(f"out of memory: each batch goes in {self._pieces} pieces from here on", flush=True)

    def _accumulate(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        self._net.zero_grad()
        total, correct = torch.zeros((), device=images.device), torch.zeros((), dtype=torch.int64, device=images.device)
        for some, their in zip(images.chunk(self._pieces), targets.chunk(self._pieces), strict=True):
            with self._autocast:
                logits = self._net(some)
                loss = self._loss(logits, smooth(their, logits, self._label_smoothing))
            share = torch.full_like(loss, len(their) / len(targets))
            loss.backward(share)
            total += loss.detach() * share
            correct += (logits.detach().argmax(dim=1) == class_indices(their)).sum()
        return total, correct

    def _fitting(self, images: Tensor) -> int:
        """The largest half, quarter, ... of the batch that a step has room for; 0 if there is none."""
        size = len(images) // 2
        while size:
            try:
                with self._autocast:
                    outputs = self._net(images[:size])
                outputs.float().sum().backward()
            except torch.OutOfMemoryError:
                size //= 2
            else:
                return size
        return 0


def mean_loss(losses: Tensor, train: Batches, number: int, lr: float) -> float:
    """The mean over an epoch's images of the losses of its steps; raises `UserError` naming the first that is none."""
    values = losses.cpu().double()  # on the CPU, as mps knows no doubles
    if not values.isfinite().all():
        step = int(values.isfinite().logical_not().nonzero()[0]) + 1
        check_finite(values[step - 1].item(), f"epoch {number}, step {step}", lr)
    sizes = torch.full_like(values, train.batch_size)
    sizes[-1] = train.num_images - train.batch_size * (len(train) - 1)
    return (values @ sizes).item() / train.num_images


def check_finite(loss: float, where: str, lr: float) -> None:
    """Raise `UserError` for a loss that is no number."""
    if not math.isfinite(loss):
        raise UserError(f"the loss of {where} is {loss}: try a smaller lr than {lr}")
