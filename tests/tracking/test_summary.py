"""Tests of the table of a net: its numbers against counts by hand, and against gradients."""

from typing import Any

import pytest
import torch
from helpers import Shape, num_parameters
from torch import Tensor, nn

from imageclf import models
from imageclf.tracking.summary import Layer, as_table, describe_layers

pytestmark = pytest.mark.usefixtures("one_thread")

LENET = {"channels": [6, 16], "kernel_size": 5, "conv_padding": "valid", "hidden": [120, 84]}
ARGUMENTS: dict[str, Any] = {**LENET, "width": 0.25, "dropout": 0.5}


def build(name: str, shape: Shape, **changes: Any) -> nn.Module:
    names = models.parameter_names(name)
    taken = {key: value for key, value in {**ARGUMENTS, **changes}.items() if key in names}
    return models.build(name, shape, 10, **taken)


def test_lenet_has_the_numbers_counted_by_hand() -> None:
    assert describe_layers(build("cnn", (1, 28, 28)), (1, 28, 28)) == [
        Layer("0", "Conv2d 5x5", (6, 24, 24), (25 + 1) * 6, 25 * 6 * 24 * 24, 5),
        Layer("2", "MaxPool2d 2x2/2", (6, 12, 12), 0, 0, 6),
        Layer("3", "Conv2d 5x5", (16, 8, 8), (6 * 25 + 1) * 16, 6 * 25 * 16 * 8 * 8, 14),
        Layer("5", "MaxPool2d 2x2/2", (16, 4, 4), 0, 0, 16),
        Layer("7", "Linear", (120,), 257 * 120, 256 * 120, 28),
        Layer("10", "Linear", (84,), 121 * 84, 120 * 84, 28),
        Layer("13", "Linear", (10,), 85 * 10, 84 * 10, 28),
    ]


def test_vgg11_takes_153_million_multiply_adds() -> None:
    """Each convolution costs map pixels * 9 * input channels * output channels."""
    layers = describe_layers(build("vgg11", (3, 32, 32), width=1.0), (3, 32, 32))
    plan = [
        (32, 3, 64),
        (16, 64, 128),
        (8, 128, 256),
        (8, 256, 256),
        (4, 256, 512),
        (4, 512, 512),
        *[(2, 512, 512)] * 2,
    ]
    by_hand = sum(side * side * 9 * inputs * outputs for side, inputs, outputs in plan) + 512 * 10
    assert sum(layer.multiply_adds for layer in layers) == by_hand == 152_769_536


@pytest.mark.parametrize("name", models.MODELS)
def test_every_parameter_is_counted_once(name: str) -> None:
    shape = (3, 8, 8)
    net = build(name, shape, conv_padding="same")
    layers = describe_layers(net, shape)
    assert sum(layer.parameters for layer in layers) == num_parameters(net)
    assert layers[-1].output == (10,)


def measured_receptive_field(net: nn.Module, layer: str, side: int) -> int:
    """Return the side of the square of input pixels with a gradient from the middle of a layer's map.

    All weights are set positive, so that no gradients cancel. Max-pools are replaced by average pools, because they
    pass a gradient to one pixel only.
    """
    for name, module in list(net.named_modules()):
        if isinstance(module, nn.MaxPool2d):
            average = nn.AvgPool2d(module.kernel_size, module.stride, module.padding, module.ceil_mode)
            net.set_submodule(name, average)
    for weights in net.parameters():
        nn.init.constant_(weights, 0.01 if weights.ndim > 1 else 1)
    maps: list[Any] = []
    net.get_submodule(layer).register_forward_hook(lambda _module, _inputs, output: maps.append(output))
    images = torch.ones(1, 1, side, side, dtype=torch.float64, requires_grad=True)
    net.double().eval()(images)
    middle = maps[0].shape[-1] // 2
    (gradient,) = torch.autograd.grad(maps[0][0, :, middle, middle].sum(), images)
    rows = gradient[0, 0].any(dim=1).nonzero()
    assert rows.min() > 0, "the image must be larger than the receptive field"
    assert rows.max() < side - 1
    return int(rows.max() - rows.min()) + 1


@pytest.mark.parametrize(
    ("name", "layer", "side"),
    [
        ("cnn", "5", 28),
        ("vgg11", "14", 48),
        ("vgg16", "20", 48),
        ("alexnet", "5", 64),
        ("zfnet", "5", 32),
        ("googlenet", "inception3a.branch1.bn", 32),
        ("googlenet", "inception3b.branch4.0", 32),
        ("resnet18", "layer2.0.downsample.0", 32),
        ("resnet18", "layer2.1.bn2", 32),
        ("resnet50", "layer2.1.bn3", 32),
    ],
)
def test_the_receptive_field_is_the_square_with_a_gradient(name: str, layer: str, side: int) -> None:
    net = build(name, (1, side, side))
    computed = {row.name: row.receptive_field for row in describe_layers(net, (1, side, side))}
    assert computed[layer] == measured_receptive_field(net, layer, side)


def test_after_a_join_of_branches_the_largest_counts_and_dense_layers_cover_the_whole_image() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.narrow = nn.Conv2d(1, 2, 1)
            self.wide = nn.Conv2d(1, 2, 5, padding=2)
            self.after_sum = nn.Conv2d(2, 2, 3, dilation=2)
            self.after_cat = nn.AvgPool2d(2)
            self.head = nn.Linear(4, 3)

        def forward(self, images: Tensor) -> Tensor:
            both = self.narrow(images)
            both += self.wide(images)
            first, second = self.after_sum(both).chunk(2, dim=1)
            maps = self.after_cat(torch.cat([first, second], dim=1))
            return self.head(torch.cat([maps.mean(dim=(2, 3)), maps.amax(dim=(2, 3))], dim=1))

    computed = {layer.name: layer.receptive_field for layer in describe_layers(Branches(), (1, 20, 16))}
    assert computed == {"narrow": 1, "wide": 5, "after_sum": 9, "after_cat": 10, "head": 20}


def test_the_net_and_the_random_generator_do_not_change() -> None:
    net = build("resnet18", (3, 32, 32)).train()
    net.get_submodule("layer1").eval()
    modes = [module.training for module in net.modules()]
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    generator = torch.get_rng_state()

    describe_layers(net, (3, 32, 32))

    assert torch.equal(torch.get_rng_state(), generator)
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert not any(module._forward_hooks for module in net.modules())


def test_the_table_is_aligned_and_ends_with_totals() -> None:
    assert as_table(describe_layers(build("cnn", (1, 28, 28)), (1, 28, 28))).splitlines() == [
        "layer  kind              output  parameters  multiply-adds  receptive field",
        "0      Conv2d 5x5       6x24x24         156         86,400                5",
        "2      MaxPool2d 2x2/2  6x12x12           0              0                6",
        "3      Conv2d 5x5        16x8x8       2,416        153,600               14",
        "5      MaxPool2d 2x2/2   16x4x4           0              0               16",
        "7      Linear               120      30,840         30,720               28",
        "10     Linear                84      10,164         10,080               28",
        "13     Linear                10         850            840               28",
        "total                                44,426        281,640",
    ]
