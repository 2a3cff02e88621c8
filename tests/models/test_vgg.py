"""Tests of VGG: the known net for 32x32 images, and the two rules that adapt it to other sizes."""

import itertools

import pytest
import torch
from helpers import Shape, layers_of, num_parameters
from torch import nn

from imageclf import models
from imageclf.core.errors import UserError

PLANS = {"vgg11": 8, "vgg13": 10, "vgg16": 13, "vgg19": 16}
"""Number of convolutions of each net; with the paper's three dense layers they give the number in its name."""


def vgg(name: str, shape: Shape, width: float = 1.0, dropout: float = 0.0) -> nn.Module:
    return models.build(name, shape, 10, width=width, dropout=dropout)


@pytest.mark.parametrize(
    ("name", "published"), [("vgg11", 9_231_114), ("vgg13", 9_416_010), ("vgg16", 14_728_266), ("vgg19", 20_040_522)]
)
def test_the_nets_have_their_published_numbers_of_parameters(name: str, published: int) -> None:
    """Compare with github.com/kuangliu/pytorch-cifar, which has a bias per channel that batch norm subtracts."""
    with torch.device("meta"):
        net = vgg(name, (3, 32, 32))
    biases = sum(convolution.out_channels for convolution in layers_of(net, nn.Conv2d))
    assert num_parameters(net) == published - biases


def test_vgg11_counted_by_hand() -> None:
    plan = [3, 64, 128, 256, 256, 512, 512, 512, 512]
    windows = sum(9 * inputs * outputs for inputs, outputs in itertools.pairwise(plan))
    norms = 2 * sum(plan[1:])
    head = 512 * 10 + 10
    assert windows + norms + head == 9_217_728 + 5_504 + 5_130 == 9_228_362
    with torch.device("meta"):
        assert num_parameters(vgg("vgg11", (3, 32, 32))) == 9_228_362


@pytest.mark.parametrize(("name", "convolutions"), PLANS.items())
def test_each_net_has_its_convolutions_and_five_pools_that_halve_32_to_1(name: str, convolutions: int) -> None:
    with torch.device("meta"):
        net = vgg(name, (3, 32, 32))
    assert len(layers_of(net, nn.Conv2d)) == convolutions
    assert [pool.kernel_size for pool in layers_of(net, nn.MaxPool2d)] == [2, 2, 2, 2, (2, 2)]
    kinds = "".join({"Conv2d": "c", "MaxPool2d": "M"}.get(type(layer).__name__, "") for layer in net.children())
    expected = {
        "vgg11": "cMcMccMccMccM",
        "vgg13": "ccMccMccMccMccM",
        "vgg16": "ccMccMcccMcccMcccM",
        "vgg19": "ccMccMccccMccccMccccM",
    }
    assert kinds == expected[name]


def test_batch_norm_and_relu_follow_each_convolution_which_has_no_bias() -> None:
    with torch.device("meta"):
        children = list(vgg("vgg16", (3, 32, 32)).children())
    for convolution, norm, activation in zip(children, children[1:], children[2:], strict=False):
        if isinstance(convolution, nn.Conv2d):
            assert convolution.bias is None
            assert isinstance(norm, nn.BatchNorm2d)
            assert isinstance(activation, nn.ReLU)


@pytest.mark.parametrize(("width", "expected"), [(0.25, 16), (0.01, 1), (0.001, 1), (0.5, 32), (2.0, 128)])
def test_width_multiplies_the_channels_and_leaves_at_least_one(width: float, expected: int) -> None:
    with torch.device("meta"):
        channels = [convolution.out_channels for convolution in layers_of(vgg("vgg13", (1, 8, 8), width), nn.Conv2d)]
    assert channels[0] == expected
    assert channels == [max(1, round(full * width)) for full in (64, 128, 256, 512, 512) for _ in range(2)]


def test_dropout_acts_on_the_input_of_the_head() -> None:
    with torch.device("meta"):
        *_, dropout, head = vgg("vgg11", (3, 32, 32), dropout=0.5).children()
    assert isinstance(dropout, nn.Dropout)
    assert dropout.p == 0.5
    assert isinstance(head, nn.Linear)


@pytest.mark.parametrize("side", [*range(8, 65, 7), 9, 28, 31, 32, 33, 47, 48, 63, 64, 224])
def test_every_size_ends_in_512_features_and_batch_norm_never_gets_1x1_maps(side: int) -> None:
    with torch.device("meta"):
        net = vgg("vgg11", (3, side, side))
        seen: list[int] = []
        for norm in layers_of(net, nn.BatchNorm2d):
            norm.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0].shape[-1]))
        assert net(torch.empty(1, 3, side, side)).shape == (1, 10)
    assert layers_of(net, nn.Linear)[0].in_features == 512
    assert seen[0] == side
    assert min(seen) >= 2


@pytest.mark.parametrize(("side", "pools"), [(8, [2, 2, 2]), (28, [2, 2, 2, 3]), (64, [2, 2, 2, 2, 4])])
def test_smaller_images_get_fewer_pools_and_the_last_covers_the_whole_map(side: int, pools: list[int]) -> None:
    with torch.device("meta"):
        found = [pool.kernel_size for pool in layers_of(vgg("vgg11", (3, side, side)), nn.MaxPool2d)]
    assert found == [*pools[:-1], (pools[-1], pools[-1])]


def test_convolutions_are_initialized_by_hes_method_with_fan_out() -> None:
    torch.manual_seed(0)
    for convolution in layers_of(vgg("vgg11", (3, 32, 32)), nn.Conv2d):
        expected = (2 / (9 * convolution.out_channels)) ** 0.5
        assert convolution.weight.std().item() == pytest.approx(expected, rel=0.05)


def test_the_output_is_that_of_the_same_layers_written_out() -> None:
    """Compute the layers by hand with the same weights."""
    torch.manual_seed(0)
    net = vgg("vgg11", (1, 32, 32), width=0.125).eval()
    convolutions, norms, (head,) = layers_of(net, nn.Conv2d), layers_of(net, nn.BatchNorm2d), layers_of(net, nn.Linear)
    images = maps = torch.randn(3, 1, 32, 32)
    for number, (convolution, norm) in enumerate(zip(convolutions, norms, strict=True)):
        maps = nn.functional.conv2d(maps, convolution.weight, padding=1)
        maps = (maps / (norm.running_var + norm.eps)[:, None, None].sqrt()).relu()
        if number in {0, 1, 3, 5, 7}:
            maps = maps.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).amax(dim=(3, 5))
    torch.testing.assert_close(net(images), maps.flatten(1) @ head.weight.T + head.bias)


# --- vgg_layers ---

VGG11 = [64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"]
"""The configuration A of the paper."""


def with_layers(layers: list[int | str], shape: Shape, width: float = 1.0) -> nn.Module:
    return models.build("vgg11", shape, 10, vgg_layers=layers, width=width, dropout=0.0)


@pytest.mark.parametrize("side", [32, 48])
def test_the_list_of_vgg11_builds_vgg11_to_the_bit(side: int) -> None:
    images = torch.randn(2, 3, side, side)
    nets = []
    for layers in (VGG11, None):
        torch.manual_seed(0)
        nets.append(models.build("vgg11", (3, side, side), 10, vgg_layers=layers, width=0.125, dropout=0.0).eval())
    listed, named = (net.state_dict() for net in nets)
    assert list(listed) == list(named)
    assert all(map(torch.equal, listed.values(), named.values()))
    assert torch.equal(nets[0](images), nets[1](images))


@pytest.mark.parametrize(
    ("layers", "kinds", "pools"),
    [
        ([8, "M", 16, "M"], "cMcM", [2, (4, 4)]),
        ([8, "M", 16], "cMcM", [2, (4, 4)]),
        ([8, 8, 16], "cccM", [(8, 8)]),
        (["M", 8, "M", "M"], "McMM", [2, 2, (2, 2)]),
    ],
)
def test_a_list_gives_its_layers_and_the_last_pool_covers_the_whole_map(
    layers: list[int | str], kinds: str, pools: list[int | tuple[int, int]]
) -> None:
    net = with_layers(layers, (1, 8, 8))
    names = {"Conv2d": "c", "MaxPool2d": "M"}
    assert "".join(names.get(type(layer).__name__, "") for layer in net.children()) == kinds
    assert [pool.kernel_size for pool in layers_of(net, nn.MaxPool2d)] == pools
    assert [convolution.out_channels for convolution in layers_of(net, nn.Conv2d)] == [
        channels for channels in layers if channels != "M"
    ]
    assert net(torch.zeros(1, 1, 8, 8)).shape == (1, 10)


def test_width_multiplies_the_channels_of_a_list() -> None:
    convolutions = layers_of(with_layers([8, "M", 5], (1, 8, 8), width=0.25), nn.Conv2d)
    assert [convolution.out_channels for convolution in convolutions] == [2, 1]


@pytest.mark.parametrize(
    ("layers", "smallest"),
    [([8, "M", 8, "M"], 4), ([8, "M", 8], 4), ([8, "M", "M", "M"], 8), ([8], 2), (["M", "M", 8], 8), (VGG11, 32)],
    ids=str,
)
def test_pools_that_the_images_are_too_small_for_are_refused(layers: list[int | str], smallest: int) -> None:
    net = with_layers(layers, (1, smallest, smallest), width=0.01).train()
    assert net(torch.randn(1, 1, smallest, smallest)).shape == (1, 10)
    for height, width in ((smallest - 1, 64), (64, smallest - 1)):
        with pytest.raises(UserError) as refused:
            with_layers(layers, (1, height, width))
        pools = layers.count("M")
        assert str(refused.value) == (
            f"vgg_layers: {pools} M need images of at least {smallest}x{smallest} pixels, and these have "
            f"{height}x{width}; use fewer M, or increase pad or image_size"
        )
