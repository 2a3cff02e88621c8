"""Tests of the scores: equal to numpy's on the whole split, for every division into batches."""

import numpy as np
import pytest
import torch
from helpers import batches_of
from torch import Tensor, nn

from imageclf import models
from imageclf.contracts.dataset import Split
from imageclf.training.losses import LOSSES
from imageclf.training.scoring import class_indices, compute_scores, predict, score

LOSS = LOSSES["cross_entropy"]


def outputs(sizes: list[int], classes: int, *, one_hot: bool = False) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(sum(sizes), classes, generator=generator)
    labels = torch.randint(classes, (sum(sizes),), generator=generator)
    targets = nn.functional.one_hot(labels, classes).float() if one_hot else labels
    return list(zip(logits.split(sizes), targets.split(sizes), strict=True))


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return models.build("mlp", (1, 8, 8), 4, hidden=[16], dropout=0.5)


@pytest.mark.parametrize("one_hot", [True, False], ids=["one-hot", "indices"])
@pytest.mark.parametrize("sizes", [[97], [40, 40, 17], [1, 95, 1]], ids=str)
def test_the_scores_of_uneven_batches_equal_those_of_numpy_on_the_whole(sizes: list[int], one_hot: bool) -> None:
    logits, labels = (torch.cat(part).double().numpy() for part in zip(*outputs(sizes, 10), strict=True))
    labels = labels.astype(int)
    ranks = (logits > logits[np.arange(97), labels][:, None]).sum(axis=1)  # classes ahead of the true one
    loss = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(97), labels]

    found = compute_scores(outputs(sizes, 10, one_hot=one_hot), LOSS)
    assert found.accuracy == pytest.approx((ranks == 0).mean(), abs=1e-12)
    assert found.top5 == pytest.approx((ranks < 5).mean(), abs=1e-12)
    assert found.loss == pytest.approx(loss.mean(), abs=1e-6)
    assert 0 < found.accuracy < found.top5 < 1


@pytest.mark.parametrize("classes", [2, 4, 5])
def test_with_five_classes_or_fewer_top5_is_1(classes: int) -> None:
    assert compute_scores(outputs([20], classes), LOSS).top5 == 1.0


def test_the_first_of_equal_classes_is_predicted_as_by_argmax() -> None:
    """The confusion matrix uses argmax; its diagonal must agree with the accuracy."""
    logits = torch.randint(3, (500, 10), generator=torch.Generator().manual_seed(0)).float()
    labels = torch.arange(500) % 10
    expected = (logits.argmax(dim=1) == labels).double().mean()
    assert compute_scores([(logits, labels)], LOSS).accuracy == pytest.approx(expected.item(), abs=1e-12)


@pytest.mark.parametrize("batch_size", [1, 7, 64, 150])
def test_the_batch_size_changes_no_score(batch_size: int, net: nn.Module, made_split: Split) -> None:
    found, whole = score(net, batches_of(made_split, batch_size), LOSS), score(net, batches_of(made_split, 1000), LOSS)
    assert found.accuracy == pytest.approx(whole.accuracy, abs=1e-9)
    assert found.top5 == pytest.approx(whole.top5, abs=1e-9)
    assert found.loss == pytest.approx(whole.loss, abs=1e-6)


def test_a_perfect_and_a_wrong_net_have_different_scores() -> None:
    labels = torch.arange(6)
    logits = 20 * torch.eye(6)
    right, wrong = compute_scores([(logits, labels)], LOSS), compute_scores([(-logits, labels)], LOSS)
    assert (right.accuracy, right.top5) == (1.0, 1.0)
    assert (wrong.accuracy, wrong.top5) == (0.0, 0.0)
    assert right.loss < 1e-6 < wrong.loss


def test_predict_runs_without_dropout_and_in_stored_order(net: nn.Module, made_split: Split) -> None:
    found = torch.cat([logits for logits, _ in predict(net, batches_of(made_split, 64))])
    batches = batches_of(made_split, 64)
    images = batches.normalize(torch.cat([images for images, _ in batches.in_order()]))
    assert net.training
    torch.testing.assert_close(found, net.eval()(images))


def test_predict_returns_the_targets(net: nn.Module, made_split: Split) -> None:
    targets = torch.cat([targets for _, targets in predict(net, batches_of(made_split, 64))])
    assert targets.tolist() == made_split.targets.tolist()


@pytest.mark.parametrize("training", [True, False])
def test_predict_restores_the_mode_of_the_net(training: bool, net: nn.Module, made_split: Split) -> None:
    net.train(training)
    list(predict(net, batches_of(made_split, 64)))
    assert {layer.training for layer in net.modules()} == {training}


def test_predict_restores_the_mode_of_the_net_if_the_caller_stops_early(net: nn.Module, made_split: Split) -> None:
    outputs = predict(net, batches_of(made_split, 64))
    next(outputs)
    del outputs
    assert {layer.training for layer in net.modules()} == {True}


def test_the_caller_can_compute_gradients_between_predictions(net: nn.Module, made_split: Split) -> None:
    for _ in predict(net, batches_of(made_split, 64)):
        assert not torch.is_inference_mode_enabled()
        assert torch.is_grad_enabled()


def test_predict_keeps_no_autograd_graph(net: nn.Module, made_split: Split) -> None:
    assert not any(logits.requires_grad for logits, _ in predict(net, batches_of(made_split, 64)))


def test_both_forms_of_targets_become_indices() -> None:
    labels = torch.tensor([2, 0, 1])
    assert torch.equal(class_indices(labels), labels)
    assert torch.equal(class_indices(torch.eye(3)[labels]), labels)
