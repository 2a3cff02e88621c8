"""Losses: logits (N, K) and targets, one-hot floats (N, K) or class indices (N,), to a scalar mean."""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional

Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Minus the log of the softmax probability of the true class; torch takes both forms of targets."""
    return functional.cross_entropy(logits, targets)


LOSSES: dict[str, Loss] = {
    "cross_entropy": cross_entropy,
}
