"""Tests of the data sets: archives decode to their exact pixels, and each entry of the table is complete."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import MadeArchives
from helpers import decoded
from imports import ROOT
from sklearn.datasets import load_digits

from imageclf.core import files
from imageclf.download import datasets
from imageclf.download.datasets import DATASETS, Archive

MNIST = ROOT.parent / "shared" / "datasets" / "mnist"


# --- the table ---


@pytest.mark.parametrize("name", DATASETS)
def test_an_entry_is_complete(name: str) -> None:
    source = DATASETS[name]
    assert len(source.files) > 0
    for file, archive in source.files.items():
        assert Path(file).name == file
        assert re.fullmatch(r"[0-9a-f]{64}", archive.sha256)
        assert archive.size is not None
        assert archive.size > 0
    assert len(source.addresses) > 0
    assert all(re.match(r"(https?://|package:)[^/].*[^/]$", address) for address in source.addresses)
    assert len(source.image_shape) == 3
    assert min(source.image_shape) > 0
    assert len(source.classes) > 1
    assert len(set(source.classes)) == len(source.classes)


def test_no_two_archives_are_equal() -> None:
    digests = [archive.sha256 for source in DATASETS.values() for archive in source.files.values()]
    assert len(set(digests)) == len(digests)


# --- digits ---


def scikit_learns_files() -> Path:
    """Return the folder of digits.csv.gz in the installed scikit-learn."""
    package = importlib.util.find_spec("sklearn.datasets.data")
    assert package is not None
    assert package.submodule_search_locations
    return Path(package.submodule_search_locations[0])


def test_the_digits_file_of_the_installed_scikit_learn_has_the_checksum_of_the_table() -> None:
    path = scikit_learns_files() / "digits.csv.gz"
    assert Archive(files.sha256(path), path.stat().st_size) == DATASETS["digits"].files["digits.csv.gz"]


def test_digits_are_scikit_learns_scaled_to_0_to_255() -> None:
    digits = DATASETS["digits"].read(scikit_learns_files()).splits
    theirs: Any = load_digits()
    assert set(digits) == {"train"}
    images = decoded(digits["train"])
    assert images.dtype == np.uint8
    assert images.shape == (1797, *DATASETS["digits"].image_shape)
    assert np.array_equal(images[:, 0], theirs["images"].astype(int) * 255 // 16)
    assert (images.min(), images.max()) == (0, 255)
    assert digits["train"].labels.dtype == np.int64
    assert np.array_equal(digits["train"].labels, theirs["target"])


def test_digits_labels_index_the_class_names() -> None:
    theirs: Any = load_digits()
    assert tuple(theirs["target_names"].astype(str)) == DATASETS["digits"].classes


# --- IDX archives ---


@pytest.mark.parametrize("chunk", [1, 7, 23, 4096])
def test_idx_archives_decode_to_their_original_images(
    made_archives: MadeArchives, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "CHUNK", chunk)
    read = datasets._read_mnist(made_archives.folder)
    assert list(read) == ["train", "test"]
    for split, images in read.items():
        assert np.array_equal(decoded(images)[:, 0], made_archives.images[split])
        assert np.array_equal(images.labels, made_archives.labels[split])
        assert images.labels.dtype == np.int64


def test_chunks_are_bounded_and_start_over(made_archives: MadeArchives, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "CHUNK", 7)
    train = datasets._read_mnist(made_archives.folder)["train"]
    for _ in range(2):
        assert [chunk.shape for chunk in train.chunks()] == [(7, 1, 5, 4)] * 3 + [(2, 1, 5, 4)]


def test_an_image_file_named_like_a_label_file_is_refused(made_archives: MadeArchives) -> None:
    images = made_archives.folder / "train-images-idx3-ubyte.gz"
    images.replace(made_archives.folder / "train-labels-idx1-ubyte.gz")
    with pytest.raises(ValueError, match=r"train-labels.*: the magic number is 2051, not 2049"):
        datasets._read_mnist(made_archives.folder)


def test_a_label_file_named_like_an_image_file_is_refused(made_archives: MadeArchives) -> None:
    labels = made_archives.folder / "t10k-labels-idx1-ubyte.gz"
    (made_archives.folder / "t10k-images-idx3-ubyte.gz").write_bytes(labels.read_bytes())
    test = datasets._read_mnist(made_archives.folder)["test"]
    with pytest.raises(ValueError, match=r"t10k-images.*: the magic number is 2049, not 2051"):
        next(test.chunks())


# --- the official archives ---


@pytest.mark.realdata
@pytest.mark.skipif(not MNIST.is_dir(), reason=f"{MNIST} does not exist")
@pytest.mark.parametrize("file", DATASETS["mnist"].files)
def test_an_official_mnist_archive_has_the_checksum_of_the_table(file: str) -> None:
    assert Archive(files.sha256(MNIST / file), (MNIST / file).stat().st_size) == DATASETS["mnist"].files[file]


@pytest.mark.realdata
@pytest.mark.skipif(not MNIST.is_dir(), reason=f"{MNIST} does not exist")
@pytest.mark.parametrize(("split", "count", "first"), [("train", 60_000, 5), ("test", 10_000, 7)])
def test_official_mnist_decodes(split: str, count: int, first: int) -> None:
    images = DATASETS["mnist"].read(MNIST).splits[split]
    assert images.labels[0] == first
    assert set(images.labels) == set(range(10))
    assert len(images.labels) == count
    assert sum(len(chunk) for chunk in images.chunks()) == count
    assert next(images.chunks()).shape[1:] == DATASETS["mnist"].image_shape
