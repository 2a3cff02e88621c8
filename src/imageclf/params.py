"""`params.yaml` to typed, validated parameters, one class a stage: the only user of yaml.

Every stage validates the whole file, so a typo in `optimizer` stops `download` in the first second.
What a knob means is said once, in `params.yaml`; here stand its type, its limits and no default.
"""

import difflib
import re
import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from imageclf import paths
from imageclf.errors import UserError

Dataset = Literal["digits", "mnist", "fashion_mnist", "kmnist", "cifar10", "cifar100", "folder"]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


StageParams = TypeVar("StageParams", bound=_Strict)


class DownloadParams(_Strict):
    """What `stages/download.py` reads."""

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
    channels: Annotated[list[Count], Field(min_length=1)]
    kernel_size: Annotated[int, Field(ge=1, le=31)]
    conv_padding: Literal["same", "valid"]
    hidden: list[Count]
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
        names = [str(name) for name in self.classes or ()]
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
    """Read and validate `path`; raises `UserError` with a line for each key that is wrong."""
    return validate(read_yaml(path), str(path))


def read_yaml(path: Path) -> dict[str, Any]:
    """The keys of a YAML file; raises `UserError` where there is no such file, or no `key: value` lines in it."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path} is not here: run from the project's root") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from None
    content = parse_yaml(text, str(path))
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold `key: value` lines, as the committed one does")
    return content


def parse_yaml(text: str, source: str) -> Any:
    """What a YAML 1.2 text says; raises `UserError` that names `source` and the line."""
    try:
        return yaml.load(text, Yaml12Loader)  # noqa: S506 - a SafeLoader with fewer types
    except yaml.YAMLError as error:
        raise UserError(f"{source} is not valid YAML: {_where(error)}") from None
    except RecursionError:
        raise UserError(f"{source} is not valid YAML: lists within lists within lists, too deep to read") from None


def validate(content: dict[str, Any], source: str) -> Params:
    """Parameters from what params.yaml would hold; raises `UserError` with a line for each key that is wrong."""
    try:
        return Params.model_validate(content)
    except ValidationError as error:
        raise UserError("\n".join(f"{source}: {line}" for line in _sentences(error))) from None


class Yaml12Loader(yaml.SafeLoader):
    """YAML 1.2's core schema, as DVC reads it: PyYAML's own 1.1 makes `1e-3` text and `off` a bool.

    Duplicate keys, which PyYAML lets the last one win, are refused as DVC refuses them.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping, if no key stands twice."""
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(
                    None, None, f"{_show(key)} is not a text key", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int | float:
    try:
        return _parse_number(loader.construct_scalar(node))
    except ValueError:  # `._`, or more digits than Python converts
        problem = f"{node.value[:20]!r} is not a number"
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from None


def _parse_number(text: str) -> int | float:
    text = text.replace("_", "").lower()
    if re.fullmatch(r"[-+]?\.(inf|nan)", text):
        return float(text.replace(".", ""))
    digits = text.lstrip("+-")
    base = {"0x": 16, "0o": 8, "0b": 2}.get(digits[:2], 10)
    if base != 10:
        return int(text, base)
    return int(text) if digits.isdigit() else float(text)


# First characters, pattern: the order decides, and the characters are only a fast filter.
_NUMBER = re.compile(
    r"""[-+]?(?: 0b[01_]+ | 0o[0-7_]+ | 0x[0-9a-fA-F_]+
               | [0-9][0-9_]* (?:\.[0-9_]*)? (?:[eE][-+]?[0-9]+)?
               | \.[0-9_]+ (?:[eE][-+][0-9]+)?
               | \.(?:inf|Inf|INF) ) $ | \.(?:nan|NaN|NAN)$""",
    re.VERBOSE,
)
Yaml12Loader.yaml_implicit_resolvers = {}
Yaml12Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"(?:~|null|Null|NULL|)$"), [*"~nN", ""])
Yaml12Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), [*"tTfF"]
)
Yaml12Loader.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, [*"-+.0123456789"])
Yaml12Loader.add_constructor("tag:yaml.org,2002:float", _number)


def _where(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    return f"{problem} (line {mark.line + 1})" if mark else " ".join(problem.split())


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
            return f"{_show(value)} is not one of {', '.join(choices)}{_nearest(_show(value), choices)}"
        case "value_error":
            return str(context["error"])
        case _:
            message = details["msg"][0].lower() + details["msg"][1:]
            return f"{message.replace('input should', 'should')}, got {_show(value)}{_hint(value)}"


def _show(value: object) -> str:
    """The value as one would know it again: an alias of aliases, a line in the file, may hold a billion of them."""
    shown = reprlib.Repr()
    shown.maxlevel, shown.maxstring, shown.maxother = 2, 200, 200
    return shown.repr(value)


def _nearest(word: str, choices: list[str]) -> str:
    near = difflib.get_close_matches(word.lower(), choices, n=1, cutoff=0.4) or choices[:1] * (len(choices) == 1)
    return f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(choices)}"


def _hint(value: object) -> str:
    return ", a text: take the quotes away" if isinstance(value, str) and _NUMBER.match(value) else ""
