"""Tests of learned weights in a new net: what is taken, what is left out, and a training of the head alone."""

from typing import Any

import pytest
import torch
from helpers import batches_of
from torch import Tensor, nn

from imageclf import models
from imageclf.contracts.dataset import Split
from imageclf.core.errors import UserError
from imageclf.models import MODELS
from imageclf.training.fit import Epoch, fit
from imageclf.training.losses import LOSSES
from imageclf.training.optim import OPTIMIZERS, SCHEDULES, OptimizerOptions
from imageclf.training.transfer import head_name, transfer

pytestmark = pytest.mark.usefixtures("one_thread")

ARGUMENTS: dict[str, Any] = {
    "channels": [4],
    "kernel_size": 3,
    "conv_padding": "same",
    "hidden": [16],
    "width": 0.0625,
    "dropout": 0.0,
}


def build(name: str, channels: int = 1, classes: int = 4, side: int = 8, **more: Any) -> nn.Module:
    names = models.parameter_names(name)
    arguments = {key: value for key, value in ARGUMENTS.items() if key in names}
    return models.build(name, (channels, side, side), classes, **arguments, **more)


@pytest.mark.parametrize("name", MODELS)
def test_the_head_of_every_net_gives_its_logits(name: str) -> None:
    with torch.device("meta"):
        net = build(name, channels=3, classes=7, side=32)
    head = net.get_submodule(head_name(net))
    assert isinstance(head, nn.Linear)
    assert head.out_features == 7
    assert list(net.state_dict())[-2:] == [f"{head_name(net)}.{tensor}" for tensor in ("weight", "bias")]


# --- what is taken ---


def test_all_tensors_but_those_of_the_head_are_taken() -> None:
    old, new = build("vgg11"), build("vgg11", classes=9)
    before = {name: tensor.clone() for name, tensor in new.state_dict().items()}
    found = transfer(new, old.state_dict(), "vgg11")
    head = [f"{head_name(new)}.weight", f"{head_name(new)}.bias"]
    assert found.new == found.left_out["the head is new"] == head
    assert set(found.taken) == set(before) - set(head)
    for name, tensor in new.state_dict().items():
        assert torch.equal(tensor, before[name] if name in head else old.state_dict()[name])


def test_the_head_is_new_even_if_it_would_fit() -> None:
    old, new = build("mlp"), build("mlp")
    name = f"{head_name(new)}.weight"
    before = new.state_dict()[name].clone()
    transfer(new, old.state_dict(), "mlp")
    assert torch.equal(new.state_dict()[name], before)


def test_the_first_convolution_sums_over_colors_for_gray_images() -> None:
    """Gray images then give the maps that the same images in color give."""
    old, new = build("vgg11", channels=3).eval(), build("vgg11", channels=1).eval()
    transfer(new, old.state_dict(), "vgg11")
    images = torch.randn(5, 1, 8, 8)
    ours, theirs = (nn.Sequential(*list(net.children())[:-1]) for net in (new, old))
    torch.testing.assert_close(ours(images), theirs(images.expand(-1, 3, -1, -1)))


def test_each_tensor_that_is_not_taken_is_listed_with_the_reason() -> None:
    old, new = build("cnn", side=16), build("cnn")
    weights = {**old.state_dict(), "aux.weight": torch.zeros(2)}
    assert transfer(new, weights, "cnn").sentences().splitlines() == [
        "took 3 of 7 tensors of the learned weights",
        "not taken, the head is new: 7.weight, 7.bias",
        "not taken, of another shape: 4.weight",
        "not taken, not in the net: aux.weight",
        "new in the net: 4.weight, 7.weight, 7.bias",
    ]


@pytest.mark.parametrize(
    "weights", [{}, {"a.weight": torch.zeros(2, 2)}, {"0.weight": torch.zeros(1, 1)}, {"0.bias": torch.zeros(4)}]
)
def test_weights_of_which_none_fits_are_refused(weights: dict[str, Tensor]) -> None:
    with pytest.raises(UserError, match=r"pretrained: no tensor fits model cnn: .* the net with 0\.weight, 0\.bias"):
        transfer(build("cnn"), weights, "cnn")


def test_weights_of_half_precision_are_taken() -> None:
    old, new = build("mlp"), build("mlp")
    transfer(new, {name: tensor.half() for name, tensor in old.state_dict().items()}, "mlp")
    assert {tensor.dtype for tensor in new.state_dict().values()} == {torch.float32}
    assert torch.equal(new.state_dict()["1.weight"], old.state_dict()["1.weight"].half().float())


# --- the stem ---

STEMS = {"resnet18": "conv1.weight", "resnet50": "conv1.weight", "googlenet": "conv1.conv.weight"}


@pytest.mark.parametrize("name", STEMS)
def test_a_net_gets_the_stem_of_its_weights(name: str) -> None:
    arguments = [
        models.arguments_for(name, {STEMS[name]: torch.empty(64, 3, side, side, device="meta")}) for side in (3, 7)
    ]
    assert arguments == [{}, {"large_stem": True}]
    assert models.arguments_for("cnn", {STEMS[name]: torch.empty(64, 3, 7, 7, device="meta")}) == {}


@pytest.mark.parametrize("name", STEMS)
@pytest.mark.parametrize("side", [224, 96, 32, 8])
def test_torchvisions_tensors_fit_the_net_with_the_large_stem(name: str, side: int) -> None:
    from torchvision.models import get_model

    with torch.device("meta"):
        options: dict[str, Any] = {"init_weights": False} if name == "googlenet" else {}
        published = get_model(name, weights=None, **options).state_dict()
        net = build(name, channels=3, side=side, large_stem=True)
        assert net(torch.empty(1, 3, side, side)).shape == (1, 4)
    own = {key: tensor.shape for key, tensor in net.state_dict().items()}
    fitting = {key for key, tensor in published.items() if own.get(key) == tensor.shape}
    assert own.keys() - fitting == {"fc.weight", "fc.bias"}
    assert {key.split(".")[0] for key in published if key not in fitting} <= {"fc", "aux1", "aux2"}


@pytest.mark.parametrize("name", ["resnet18", "googlenet"])
def test_the_large_stem_computes_what_torchvision_computes(name: str) -> None:
    from torchvision.models import get_model

    options: dict[str, Any] = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    theirs = get_model(name, weights=None, num_classes=4, **options).eval()
    ours = build(name, channels=3, side=64, large_stem=True).eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(ours(images), theirs(images))


# --- the head alone ---


def train(net: nn.Module, split: Split, optimizer: str = "adam", **options: Any) -> list[Epoch]:
    made = OPTIMIZERS[optimizer](net, OptimizerOptions(lr=0.01, momentum=0.9, weight_decay=0.1))
    return list(
        fit(
            net,
            made,
            SCHEDULES["constant"],
            LOSSES["cross_entropy"],
            train=batches_of(split, 32),
            val=batches_of(split, 150),
            seed=0,
            **options,
        )
    )


def changed(net: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, tensor in net.state_dict().items() if not torch.equal(tensor, before[name])}


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "muon"])
def test_in_frozen_epochs_only_the_head_changes(optimizer: str, made_split: Split) -> None:
    torch.manual_seed(0)
    net = build("vgg11")
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    head = {f"{head_name(net)}.weight", f"{head_name(net)}.bias"}
    epochs = train(net, made_split, optimizer, epochs=2, freeze_epochs=2)
    assert changed(net, before) == head
    assert epochs[1].train_loss < epochs[0].train_loss


def test_after_the_frozen_epochs_every_tensor_changes(made_split: Split) -> None:
    torch.manual_seed(0)
    net = build("vgg11")
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    train(net, made_split, epochs=2, freeze_epochs=1)
    assert changed(net, before) == set(before)
