"""Scores of a net over a split: every image counts once, a short last batch included."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from imageclf.batches import Batches
from imageclf.losses import Loss

BATCH = 1000
"""Images scored at a time: no score depends on it."""


@dataclass(frozen=True)
class Scores:
    """Means over a split; `top5` counts a true class among the five most probable."""

    loss: float
    accuracy: float
    top5: float


def sum_type(device: torch.device) -> torch.dtype:
    """The float type that running sums have: doubles, but for mps, which knows none."""
    return torch.float32 if device.type == "mps" else torch.float64


def class_indices(targets: Tensor) -> Tensor:
    """Targets in either form to class indices (n,)."""
    return targets if targets.ndim == 1 else targets.argmax(dim=1)


def predict(net: nn.Module, batches: Batches) -> Iterator[tuple[Tensor, Tensor]]:
    """(logits, targets) of each batch in stored order, in eval mode; the net's mode is restored at the end."""
    was_training = net.training
    net.eval()
    try:
        for images, targets in batches.in_order():
            with torch.inference_mode():  # not around the yield: the consumer would be in it too
                logits = net(images).float()
            yield logits, targets
    finally:
        net.train(was_training)


def tally(outputs: Iterable[tuple[Tensor, Tensor]], loss: Loss) -> Scores:
    """Loss, top-1 and top-5 accuracy over (logits, targets) batches; read from the device once, at the end."""
    sums, seen = torch.zeros(()), 0
    for logits, targets in outputs:
        # Not topk: where logits tie, the first class is the prediction, as argmax has it everywhere else.
        ranked = logits.argsort(dim=1, descending=True, stable=True)
        best = ranked[:, :5] == class_indices(targets)[:, None]
        batch_loss = loss(logits, targets).to(sum_type(logits.device)) * len(targets)
        sums = sums.to(logits.device) + torch.stack([batch_loss, best[:, 0].sum(), best.sum()])
        seen += len(targets)
    return Scores(*(sums / seen).tolist())


def score(net: nn.Module, batches: Batches, loss: Loss) -> Scores:
    """The scores of `net` on a split."""
    return tally(predict(net, batches), loss)
