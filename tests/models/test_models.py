"""Tests of every net on images of every data set, and of the structure of mlp and cnn."""

import math
from typing import Any

import pytest
import torch
from helpers import COLOR, Shape, layers_of, num_parameters
from imports import ROOT
from torch import Tensor, nn

from imageclf import models, params
from imageclf.core import paths
from imageclf.core.errors import UserError
from imageclf.download.datasets import DATASETS
from imageclf.models import MODELS
from imageclf.models.cnn import POOLINGS
from imageclf.models.linear import Linear

SHAPES = sorted({source.image_shape for source in DATASETS.values()} | {COLOR})
CLASSES = 10

pytestmark = pytest.mark.usefixtures("one_thread")


def default_arguments(name: str) -> dict[str, Any]:
    committed = params.load(ROOT / paths.PARAMS)
    return {key: getattr(committed, key) for key in models.parameter_names(name)}


def build(name: str, shape: Shape, **changes: Any) -> nn.Module:
    return models.build(name, shape, CLASSES, **{**default_arguments(name), **changes})


def build_or_refuse(name: str, shape: Shape) -> nn.Module | None:
    """Return the net, or None if it refuses such images with one sentence that contains its name."""
    try:
        return build(name, shape)
    except UserError as refusal:
        sentence = str(refusal)
    assert name in sentence
    assert "\n" not in sentence
    assert shape != COLOR, "every net accepts these"
    return None


def linears(net: nn.Module) -> list[nn.Linear]:
    return layers_of(net, nn.Linear)


@pytest.mark.parametrize("name", MODELS)
def test_each_parameter_of_a_net_is_a_parameter_of_train(name: str) -> None:
    assert set(models.parameter_names(name)) <= set(params.TrainParams.model_fields)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_a_net_gives_logits_and_learns_with_all_its_weights(name: str, shape: Shape) -> None:
    torch.manual_seed(0)
    net = build_or_refuse(name, shape)
    if net is None:
        return
    logits: Tensor = net(torch.randn(2, *shape))
    logits.square().sum().backward()

    assert logits.shape == (2, CLASSES)
    assert logits.isfinite().all()
    for weights_name, weights in net.named_parameters():
        assert weights.grad is not None, f"{weights_name} is not used"
        total = weights.grad.abs().sum().item()
        assert math.isfinite(total), weights_name
        # A bias may have none: batch normalization subtracts it.
        assert weights.ndim == 1 or total > 0, f"{weights_name} gets no gradient"


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 2, 2), (3, 5, 5), (1, 9, 4), (2, 17, 30)], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_a_net_accepts_odd_shapes_or_refuses_them_in_one_sentence(name: str, shape: Shape) -> None:
    with torch.device("meta"):  # shapes only: nothing is computed
        net = build_or_refuse(name, shape)
        assert net is None or net(torch.empty(2, *shape)).shape == (2, CLASSES)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_a_net_can_train_on_a_last_batch_of_one_image(name: str, shape: Shape) -> None:
    """Batch normalization raises an error if it has only one value per channel."""
    with torch.device("meta"):
        net = build_or_refuse(name, shape)
        assert net is None or net(torch.empty(1, *shape)).shape == (1, CLASSES)


@pytest.mark.parametrize("name", MODELS)
def test_the_same_seed_gives_the_same_initial_weights(name: str) -> None:
    torch.manual_seed(0)
    first = build(name, COLOR)
    torch.manual_seed(0)
    again = build(name, COLOR)
    assert all(map(torch.equal, first.parameters(), again.parameters()))


@pytest.mark.parametrize("name", ["cnn", "mlp"])
def test_another_seed_gives_other_initial_weights(name: str) -> None:
    torch.manual_seed(0)
    first = build(name, COLOR)
    torch.manual_seed(1)
    other = build(name, COLOR)
    assert not any(map(torch.equal, first.parameters(), other.parameters()))


def test_mlp_without_hidden_layers_is_softmax_regression() -> None:
    net = build("mlp", (1, 28, 28), hidden=[])
    assert [(layer.in_features, layer.out_features) for layer in linears(net)] == [(784, 10)]
    assert not any(isinstance(layer, nn.ReLU | nn.Dropout) for layer in net.modules())


def test_mlp_has_the_hidden_widths_with_relu_and_dropout_between() -> None:
    net = build("mlp", COLOR, hidden=[20, 30], dropout=0.25)
    assert [(layer.in_features, layer.out_features) for layer in linears(net)] == [(3072, 20), (20, 30), (30, 10)]
    kinds = [type(layer) for layer in net.children()]
    assert kinds == [nn.Flatten, *[Linear, nn.ReLU, nn.Dropout] * 2, Linear]
    assert {layer.p for layer in net.modules() if isinstance(layer, nn.Dropout)} == {0.25}


def test_mlp_of_500_on_mnist_has_397510_parameters() -> None:
    assert num_parameters(build("mlp", (1, 28, 28), hidden=[500])) == 397_510


def test_the_order_of_pixels_does_not_matter_to_mlp() -> None:
    net = build("mlp", (1, 8, 8), hidden=[16]).eval()
    order = torch.randperm(64)
    images = torch.randn(4, 1, 8, 8)
    before = net(images)
    first = linears(net)[0]
    first.weight.data = first.weight.data[:, order]
    torch.testing.assert_close(net(images.flatten(1)[:, order].view(4, 1, 8, 8)), before)


def test_cnn_pools_each_convolution_after_its_relu() -> None:
    kinds = [type(layer) for layer in build("cnn", COLOR, channels=[4, 6], hidden=[]).children()]
    assert kinds == [*[nn.Conv2d, nn.ReLU, nn.MaxPool2d] * 2, nn.Flatten, Linear]


def test_cnn_with_average_pooling_gives_the_means_of_the_windows() -> None:
    arguments = {"channels": [2], "kernel_size": 1, "hidden": [], "activation": "none", "dropout": 0.0}
    net = build("cnn", (1, 4, 4), pooling="average", **arguments)
    assert [type(layer) for layer in net.children()] == [nn.Conv2d, nn.Identity, nn.AvgPool2d, nn.Flatten, Linear]
    images = torch.randn(3, 1, 4, 4)
    (convolution,), (head,) = layers_of(net, nn.Conv2d), linears(net)
    means = images.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).mean(dim=(3, 5))
    maps = means * convolution.weight.view(1, 2, 1, 1) + convolution.bias.view(1, 2, 1, 1)
    torch.testing.assert_close(net(images), maps.flatten(1) @ head.weight.T + head.bias)


def test_max_and_average_pooling_have_the_same_weights_and_other_logits() -> None:
    images, nets = torch.randn(3, *COLOR), []
    for pooling in POOLINGS:
        torch.manual_seed(0)
        nets.append(build("cnn", COLOR, pooling=pooling).eval())
    assert all(map(torch.equal, nets[0].parameters(), nets[1].parameters()))
    assert not torch.allclose(nets[0](images), nets[1](images))


def test_cnn_without_padding_shrinks_28_pixels_to_96_features() -> None:
    net = build("cnn", (1, 28, 28), channels=[6, 6], kernel_size=5, conv_padding="valid", hidden=[50])
    assert [(layer.in_features, layer.out_features) for layer in linears(net)] == [(96, 50), (50, 10)]
    assert num_parameters(net) == (25 + 1) * 6 + (6 * 25 + 1) * 6 + 97 * 50 + 51 * 10


def test_cnn_with_zero_padding_shrinks_only_by_its_pools() -> None:
    net = build("cnn", (1, 28, 28), channels=[6, 6], kernel_size=5, conv_padding="same", hidden=[50])
    assert linears(net)[0].in_features == 6 * 7 * 7


@pytest.mark.parametrize(
    ("shape", "arguments"),
    [
        ((1, 64, 8), {"channels": [4, 4], "kernel_size": 5, "conv_padding": "valid"}),
        ((1, 8, 8), {"channels": [4, 4, 4, 4], "conv_padding": "same"}),
        ((1, 8, 8), {"channels": [4, 4], "kernel_size": 5, "conv_padding": "valid"}),
        ((1, 8, 64), {"channels": [4, 4], "kernel_size": 5, "conv_padding": "valid"}),
        ((1, 8, 8), {"channels": [4], "kernel_size": 31, "conv_padding": "valid"}),
    ],
    ids=["width", "pools", "windows", "height", "one window"],
)
def test_cnn_refuses_images_that_are_too_small_and_names_the_remedy(shape: Shape, arguments: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"larger images than {shape[1]}x{shape[2]}; use fewer channels.*image_size"):
        build("cnn", shape, **arguments)


def test_cnn_accepts_the_smallest_images_that_leave_one_pixel() -> None:
    net = build("cnn", (1, 8, 8), channels=[4, 4, 4], conv_padding="same", hidden=[])
    assert linears(net)[0].in_features == 4
