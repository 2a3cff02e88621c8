"""Fixtures, and a few functions, that several test files share."""

import gzip
import os
import signal
import struct
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# Two tests run at a time; torch, when it is imported, and the stages that they start get one core each.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pytest
from numpy.typing import NDArray

from imageclf.splits import Split


@pytest.fixture(autouse=True)
def _interruptible() -> Iterator[None]:
    """A test run started in the background ignores Ctrl-C, and so would the processes it starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def made_split() -> Split:
    """150 grey images of 8x8 in 4 classes, one-hot; each class lights two rows of its own, so it can be learnt."""
    random = np.random.default_rng(0)
    labels = random.integers(4, size=150)
    images = random.integers(100, size=(150, 1, 8, 8), dtype=np.uint8)
    lit = np.repeat(np.eye(4, dtype=np.uint8), 2, axis=1)[labels]
    return Split(images + 100 * lit[:, None, :, None], np.eye(4, dtype=np.uint8)[labels])


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For tests that compute much: on a busy machine torch's threads wait for one another, ten times as long."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def names(folder: Path) -> list[str]:
    """What a folder holds, hidden files included; nothing if it is not there."""
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


@contextmanager
def peak_below(size: int) -> Iterator[None]:
    """Fail if Python's memory, which is numpy's too, grows by more than `size` bytes at any time inside."""
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < size


@dataclass(frozen=True)
class MadeArchives:
    """Four gzipped IDX files named like MNIST's, and what is in them."""

    folder: Path
    images: dict[str, NDArray[np.uint8]]
    labels: dict[str, NDArray[np.uint8]]


@pytest.fixture
def made_archives(tmp_path: Path) -> MadeArchives:
    """23 train and 10 test images of 5x4 in 10 classes."""
    made = MadeArchives(tmp_path / "made_archives", {}, {})
    made.folder.mkdir()
    random = np.random.default_rng(0)
    for split, stem, count in (("train", "train", 23), ("test", "t10k", 10)):
        images = random.integers(256, size=(count, 5, 4), dtype=np.uint8)
        labels = random.integers(10, size=count, dtype=np.uint8)
        made.images[split], made.labels[split] = images, labels
        with gzip.open(made.folder / f"{stem}-images-idx3-ubyte.gz", "wb") as stream:
            stream.write(struct.pack(">IIII", 0x803, *images.shape) + images.tobytes())
        with gzip.open(made.folder / f"{stem}-labels-idx1-ubyte.gz", "wb") as stream:
            stream.write(struct.pack(">II", 0x801, count) + labels.tobytes())
    return made
