"""Tests that a saved model is the trained one, bit for bit, and that any other file is refused unread."""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import helpers
import numpy as np
import pytest
import torch
from imports import ROOT
from safetensors import SafetensorError
from torch import nn

from imageclf import models, params
from imageclf.contracts import model
from imageclf.contracts.model import SPEC, WEIGHTS, ModelSpec
from imageclf.contracts.preparation import Preparation
from imageclf.core import files, paths
from imageclf.core.errors import UserError
from imageclf.inference import checkpoint
from imageclf.models.activations import ACTIVATIONS
from imageclf.training.loading.batches import Whitening

SHAPE = (2, 8, 8)
CLASSES = ["a", "b", "c"]
MEANS, STDS = [0.2, 0.6], [0.3, 0.25]
ARGUMENTS = {"channels": [4], "kernel_size": 3, "conv_padding": "same", "hidden": [8], "dropout": 0.5}
FILES = [WEIGHTS, SPEC, model.WHITENING]

pytestmark = pytest.mark.usefixtures("one_thread")


def new_net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return models.build("cnn", SHAPE, len(CLASSES), **ARGUMENTS)


def new_spec(**changes: Any) -> ModelSpec:
    """Return the spec of `new_net`, with changes."""
    ours = {"model": "cnn", "arguments": ARGUMENTS, "raw_shape": SHAPE, "image_shape": SHAPE, "classes": CLASSES}
    return helpers.new_spec(**{**ours, "normalization": (MEANS, STDS), **changes})


def made_whitening() -> Whitening:
    """Return a mean and a matrix that is not the identity."""
    random = np.random.default_rng(2)
    mean, noise = random.random(128, np.float32), random.random((128, 128), np.float32)
    return mean, (np.eye(128) + noise / 100).astype(np.float32)


def save(folder: Path, *, seed: int = 0, whitening: Whitening | None = None, **changes: Any) -> ModelSpec:
    """Write a freshly initialized net of the spec with these changes."""
    return helpers.save_model(folder, new_spec(**changes), seed=seed, whitening=whitening)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Return a folder with a model that has all possible files."""
    save(tmp_path / "model", whitening=made_whitening())
    return tmp_path / "model"


def test_what_is_loaded_has_the_logits_of_what_was_saved_and_no_dropout(saved: Path) -> None:
    images = torch.randn(5, *SHAPE)
    assert torch.equal(checkpoint.load(saved).net(images), new_net().eval()(images))


@pytest.mark.parametrize("name", models.MODELS)
def test_every_net_is_rebuilt_from_its_spec(name: str, tmp_path: Path) -> None:
    committed, shape = params.load(ROOT / paths.PARAMS), (1, 8, 8)
    arguments = {key: getattr(committed, key) for key in models.parameter_names(name)}
    net = models.build(name, shape, len(CLASSES), **arguments)
    for buffer in net.buffers():  # running statistics, as training leaves them
        buffer.fill_(7)
    model.write(tmp_path, new_spec(model=name, arguments=arguments, image_shape=shape), net.state_dict(), None)
    found = checkpoint.load(tmp_path).net.state_dict()
    assert found.keys() == net.state_dict().keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in net.state_dict().items())


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_activation_comes_back(activation: str, tmp_path: Path) -> None:
    arguments, images = {**ARGUMENTS, "activation": activation}, torch.randn(5, *SHAPE)
    save(tmp_path, arguments=arguments)
    torch.manual_seed(0)
    expected = models.build("cnn", SHAPE, len(CLASSES), **arguments).eval()
    assert torch.equal(checkpoint.load(tmp_path).net(images), expected(images))


def test_the_spec_is_read_as_it_was_written(tmp_path: Path) -> None:
    preparation = Preparation(grayscale=True, image_size=6, pad=1, permute_seed=4)
    written = save(tmp_path, preparation=preparation, permutation=[1, 0], whitening=made_whitening())
    assert written.weights_sha256 == files.sha256(tmp_path / WEIGHTS)
    assert written.whitening_sha256 == files.sha256(tmp_path / model.WHITENING)
    assert model.read_spec(tmp_path) == checkpoint.load(tmp_path).spec == written


def test_a_spec_of_another_version_is_refused_by_name(tmp_path: Path) -> None:
    save(tmp_path)
    files.write_manifest(tmp_path / SPEC, {"model": "cnn", "recipe": "of an older version"})
    with pytest.raises(UserError, match=r"model.json was written by another version .*: run `uv run dvc repro train`"):
        checkpoint.load(tmp_path)


def test_whitening_comes_back_bit_for_bit(saved: Path) -> None:
    found = checkpoint.load(saved).normalize
    mean, matrix = made_whitening()
    assert found.whitening is not None
    np.testing.assert_array_equal(found.whitening_mean, mean)
    np.testing.assert_array_equal(found.whitening, matrix)


def test_the_same_weights_make_the_same_files(tmp_path: Path) -> None:
    """The memory format does not matter."""
    weights = new_net().state_dict()
    strided = {
        name: tensor.to(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor
        for name, tensor in weights.items()
    }
    first = model.write(tmp_path / "1", new_spec(), weights, made_whitening())
    assert model.write(tmp_path / "2", new_spec(), strided, made_whitening()) == first
    for name in FILES:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def test_other_weights_have_another_name(tmp_path: Path) -> None:
    assert save(tmp_path, seed=0).weights_sha256 != save(tmp_path, seed=1).weights_sha256


def test_saving_over_a_model_leaves_the_new_one_alone(saved: Path) -> None:
    """The whitening of the old model is removed too."""
    (saved / "epoch-7.safetensors").touch()
    save(saved, seed=1)
    images = torch.randn(2, *SHAPE)
    assert {path.name for path in saved.iterdir()} == {WEIGHTS, SPEC}
    assert torch.equal(checkpoint.load(saved).net(images), new_net(1).eval()(images))


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named_with_the_way_out(name: str, saved: Path) -> None:
    (saved / name).unlink()
    with pytest.raises(UserError, match=rf"{name} is missing: run `uv run dvc repro train`"):
        checkpoint.load(saved)


@pytest.mark.parametrize("name", FILES)
def test_any_flipped_byte_is_refused(name: str, saved: Path) -> None:
    whole = (saved / name).read_bytes()
    random = np.random.default_rng(3)
    for place, change in zip(random.integers(len(whole), size=200), random.integers(1, 256, size=200), strict=True):
        damaged = bytearray(whole)
        damaged[place] ^= change
        (saved / name).write_bytes(damaged)
        with pytest.raises(UserError, match=f"{name} is not what train wrote"):
            checkpoint.load(saved)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0], ids=["empty", "half", "all but a byte"])
def test_a_truncated_file_is_refused(name: str, share: float, saved: Path) -> None:
    whole = (saved / name).read_bytes()
    (saved / name).write_bytes(whole[: int(share * (len(whole) - 1))])
    with pytest.raises(UserError, match=f"{name} is not what train wrote"):
        checkpoint.load(saved)


def test_weights_of_another_model_are_refused(saved: Path, tmp_path: Path) -> None:
    save(tmp_path / "other", seed=1)
    (tmp_path / "other" / WEIGHTS).replace(saved / WEIGHTS)
    with pytest.raises(UserError, match=f"{WEIGHTS} is not what train wrote"):
        checkpoint.load(saved)


class Trap:
    """An object whose unpickling makes a folder."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return os.mkdir, (self.marker,)


@pytest.fixture
def trap(tmp_path: Path) -> Iterator[Path]:
    """Write a pickle to a file, and check afterward that loading it would have made the folder `ran`."""
    torch.save(Trap(tmp_path / "ran"), tmp_path / "trap.pt")
    yield tmp_path / "trap.pt"
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "trap.pt", weights_only=False)
    assert (tmp_path / "ran").exists()


def test_a_pickle_in_place_of_the_weights_is_refused_and_never_runs(saved: Path, trap: Path) -> None:
    shutil.copy(trap, saved / WEIGHTS)
    with pytest.raises(UserError, match=f"{WEIGHTS} is not what train wrote"):
        checkpoint.load(saved)


def test_a_pickle_never_runs_even_if_a_forged_spec_names_its_digest(saved: Path, trap: Path) -> None:
    shutil.copy(trap, saved / WEIGHTS)
    spec = new_spec(weights_sha256=files.sha256(trap))
    content = {key: value for key, value in asdict(spec).items() if key != "sha256"}
    files.write_manifest(saved / SPEC, content)
    with pytest.raises(SafetensorError):
        checkpoint.load(saved)
