"""What the three parts share: a recipe's net and its training, built as `stages.train` builds them."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from imageclf import models, optim, runtime, splits
from imageclf.augment import Augmentation
from imageclf.batches import Batches, Normalize
from imageclf.fit import Epoch, OnStep, fit
from imageclf.losses import LOSSES
from imageclf.runtime import derive
from imageclf.splits import Prepared, Split

Values = dict[str, Any]
Rows = list[Values]
Precision = Literal["float32", "tf32", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = ("float32", "tf32", "bfloat16")
"""Products of float32 in float32; in TF32, of 10 bits of mantissa; mixed precision with bfloat16, of 7."""

QUICK: Values = {"batch_size": 4, "width": 0.125}
"""What differs in a quick run: bfloat16 without instructions for it is computed 40 times as slowly."""

OF_TORCHVISION = ("googlenet", "resnet")


@dataclass(frozen=True)
class Task:
    """One training: a recipe, its data and the images of it to train on, where, and how products are computed."""

    recipe: Values
    data: Prepared
    images: Split
    device: torch.device
    precision: Precision


def why_skipped(model: str) -> str | None:
    """Why a net cannot be built here; None if it can."""
    if model.startswith(OF_TORCHVISION) and find_spec("torchvision") is None:
        return "torchvision is not installed"
    return None


def mixed(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """The context of a forward pass; sets how products of float32 are computed on a GPU from here on.

    By the older switches: torch.compile reads these and fails on a mixture (pytorch issue 166387).
    """
    torch.set_float32_matmul_precision("highest" if precision == "float32" else "high")
    torch.backends.cudnn.allow_tf32 = precision != "float32"
    return torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()


def read(folder: Path, recipe: Values) -> Prepared:
    """The data of a recipe, to be normalized as the recipe says."""
    data = splits.read(folder / recipe["dataset"])
    return Prepared(data.folder, {**data.manifest, "normalize": recipe["normalize"]})


def first(split: Split, count: int) -> Split:
    """The first `count` images."""
    return Split(split.images[:count], split.targets[:count])


def new_net(task: Task) -> nn.Module:
    """The recipe's net, the same for the same seed on every device."""
    recipe, data, device = task.recipe, task.data, task.device
    torch.manual_seed(derive(recipe["seed"], 0))
    arguments = {key: recipe[key] for key in models.parameter_names(recipe["model"])}
    return runtime.place(models.build(recipe["model"], data.image_shape, len(data.classes), **arguments), device)


def new_optimizer(recipe: Values, net: nn.Module) -> optim.Optimizer:
    """The recipe's optimizer."""
    keys = ("lr", "momentum", "nesterov", "weight_decay")
    return optim.OPTIMIZERS[recipe["optimizer"]](net, optim.OptimizerOptions(**{key: recipe[key] for key in keys}))


def new_augmentation(task: Task) -> Augmentation:
    """The recipe's augmentation; false if it has none."""
    knobs = {key: task.recipe[key] for key in ("shift", "flip", "cutout")}
    return Augmentation(**knobs, fill=task.data.mean_level)


def train(net: nn.Module, task: Task, on_step: OnStep | None = None) -> Iterator[Epoch]:
    """Our training of `net`, the images on the device; an epoch is trained when it is asked for."""
    recipe, device = task.recipe, task.device
    normalize, augmentation = Normalize(task.data.normalization), new_augmentation(task)
    return fit(
        net,
        new_optimizer(recipe, net),
        optim.with_warmup(optim.SCHEDULES[recipe["schedule"]], recipe["warmup"]),
        LOSSES[recipe["loss"]],
        train=Batches(task.images, normalize, recipe["batch_size"], device, augmentation=augmentation),
        val=None,
        epochs=recipe["epochs"],
        seed=recipe["seed"],
        label_smoothing=recipe["label_smoothing"],
        autocast=mixed(task.precision, device),
        on_step=on_step,
    )


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
