"""Tests that prepared data is read back, and that damaged files are refused by name."""

from pathlib import Path

import numpy as np
import pytest
from conftest import names
from helpers import prepare_with

from imageclf.contracts import dataset
from imageclf.contracts.dataset import Prepared
from imageclf.contracts.raw import Images, RawData
from imageclf.core.errors import UserError

CLASSES = ("zero", "one", "two")
FILES = [
    "dataset.json",
    "permutation.npy",
    *(file for split in ("test", "train", "val") for file in dataset.split_files(split)),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Prepare 60 permuted images (2, 3, 4) with one-hot targets."""
    random = np.random.default_rng(0)
    pixels, labels = random.integers(256, size=(60, 2, 3, 4), dtype=np.uint8), random.integers(3, size=60)
    prepare_with(
        RawData({"train": Images(labels, lambda: iter([pixels]))}, CLASSES, image_shape=(2, 3, 4)),
        tmp_path,
        val_fraction=0.25,
        normalize="unit",
        permute_seed=1,
        one_hot=True,
    )
    return tmp_path


def read_everything(folder: Path) -> Prepared:
    """Read all files."""
    prepared = dataset.read(folder)
    assert prepared.permutation is not None
    for name in ("train", "val", "test"):
        assert len(prepared[name]) > 0
    return prepared


def test_everything_is_read_back(folder: Path) -> None:
    prepared = read_everything(folder)
    assert names(folder) == sorted(FILES)
    assert prepared.manifest.classes == list(CLASSES)
    assert prepared.manifest.image_shape == (2, 3, 4)
    assert {name: len(prepared[name]) for name in ("train", "val", "test")} == {"train": 36, "val": 12, "test": 12}
    assert [name in prepared for name in ("train", "val", "test", "trainer")] == [True, True, True, False]
    assert len(prepared.manifest.sha256) == 64


@pytest.mark.parametrize("file", FILES)
def test_a_flipped_byte_is_refused(folder: Path, file: str) -> None:
    original = (folder / file).read_bytes()
    for position in {0, len(original) - 1, *np.random.default_rng(0).integers(len(original), size=40).tolist()}:
        flipped = bytearray(original)
        flipped[position] ^= 1 << position % 8
        (folder / file).write_bytes(flipped)
        with pytest.raises(UserError, match=f"{file} is not what preprocess wrote .* --single-item preprocess`"):
            read_everything(folder)
    (folder / file).write_bytes(original)
    read_everything(folder)


@pytest.mark.parametrize("file", FILES)
def test_a_truncated_or_longer_file_is_refused(folder: Path, file: str) -> None:
    original = (folder / file).read_bytes()
    for content in (b"", original[:1], original[: len(original) // 2], original[:-1], original + b"\0"):
        (folder / file).write_bytes(content)
        with pytest.raises(UserError, match=f"{file} is not what preprocess wrote"):
            read_everything(folder)


@pytest.mark.parametrize("file", FILES)
def test_a_missing_file_names_the_stage_to_run(folder: Path, file: str) -> None:
    (folder / file).unlink()
    with pytest.raises(UserError, match=f"{file} is missing: run `uv run dvc repro preprocess`"):
        read_everything(folder)


def test_a_file_of_another_preparation_is_refused(folder: Path) -> None:
    """The file is not damaged, but its SHA-256 is not in the manifest."""
    (folder / "val_images.npy").replace(folder / "test_images.npy")
    with pytest.raises(UserError, match=r"test_images\.npy is not what preprocess wrote"):
        dataset.read(folder)["test"]


def test_a_missing_split_is_an_error_only_when_it_is_read(folder: Path) -> None:
    """The stage train never reads the test split."""
    for file in dataset.split_files("test"):
        (folder / file).unlink()
    assert len(dataset.read(folder)["train"]) == 36


def test_a_change_of_the_arrays_does_not_change_the_files(folder: Path) -> None:
    before = (folder / "train_images.npy").read_bytes()
    train = dataset.read(folder)["train"]
    train.images[:] = 0
    train.targets[:] = 0
    del train
    assert (folder / "train_images.npy").read_bytes() == before
    assert dataset.read(folder)["train"].images.any()


def test_labels_are_the_same_from_either_form_of_targets() -> None:
    labels = np.array([2, 0, 1, 1])
    images = np.zeros((4, 1, 1, 1), np.uint8)
    assert dataset.Split(images, labels).labels.tolist() == [2, 0, 1, 1]
    assert dataset.Split(images, np.eye(3, dtype=np.uint8)[labels]).labels.tolist() == [2, 0, 1, 1]


def test_unpermute_undoes_the_permutation_and_changes_no_input() -> None:
    random = np.random.default_rng(0)
    original = random.integers(256, size=(5, 2, 3, 4), dtype=np.uint8)
    order = random.permutation(12)
    stored = original.reshape(5, 2, 12)[:, :, order].reshape(original.shape)
    kept = stored.copy()
    assert np.array_equal(dataset.unpermute(stored, order), original)
    assert np.array_equal(stored, kept)


def test_unpermute_without_a_permutation_changes_nothing() -> None:
    images = np.arange(24, dtype=np.uint8).reshape(1, 2, 3, 4)
    assert np.array_equal(dataset.unpermute(images, None), images)
