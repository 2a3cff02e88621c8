"""The parameters of `params.yaml`, typed and validated, with one class per stage.

Each stage validates the whole file, so a typo in `optimizer` stops `download` in the first second. The comments in
`params.yaml` explain the parameters; this module has their types and limits. No parameter has a default here.
"""

import os
import re
import unicodedata
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from imageclf import yaml12
from imageclf.contracts.preparation import Preparation
from imageclf.core import paths
from imageclf.core.detached import git
from imageclf.core.errors import UserError
from imageclf.param_errors import sentences

Dataset = Literal["digits", "mnist", "fashion_mnist", "kmnist", "cifar10", "cifar100", "folder"]
VGG = Literal["vgg11", "vgg13", "vgg16", "vgg19"]
ResNet = Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]
Model = Literal["cnn", "mlp", "convnet32", VGG, "alexnet", "zfnet", "googlenet", ResNet, "efficientnet_lite0"]
PUBLISHED = ("googlenet", *get_args(ResNet), "efficientnet_lite0")
"""Nets with published ImageNet weights."""
Address = Annotated[str, Field(min_length=1)] | None
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]

ENTRY = "(?:[0-9]{1,9}|[A-Za-z]{1,9})"


def as_list(value: object) -> object:
    """Return numbers and words in their short form, `128` or `64, M, 128`, as a list; any other value unchanged.

    DVC writes a list on several lines. The short form stays on one line, so `git diff` shows only what `-S` changed.
    """
    match value:
        case str() if re.fullmatch(rf"{ENTRY}(, *{ENTRY})+", value):
            return [int(part) if part.isdecimal() else part for part in re.split(", *", value)]
        case int() if not isinstance(value, bool):
            return [value]
        case _:
            return value


def with_a_number(layers: list[int | str]) -> list[int | str]:
    """Return the layers of a VGG; raises `ValueError` if there is no convolution among them."""
    if not any(isinstance(layer, int) for layer in layers):
        raise ValueError(f"{', '.join(map(str, layers)) or '[]'} has no number, but a net needs a convolution")
    return layers


SHORT_FORM = BeforeValidator(as_list)
VGGLayers = Annotated[list[Count | Literal["M"]], Field(max_length=100), SHORT_FORM, AfterValidator(with_a_number)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


StageParams = TypeVar("StageParams", bound=_Strict)


class CheckParams(_Strict):
    """Parameters of `stages/check.py`."""

    dataset: Dataset
    pretrained: Address


class DownloadParams(_Strict):
    """Parameters of `stages/list.py` and `stages/download.py`."""

    dataset: Dataset
    folder: Annotated[str, Field(min_length=1)]


class PreprocessParams(_Strict):
    """Parameters of `stages/preprocess.py`."""

    dataset: Dataset
    classes: Annotated[list[Annotated[str, Field(min_length=1)] | int], Field(min_length=2)] | None
    val_fraction: Annotated[float, Field(ge=0, lt=1)]
    split_seed: Seed
    grayscale: bool
    image_size: Annotated[int, Field(ge=1, le=1024)] | None
    pad: Annotated[int, Field(ge=0, le=512)]
    normalize: Literal["standard", "unit", "symmetric", "zca", "none"]
    permute: bool
    permute_seed: Seed
    one_hot: bool
    shards: Address

    def preparation(self) -> Preparation:
        """Return the steps of the preparation; each field has the name of its parameter."""
        values = {field.name: getattr(self, field.name) for field in fields(Preparation)}
        return Preparation(**{**values, "permute_seed": self.permute_seed if self.permute else None})


class WeightsParams(_Strict):
    """Parameters of `stages/weights.py`."""

    model: Model
    pretrained: Address


class TrainParams(_Strict):
    """Parameters of `stages/train.py`."""

    model: Model
    channels: Annotated[list[Count], Field(min_length=1), SHORT_FORM]
    kernel_size: Annotated[int, Field(ge=1, le=31)]
    conv_padding: Literal["same", "valid"]
    pooling: Literal["max", "average"]
    hidden: Annotated[list[Count], SHORT_FORM]
    activation: Literal["relu", "leaky_relu", "elu", "gelu", "sigmoid", "tanh", "none"]
    vgg_layers: VGGLayers | None
    width: Annotated[float, Field(gt=0, le=16)]
    dropout: Annotated[float, Field(ge=0, lt=1)]
    freeze_epochs: Annotated[int, Field(ge=0, le=1_000_000)]
    loss: Literal["cross_entropy", "nll", "kl_div", "mse", "l1"]
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    class_weights: Literal["balanced"] | None
    optimizer: Literal["sgd", "adam", "adamw", "rmsprop", "rmsprop_keras", "muon"]
    lr: Annotated[float, Field(gt=0)]
    momentum: Annotated[float, Field(ge=0, lt=1)]
    nesterov: bool
    weight_decay: Annotated[float, Field(ge=0)]
    schedule: Literal["constant", "step", "cosine", "one_cycle"]
    warmup: Annotated[float, Field(ge=0, lt=1)]
    crop: Annotated[float, Field(ge=0, lt=1)]
    color_jitter: Annotated[float, Field(ge=0, le=1)]
    shift: Annotated[int, Field(ge=0, le=512)]
    flip: bool
    cutout: Annotated[int, Field(ge=0, le=512)]
    batch_size: Count
    epochs: Count
    patience: Count | None
    seed: Seed
    precision: Literal["float32", "bfloat16"]
    compile: bool


class EvaluateParams(_Strict):
    """Parameters of `stages/evaluate.py`: there are none, because the model spec has all that it needs."""


class RuntimeParams(_Strict):
    """The `runtime:` group: settings for the machine. No stage in dvc.yaml lists them."""

    device: Literal["auto", "cuda", "mps", "cpu"]
    threads: Annotated[int, Field(ge=1, le=4096)] | Literal["auto"]
    processes: Annotated[int, Field(ge=1, le=4096)] | Literal["auto"]
    launcher: Literal["local", "ray"]
    progress: bool
    shard_cache: Annotated[int, Field(ge=1, le=1_000_000)]
    mirror: Annotated[str, Field(min_length=1)] | None
    tracking: bool
    registered_model: Annotated[str, Field(pattern=r"^[^/:]+$")] | None
    log_model_every: Count | None
    keep_models: Count
    checkpoint_minutes: Annotated[float, Field(gt=0)]


class Params(DownloadParams, PreprocessParams, WeightsParams, TrainParams, EvaluateParams):
    """All parameters, and the rules that connect several of them."""

    runtime: RuntimeParams

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        names = [unicodedata.normalize("NFC", str(name)) for name in self.classes or ()]
        if duplicates := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"classes: {duplicates[0]!r} occurs twice")
        augmentations = [key for key in ("crop", "shift", "flip", "cutout") if getattr(self, key)]
        if self.permute and augmentations:
            key = augmentations[0]
            off = "false" if key == "flip" else "0"
            raise ValueError(f"{key} needs pixels in their places, but permute is true; set {key} to {off}")
        if self.nesterov and self.optimizer == "sgd" and self.momentum == 0:
            raise ValueError("nesterov: true needs a momentum above 0")
        if self.patience and self.schedule != "constant":
            raise ValueError(
                f"patience ends a training early, but schedule {self.schedule} is planned for all epochs; "
                "set schedule to constant"
            )
        return self

    @model_validator(mode="after")
    def _check_learned_weights(self) -> Self:
        if self.pretrained == "imagenet" and self.model not in PUBLISHED:
            raise ValueError(f"pretrained: imagenet has weights for {', '.join(PUBLISHED)}, not for {self.model}")
        if self.pretrained == "imagenet" and self.normalize == "zca":
            raise ValueError("pretrained: imagenet's weights need images without whitening; set normalize to standard")
        if self.freeze_epochs and self.pretrained is None:
            raise ValueError("freeze_epochs: without pretrained, all layers are new; set it to 0")
        return self

    def of(self, stage: type[StageParams]) -> StageParams:
        """Return the parameters of one stage."""
        return stage.model_construct(**{key: getattr(self, key) for key in stage.model_fields})


def load(path: Path = paths.PARAMS) -> Params:
    """Read and validate `path`; raises `UserError` with a line per wrong key and the undo command."""
    in_workspace = "DVC_ROOT" in os.environ and Path.cwd() == paths.repository()  # not in a queued experiment's copy
    if in_workspace:
        # DVC often rewrites the file in the same second and with the same size, which git takes for no change.
        with suppress(OSError):
            os.utime(path)
    try:
        return validate(yaml12.read(path), str(path))
    except UserError as error:
        raise UserError(f"{error}{_undo_command(path) if in_workspace else ''}") from None


def _undo_command(path: Path) -> str:
    """Return a line that tells how to restore the committed file, if `dvc exp run -S` has left a wrong value in it."""
    changed = "M" in git("status", "--porcelain", "--", str(path))[:2]
    return f"\n`git checkout HEAD {path}` restores the committed file" if changed else ""


def validate(content: dict[str, Any], source: str) -> Params:
    """Return the parameters in `content`, the keys of params.yaml; raises `UserError` with a line per wrong key."""
    try:
        return Params.model_validate(content)
    except ValidationError as error:
        raise UserError("\n".join(f"{source}: {line}" for line in sentences(error, Params))) from None
