"""Tests of `imageclf export`: the files give the answers of the net, name no path, and a wrong one is not kept."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from helpers import new_spec, save_model
from imports import ROOT
from torch import nn

from imageclf import cli, models, params
from imageclf.contracts.preparation import Preparation, Shape
from imageclf.core import paths
from imageclf.core.errors import UserError
from imageclf.inference import checkpoint
from imageclf.inference.predictor import Predictor
from imageclf.models.activations import ACTIVATIONS
from imageclf.preprocess import transform
from imageclf.usage import export
from imageclf.usage.export import FORMATS, Format, compare

CLASSES = ["a", "b", "c", "d"]

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]  # torch's, about itself


def needs(name: str) -> None:
    """Skip the test if the packages of a format are not installed."""
    if name == "onnx":
        pytest.importorskip("onnxruntime", reason="uv sync --group onnx")
        pytest.importorskip("onnxscript", reason="uv sync --group onnx")


def save(folder: Path, name: str, raw: Shape, preparation: Preparation, *, whitened: bool = False) -> None:
    """Save a net with the committed parameters, for raw images of a shape."""
    committed, shape = params.load(ROOT / paths.PARAMS), preparation.output_shape(raw)
    order = transform.draw_permutation(preparation, shape)
    size, random = int(np.prod(shape)), np.random.default_rng(0)
    whitening = random.random(size, np.float32), (np.eye(size) + random.random((size, size)) / 9).astype(np.float32)
    changes: dict[str, Any] = {
        "model": name,
        "arguments": {key: getattr(committed, key) for key in models.parameter_names(name)},
        "raw_shape": raw,
        "image_shape": shape,
        "classes": CLASSES,
        "preparation": preparation,
        "permutation": None if order is None else order.tolist(),
        "normalization": ([0.4] * shape[0], [0.3] * shape[0]),
    }
    save_model(folder, new_spec(**changes), whitening=whitening if whitened else None)


CASES = {
    "plain": ((1, 8, 8), Preparation(), False),
    "permuted": ((1, 8, 8), Preparation(permute_seed=1), False),
    "zca": ((3, 8, 8), Preparation(), True),
    "resized": ((3, 12, 10), Preparation(image_size=8, pad=1), False),
    "gray-scale": ((3, 8, 8), Preparation(grayscale=True), False),
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("case", CASES)
def test_a_program_gives_the_answers_of_predict(case: str, name: str, tmp_path: Path) -> None:
    needs(name)
    raw_shape, preparation, whitened = CASES[case]
    save(tmp_path / "model", "cnn", raw_shape, preparation, whitened=whitened)
    path = tmp_path / f"program.{name}"
    cli.main(["export", "--format", name, "--model", str(tmp_path / "model"), "--output", str(path)])
    raw = np.random.default_rng(1).integers(256, size=(50, *raw_shape), dtype=np.uint8)
    predictor = Predictor.load(tmp_path / "model", torch.device("cpu"))
    prepared = transform.apply(preparation, transform.draw_permutation(preparation, predictor.spec.image_shape), raw)
    parity = compare(FORMATS[name].open(path)(np.ascontiguousarray(prepared)), predictor.probabilities(raw))
    assert parity.holds(FORMATS[name].tolerance), parity.sentence()
    assert str(ROOT).encode() not in path.read_bytes()


@pytest.mark.parametrize("model", ["mlp", "convnet32", "vgg11", "resnet18", "googlenet"])
def test_nets_of_each_family_are_exported(model: str, tmp_path: Path) -> None:
    needs("onnx")
    save(tmp_path / "model", model, (3, 32, 32), Preparation())
    assert export.export(tmp_path / "model", "onnx", tmp_path / "model.onnx").holds(1e-5)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_is_exported(activation: str, tmp_path: Path) -> None:
    needs("onnx")
    arguments = {"hidden": [8], "activation": activation, "dropout": 0.0}
    save_model(tmp_path / "model", new_spec(arguments=arguments))
    assert export.export(tmp_path / "model", "onnx", tmp_path / "model.onnx").holds(1e-5)


def test_the_spec_is_in_the_file(tmp_path: Path) -> None:
    needs("onnx")
    import onnxruntime

    save(tmp_path / "model", "cnn", *CASES["permuted"][:2])
    for name in FORMATS:
        export.export(tmp_path / "model", name, tmp_path / name)
    in_onnx = onnxruntime.InferenceSession(tmp_path / "onnx").get_modelmeta().custom_metadata_map["model.json"]
    with ZipFile(tmp_path / "pt2") as archive:
        (entry,) = [each for each in archive.namelist() if each.endswith("extra/model.json")]
        in_pt2 = archive.read(entry).decode()
    expected = json.dumps(asdict(checkpoint.load(tmp_path / "model").spec))
    assert in_onnx == in_pt2 == expected


class Offset(nn.Module):
    """A classifier whose answers are those of another one, shifted."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return probabilities that are 0.001 too large."""
        return self.inner(images) + 0.001


def test_a_program_that_answers_otherwise_fails_the_command_and_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "model", "mlp", (1, 8, 8), Preparation())
    right = FORMATS["pt2"]
    wrong = Format(lambda net, spec, path: right.write(Offset(net), spec, path), right.open, right.tolerance)  # type: ignore[arg-type]
    monkeypatch.setitem(FORMATS, "pt2", wrong)
    with pytest.raises(UserError, match=r"program was not written, because its answers differ: greatest .* 1\.0e-03"):
        cli.main(
            ["export", "--format", "pt2", "--model", str(tmp_path / "model"), "--output", str(tmp_path / "program")]
        )
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_equal_probabilities_of_another_class_are_no_parity() -> None:
    first = np.array([[0.5, 0.5 - 1e-6], [0.9, 0.1]], np.float32)
    parity = compare(first[:, ::-1], first)
    assert not parity.holds(1.0)
    assert compare(first, first).holds(0.0)
    assert parity.equal == 0


def test_the_images_of_the_check_have_all_levels() -> None:
    images = export.sample_images(new_spec(image_shape=(3, 9, 7)))
    assert images.shape == (256, 3, 9, 7)
    assert np.array_equal(np.unique(images), np.arange(256))
