"""Losses: logits (N, K) and targets, one-hot floats (N, K) or class indices (N,), to a scalar mean."""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional

Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Minus the log of the softmax probability of the true class; torch takes both forms of targets."""
    return functional.cross_entropy(logits, targets)


def nll(logits: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood on log-softmax: cross-entropy in two steps, equal to it to rounding."""
    log_probabilities = functional.log_softmax(logits, dim=1)
    if targets.ndim == 1:
        return functional.nll_loss(log_probabilities, targets)
    return -(targets * log_probabilities).sum(dim=1).mean()


def kl_div(logits: Tensor, targets: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the softmax from the targets: cross-entropy less the targets' entropy."""
    log_probabilities = functional.log_softmax(logits, dim=1)
    return functional.kl_div(log_probabilities, one_hot(targets, logits), reduction="batchmean")


def mse(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean squared difference of the softmax probabilities from the targets, over all N * K of them."""
    return functional.mse_loss(logits.softmax(dim=1), one_hot(targets, logits))


def l1(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean absolute difference of the softmax probabilities from the targets: 2 (1 - p of the true class) / K."""
    return functional.l1_loss(logits.softmax(dim=1), one_hot(targets, logits))


def one_hot(targets: Tensor, logits: Tensor) -> Tensor:
    """Targets in either form as floats (N, K) like `logits`."""
    if targets.ndim == 1:
        targets = functional.one_hot(targets, logits.shape[1])
    return targets.to(logits.dtype)


def smooth(targets: Tensor, logits: Tensor, amount: float) -> Tensor:
    """Targets with `amount` of their mass spread evenly over all classes (Szegedy et al. 2016); 0 changes nothing."""
    if amount == 0:
        return targets
    return one_hot(targets, logits) * (1 - amount) + amount / logits.shape[1]


LOSSES: dict[str, Loss] = {
    "cross_entropy": cross_entropy,
    "nll": nll,
    "kl_div": kl_div,
    "mse": mse,
    "l1": l1,
}
