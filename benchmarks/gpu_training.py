"""Net and training of a recipe, built as `stages.train` builds them; shared by the parts of the GPU benchmark."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from imageclf import models
from imageclf.contracts import dataset
from imageclf.contracts.dataset import Prepared, Split
from imageclf.training import optim, runtime
from imageclf.training.fit import Epoch, OnStep, fit
from imageclf.training.loading.augment import Augmentation
from imageclf.training.loading.batches import Batches, Normalize
from imageclf.training.losses import LOSSES
from imageclf.training.runtime import derive

Values = dict[str, Any]
Rows = list[Values]
Precision = Literal["float32", "tf32", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = ("float32", "tf32", "bfloat16")
"""Float32 products with full precision; with TF32 (10 bits of mantissa); mixed precision with bfloat16 (7 bits)."""

SMALL: Values = {"batch_size": 4, "width": 0.125}
"""Changes of a quick run: without processor instructions for bfloat16, a CPU computes it 40 times as slowly."""

FROM_TORCHVISION = ("googlenet", "resnet")


@dataclass(frozen=True)
class Job:
    """One training: parameters of a recipe, its data, the images to train on, the device and the precision."""

    parameters: Values
    data: Prepared
    images: Split
    device: torch.device
    precision: Precision


def why_skipped(model: str) -> str | None:
    """Return the reason why a net cannot be built here, None if it can."""
    if model.startswith(FROM_TORCHVISION) and find_spec("torchvision") is None:
        return "torchvision is not installed"
    return None


def set_precision(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Set how a GPU computes float32 products from now on; return the context of a forward pass.

    This uses torch's older settings: torch.compile reads these, and fails on a mixture with the newer ones (pytorch
    issue 166387).
    """
    torch.set_float32_matmul_precision("highest" if precision == "float32" else "high")
    torch.backends.cudnn.allow_tf32 = precision != "float32"
    return torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()


def read(folder: Path, parameters: Values) -> Prepared:
    """Return the data of a recipe, to be normalized as the recipe says."""
    data = dataset.read(folder / parameters["dataset"])
    return Prepared(data.folder, replace(data.manifest, normalize=parameters["normalize"]))


def some(split: Split, count: int) -> Split:
    """Return up to `count` images, spread evenly over the split, because its images may be sorted by class."""
    count = min(count, len(split))
    rows = np.arange(count) * len(split) // count
    return Split(split.images[rows], split.targets[rows])


def new_net(job: Job) -> nn.Module:
    """Return the net, with the same initial weights for the same seed on every device."""
    parameters, data, device = job.parameters, job.data, job.device
    torch.manual_seed(derive(parameters["seed"], 0))
    arguments = {key: parameters[key] for key in models.parameter_names(parameters["model"])}
    return runtime.place(
        models.build(parameters["model"], data.manifest.image_shape, len(data.manifest.classes), **arguments), device
    )


def new_optimizer(parameters: Values, net: nn.Module) -> optim.Optimizer:
    """Return the recipe's optimizer for `net`."""
    keys = ("lr", "momentum", "nesterov", "weight_decay")
    return optim.OPTIMIZERS[parameters["optimizer"]](
        net, optim.OptimizerOptions(**{key: parameters[key] for key in keys})
    )


def new_augmentation(job: Job) -> Augmentation:
    """Return the recipe's augmentation, which is false if it changes nothing."""
    amounts = {key: job.parameters[key] for key in ("shift", "flip", "cutout")}
    return Augmentation(**amounts, fill=job.data.mean_level)


def train(net: nn.Module, job: Job, on_step: OnStep | None = None) -> Iterator[Epoch]:
    """Train `net` as the train stage does; each `next` trains one epoch."""
    parameters, device = job.parameters, job.device
    normalize, augmentation = Normalize(job.data.normalization), new_augmentation(job)
    return fit(
        net,
        new_optimizer(parameters, net),
        optim.with_warmup(optim.SCHEDULES[parameters["schedule"]], parameters["warmup"]),
        LOSSES[parameters["loss"]],
        train=Batches(job.images, normalize, parameters["batch_size"], device, augmentation=augmentation),
        val=None,
        epochs=parameters["epochs"],
        seed=parameters["seed"],
        label_smoothing=parameters["label_smoothing"],
        autocast=set_precision(job.precision, device),
        on_step=on_step,
    )


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
