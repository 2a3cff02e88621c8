"""Published data sets: their files with checksums, the addresses to download them from, and how to read them.

A data set is one entry in `DATASETS`. Its archives are read in chunks and never unpacked to disk. For your own
images, see `folder`.
"""

import gzip
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from imageclf.contracts.raw import CHUNK, Images, Pixels, RawData
from imageclf.download import cifar


class Archive(NamedTuple):
    """Expected SHA-256, or its first digits if no more of it is published, and size in bytes, if known, of a file."""

    sha256: str
    size: int | None


@dataclass(frozen=True)
class Published:
    """Published files, and the addresses of the folders that hold them."""

    files: dict[str, Archive]
    addresses: tuple[str, ...]


@dataclass(frozen=True)
class Source(Published):
    """A published data set; `splits` reads its archives from the folder of raw files."""

    image_shape: tuple[int, int, int]
    classes: tuple[str, ...]
    splits: Callable[[Path], dict[str, Images]]

    def read(self, folder: Path) -> RawData:
        """Return the data of the raw files in `folder`."""
        return RawData(self.splits(folder), self.classes, self.image_shape)


def _read_idx(path: Path, magic: int, header: str) -> tuple[tuple[int, ...], gzip.GzipFile]:
    """Return the dimensions of a gzipped IDX file (yann.lecun.com/exdb/mnist) and the stream at its first data byte."""
    stream = gzip.open(path)  # noqa: SIM115 - the caller closes it
    found, *dimensions = struct.unpack(header, stream.read(struct.calcsize(header)))
    if found != magic:
        raise ValueError(f"{path}: the magic number is {found}, not {magic}")
    return tuple(dimensions), stream


def _idx_images(images_path: Path, labels_path: Path) -> Images:
    (count,), stream = _read_idx(labels_path, 0x801, ">II")
    with stream:
        labels = np.frombuffer(stream.read(count), np.uint8).astype(np.int64)

    def chunks() -> Iterator[Pixels]:
        (count, height, width), stream = _read_idx(images_path, 0x803, ">IIII")
        with stream:
            for start in range(0, count, CHUNK):
                size = min(CHUNK, count - start)
                pixels = np.frombuffer(stream.read(size * height * width), np.uint8)
                yield pixels.reshape(size, 1, height, width)

    return Images(labels, chunks)


def _read_mnist(folder: Path) -> dict[str, Images]:
    return {
        split: _idx_images(folder / f"{stem}-images-idx3-ubyte.gz", folder / f"{stem}-labels-idx1-ubyte.gz")
        for split, stem in (("train", "train"), ("test", "t10k"))
    }


def _read_digits(folder: Path) -> dict[str, Images]:
    with gzip.open(folder / "digits.csv.gz") as stream:
        rows = np.loadtxt(stream, delimiter=",", dtype=np.int64)
    # A pixel is the number of black pixels, 0..16, in a 4x4 block of the scan.
    pixels = (rows[:, :-1] * 255 // 16).astype(np.uint8).reshape(-1, 1, 8, 8)
    return {"train": Images(rows[:, -1], lambda: iter([pixels]))}


def _mnist_like(digests: dict[str, Archive], addresses: tuple[str, ...], classes: tuple[str, ...]) -> Source:
    return Source(digests, addresses, image_shape=(1, 28, 28), classes=classes, splits=_read_mnist)


_DIGITS = tuple("0123456789")

# Sources of the checksums: the MNIST files have the MD5 that torchvision lists; Fashion-MNIST and KMNIST have the
# SHA-256 of TensorFlow Datasets (url_checksums), CIFAR that of Keras (keras/src/datasets). The addresses are
# torchvision's.
DATASETS: dict[str, Source] = {
    "digits": Source(
        files={
            "digits.csv.gz": Archive("09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22", 57523),
        },
        addresses=("package:sklearn/datasets/data",),
        image_shape=(1, 8, 8),
        classes=_DIGITS,
        splits=_read_digits,
    ),
    "mnist": _mnist_like(
        {
            "train-images-idx3-ubyte.gz": Archive(
                "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609", 9912422
            ),
            "train-labels-idx1-ubyte.gz": Archive(
                "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c", 28881
            ),
            "t10k-images-idx3-ubyte.gz": Archive(
                "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6", 1648877
            ),
            "t10k-labels-idx1-ubyte.gz": Archive(
                "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6", 4542
            ),
        },
        addresses=("https://ossci-datasets.s3.amazonaws.com/mnist", "http://yann.lecun.com/exdb/mnist"),
        classes=_DIGITS,
    ),
    "fashion_mnist": _mnist_like(
        {
            "train-images-idx3-ubyte.gz": Archive(
                "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84", 26421880
            ),
            "train-labels-idx1-ubyte.gz": Archive(
                "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845", 29515
            ),
            "t10k-images-idx3-ubyte.gz": Archive(
                "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073", 4422102
            ),
            "t10k-labels-idx1-ubyte.gz": Archive(
                "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5", 5148
            ),
        },
        addresses=("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",),
        classes=(
            "t-shirt",
            "trouser",
            "pullover",
            "dress",
            "coat",
            "sandal",
            "shirt",
            "sneaker",
            "bag",
            "ankle boot",
        ),
    ),
    "kmnist": _mnist_like(
        {
            "train-images-idx3-ubyte.gz": Archive(
                "51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4", 18165135
            ),
            "train-labels-idx1-ubyte.gz": Archive(
                "e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17", 29497
            ),
            "t10k-images-idx3-ubyte.gz": Archive(
                "edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5", 3041136
            ),
            "t10k-labels-idx1-ubyte.gz": Archive(
                "20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c", 5120
            ),
        },
        addresses=("http://codh.rois.ac.jp/kmnist/dataset/kmnist",),
        classes=("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
    ),
    "cifar10": Source(
        files={
            "cifar-10-python.tar.gz": Archive(
                "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce", 170498071
            ),
        },
        addresses=("https://www.cs.toronto.edu/~kriz",),
        image_shape=cifar.SHAPE,
        classes=cifar.CIFAR10,
        splits=cifar.read_cifar10,
    ),
    "cifar100": Source(
        files={
            "cifar-100-python.tar.gz": Archive(
                "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7", 169001437
            ),
        },
        addresses=("https://www.cs.toronto.edu/~kriz",),
        image_shape=cifar.SHAPE,
        classes=cifar.CIFAR100,
        splits=cifar.read_cifar100,
    ),
}
