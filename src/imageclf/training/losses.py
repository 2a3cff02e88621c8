"""Loss functions by name: logits (N, K) and targets to a scalar, the mean over the batch.

Targets are one-hot floats (N, K) or class indices (N,).
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean of minus the log of the softmax probability of the true class."""
    return functional.cross_entropy(logits, targets)


def nll(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the negative log-likelihood of log-softmax: cross-entropy in two steps, equal up to rounding."""
    log_probabilities = functional.log_softmax(logits, dim=1)
    if targets.ndim == 1:
        return functional.nll_loss(log_probabilities, targets)
    return -(targets * log_probabilities).sum(dim=1).mean()


def kl_div(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the Kullback-Leibler divergence of softmax from the targets: cross-entropy minus the targets' entropy."""
    log_probabilities = functional.log_softmax(logits, dim=1)
    targets = one_hot(targets, logits)
    return (torch.xlogy(targets, targets) - targets * log_probabilities).sum() / len(targets)  # kl_div has no vmap


def mse(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean squared difference between softmax probabilities and targets, over all N * K values."""
    return functional.mse_loss(logits.softmax(dim=1), one_hot(targets, logits))


def l1(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean absolute difference between softmax probabilities and targets: 2 (1 - p of true class) / K."""
    return functional.l1_loss(logits.softmax(dim=1), one_hot(targets, logits))


def one_hot(targets: Tensor, logits: Tensor) -> Tensor:
    """Return targets of either form as floats (N, K) with the dtype of `logits`."""
    if targets.ndim == 1:
        targets = functional.one_hot(targets, logits.shape[1])
    return targets.to(logits.dtype)


def smooth(targets: Tensor, logits: Tensor, amount: float) -> Tensor:
    """Return the targets with label smoothing of `amount` (Szegedy et al. 2016); 0 returns them unchanged."""
    if amount == 0:
        return targets
    return one_hot(targets, logits) * (1 - amount) + amount / logits.shape[1]


def weighted(loss: Loss, weights: Tensor) -> Loss:
    """Return the mean of the loss of each image times the weight of its class; `weights` has shape (K,)."""
    per_image = torch.func.vmap(lambda logits, targets: loss(logits[None], targets[None]))

    def mean(logits: Tensor, targets: Tensor) -> Tensor:
        labels = targets if targets.ndim == 1 else targets.argmax(dim=1)
        return (weights[labels] * per_image(logits, targets)).mean()

    return mean


def balanced_weights(labels: NDArray[np.int64], num_classes: int) -> Tensor:
    """Return n / (K * count) for each class: all classes have the same sum of weights, and the mean weight is 1."""
    counts = np.bincount(labels, minlength=num_classes).clip(min=1)
    return torch.from_numpy(len(labels) / (num_classes * counts)).float()


LOSSES: dict[str, Loss] = {
    "cross_entropy": cross_entropy,
    "nll": nll,
    "kl_div": kl_div,
    "mse": mse,
    "l1": l1,
}
