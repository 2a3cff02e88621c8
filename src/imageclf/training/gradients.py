"""The gradients of a batch: at once or in micro-batches, of one process or of several, compiled or not."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from imageclf.core.errors import UserError
from imageclf.training.loading.batches import Batches
from imageclf.training.losses import Loss, smooth
from imageclf.training.runtime import compile_step
from imageclf.training.scoring import class_indices

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
        *,
        compiled: bool,
    ) -> None:
        self._net, self._normalize, self._batch_size = net, train.normalize, train.batch_size
        self._loss, self._label_smoothing, self._autocast = loss, label_smoothing, autocast
        self._add_whole_batch = compile_step(self._add_gradients) if compiled else self._add_gradients
        self._micro_batches = 1
        self._ranks = train.ranks

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
                self._net.zero_grad()
            if len(targets) <= self._micro_batches:
                raise UserError("the device's memory is too small for one image: use a smaller model or image_size")
            if any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in self._net.modules()):  # noqa: SLF001
                raise UserError(
                    f"batch_size: {len(targets)} images do not fit into the device's memory, "
                    f"{self._largest_that_fits(images)} do"
                )
            self._micro_batches *= 2
            print(f"out of memory: each batch is now split into {self._micro_batches} micro-batches", flush=True)
        if self._ranks.size > 1:
            self._sum_over_ranks(loss, correct)
        return loss, correct

    def _sum_over_ranks(self, loss: Tensor, correct: Tensor) -> None:
        trained = [weights for weights in self._net.parameters() if weights.requires_grad]
        for weights in trained:
            if weights.grad is None:
                weights.grad = torch.zeros_like(weights)  # the batch had no image for this rank
        self._ranks.sum([*(weights.grad for weights in trained if weights.grad is not None), loss, correct])

    def _accumulate(self, images: Tensor, targets: Tensor, whole: int) -> tuple[Tensor, Tensor]:
        self._net.zero_grad()
        if self._micro_batches == 1 and whole == self._batch_size and len(targets):
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
        normalized = self._normalize(images)
        with self._autocast:
            logits = self._net(normalized)
            loss = self._loss(logits, smooth(targets, logits, self._label_smoothing)) * weight
        loss.backward()
        return loss.detach(), (logits.detach().argmax(dim=1) == class_indices(targets)).sum()

    def _largest_that_fits(self, images: Tensor) -> int:
        """Return the largest half, quarter, ... of the batch that fits into memory; 0 if none does."""
        size = len(images) // 2
        while size:
            try:
                normalized = self._normalize(images[:size])
                with self._autocast:
                    outputs = self._net(normalized)
                outputs.float().sum().backward()
            except torch.OutOfMemoryError:
                size //= 2
            else:
                return size
        return 0
