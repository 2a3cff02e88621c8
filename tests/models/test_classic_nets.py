"""Tests of convnet32, AlexNet, ZFNet, GoogLeNet and the ResNets: their published sizes, and that each one learns."""

import ast
from types import UnionType

import pytest
import torch
from helpers import Shape, layers_of, num_parameters
from imports import SOURCE
from torch import nn

from imageclf import models
from imageclf.core.errors import UserError

pytestmark = pytest.mark.usefixtures("one_thread")

NETS = [name for name in models.MODELS if name not in {"cnn", "mlp"}]
TINY: Shape = (1, 8, 8)
LARGER: list[Shape] = [(1, 28, 28), (3, 32, 32)]
ARGUMENTS = {"width": 0.25, "dropout": 0.0}


def build(name: str, shape: Shape, **changes: float) -> nn.Module:
    names = models.parameter_names(name)
    taken = {key: value for key, value in {**ARGUMENTS, **changes}.items() if key in names}
    return models.build(name, shape, 10, **taken)


def sizes(net: nn.Module, kind: type[nn.Module] | UnionType, shape: Shape) -> list[tuple[int, ...]]:
    """Return the output shape of each layer of a class for one image, in the order in which the layers run."""
    found: list[tuple[int, ...]] = []
    for module in net.modules():
        if isinstance(module, kind):
            module.register_forward_hook(lambda _module, _inputs, output: found.append(tuple(output.shape[1:])))
    net.to("meta").eval()(torch.empty(1, *shape, device="meta"))
    return found


@pytest.mark.parametrize("shape", LARGER, ids=str)
@pytest.mark.parametrize("name", NETS)
def test_a_training_step_reaches_every_weight(name: str, shape: Shape) -> None:
    torch.manual_seed(0)
    net = build(name, shape).train()
    logits = net(torch.randn(4, *shape))
    nn.functional.cross_entropy(logits, torch.arange(4)).backward()
    assert logits.shape == (4, 10)
    for weights_name, weights in net.named_parameters():
        assert weights.grad is not None, weights_name
        assert weights.grad.isfinite().all(), weights_name


@pytest.mark.parametrize("name", NETS)
def test_a_few_steps_learn_a_few_images(name: str) -> None:
    torch.manual_seed(0)
    net = build(name, TINY).train()
    images, targets = torch.randn(4, *TINY), torch.arange(4)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.001)
    losses: list[float] = []
    for _ in range(10):
        loss = nn.functional.cross_entropy(net(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0], losses


# --- EfficientNet-Lite0 ---


def test_efficientnet_lite0_has_its_published_size() -> None:
    """4.65 million parameters for 1,000 classes (github.com/tensorflow/tpu, efficientnet/lite)."""
    with torch.device("meta"):
        net = models.build("efficientnet_lite0", (3, 224, 224), 1000, dropout=0.2)
    assert num_parameters(net) == 4_652_008
    blocks = [shape for shape in sizes(net, nn.Conv2d, (3, 224, 224)) if shape[0] in {32, 320, 1280}]
    assert (blocks[0], blocks[-1]) == ((32, 112, 112), (1280, 7, 7))


# --- convnet32 ---


def test_convnet32_has_12544_features_for_32x32_images() -> None:
    net = build("convnet32", (1, 32, 32))
    features, hidden, last = layers_of(net, nn.Linear)
    assert (features.in_features, hidden.in_features, last.in_features) == (16 * 28 * 28, 512, 64) == (12544, 512, 64)
    convolutions = (9 + 1) * 6 + (6 * 9 + 1) * 16
    assert num_parameters(net) == convolutions + 12545 * 512 + 513 * 64 + 65 * 10 == 6_457_462
    assert sizes(net, nn.Conv2d, (1, 32, 32)) == [(6, 30, 30), (16, 28, 28)]


@pytest.mark.parametrize(("shape", "features"), [((1, 28, 28), 9216), ((1, 8, 8), 256), ((2, 5, 9), 80)])
def test_convnet32_adapts_to_other_sizes(shape: Shape, features: int) -> None:
    with torch.device("meta"):
        dense = layers_of(build("convnet32", shape), nn.Linear)
    assert dense[0].in_features == features


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 4, 32), (1, 32, 1)], ids=str)
def test_convnet32_refuses_images_smaller_than_5x5(shape: Shape) -> None:
    with pytest.raises(
        UserError, match=f"convnet32.*have {shape[1]}x{shape[2]} pixels.*at least 5x5; increase pad or image_size"
    ):
        build("convnet32", shape)


# --- AlexNet and ZFNet ---


@pytest.mark.parametrize(
    ("name", "maps"),
    [
        (
            "alexnet",
            [(64, 16, 16), (64, 8, 8), (192, 8, 8), (192, 4, 4), *[(384, 4, 4), (256, 4, 4), (256, 4, 4)], (256, 2, 2)],
        ),
        (
            "zfnet",
            [
                (96, 32, 32),
                (96, 16, 16),
                (256, 8, 8),
                (256, 4, 4),
                *[(384, 4, 4), (384, 4, 4), (256, 4, 4)],
                (256, 2, 2),
            ],
        ),
    ],
)
def test_alexnet_and_zfnet_shrink_32_pixels_to_2_in_five_convolutions_and_three_pools(
    name: str, maps: list[tuple[int, int, int]]
) -> None:
    found = sizes(build(name, (3, 32, 32)), nn.Conv2d | nn.MaxPool2d | nn.Linear, (3, 32, 32))
    assert found == [*maps, (4096,), (4096,), (10,)]


def test_alexnet_differs_from_torchvisions_in_its_first_kernel_and_first_dense_layer() -> None:
    from torchvision.models import alexnet

    ours, theirs = build("alexnet", (3, 32, 32)), alexnet(weights=None, num_classes=10)
    first_kernel = 64 * 3 * (11**2 - 5**2)
    features = 256 * (6 * 6 - 2 * 2) * 4096
    assert num_parameters(theirs) - num_parameters(ours) == first_kernel + features


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (2, 17, 30)], ids=str)
@pytest.mark.parametrize("name", ["alexnet", "zfnet"])
def test_the_dense_layers_fit_the_last_map(name: str, shape: Shape) -> None:
    with torch.device("meta"):
        assert build(name, shape)(torch.empty(2, *shape)).shape == (2, 10)


def test_dropout_acts_on_both_hidden_layers() -> None:
    with torch.device("meta"):
        drops = [layer.p for layer in layers_of(build("alexnet", (3, 32, 32), dropout=0.5), nn.Dropout)]
    assert drops == [0.5, 0.5]


# --- GoogLeNet and the ResNets ---


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("name", "features"),
    [
        ("resnet18", 512),
        ("resnet34", 512),
        ("resnet50", 2048),
        ("resnet101", 2048),
        ("resnet152", 2048),
        ("googlenet", 1024),
    ],
)
def test_torchvisions_nets_differ_only_in_stem_and_head(name: str, features: int, channels: int) -> None:
    """Compare with the number of parameters that torchvision publishes for 1000 classes."""
    from torchvision.models import get_model_weights

    published = next(iter(get_model_weights(name))).meta["num_params"]
    stem = 64 * (3 * 7 * 7 - channels * 3 * 3)
    head = (features + 1) * (1000 - 10)
    with torch.device("meta"):
        assert num_parameters(build(name, (channels, 32, 32))) == published - stem - head


@pytest.mark.parametrize(
    ("name", "blocks", "parameters"),
    [
        ("resnet50", [3, 4, 6, 3], 25_557_032),
        ("resnet101", [3, 4, 23, 3], 44_549_160),
        ("resnet152", [3, 8, 36, 3], 60_192_808),
    ],
)
def test_the_deep_resnets_with_the_stem_of_the_paper_have_its_blocks(
    name: str, blocks: list[int], parameters: int
) -> None:
    """Compare with table 1 of the paper, and with the number of parameters counted block by block."""
    counted = 64 * 3 * 7 * 7 + 2 * 64 + 2048 * 1000 + 1000
    inputs = 64
    for count, width in zip(blocks, (64, 128, 256, 512), strict=True):
        outputs = 4 * width
        counted += inputs * outputs + 2 * outputs  # the projection of the first block's input
        for _ in range(count):
            counted += inputs * width + 9 * width * width + width * outputs + 2 * (2 * width + outputs)
            inputs = outputs
    with torch.device("meta"):
        net = models.build(name, (3, 224, 224), 1000, large_stem=True)
    assert num_parameters(net) == counted == parameters


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"])
@pytest.mark.parametrize(("side", "stages"), [(8, [8, 4, 2, 2]), (28, [28, 14, 7, 4]), (32, [32, 16, 8, 4])])
def test_a_resnet_halves_its_maps_between_stages_but_never_to_one_pixel(
    name: str, side: int, stages: list[int]
) -> None:
    found = [size[-1] for size in sizes(build(name, (3, side, side)), nn.Sequential, (3, side, side))]
    assert sorted(set(found), reverse=True) == sorted(set(stages), reverse=True)
    assert found[-1] == stages[-1]


@pytest.mark.parametrize(("side", "blocks"), [(8, [4, 2, 2]), (28, [14, 7, 4]), (32, [16, 8, 4])])
def test_googlenets_inception_blocks_have_maps_of_three_sizes(side: int, blocks: list[int]) -> None:
    from torchvision.models.googlenet import Inception

    shape = (1, side, side)
    found = [size[-1] for size in sizes(build("googlenet", shape), Inception, shape)]
    assert found == [blocks[0]] * 2 + [blocks[1]] * 5 + [blocks[2]] * 2


def test_googlenet_returns_only_logits_in_training_too() -> None:
    with torch.device("meta"):
        assert isinstance(build("googlenet", (1, 8, 8)).train()(torch.empty(2, 1, 8, 8)), torch.Tensor)


def test_torchvision_is_imported_only_when_one_of_its_nets_is_built() -> None:
    """Importing torchvision takes seconds, which the other nets should not cost."""
    for path in (SOURCE / "imageclf" / "models").glob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            assert not isinstance(node, ast.Import | ast.ImportFrom) or "torchvision" not in ast.unparse(node), path
