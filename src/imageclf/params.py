"""`params.yaml` to typed, validated parameters, one class a stage.

Every stage validates the whole file, so a typo in `optimizer` stops `download` in the first second.
What a knob means is said once, in `params.yaml`; here stand its type, its limits and no default.
"""

import difflib
import os
import re
import subprocess
import unicodedata
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from imageclf import paths, yaml12
from imageclf.errors import UserError

Dataset = Literal["digits", "mnist", "fashion_mnist", "kmnist", "cifar10", "cifar100", "folder"]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]


def as_list(value: object) -> object:
    """Numbers in their short form, `128` or `32, 64`, as a list; anything else unchanged.

    DVC writes a list over several lines. The short form stays on one, so `git diff` shows what `-S` changed, no more.
    """
    match value:
        case str() if re.fullmatch(r"[0-9]{1,9}(, *[0-9]{1,9})+", value):
            return [int(part) for part in value.split(",")]
        case int() if not isinstance(value, bool):
            return [value]
        case _:
            return value


SHORT_FORM = BeforeValidator(as_list)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


StageParams = TypeVar("StageParams", bound=_Strict)


class CheckParams(_Strict):
    """What `stages/check.py` reads."""

    dataset: Dataset


class DownloadParams(_Strict):
    """What `stages/list.py` and `stages/download.py` read."""

    dataset: Dataset
    folder: Annotated[str, Field(min_length=1)]


class PreprocessParams(_Strict):
    """What `stages/preprocess.py` reads."""

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


class TrainParams(_Strict):
    """What `stages/train.py` reads."""

    model: Literal[
        "cnn",
        "mlp",
        "convnet32",
        "vgg11",
        "vgg13",
        "vgg16",
        "vgg19",
        "alexnet",
        "zfnet",
        "googlenet",
        "resnet18",
        "resnet34",
        "resnet50",
    ]
    channels: Annotated[list[Count], Field(min_length=1), SHORT_FORM]
    kernel_size: Annotated[int, Field(ge=1, le=31)]
    conv_padding: Literal["same", "valid"]
    hidden: Annotated[list[Count], SHORT_FORM]
    width: Annotated[float, Field(gt=0, le=16)]
    dropout: Annotated[float, Field(ge=0, lt=1)]
    loss: Literal["cross_entropy", "nll", "kl_div", "mse", "l1"]
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    optimizer: Literal["sgd", "adam", "adamw", "rmsprop", "rmsprop_keras", "muon"]
    lr: Annotated[float, Field(gt=0)]
    momentum: Annotated[float, Field(ge=0, lt=1)]
    nesterov: bool
    weight_decay: Annotated[float, Field(ge=0)]
    schedule: Literal["constant", "step", "cosine", "one_cycle"]
    warmup: Annotated[float, Field(ge=0, lt=1)]
    shift: Annotated[int, Field(ge=0, le=512)]
    flip: bool
    cutout: Annotated[int, Field(ge=0, le=512)]
    batch_size: Count
    epochs: Count
    seed: Seed
    precision: Literal["float32", "bfloat16"]
    compile: bool


class EvaluateParams(_Strict):
    """What `stages/evaluate.py` reads: nothing, the model brings its own recipe."""


class RuntimeParams(_Strict):
    """The `runtime:` group: settings of the machine, which no stage lists."""

    device: Literal["auto", "cuda", "mps", "cpu"]
    threads: Annotated[int, Field(ge=1, le=4096)] | Literal["auto"]
    progress: bool
    mirror: Annotated[str, Field(min_length=1)] | None
    tracking: bool
    checkpoint_minutes: Annotated[float, Field(gt=0)]


class Params(DownloadParams, PreprocessParams, TrainParams, EvaluateParams):
    """The whole file, and the rules that join keys of several stages."""

    runtime: RuntimeParams

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        names = [unicodedata.normalize("NFC", str(name)) for name in self.classes or ()]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"classes: {twice[0]!r} stands twice")
        moving = [key for key in ("shift", "flip", "cutout") if getattr(self, key)]
        if self.permute and moving:
            raise ValueError(f"permute: true leaves no neighbours to {moving[0]} by; set {moving[0]} to 0 or false")
        if self.nesterov and self.optimizer == "sgd" and self.momentum == 0:
            raise ValueError("nesterov: true needs a momentum above 0")
        return self

    def of(self, stage: type[StageParams]) -> StageParams:
        """The part that one stage reads."""
        return stage.model_construct(**{key: getattr(self, key) for key in stage.model_fields})


def load(path: Path = paths.PARAMS) -> Params:
    """Read and validate `path`; raises `UserError` with a line for each key that is wrong, and the way back."""
    in_workspace = "DVC_ROOT" in os.environ and Path.cwd() == paths.repository()  # not in a queued experiment's copy
    if in_workspace:
        # DVC rewrites it, often in the same second and to the same size, which git takes for no change.
        with suppress(OSError):
            os.utime(path)
    try:
        return validate(yaml12.read(path), str(path))
    except UserError as error:
        raise UserError(f"{error}{_way_back(path) if in_workspace else ''}") from None


def _way_back(path: Path) -> str:
    """The command that restores the committed file if this one differs: `dvc exp run -S` leaves a wrong value in it."""
    try:
        status = subprocess.run(["git", "status", "--porcelain", "--", path], capture_output=True, check=False).stdout
    except FileNotFoundError:  # no git
        return ""
    return f"\n`git checkout HEAD {path}` restores the committed file" if b"M" in status[:2] else ""


def validate(content: dict[str, Any], source: str) -> Params:
    """Parameters from what params.yaml would hold; raises `UserError` with a line for each key that is wrong."""
    try:
        return Params.model_validate(content)
    except ValidationError as error:
        raise UserError("\n".join(f"{source}: {line}" for line in _sentences(error))) from None


def _sentences(error: ValidationError) -> Iterator[str]:
    """One sentence a wrong key, with the key, the value and the nearest valid choice."""
    told: set[str] = set()
    errors = error.errors()
    missing = [str(details["loc"][-1]) for details in errors if details["type"] == "missing"]
    for details in errors:
        group, key = _split(details)
        if key not in told:  # a union reports once for each of its members
            told.add(key)
            # A misspelt key is missing too, and is then what was meant.
            keys = [name for name in group.model_fields if name in missing] or list(group.model_fields)
            sentence = _sentence(details, keys) + "".join(
                f"; or {other.get('ctx', {})['expected']}"  # threads: a number, or 'auto'
                for other in errors
                if other is not details and other["type"] == "literal_error" and _split(other)[1] == key
            )
            yield f"{key}: {sentence}" if key else sentence


def _split(details: ErrorDetails) -> tuple[type[BaseModel], str]:
    """The class that the wrong key belongs to, and the key as one writes it: `runtime.device`, `hidden[1]`."""
    location = details["loc"]
    nested = len(location) > 1 and location[0] == "runtime"
    group = RuntimeParams if nested else Params
    head = location[: 2 if nested else 1]
    # After the key come rows of a list, and names of a union's members.
    rows = "".join(f"[{part}]" for part in location[len(head) :] if isinstance(part, int))
    return group, ".".join(map(str, head)) + rows


def _sentence(details: ErrorDetails, keys: list[str]) -> str:
    value, context = details["input"], details.get("ctx", {})
    match details["type"]:
        case "missing":
            return "is missing; the committed params.yaml shows it"
        case "extra_forbidden":
            return f"is not a parameter{_nearest(str(details['loc'][-1]), keys)}"
        case "literal_error":
            choices = re.findall(r"'([^']*)'", context["expected"])
            return f"{yaml12.show(value)} is not one of {', '.join(choices)}{_nearest(yaml12.show(value), choices)}"
        case "value_error":
            return str(context["error"])
        case _:
            message = details["msg"][0].lower() + details["msg"][1:]
            return f"{message.replace('input should', 'should')}, got {yaml12.show(value)}{_hint(value)}"


def _nearest(word: str, choices: list[str]) -> str:
    near = difflib.get_close_matches(word.lower(), choices, n=1, cutoff=0.4) or choices[:1] * (len(choices) == 1)
    return f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(choices)}"


def _hint(value: object) -> str:
    return ", a text: take the quotes away" if isinstance(value, str) and yaml12.NUMBER.match(value) else ""
