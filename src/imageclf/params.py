"""`params.yaml` to typed, validated parameters, one class a stage: the only user of yaml.

Every stage validates the whole file, so a typo in `optimizer` stops `download` in the first second.
What a knob means is said once, in `params.yaml`; here stand its type, its limits and no default.
"""

import difflib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from imageclf import paths
from imageclf.errors import UserError

Seed = Annotated[int, Field(ge=0, lt=2**32)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


StageParams = TypeVar("StageParams", bound=_Strict)


class DownloadParams(_Strict):
    """What `stages/download.py` reads."""

    dataset: Literal["digits", "mnist", "fashion_mnist", "kmnist"]


class PreprocessParams(_Strict):
    """What `stages/preprocess.py` reads."""

    dataset: Literal["digits", "mnist", "fashion_mnist", "kmnist"]
    val_fraction: Annotated[float, Field(ge=0, lt=1)]
    split_seed: Seed
    image_size: Annotated[int, Field(ge=1, le=1024)] | None
    pad: Annotated[int, Field(ge=0, le=512)]
    normalize: Literal["standard", "unit", "none"]
    permute: bool
    permute_seed: Seed
    one_hot: bool


class TrainParams(_Strict):
    """What `stages/train.py` reads."""

    model: Literal["cnn", "mlp"]
    channels: Annotated[list[Count], Field(min_length=1)]
    kernel_size: Annotated[int, Field(ge=1, le=31)]
    conv_padding: Literal["same", "valid"]
    hidden: list[Count]
    dropout: Annotated[float, Field(ge=0, lt=1)]
    loss: Literal["cross_entropy"]
    optimizer: Literal["sgd", "adam", "adamw", "rmsprop"]
    lr: Annotated[float, Field(gt=0)]
    momentum: Annotated[float, Field(ge=0, lt=1)]
    weight_decay: Annotated[float, Field(ge=0)]
    schedule: Literal["constant", "cosine"]
    batch_size: Count
    epochs: Count
    seed: Seed
    precision: Literal["float32", "bfloat16"]


class EvaluateParams(_Strict):
    """What `stages/evaluate.py` reads: nothing, the model brings its own recipe."""


class RuntimeParams(_Strict):
    """The `runtime:` group: settings of the machine, which no stage lists."""

    device: Literal["auto", "cuda", "mps", "cpu"]
    threads: Annotated[int, Field(ge=1, le=4096)] | Literal["auto"]
    progress: bool
    mirror: Annotated[str, Field(min_length=1)] | None
    tracking: bool


class Params(DownloadParams, PreprocessParams, TrainParams, EvaluateParams):
    """The whole file, and the rules that join keys of several stages."""

    runtime: RuntimeParams

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        return self

    def of(self, stage: type[StageParams]) -> StageParams:
        """The part that one stage reads."""
        return stage.model_construct(**{key: getattr(self, key) for key in stage.model_fields})


def load(path: Path = paths.PARAMS) -> Params:
    """Read and validate `path`; raises `UserError` with a line for each key that is wrong."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path} is not here: run from the project's root") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from None
    try:
        content = yaml.load(text, Yaml12Loader)  # noqa: S506 - a SafeLoader with fewer types
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {_where(error)}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold `key: value` lines, as the committed one does")
    try:
        return Params.model_validate(content)
    except ValidationError as error:
        raise UserError("\n".join(f"{path}: {line}" for line in _sentences(error))) from None


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
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} is not a text key", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int | float:
    text = loader.construct_scalar(node).replace("_", "").lower()
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
               | \.[0-9_]+ (?:[eE][-+]?[0-9]+)?
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
    missing = [str(details["loc"][-1]) for details in error.errors() if details["type"] == "missing"]
    for details in error.errors():
        group, key = _split(details)
        if key not in told:  # a union reports once for each of its members
            told.add(key)
            # A misspelt key is missing too, and is then what was meant.
            keys = [name for name in group.model_fields if name in missing] or list(group.model_fields)
            sentence = _sentence(details, keys)
            yield f"{key}: {sentence}" if key else sentence


def _split(details: ErrorDetails) -> tuple[type[BaseModel], str]:
    """The class that the wrong key belongs to, and the key as one writes it: `runtime.device`, `hidden[1]`."""
    location = [
        part for part in details["loc"] if not (isinstance(part, str) and re.search(r"[^a-z0-9_]", part, re.IGNORECASE))
    ]
    nested = len(location) > 1 and location[0] == "runtime"
    group = RuntimeParams if nested else Params
    head = location[: 2 if nested else 1]
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
            return f"{value!r} is not one of {', '.join(choices)}{_nearest(str(value), choices)}"
        case "value_error":
            return str(context["error"])
        case _:
            message = details["msg"][0].lower() + details["msg"][1:]
            return f"{message.replace('input should', 'should')}, got {value!r}{_hint(value)}"


def _nearest(word: str, choices: list[str]) -> str:
    near = difflib.get_close_matches(word, choices, n=1, cutoff=0.4) or choices[:1] * (len(choices) == 1)
    return f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(choices)}"


def _hint(value: object) -> str:
    if isinstance(value, str):
        try:
            float(value)
        except ValueError:
            return ""
        return ", a text: take the quotes away"
    return ""
