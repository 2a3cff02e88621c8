"""Tests of the losses: each has the value of its formula for both forms of targets, and stays finite."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from imageclf.training.losses import LOSSES, balanced_weights, smooth, weighted

CLASSES = 7


@pytest.fixture
def logits() -> Tensor:
    return 3 * torch.randn(11, CLASSES, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def labels() -> Tensor:
    return torch.randint(CLASSES, (11,), generator=torch.Generator().manual_seed(1))


def one_hot(labels: Tensor) -> Tensor:
    return functional.one_hot(labels, CLASSES).float()


@pytest.mark.parametrize("name", LOSSES)
def test_one_hot_targets_and_indices_give_the_same_loss_and_gradient(name: str, logits: Tensor, labels: Tensor) -> None:
    found = []
    for targets in (labels, one_hot(labels)):
        leaf = logits.clone().requires_grad_()
        loss = LOSSES[name](leaf, targets)
        loss.backward()
        assert leaf.grad is not None
        found.append((loss.detach(), leaf.grad))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_a_mean_over_images(name: str, logits: Tensor, labels: Tensor) -> None:
    each = [LOSSES[name](row[None], label[None]) for row, label in zip(logits, labels, strict=True)]
    whole = LOSSES[name](logits, labels)
    assert whole.ndim == 0
    torch.testing.assert_close(whole, torch.stack(each).mean(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_falls_if_the_true_class_gets_more_probable(name: str, logits: Tensor, labels: Tensor) -> None:
    more_certain = logits + 0.5 * one_hot(labels)
    assert LOSSES[name](more_certain, labels) < LOSSES[name](logits, labels)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("size", [1e-30, 1e4, 1e30])
@pytest.mark.parametrize("form", [one_hot, Tensor.clone], ids=["one-hot", "indices"])
def test_extreme_logits_give_a_finite_loss_and_gradient(
    name: str, size: float, form: Callable[[Tensor], Tensor], labels: Tensor
) -> None:
    signs = torch.randn(len(labels), CLASSES, generator=torch.Generator().manual_seed(2)).sign()
    logits = (size * signs).requires_grad_()
    loss = LOSSES[name](logits, form(labels))
    loss.backward()
    assert loss.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def expected(name: str, logits: Tensor, labels: Tensor) -> float:
    """Compute the loss by its formula in double precision."""
    probabilities = logits.double().exp() / logits.double().exp().sum(dim=1, keepdim=True)
    difference = probabilities - one_hot(labels)
    true = probabilities[torch.arange(len(labels)), labels]
    formulas = {
        "cross_entropy": -true.log().mean(),
        "nll": -true.log().mean(),
        "kl_div": -true.log().mean(),  # the entropy of one-hot targets is 0
        "mse": difference.square().mean(),
        "l1": 2 * (1 - true).mean() / CLASSES,
    }
    return formulas[name].item()


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_equals_its_formula(name: str, logits: Tensor, labels: Tensor) -> None:
    assert LOSSES[name](logits, labels).item() == pytest.approx(expected(name, logits, labels), abs=1e-6)


def test_kl_divergence_of_soft_targets_is_cross_entropy_minus_their_entropy(logits: Tensor, labels: Tensor) -> None:
    soft = smooth(labels, logits, 0.3)
    entropy = -(soft * soft.log()).sum(dim=1).mean()
    difference = LOSSES["cross_entropy"](logits, soft) - LOSSES["kl_div"](logits, soft)
    assert difference.item() == pytest.approx(entropy.item(), abs=1e-6)


@pytest.mark.parametrize("form", [one_hot, Tensor.clone], ids=["one-hot", "indices"])
def test_label_smoothing_equals_that_of_torch(form: Callable[[Tensor], Tensor], logits: Tensor, labels: Tensor) -> None:
    found = LOSSES["cross_entropy"](logits, smooth(form(labels), logits, 0.1))
    theirs = functional.cross_entropy(logits, labels, label_smoothing=0.1)
    assert found.item() == pytest.approx(theirs.item(), abs=1e-6)


def test_smoothed_targets_sum_to_one(logits: Tensor, labels: Tensor) -> None:
    sums = smooth(labels, logits, 0.25).sum(dim=1)
    torch.testing.assert_close(sums, torch.ones(len(labels)))


def test_smoothing_of_0_does_not_change_the_targets(logits: Tensor, labels: Tensor) -> None:
    assert smooth(labels, logits, 0.0) is labels


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("as_one_hot", [True, False], ids=["one-hot", "indices"])
def test_a_weighted_loss_is_the_mean_of_weighted_images(
    as_one_hot: bool, name: str, logits: Tensor, labels: Tensor
) -> None:
    weights = torch.arange(1.0, CLASSES + 1)
    each = [weights[label] * LOSSES[name](row[None], label[None]) for row, label in zip(logits, labels, strict=True)]
    found = weighted(LOSSES[name], weights)(logits, one_hot(labels) if as_one_hot else labels)
    torch.testing.assert_close(found, torch.stack(each).mean(), rtol=1e-5, atol=1e-6)


def test_smoothed_targets_keep_the_weight_of_their_class(logits: Tensor, labels: Tensor) -> None:
    weights = torch.arange(1.0, CLASSES + 1)
    found = weighted(LOSSES["cross_entropy"], weights)(logits, smooth(labels, logits, 0.1))
    each = functional.cross_entropy(logits, labels, label_smoothing=0.1, reduction="none")
    torch.testing.assert_close(found, (weights[labels] * each).mean(), rtol=1e-5, atol=1e-6)


def test_balanced_weights_give_each_class_the_same_sum_and_a_mean_of_one() -> None:
    labels = np.repeat([0, 1, 3], [6, 2, 4])
    weights = balanced_weights(labels, 4)
    per_image = weights[torch.from_numpy(labels)]
    assert per_image.mean().item() == pytest.approx(12 / 16)  # class 2 has no image
    assert [per_image[torch.from_numpy(labels == each)].sum().item() for each in (0, 1, 3)] == pytest.approx([3.0] * 3)
    assert balanced_weights(labels[labels < 2], 2)[torch.from_numpy(labels[:8])].mean().item() == pytest.approx(1.0)
