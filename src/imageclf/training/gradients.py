"""A step of the training: the gradients of a batch, and the update of the weights; compiled or not.

The gradients are computed at once or in micro-batches, by one process or by several.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from imageclf.core.errors import UserError
from imageclf.training.loading.batches import Batches
from imageclf.training.losses import Loss, smooth
from imageclf.training.optim import Optimizer
from imageclf.training.runtime import compile_step
from imageclf.training.scoring import class_indices
from imageclf.training.update import update_of

FLOAT32 = nullcontext()
"""The context of a forward pass without mixed precision."""


class GradientAccumulator:
    """Computes the gradients of a batch: at once, or in micro-batches if the device's memory is too small.

    Several ranks compute those of their parts of the batch, and add them.
    """

    def __init__(
        self,
        net: nn.Module,
        train: Batches,
        loss: Loss,
        label_smoothing: float,
        autocast: AbstractContextManager[object],
    ) -> None:
        self.net, self.batch_size, self.ranks = net, train.batch_size, train.ranks
        self._normalize = train.normalize
        self._loss, self._label_smoothing, self._autocast = loss, label_smoothing, autocast
        self._add_whole_batch = self._add_gradients
        self._micro_batches = 1

    def compile(self) -> None:
        """Make one program of all that computes the gradients of a whole batch."""
        self._add_whole_batch = compile_step(self._add_gradients)

    def __call__(self, images: Tensor, targets: Tensor, whole: int) -> tuple[Tensor, Tensor]:
        """Store the gradients of the mean loss in the net; return this loss and the number of correct images.

        `images` are the pixels of this rank's part of a batch of `whole` images. If memory runs out, this batch and all
        later ones are split into twice as many micro-batches: the same gradients up to rounding. Batch norm would
        compute other statistics, so for a net that has it a `UserError` names a batch size that fits.
        """
        while True:
            try:
                loss, correct = self._accumulate(images, targets, whole)
                break
            except torch.OutOfMemoryError:
                self.net.zero_grad()
            if len(targets) <= self._micro_batches:
                raise UserError("the device's memory is too small for one image: use a smaller model or image_size")
            if any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in self.net.modules()):  # noqa: SLF001
                raise UserError(
                    f"batch_size: {len(targets)} images do not fit into the device's memory, "
                    f"{self._largest_that_fits(images)} do"
                )
            self._micro_batches *= 2
            print(f"out of memory: each batch is now split into {self._micro_batches} micro-batches", flush=True)
        if self.ranks.size > 1:
            self._sum_over_ranks(loss, correct)
        return loss, correct

    def _sum_over_ranks(self, loss: Tensor, correct: Tensor) -> None:
        trained = [weights for weights in self.net.parameters() if weights.requires_grad]
        for weights in trained:
            if weights.grad is None:
                weights.grad = torch.zeros_like(weights)  # the batch had no image for this rank
        self.ranks.sum([*(weights.grad for weights in trained if weights.grad is not None), loss, correct])

    def _accumulate(self, images: Tensor, targets: Tensor, whole: int) -> tuple[Tensor, Tensor]:
        self.net.zero_grad()
        if self._micro_batches == 1 and whole == self.batch_size and len(targets):
            return self._add_whole_batch(images, targets, len(targets) / whole)
        total, correct = torch.zeros((), device=images.device), torch.zeros((), dtype=torch.int64, device=images.device)
        if not len(targets):
            return total, correct
        pairs = zip(images.tensor_split(self._micro_batches), targets.tensor_split(self._micro_batches), strict=True)
        for micro_images, micro_targets in pairs:
            loss, hits = self._add_gradients(micro_images, micro_targets, len(micro_targets) / whole)
            total += loss
            correct += hits
        return total, correct

    def _add_gradients(self, images: Tensor, targets: Tensor, weight: float = 1.0) -> tuple[Tensor, Tensor]:
        """Add the gradients of `weight` times the mean loss to the net; return that product and the correct count."""
        loss, correct = self.forward(images, targets, weight)
        loss.backward()
        return loss.detach(), correct

    def forward(self, images: Tensor, targets: Tensor, weight: float = 1.0) -> tuple[Tensor, Tensor]:
        """Return `weight` times the mean loss, whose gradients can be computed, and the number of correct images."""
        normalized = self._normalize(images)
        with self._autocast:
            logits = self.net(normalized)
            loss = self._loss(logits, smooth(targets, logits, self._label_smoothing))
        if weight != 1.0:
            loss = loss * weight
        return loss, (logits.detach().argmax(dim=1) == class_indices(targets)).sum()

    def _largest_that_fits(self, images: Tensor) -> int:
        """Return the largest half, quarter, ... of the batch that fits into memory; 0 if none does."""
        size = len(images) // 2
        while size:
            try:
                normalized = self._normalize(images[:size])
                with self._autocast:
                    outputs = self.net(normalized)
                outputs.float().sum().backward()
            except torch.OutOfMemoryError:
                size //= 2
            else:
                return size
        return 0


class Step:
    """Computes the gradients of a batch and updates the weights.

    With `compiled`, both are one program for one process on a CPU. On a GPU, where an optimizer is one kernel, with
    several ranks, and with Muon, the program ends with the gradients.
    """

    def __init__(self, gradients: GradientAccumulator, optimizer: Optimizer, *, compiled: bool) -> None:
        self._gradients, self._optimizer, self._program = gradients, optimizer, None
        self._weights = [weights for weights in gradients.net.parameters() if weights.requires_grad]
        alone_on_cpu = self._weights[0].device.type == "cpu" and gradients.ranks.size == 1
        self._update = update_of(optimizer, self._weights) if compiled and alone_on_cpu else None
        if self._update:
            self._program = compile_step(self._whole, instead=self._without_program)
        elif compiled:
            gradients.compile()

    def __call__(self, images: Tensor, targets: Tensor, whole: int) -> tuple[Tensor, Tensor]:
        """Take a step on this rank's part of a batch of `whole` images; return the mean loss and the correct count."""
        if self._program is None or self._update is None or whole < self._gradients.batch_size:
            return self._in_parts(images, targets, whole)
        return self._program(images, targets, torch.tensor(self._update.numbers()))

    def _in_parts(self, images: Tensor, targets: Tensor, whole: int) -> tuple[Tensor, Tensor]:
        found = self._gradients(images, targets, whole)
        self._optimizer.step()
        return found

    def _without_program(self, images: Tensor, targets: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        self._program = None
        return self._in_parts(images, targets, self._gradients.batch_size)

    def _whole(self, images: Tensor, targets: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        assert self._update is not None
        loss, correct = self._gradients.forward(images, targets)
        gradients = torch.autograd.grad(loss, self._weights)
        with torch.no_grad():
            self._update.apply(list(gradients), numbers)
        return loss.detach(), correct
