"""Tests of the activation functions in the nets that have a choice of them."""

import itertools
from typing import Any

import pytest
import torch
from helpers import Shape, layers_of
from torch import Tensor, nn

from imageclf import models
from imageclf.models.activations import ACTIVATIONS

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE: Shape = (1, 8, 8)
ARGUMENTS: dict[str, dict[str, Any]] = {
    "mlp": {"hidden": [16, 16], "dropout": 0.0},
    "cnn": {"channels": [4, 6], "kernel_size": 3, "conv_padding": "same", "hidden": [16], "dropout": 0.0},
    "convnet32": {"dropout": 0.0},
    "vgg11": {"width": 0.0625, "dropout": 0.0},
}
"""The nets with a choice of the activation, and their other arguments."""


def build(name: str, activation: str) -> nn.Module:
    torch.manual_seed(0)
    return models.build(name, SHAPE, 4, activation=activation, **ARGUMENTS[name])


def test_these_nets_have_a_choice() -> None:
    found = [name for name in models.MODELS if "activation" in models.parameter_names(name)]
    assert sorted(found) == sorted([*ARGUMENTS, "vgg13", "vgg16", "vgg19"])


@pytest.mark.parametrize("name", ARGUMENTS)
def test_every_activation_gives_other_logits_for_the_same_weights(name: str) -> None:
    images = torch.randn(3, *SHAPE)
    logits = [build(name, activation).eval()(images) for activation in ACTIVATIONS]
    assert not any(torch.allclose(one, other) for one, other in itertools.combinations(logits, 2))


@pytest.mark.parametrize("name", ARGUMENTS)
def test_the_default_is_relu_to_the_bit(name: str) -> None:
    """A model.json that is older than the parameter has no activation."""
    images = torch.randn(3, *SHAPE)
    torch.manual_seed(0)
    net = models.build(name, SHAPE, 4, **ARGUMENTS[name])
    assert torch.equal(net.eval()(images), build(name, "relu").eval()(images))


@pytest.mark.parametrize("name", ARGUMENTS)
def test_no_relu_is_left(name: str) -> None:
    assert layers_of(build(name, "relu"), nn.ReLU)
    assert not layers_of(build(name, "tanh"), nn.ReLU)
    assert len(layers_of(build(name, "tanh"), nn.Tanh)) == len(layers_of(build(name, "relu"), nn.ReLU))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_net_learns_with_every_activation(name: str, activation: str) -> None:
    net = build(name, activation).train()
    images, targets = torch.randn(8, *SHAPE), torch.arange(8) % 4
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    losses: list[float] = []
    for _ in range(60):  # sigmoid needs most of them
        loss = nn.functional.cross_entropy(net(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0], losses


def departure_from_linear(activation: str) -> Tensor:
    """Return f(a + b) - f(a) - f(b) + f(0) of an mlp f, which is 0 for a linear map with an offset."""
    net = build("mlp", activation).double().eval()
    a, b = torch.randn(2, 5, *SHAPE, dtype=torch.float64)
    return (net(a + b) - net(a) - net(b) + net(torch.zeros_like(a))).abs().max()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_mlp_is_linear_without_an_activation_alone(activation: str) -> None:
    if activation == "none":
        assert departure_from_linear(activation) < 1e-13
    else:
        assert departure_from_linear(activation) > 1e-4
