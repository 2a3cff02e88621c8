"""Scores of a net over a split: every image counts once, also in a smaller last batch."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from imageclf.training.loading.batches import Batches
from imageclf.training.losses import Loss

BATCH_SIZE = 1000
"""Images scored at a time; the scores do not depend on it."""


@dataclass(frozen=True)
class Scores:
    """Means over a split; `top5` is the share of images whose class is among the five most probable."""

    loss: float
    accuracy: float
    top5: float


def sum_type(device: torch.device) -> torch.dtype:
    """Return the dtype of running sums: float64, but float32 on mps, which has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def class_indices(targets: Tensor) -> Tensor:
    """Return one-hot targets (n, K) or class indices (n,) as class indices (n,)."""
    return targets if targets.ndim == 1 else targets.argmax(dim=1)


def predict(net: nn.Module, batches: Batches) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (logits, targets) of each batch in stored order, in eval mode; the net's mode is restored at the end."""
    was_training = net.training
    net.eval()
    try:
        for images, targets in batches.in_order():
            with torch.inference_mode():  # not around the yield: it would include the caller's code
                logits = net(batches.normalize(images)).float()
            yield logits, targets
    finally:
        net.train(was_training)


def compute_scores(outputs: Iterable[tuple[Tensor, Tensor]], loss: Loss) -> Scores:
    """Return the scores over batches of (logits, targets); values are read from the device once, at the end."""
    sums, seen = torch.zeros(()), 0
    for logits, targets in outputs:
        # Not topk: if logits are equal, the first class must be the prediction, as with argmax everywhere else.
        ranked = logits.argsort(dim=1, descending=True, stable=True)
        hits = ranked[:, :5] == class_indices(targets)[:, None]
        batch_loss = loss(logits, targets).to(sum_type(logits.device)) * len(targets)
        sums = sums.to(logits.device) + torch.stack([batch_loss, hits[:, 0].sum(), hits.sum()])
        seen += len(targets)
    return Scores(*(sums / seen).tolist())


def score(net: nn.Module, batches: Batches, loss: Loss) -> Scores:
    """Return the scores of `net` on a split."""
    return compute_scores(predict(net, batches), loss)
