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

# Two tests run at a time: torch and the stages that a test starts use one core.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pytest
from numpy.typing import NDArray

from imageclf.contracts.dataset import Split


@pytest.fixture(autouse=True)
def _default_signals() -> Iterator[None]:
    """Restore Ctrl-C and SIGHUP, which a test run in the background or under nohup ignores, as would its children."""
    before = [
        (signal.SIGINT, signal.signal(signal.SIGINT, signal.default_int_handler)),
        (signal.SIGHUP, signal.signal(signal.SIGHUP, signal.SIG_DFL)),
    ]
    yield
    for signum, handler in before:
        signal.signal(signum, handler)


@pytest.fixture
def made_split() -> Split:
    """Create 150 gray images (1, 8, 8) in 4 classes, one-hot; in each class two other rows are bright."""
    random = np.random.default_rng(0)
    labels = random.integers(4, size=150)
    images = random.integers(100, size=(150, 1, 8, 8), dtype=np.uint8)
    bright = np.repeat(np.eye(4, dtype=np.uint8), 2, axis=1)[labels]
    return Split(images + 100 * bright[:, None, :, None], np.eye(4, dtype=np.uint8)[labels])


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Use one thread: on a busy machine, the threads of torch wait for each other, which takes ten times as long."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def names(folder: Path) -> list[str]:
    """Return the sorted names in a folder, with hidden files; [] if it does not exist."""
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


@contextmanager
def peak_below(size: int) -> Iterator[None]:
    """Fail if the memory of Python and numpy grows by `size` bytes or more inside the context."""
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < size


@dataclass(frozen=True)
class MadeArchives:
    """Four gzipped IDX files with the names of MNIST's, and their content."""

    folder: Path
    images: dict[str, NDArray[np.uint8]]
    labels: dict[str, NDArray[np.uint8]]


@pytest.fixture
def made_archives(tmp_path: Path) -> MadeArchives:
    """Create 23 train and 10 test images (1, 5, 4) in 10 classes."""
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
