"""Tests that `params.yaml` means the same to us as to DVC, and that errors in it name the key before any work."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml  # noqa: TID251 - to compare our loader with it
from conftest import peak_below
from dvc.utils.hydra import apply_overrides
from dvc.utils.serialize import ParseError, parse_yaml
from imports import ROOT, SOURCE

from imageclf import params, yaml12
from imageclf.core.errors import UserError
from imageclf.download.datasets import DATASETS
from imageclf.download.weights import WEIGHTS
from imageclf.models import MODELS
from imageclf.models.activations import ACTIVATIONS
from imageclf.models.cnn import POOLINGS
from imageclf.training.losses import LOSSES
from imageclf.training.optim import OPTIMIZERS, SCHEDULES

COMMITTED = (ROOT / "params.yaml").read_text(encoding="utf-8")

STAGE_CLASSES = [params.DownloadParams, params.PreprocessParams, params.TrainParams, params.EvaluateParams]


# --- scalars ---

SCALARS = """
1e-5 1e-05 1E-5 1e3 1E3 1e+3 12e03 0e0 +1e3 -1e-3 01e1 1.0e-5 1.e-5 .5e-1 1e400 1e-400 1_0e1
.5 -.5 +.5 .5e1 .5E5 ._5 .5_5 . .. .e5 1. 1._5 1_.5 1.5e 1e e1 1e1. 1e1_0 1.5.2
0 -0 +0 00 012 -012 +012 08 09 0_1 01.5 08.5 0.0 -0.0 -1 +1 - + 1_000 1_000.5 1__0 1_ _1 1,000
123456789012345678901234567890
0o17 0O17 -0o17 0o8 0o1_7 0x1F 0X1F -0x1F +0x1f 0xG 0x1_0 0x_1 0b11 +0b1 0b12 0b1_1 0x 0o 0b
.inf -.inf +.inf .Inf .INF .iNf .nan .NaN .NAN -.nan +.nan NaN nan inf Infinity
true True TRUE tRue false False FALSE yes Yes YES no No NO on On ON off Off OFF y n Y N
null Null NULL nUll ~ None
1:30 1:30:20 -1:30 1:30.5
'1' "1.5" 'true' ~x a#b 1e٣ ٣
[] [32,64] [1e-3,off,012] {} !!int3
"""


@pytest.mark.parametrize(
    "scalar", ["", *SCALARS.split(), "# a comment", "!!int 3", "!!str 3", "!!bool true", "{a: 1e3}"]
)
def test_a_scalar_means_what_it_means_to_dvc(scalar: str) -> None:
    text = f"key: {scalar}\n"
    try:
        theirs = repr(parse_yaml(text, "params.yaml"))  # repr distinguishes 1, 1.0, True, nan, -0.0
    except (ParseError, ValueError):  # DVC refuses it
        with pytest.raises(yaml.YAMLError):
            yaml.load(text, yaml12.Yaml12Loader)  # noqa: S506
    else:
        assert repr(yaml.load(text, yaml12.Yaml12Loader)) == theirs  # noqa: S506


@pytest.mark.parametrize("scalar", ["1e-3", "1e3", "012", "off", "1:30"])
def test_these_scalars_mean_something_else_to_pyyaml(scalar: str) -> None:
    """Without this, the test above would prove nothing."""
    assert repr(yaml.safe_load(scalar)) != repr(yaml.load(scalar, yaml12.Yaml12Loader))  # noqa: S506


@pytest.mark.parametrize("text", ["a: 1\na: 2\n", "a: {b: 1, b: 1}\n", "a:\n  - b: 1\n    b: 2\n"])
def test_duplicate_keys_are_refused_as_by_dvc(text: str) -> None:
    with pytest.raises(ParseError):
        parse_yaml(text, "params.yaml")
    with pytest.raises(yaml.YAMLError, match="occurs twice"):
        yaml.load(text, yaml12.Yaml12Loader)  # noqa: S506


# --- the committed file ---


def test_the_committed_file_has_the_same_values_as_in_dvc() -> None:
    read = parse_yaml(COMMITTED, "params.yaml")
    assert (read["channels"], read["hidden"]) == ("32, 64", 128)
    assert params.load(ROOT / "params.yaml").model_dump() == {**read, "channels": [32, 64], "hidden": [128]}


@pytest.mark.parametrize(
    ("short", "long"), [("64", [64]), ("64, 32", [64, 32]), ("64,32", [64, 32]), ("[64]", [64]), ("[64, 32]", [64, 32])]
)
def test_widths_have_a_short_form(tmp_path: Path, short: str, long: list[int]) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(re.sub(r"(?m)^hidden: .*$", f"hidden: {short}", COMMITTED))
    assert params.load(path).hidden == long


@pytest.mark.parametrize("form", ["64, M, 128, M", "64,M,128,M", "[64, M, 128, M]"])
def test_layers_of_a_vgg_have_a_short_form(tmp_path: Path, form: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(edited("vgg_layers", f"vgg_layers: {form}"))
    assert params.load(path).vgg_layers == [64, "M", 128, "M"]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("lr=0.005", "lr: 0.005"),
        ("lr=1e-5", "lr: 1e-05"),
        ("epochs=3", "epochs: 3"),
        ("flip=true", "flip: true"),
        ("model=mlp", "model: mlp"),
        ("image_size=28", "image_size: 28"),
        ("hidden=256", "hidden: 256"),
        ("channels='16, 32, 64'", "channels: 16, 32, 64"),
        ("hidden=[]", "hidden: []"),
        ("vgg_layers='64, M, 128, M'", "vgg_layers: 64, M, 128, M"),
        ("folder='/a/my pics'", "folder: /a/my pics"),
        ("runtime.device=cpu", "  device: cpu"),
        ("runtime.mirror=/a/mirror", "  mirror: /a/mirror"),
        ("runtime.checkpoint_minutes=0.5", "  checkpoint_minutes: 0.5"),
    ],
)
def test_dvc_changes_one_line_and_keeps_its_comment(tmp_path: Path, change: str, line: str) -> None:
    """Otherwise `git diff` after `dvc exp run -S` shows lines that the user did not change."""
    path = tmp_path / "params.yaml"
    path.write_text(COMMITTED)
    apply_overrides(path, [change])
    before, after = COMMITTED.splitlines(), path.read_text().splitlines()
    ((old, new),) = [pair for pair in zip(before, after, strict=True) if pair[0] != pair[1]]
    assert new.split(" #")[0].rstrip() == line
    assert new.split(" # ")[1] == old.split(" # ")[1]
    assert new.index(" # ") == max(old.index(" # "), len(line))
    params.load(path)


@pytest.mark.parametrize(
    "encode", [lambda text: b"\xef\xbb\xbf" + text.encode(), lambda text: text.replace("\n", "\r\n").encode()]
)
def test_a_byte_order_mark_and_windows_line_ends_change_nothing(tmp_path: Path, encode: Any) -> None:
    (tmp_path / "params.yaml").write_bytes(encode(COMMITTED))
    assert params.load(tmp_path / "params.yaml") == params.load(ROOT / "params.yaml")


@pytest.mark.parametrize("stage", STAGE_CLASSES)
def test_a_stage_gets_only_its_own_keys(stage: type[params.DownloadParams]) -> None:
    whole = params.load(ROOT / "params.yaml")
    part = whole.of(stage)
    assert type(part) is stage
    assert part.model_dump() == {key: getattr(whole, key) for key in stage.model_fields}


def test_no_key_has_a_default() -> None:
    fields = {**params.Params.model_fields, **params.RuntimeParams.model_fields}
    assert [key for key, field in fields.items() if not field.is_required()] == []


# --- choices ---


def choices(annotation: Any) -> tuple[Any, ...]:
    """Return the members of a Literal, also inside a union; () for any other type."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return tuple(choice for part in get_args(annotation) for choice in choices(part))


@pytest.mark.parametrize(
    ("stage", "key", "registry"),
    [
        (params.DownloadParams, "dataset", {**DATASETS, "folder": "your own images"}),
        (params.PreprocessParams, "dataset", {**DATASETS, "folder": "your own images"}),
        (params.TrainParams, "model", MODELS),
        (params.TrainParams, "pooling", POOLINGS),
        (params.TrainParams, "activation", ACTIVATIONS),
        (params.TrainParams, "loss", LOSSES),
        (params.TrainParams, "optimizer", OPTIMIZERS),
        (params.TrainParams, "schedule", SCHEDULES),
    ],
)
def test_choices_are_the_entries_of_the_registry(
    stage: type[params.DownloadParams], key: str, registry: dict[str, object]
) -> None:
    assert choices(stage.model_fields[key].annotation) == tuple(registry)


def test_the_nets_with_published_weights_are_those_of_the_table() -> None:
    assert tuple(WEIGHTS) == params.PUBLISHED


FIELDS = {**params.Params.model_fields, **params.RuntimeParams.model_fields}


@pytest.mark.parametrize("key", [key for key, field in FIELDS.items() if choices(field.annotation)])
def test_the_comment_of_a_key_names_every_choice(key: str) -> None:
    """The comments in params.yaml are the manual of the parameters."""
    (comment,) = re.findall(rf"(?m)^ *{key}: .*?#(.*)$", COMMITTED)
    assert set(choices(FIELDS[key].annotation)) <= set(re.findall(r"\w+", comment))


# --- errors ---


def edited(key: str, replacement: str) -> str:
    """Return the committed file with the line of `key` replaced; the new line is indented like the old one."""
    text, count = re.subn(rf"(?m)^( *){key}:.*$", lambda line: line[1] + replacement, COMMITTED)
    assert count == 1, key
    return text


def line_of(key: str) -> int:
    """Return the number of the line of `key` in the committed file, counted from 1."""
    return next(number for number, line in enumerate(COMMITTED.split("\n"), 1) if line.strip().startswith(f"{key}:"))


def load_error(path: Path, content: str | bytes) -> str:
    """Return the error of `load` for a file with this content."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as refused:
        params.load(path)
    return str(refused.value)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        # numbers outside the limits
        ("lr", "0", "lr: should be greater than 0, got 0"),
        ("lr", "-1", "lr: should be greater than 0, got -1"),
        ("lr", "1e-400", "lr: should be greater than 0, got 0.0"),
        ("lr", ".nan", "lr: should be a finite number, got nan"),
        ("lr", ".inf", "lr: should be a finite number, got inf"),
        ("lr", "1e400", "lr: should be a finite number, got inf"),
        ("dropout", "1", "dropout: should be less than 1, got 1"),
        ("val_fraction", "1.0", "val_fraction: should be less than 1, got 1.0"),
        ("val_fraction", "-0.1", "val_fraction: should be greater than or equal to 0, got -0.1"),
        ("epochs", "0", "epochs: should be greater than or equal to 1, got 0"),
        ("epochs", "99999999999999999999", "epochs: should be less than or equal to 1000000, got 99999999999999999999"),
        ("batch_size", "-32", "batch_size: should be greater than or equal to 1, got -32"),
        ("seed", "4294967296", "seed: should be less than 4294967296, got 4294967296"),
        ("image_size", "0", "image_size: should be greater than or equal to 1, got 0"),
        ("pad", "-1", "pad: should be greater than or equal to 0, got -1"),
        ("threads", "0", "runtime.threads: should be greater than or equal to 1, got 0"),
        # the wrong type
        ("lr", "", "lr: should be a valid number, got None"),
        ("lr", "true", "lr: should be a valid number, got True"),
        ("lr", "yes", "lr: should be a valid number, got 'yes'"),
        ("lr", "0,1", "lr: should be a valid number, got '0,1'"),
        ("lr", "[0.1]", "lr: should be a valid number, got [0.1]"),
        ("lr", "{a: 1}", "lr: should be a valid number, got {'a': 1}"),
        ("lr", '"0.1"', "lr: should be a valid number, got '0.1', which is text: remove the quotes"),
        ("epochs", "'20'", "epochs: should be a valid integer, got '20', which is text: remove the quotes"),
        ("epochs", "1e3", "epochs: should be a valid integer, got 1000.0"),
        ("epochs", "20.0", "epochs: should be a valid integer, got 20.0"),
        ("epochs", "true", "epochs: should be a valid integer, got True"),
        ("image_size", "none", "image_size: should be a valid integer, got 'none'"),
        ("permute", "yes", "permute: should be a valid boolean, got 'yes'"),
        ("permute", "off", "permute: should be a valid boolean, got 'off'"),
        ("one_hot", "1", "one_hot: should be a valid boolean, got 1"),
        ("progress", "on", "runtime.progress: should be a valid boolean, got 'on'"),
        ("mirror", "''", "runtime.mirror: string should have at least 1 character"),
        ("mirror", "[a]", "runtime.mirror: should be a valid string, got ['a']"),
        ("threads", "Auto", "runtime.threads: should be a valid integer, got 'Auto'; or 'auto'"),
        ("channels", "32.5", "channels: should be a valid list, got 32.5"),
        ("channels", "32; 64", "channels: should be a valid list, got '32; 64'"),
        ("channels", "32, 64,", "channels: should be a valid list, got '32, 64,'"),
        ("channels", "true", "channels: should be a valid list, got True"),
        ("channels", "'32'", "channels: should be a valid list, got '32', which is text: remove the quotes"),
        ("channels", "32, 0", "channels[1]: should be greater than or equal to 1, got 0"),
        ("channels", "[]", "channels: list should have at least 1 item"),
        ("channels", "[32, 0]", "channels[1]: should be greater than or equal to 1, got 0"),
        ("channels", "[[32]]", "channels[0]: should be a valid integer, got [32]"),
        ("classes", "[cat]", "classes: list should have at least 2 items"),
        ("classes", "[cat, 1.5]", "classes[1]: should be a valid string, got 1.5"),
        ("hidden", "[1, '64']", "hidden[1]: should be a valid integer, got '64', which is text: remove the quotes"),
        ("channels", "32, M", "channels[1]: should be a valid integer, got 'M'"),
        ("vgg_layers", "64, X", "vgg_layers[1]: should be a valid integer, got 'X'; or 'M'"),
        ("vgg_layers", "64, m", "vgg_layers[1]: should be a valid integer, got 'm'; or 'M'"),
        ("vgg_layers", "[64, 0]", "vgg_layers[1]: should be greater than or equal to 1, got 0; or 'M'"),
        ("vgg_layers", "64; M", "vgg_layers: should be a valid list, got '64; M'"),
        ("vgg_layers", "M", "vgg_layers: should be a valid list, got 'M'"),
        ("vgg_layers", "M, M", "vgg_layers: M, M has no number, but a net needs a convolution"),
        ("vgg_layers", "[]", "vgg_layers: [] has no number, but a net needs a convolution"),
        # no hint at quotes if there are none
        ("lr", "nan", "lr: should be a valid number, got 'nan'"),
        ("lr", ".5e1", "lr: should be a valid number, got '.5e1'"),
        ("lr", "1.5e", "lr: should be a valid number, got '1.5e'"),
    ],
)
def test_a_wrong_value_is_an_error_that_names_the_key(tmp_path: Path, key: str, value: str, expected: str) -> None:
    path = tmp_path / "params.yaml"
    message = load_error(path, edited(key, f"{key}: {value}"))
    assert message.startswith(f"{path}: {expected}")
    assert "\n" not in message
    assert ("quotes" in message) == ("quotes" in expected)


@pytest.mark.parametrize(
    ("key", "value", "nearest"),
    [
        ("dataset", "minst", "mnist"),
        ("dataset", "MNIST", "mnist"),
        ("dataset", "fashion-mnist", "fashion_mnist"),
        ("model", "CNN", "cnn"),
        ("optimizer", "Adam", "adam"),
        ("activation", "LeakyReLU", "leaky_relu"),
        ("activation", "None", "none"),
        ("optimizer", "RMSProp", "rmsprop"),
        ("schedule", "cosin", "cosine"),
        ("normalize", "None", "none"),
        ("precision", "fp32", "float32"),
        ("device", "cuda:0", "cuda"),
        ("device", "CUDA", "cuda"),
    ],
)
def test_a_wrong_choice_gets_the_nearest_one(tmp_path: Path, key: str, value: str, nearest: str) -> None:
    message = load_error(tmp_path / "params.yaml", edited(key, f"{key}: {value}"))
    assert f"{key}: {value!r} is not one of {', '.join(choices(FIELDS[key].annotation))}" in message
    assert message.endswith(f"did you mean {nearest!r}?")


@pytest.mark.parametrize(
    ("value", "repeated"), [("xyz", "'xyz'"), ("", "None"), ("5", "5"), ("[3]", "[3]"), ("off", "'off'")]
)
def test_a_choice_that_resembles_none_gets_all(tmp_path: Path, value: str, repeated: str) -> None:
    message = load_error(tmp_path / "params.yaml", edited("optimizer", f"optimizer: {value}"))
    assert f"optimizer: {repeated} is not one of {', '.join(OPTIMIZERS)}" in message


@pytest.mark.parametrize(
    ("key", "line", "wrong", "meant"),
    [
        ("lr", "lrr: 0.1", "lrr", "lr"),
        ("lr", "learning_rate: 0.1", "learning_rate", "lr"),
        ("dataset", "data set: mnist", "data set", "dataset"),
        ("batch_size", "batch-size: 32", "batch-size", "batch_size"),
        ("batch_size", "BATCH_SIZE: 32", "BATCH_SIZE", "batch_size"),
        ("lr", "lr: 0.1\nhidden_size: 3", "hidden_size", "hidden"),
        ("lr", "lr: 0.1\nDROPOUT: 3", "DROPOUT", "dropout"),
        ("device", "devise: cpu", "runtime.devise", "device"),
        ("threads", "number-of-threads: 4", "runtime.number-of-threads", "threads"),
    ],
)
def test_a_misspelled_key_gets_the_nearest_one(tmp_path: Path, key: str, line: str, wrong: str, meant: str) -> None:
    path = tmp_path / "params.yaml"
    assert f"{path}: {wrong}: is not a parameter; did you mean {meant!r}?" in load_error(path, edited(key, line))


@pytest.mark.parametrize(
    ("key", "name"), [("lr", "lr"), ("dataset", "dataset"), ("hidden", "hidden"), ("tracking", "runtime.tracking")]
)
def test_a_missing_key_is_named(tmp_path: Path, key: str, name: str) -> None:
    path = tmp_path / "params.yaml"
    assert load_error(path, edited(key, "")) == f"{path}: {name}: is missing; see the committed params.yaml"


@pytest.mark.parametrize(
    ("key", "line", "expected", "below"),
    [
        ("lr", "lr: 0.1\nlr: 0.2", "'lr' occurs twice", 1),
        ("threads", "threads: 4\n  threads: 5", "'threads' occurs twice", 1),
        ("lr", "lr:\t0.1", r"found character '\t' that cannot start any token", 0),
        ("lr", "\tlr: 0.1", r"found character '\t' that cannot start any token", 0),
        ("lr", "lr 0.1", "could not find expected ':'", 1),
        ("lr", "1: 0.1", "1 is not a text key", 0),
        ("lr", "? [lr]\n: 0.1", "['lr'] is not a text key", 0),
        ("lr", "lr: *x", "found undefined alias 'x'", 0),
        ("lr", "lr: !!python/object/apply:os.system [touch x]", "could not determine a constructor for the tag", 0),
        ("lr", "lr: ._", "'._' is not a number", 0),
        ("lr", "lr: 0x_", "'0x_' is not a number", 0),
        ("epochs", f"epochs: {'9' * 5000}", "is not a number", 0),
        ("runtime", "runtime: null", "mapping values are not allowed here", 1),
    ],
)
def test_an_error_of_yaml_names_the_line(tmp_path: Path, key: str, line: str, expected: str, below: int) -> None:
    path = tmp_path / "params.yaml"
    message = load_error(path, edited(key, line))
    assert message.startswith(f"{path} is not valid YAML: ")
    assert expected in message
    assert message.endswith(f"(line {line_of(key) + below})")
    assert len(message) < 300


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"permute": "true", "shift": "2"}, "shift needs pixels in their places, but permute is true; set shift to 0"),
        (
            {"permute": "true", "flip": "true"},
            "flip needs pixels in their places, but permute is true; set flip to false",
        ),
        (
            {"permute": "true", "cutout": "4"},
            "cutout needs pixels in their places, but permute is true; set cutout to 0",
        ),
        ({"permute": "true", "crop": "0.5"}, "crop needs pixels in their places, but permute is true; set crop to 0"),
        (
            {"pretrained": "imagenet"},
            "pretrained: imagenet has weights for googlenet, resnet18, resnet34, resnet50, resnet101, resnet152, eff",
        ),
        (
            {"pretrained": "imagenet", "model": "resnet18", "normalize": "zca"},
            "pretrained: imagenet's weights need images without whitening; set normalize to standard",
        ),
        ({"freeze_epochs": "1"}, "freeze_epochs: without pretrained, all layers are new; set it to 0"),
        ({"optimizer": "sgd", "nesterov": "true", "momentum": "0"}, "nesterov: true needs a momentum above 0"),
        (
            {"patience": "3", "schedule": "cosine"},
            "patience ends a training early, but schedule cosine is planned for all epochs; set schedule to constant",
        ),
        ({"classes": "[1, 2, '1']"}, "classes: '1' occurs twice"),
    ],
)
def test_wrong_combinations_of_keys_are_errors(tmp_path: Path, changes: dict[str, str], expected: str) -> None:
    text = COMMITTED
    for key, value in changes.items():
        text = re.sub(rf"(?m)^{key}:.*$", f"{key}: {value}", text)
    path = tmp_path / "params.yaml"
    assert load_error(path, text).startswith(f"{path}: {expected}")


def test_each_wrong_key_is_reported_once_and_no_right_one(tmp_path: Path) -> None:
    text = edited("lr", "lr: 0").replace("epochs: 20", "epochs: 0").replace("threads: auto", "threads: -1")
    lines = load_error(tmp_path / "params.yaml", text).splitlines()
    assert sorted(line.split(": ")[1] for line in lines) == ["epochs", "lr", "runtime.threads"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "has no `key: value` lines"),
        (b"# only a comment\n", "has no `key: value` lines"),
        (b"- lr\n- 0.1\n", "has no `key: value` lines"),
        (b"lr\n", "has no `key: value` lines"),
        (b"{}", "dataset: is missing"),
        (COMMITTED.encode() + b"---\nlr: 1\n", "another document"),
        (COMMITTED.encode() + b"\0", "unacceptable character #x0000"),
        (COMMITTED.encode() + b"# caf\xe9\n", "is not UTF-8 text (invalid continuation byte at byte"),
        (COMMITTED.encode("utf-16"), "is not UTF-8 text (invalid start byte at byte 0)"),
        (edited("runtime", "runtim:").encode(), "runtim: is not a parameter; did you mean 'runtime'?"),
        (COMMITTED.partition("runtime:")[0].encode() + b"runtime: fast\n", "runtime: should be a valid dictionary"),
    ],
)
def test_a_file_with_other_content_is_an_error(tmp_path: Path, content: bytes, expected: str) -> None:
    assert expected in load_error(tmp_path / "params.yaml", content)


BOMB = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9) if n else 'x'}]\n" for n in range(12))
"""Twelve lines that hold x 9 ** 11 times."""


@pytest.mark.parametrize("line", ["lr: *a11", "optimizer: *a11", "classes: *a11", "? *a11\n: 1"])
def test_aliases_of_aliases_are_not_expanded(tmp_path: Path, line: str) -> None:
    text = BOMB + COMMITTED.replace("\nlr:", f"\n{line}\n#")
    with peak_below(2**24):
        message = load_error(tmp_path / "params.yaml", text)
    assert max(map(len, message.splitlines())) < 600


def test_a_long_value_is_shortened(tmp_path: Path) -> None:
    message = load_error(tmp_path / "params.yaml", edited("lr", f"lr: {'x' * 10**6}"))
    assert "lr: should be a valid number, got 'xxx" in message
    assert len(message) < 500


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ("{a: ", "}"), ("[", "")])
def test_deeply_nested_lists_are_one_sentence(tmp_path: Path, opening: str, closing: str) -> None:
    message = load_error(tmp_path / "params.yaml", edited("lr", f"lr: {opening * 5000}{closing * 5000}"))
    line = COMMITTED[: COMMITTED.index("\nlr:")].count("\n") + 2
    assert message.endswith(f"params.yaml is not valid YAML: the lists are nested too deeply (line {line})")


def test_deeply_indented_lists_are_one_sentence(tmp_path: Path) -> None:
    lists = "".join(f"{'  ' * level}- a:\n" for level in range(1, 1000))
    message = load_error(tmp_path / "params.yaml", edited("lr", f"lr:\n{lists}"))
    assert message.endswith("params.yaml is not valid YAML: the lists are nested too deeply")


def test_a_missing_file_names_the_folder_to_run_in(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"params\.yaml does not exist here; run the command in the project's root folder"
    ):
        params.load(tmp_path / "params.yaml")


# --- time of the error ---


@pytest.mark.parametrize(
    "what", ["from imageclf import params; params.load()", "import stages.download", "import stages.preprocess"]
)
def test_errors_come_before_slow_imports(what: str) -> None:
    program = f"import sys; sys.path[:0] = [{str(SOURCE)!r}, '.']; {what}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "imageclf.params" in loaded
    assert loaded & {"torch", "torchvision", "mlflow", "sklearn", "matplotlib", "scipy", "pandas"} == set()


def test_an_error_ends_with_the_command_that_undoes_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if git has not noticed the change, because the second and the size are the same."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    path = Path("params.yaml")
    path.write_text(COMMITTED)
    for command in ("init -q", "add -A", "-c user.name=a -c user.email=b commit -q -m state"):
        subprocess.run(["git", *command.split()], check=True)
    before = path.stat()
    path.write_text(COMMITTED.replace("lr: 0.001", "lr: -.001"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(
        UserError, match=r"lr: should be greater than 0, got -0.001\n`git checkout HEAD params.yaml` re"
    ):
        params.load()
    subprocess.run(["git", "checkout", "-q", "HEAD", "params.yaml"], check=True)
    assert params.load().lr == 0.001
    path.write_text("lr: 1\n")
    subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=b", "commit", "-q", "-a", "-m", "bad"], check=True)
    with pytest.raises(UserError, match="dataset: is missing") as error:
        params.load()
    assert "git checkout" not in str(error.value), "the committed file has the same error"
    path.write_text("lr: 2\n")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "elsewhere"))
    with pytest.raises(UserError, match="dataset: is missing") as error:
        params.load()
    assert "git checkout" not in str(error.value), "this is the copy of a queued experiment"
