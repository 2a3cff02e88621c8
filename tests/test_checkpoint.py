"""A saved model is the trained one, bit for bit, and a file that is not what train wrote is refused unread."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from imports import ROOT
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn

from imageclf import checkpoint, files, models, params, paths
from imageclf.batches import Whitening
from imageclf.checkpoint import RECIPE, WEIGHTS, Checkpoint, Prepare
from imageclf.errors import UserError

SHAPE = (2, 8, 8)
CLASSES = ["a", "b", "c"]
MEANS, STDS = [0.2, 0.6], [0.3, 0.25]
ARGUMENTS = {"channels": [4], "kernel_size": 3, "conv_padding": "same", "hidden": [8], "dropout": 0.5}
AS_IT_IS = {"grayscale": False, "image_size": None, "pad": 0}
FILES = [WEIGHTS, RECIPE, checkpoint.WHITENING]

pytestmark = pytest.mark.usefixtures("one_thread")


def new_net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return models.build("cnn", SHAPE, len(CLASSES), **ARGUMENTS)


def recipe(**changes: Any) -> dict[str, Any]:
    return {
        "model": "cnn",
        "arguments": ARGUMENTS,
        "raw_shape": list(SHAPE),
        "image_shape": list(SHAPE),
        "classes": CLASSES,
        "preparation": AS_IT_IS,
        "permutation": None,
        "normalization": [MEANS, STDS],
        "epoch": 3,
        **changes,
    }


def permutation() -> NDArray[np.int64]:
    return np.random.default_rng(1).permutation(64)


def made_whitening() -> Whitening:
    """Of no use, but no identity either."""
    random = np.random.default_rng(2)
    mean, noise = random.random(128, np.float32), random.random((128, 128), np.float32)
    return mean, (np.eye(128) + noise / 100).astype(np.float32)


def save(folder: Path, *, seed: int = 0, whitening: Whitening | None = None, **changes: Any) -> str:
    return checkpoint.save(folder, new_net(seed).state_dict(), whitening, recipe(**changes))


def raw_images(count: int = 5, shape: tuple[int, int, int] = SHAPE) -> Tensor:
    return torch.randint(256, (count, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder with a model and all the files that one can have."""
    save(tmp_path / "model", whitening=made_whitening())
    return tmp_path / "model"


@pytest.fixture
def loaded(tmp_path: Path) -> Checkpoint:
    """A model of permuted images."""
    save(tmp_path / "permuted", permutation=permutation().tolist())
    return checkpoint.load(tmp_path / "permuted")


def test_what_is_loaded_has_the_logits_of_what_was_saved_and_no_dropout(saved: Path) -> None:
    images = torch.randn(5, *SHAPE)
    assert torch.equal(checkpoint.load(saved).net(images), new_net().eval()(images))


@pytest.mark.parametrize("name", models.MODELS)
def test_every_net_comes_back_from_its_recipe(name: str, tmp_path: Path) -> None:
    committed, shape = params.load(ROOT / paths.PARAMS), (1, 8, 8)
    arguments = {key: getattr(committed, key) for key in models.parameter_names(name)}
    made = recipe(model=name, arguments=arguments, image_shape=shape)
    net = models.build(name, shape, len(CLASSES), **arguments)
    for buffer in net.buffers():  # running statistics, as training leaves them
        buffer.fill_(7)
    checkpoint.save(tmp_path, net.state_dict(), None, made)
    found = checkpoint.load(tmp_path).net.state_dict()
    assert found.keys() == net.state_dict().keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in net.state_dict().items())


def test_the_recipe_comes_back_with_the_name_of_the_weights(tmp_path: Path) -> None:
    digest = save(tmp_path, extra="kept")
    found = checkpoint.load(tmp_path).recipe
    assert digest == found["weights_sha256"] == files.sha256(tmp_path / WEIGHTS)
    assert {key: found[key] for key in recipe()} == recipe()
    assert found["extra"] == "kept"


def test_whitening_comes_back_bit_for_bit(saved: Path) -> None:
    found = checkpoint.load(saved).normalize
    mean, matrix = made_whitening()
    assert found.whitening is not None
    np.testing.assert_array_equal(found.whitening_mean, mean)
    np.testing.assert_array_equal(found.whitening, matrix)


def test_the_same_weights_make_the_same_files(tmp_path: Path) -> None:
    """However they lie in memory."""
    weights = new_net().state_dict()
    strided = {
        name: tensor.to(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor
        for name, tensor in weights.items()
    }
    first = checkpoint.save(tmp_path / "1", weights, made_whitening(), recipe())
    assert checkpoint.save(tmp_path / "2", strided, made_whitening(), recipe()) == first
    for name in FILES:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def test_other_weights_have_another_name(tmp_path: Path) -> None:
    assert save(tmp_path, seed=0) != save(tmp_path, seed=1)


def test_saving_over_a_model_leaves_the_new_one_alone(saved: Path) -> None:
    """A whitening of the old one included."""
    (saved / "epoch-7.safetensors").touch()
    save(saved, seed=1)
    images = torch.randn(2, *SHAPE)
    assert {path.name for path in saved.iterdir()} == {WEIGHTS, RECIPE}
    assert torch.equal(checkpoint.load(saved).net(images), new_net(1).eval()(images))


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named_with_the_way_out(name: str, saved: Path) -> None:
    (saved / name).unlink()
    with pytest.raises(UserError, match=rf"{name} is missing: run `dvc repro train`"):
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
    """Unpickling it makes a folder."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return os.mkdir, (self.marker,)


@pytest.fixture
def trap(tmp_path: Path) -> Iterator[Path]:
    """A pickle in a file, that proves afterwards that it would have made the folder `ran`."""
    torch.save(Trap(tmp_path / "ran"), tmp_path / "trap.pt")
    yield tmp_path / "trap.pt"
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "trap.pt", weights_only=False)
    assert (tmp_path / "ran").exists()


def test_a_pickle_in_place_of_the_weights_is_refused_and_never_runs(saved: Path, trap: Path) -> None:
    shutil.copy(trap, saved / WEIGHTS)
    with pytest.raises(UserError, match=f"{WEIGHTS} is not what train wrote"):
        checkpoint.load(saved)


def test_a_pickle_never_runs_even_where_a_forged_recipe_vouches_for_it(saved: Path, trap: Path) -> None:
    shutil.copy(trap, saved / WEIGHTS)
    files.write_manifest(saved / RECIPE, recipe(weights_sha256=files.sha256(trap), whitening_sha256=None))
    with pytest.raises(SafetensorError):
        checkpoint.load(saved)


@pytest.mark.parametrize("whitened", [False, True], ids=["plain", "whitened"])
@pytest.mark.parametrize("permuted", [False, True], ids=["in place", "permuted"])
def test_the_classifier_takes_raw_images_where_the_net_takes_prepared_ones(
    permuted: bool, whitened: bool, tmp_path: Path
) -> None:
    raw, order = raw_images(), permutation() if permuted else np.arange(64)
    values = raw.numpy().reshape(5, 2, 64)[:, :, order].reshape(5, 128) / 255  # in the order in which they are stored
    if whitened:
        mean, matrix = made_whitening()
        values = (values - mean) @ matrix
    prepared = (values.reshape(5, *SHAPE) - np.reshape(MEANS, (2, 1, 1))) / np.reshape(STDS, (2, 1, 1))
    expected = new_net().eval()(torch.from_numpy(prepared).float()).softmax(dim=1)

    whitening = made_whitening() if whitened else None
    save(tmp_path, whitening=whitening, permutation=order.tolist() if permuted else None)
    served = checkpoint.load(tmp_path).classifier()
    torch.testing.assert_close(served(raw), expected, rtol=0, atol=1e-6)


def test_the_classifier_gives_probabilities(loaded: Checkpoint) -> None:
    probabilities = loaded.classifier()(raw_images())
    assert probabilities.dtype == torch.float32
    assert probabilities.shape == (5, 3)
    assert (probabilities >= 0).all()
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(5))


@pytest.mark.parametrize("size", [1, 2, 3, 64])
def test_the_classifier_takes_batches_of_any_size(size: int, loaded: Checkpoint) -> None:
    served, images = loaded.classifier(), raw_images(64)
    torch.testing.assert_close(served(images[:size]), served(images)[:size], rtol=0, atol=1e-6)


def test_the_classifier_leaves_its_images_alone(loaded: Checkpoint) -> None:
    images = raw_images()
    loaded.classifier()(images)
    assert torch.equal(images, raw_images())


def prepare(**changes: Any) -> Prepare:
    return Prepare(**{**AS_IT_IS, "permutation": None, **changes})


def test_preparing_makes_colours_grey_as_pillow_does_to_a_level() -> None:
    images = raw_images(5, (3, 8, 8))
    found = prepare(grayscale=True)(images)
    assert found.dtype == torch.uint8
    for image, grey in zip(images, found.int(), strict=True):
        theirs = np.asarray(Image.fromarray(image.permute(1, 2, 0).numpy()).convert("L"), dtype=int)
        assert np.abs(grey[0].numpy() - theirs).max() <= 1


def test_preparing_leaves_grey_images_grey() -> None:
    assert torch.equal(prepare(grayscale=True)(raw_images(5, (1, 8, 8))), raw_images(5, (1, 8, 8)))


@pytest.mark.parametrize("size", [3, 8, 13, 20])
@pytest.mark.parametrize("shape", [(1, 13, 13), (3, 9, 14)], ids=str)
def test_preparing_resizes_as_pillow_does_to_a_level(shape: tuple[int, int, int], size: int) -> None:
    images = raw_images(3, shape)
    found = prepare(image_size=size)(images)
    assert found.dtype == torch.uint8
    assert found.shape == (3, shape[0], size, size)
    for plane, resized in zip(images.flatten(0, 1), found.flatten(0, 1).int(), strict=True):
        theirs = Image.fromarray(plane.numpy()).resize((size, size), Image.Resampling.BILINEAR)
        assert np.abs(resized.numpy() - np.asarray(theirs, dtype=int)).max() <= 1


def test_preparing_pads_with_black() -> None:
    images = raw_images()
    expected = np.pad(images.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)))
    np.testing.assert_array_equal(prepare(pad=2)(images), expected)


def test_preparing_permutes_last() -> None:
    images, order = raw_images(5, (1, 6, 6)), permutation()
    expected = np.pad(images.numpy(), ((0, 0), (0, 0), (1, 1), (1, 1))).reshape(5, 1, 64)[:, :, order]
    np.testing.assert_array_equal(prepare(pad=1, permutation=order)(images).flatten(2), expected)


def test_the_classifier_can_be_exported_with_a_free_batch_size(tmp_path: Path) -> None:
    """With all that can be in it, as MLflow stores it."""
    save(
        tmp_path,
        whitening=made_whitening(),
        preparation={"grayscale": False, "image_size": 6, "pad": 1},
        permutation=permutation().tolist(),
    )
    served = checkpoint.load(tmp_path).classifier()
    shape = (2, 10, 12)
    dynamic = {"images": {0: torch.export.Dim("batch")}}
    exported = torch.export.export(served, (raw_images(2, shape),), dynamic_shapes=dynamic).module()
    for size in (1, 2, 7):
        images = raw_images(size, shape)
        torch.testing.assert_close(exported(images), served(images), rtol=0, atol=1e-6)
