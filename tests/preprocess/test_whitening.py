"""Tests of whitening: on the train split, the only one measured, it gives mean 0 and no correlation."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import peak_below
from helpers import prepare_with
from numpy.typing import NDArray

from imageclf.contracts import dataset
from imageclf.contracts.dataset import Prepared
from imageclf.contracts.raw import Images, RawData
from imageclf.core.errors import UserError
from imageclf.preprocess import whitening

SHAPE = (3, 4, 5)
LABELS = np.arange(600) % 2


def correlated(count: int, seed: int = 0) -> NDArray[np.uint8]:
    """Return images with similar neighboring pixels: smooth random walks of strong contrast."""
    random = np.random.default_rng(seed)
    walks = random.normal(size=(count, *SHAPE)).cumsum(axis=2).cumsum(axis=3)
    return (128 + 40 * walks).clip(0, 255).astype(np.uint8)


TRAIN, TEST = correlated(600), correlated(60, seed=1)


def run(folder: Path, train: NDArray[np.uint8] = TRAIN, test: NDArray[np.uint8] = TEST, **changes: Any) -> Prepared:
    """Prepare generated images with ZCA."""
    images = {"train": Images(LABELS, lambda: iter([train])), "test": Images(LABELS[:60], lambda: iter([test]))}
    prepare_with(RawData(images, ("a", "b"), SHAPE), folder, **{"normalize": "zca", **changes})
    return dataset.read(folder)


def stored(prepared: Prepared) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the whitening, which must exist."""
    assert prepared.whitening is not None
    return prepared.whitening


def whitened(prepared: Prepared, split: str = "train") -> NDArray[np.float64]:
    """Return the images of a split as the net's input, (N, d)."""
    mean, matrix = stored(prepared)
    return (prepared[split].images.reshape(len(prepared[split]), -1) / 255 - mean) @ matrix.astype(np.float64)


def test_train_becomes_uncorrelated_with_variance_1_in_directions_of_large_variance(tmp_path: Path) -> None:
    prepared = run(tmp_path)
    values = whitened(prepared)
    assert np.allclose(values.mean(axis=0), 0, atol=1e-5)
    variance, directions = np.linalg.eigh(np.cov(TRAIN.reshape(600, -1).T / 255, bias=True))
    found = directions.T @ np.cov(values.T, bias=True) @ directions
    assert np.allclose(np.diag(found), variance / (variance + whitening.EPSILON), atol=1e-3)
    assert np.allclose(found, np.diag(np.diag(found)), atol=1e-3)
    assert np.diag(found)[-1] > 0.99  # of the largest variance


def test_zca_is_symmetric_and_positive_definite(tmp_path: Path) -> None:
    """A symmetric positive matrix is the whitening that changes the images least."""
    _, matrix = stored(run(tmp_path))
    assert np.allclose(matrix, matrix.T, atol=1e-6)
    assert np.linalg.eigvalsh(matrix).min() > 0


def test_mean_and_matrix_have_their_shapes_and_types(tmp_path: Path) -> None:
    mean, matrix = stored(run(tmp_path))
    assert (mean.dtype, mean.shape) == (np.float32, (60,))
    assert (matrix.dtype, matrix.shape) == (np.float32, (60, 60))
    assert np.allclose(mean, TRAIN.reshape(600, -1).mean(axis=0) / 255)


def test_whitening_is_measured_on_the_stored_pixels(tmp_path: Path) -> None:
    prepared = run(tmp_path, grayscale=True, pad=1, permute_seed=3)
    mean, matrix = stored(prepared)
    assert matrix.shape == (42, 42)
    assert np.allclose(mean, prepared["train"].images.reshape(600, -1).mean(axis=0) / 255)
    assert np.allclose(whitened(prepared).mean(axis=0), 0, atol=1e-5)


def test_val_and_test_are_not_measured(tmp_path: Path) -> None:
    prepared = run(tmp_path / "before", val_fraction=0.2)
    held = {image.tobytes() for image in prepared["val"].images}
    changed = TRAIN.copy()
    changed[[image.tobytes() in held for image in TRAIN]] = 255
    after = run(tmp_path / "after", changed, 255 - TEST, val_fraction=0.2)
    assert np.all(after["val"].images == 255)
    for file in (dataset.WHITENING, dataset.WHITENING_MEAN):
        assert after.manifest.files[file] == prepared.manifest.files[file]


def test_the_same_images_give_the_same_bytes_and_the_chunk_size_changes_only_rounding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(tmp_path / "first")
    assert run(tmp_path / "again").manifest.sha256 == first.manifest.sha256
    monkeypatch.setattr(whitening, "ROWS", 7)
    _, other = stored(run(tmp_path / "pieces"))
    assert np.allclose(other, stored(first)[1], rtol=1e-3, atol=1e-4)


def test_a_pixel_that_never_varies_stays_finite(tmp_path: Path) -> None:
    train = TRAIN.copy()
    train[:, 1] = 0
    assert np.isfinite(whitened(run(tmp_path, train))).all()


def test_fewer_images_than_pixels_are_enough() -> None:
    mean, matrix = whitening.measure(TRAIN[:10])
    assert np.isfinite(mean).all()
    assert np.isfinite(matrix).all()


def test_the_whitening_files_are_verified(tmp_path: Path) -> None:
    prepared = run(tmp_path)
    content = bytearray((tmp_path / dataset.WHITENING).read_bytes())
    content[-1] ^= 1
    (tmp_path / dataset.WHITENING).write_bytes(content)
    with pytest.raises(UserError, match=r"whitening\.npy is not what preprocess wrote"):
        stored(prepared)


def test_only_zca_has_a_whitening_and_no_other_normalization(tmp_path: Path) -> None:
    zca = run(tmp_path)
    assert zca.normalization == ([0.0] * 3, [1.0] * 3)
    unit = run(tmp_path, normalize="unit")
    assert unit.whitening is None
    assert not list(tmp_path.glob("whitening*"))
    symmetric = run(tmp_path, normalize="symmetric")
    assert symmetric.normalization == ([0.5] * 3, [0.5] * 3)


def test_too_large_images_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"normalize: 3x65x65 images are too large for zca, .*; set image_size or grayscale"
    ):
        run(tmp_path, image_size=65)
    assert not list(tmp_path.iterdir())
    whitening.check((3, 64, 64))


def test_the_train_split_is_not_loaded_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whitening, "ROWS", 64)
    images = np.zeros((40_000, 1, 8, 8), np.uint8)
    with peak_below(images.nbytes // 4):
        whitening.measure(images)
