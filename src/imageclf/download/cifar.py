"""Reader of CIFAR-10 and CIFAR-100 (cs.toronto.edu/~kriz/cifar.html) that runs no code from their pickles.

A batch in the archives is a dict of a byte array and lists, pickled by Python 2. A pickle names the classes and
functions that it needs. Only the five names in `_ALLOWED` are accepted, and they stand for functions of this file,
so that not even numpy's own unpickling runs.
"""

import pickle
import tarfile
from functools import partial
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from imageclf.contracts.raw import Images, Pixels, Spool

SHAPE = (3, 32, 32)

MAX_MEMBER = 192 * 2**20
"""Largest size of a batch in bytes; the largest real one is CIFAR-100's train, 155 MB."""

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

_NAMES = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
    castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
    elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard
    lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear
    pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark
    shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone
    television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""

CIFAR100 = tuple(_NAMES.split())
"""Names of the fine labels: `fine_label_names` in the archive's file meta."""


def read_cifar10(folder: Path) -> dict[str, Images]:
    """Return the splits of cifar-10-python.tar.gz in `folder`."""
    batches = {"train": [f"data_batch_{number}" for number in range(1, 6)], "test": ["test_batch"]}
    return _read(folder / "cifar-10-python.tar.gz", "cifar-10-batches-py", batches, "labels", len(CIFAR10))


def read_cifar100(folder: Path) -> dict[str, Images]:
    """Return the splits of cifar-100-python.tar.gz in `folder`, with the fine labels."""
    batches = {"train": ["train"], "test": ["test"]}
    return _read(folder / "cifar-100-python.tar.gz", "cifar-100-python", batches, "fine_labels", len(CIFAR100))


def _read(archive: Path, root: str, batches: dict[str, list[str]], key: str, num_classes: int) -> dict[str, Images]:
    """Unpickle each batch once, in the archive's order; the pixels are stored in an unnamed temporary file."""
    spool = Spool(archive.parent.parent, SHAPE)
    labels: dict[str, NDArray[np.int64]] = {}
    first: dict[str, int] = {}
    wanted = {f"{root}/{batch}": batch for batch in chain.from_iterable(batches.values())}
    with tarfile.open(archive, "r|gz") as tar:
        for member in tar:
            stream = tar.extractfile(member) if member.isreg() and member.name in wanted else None
            if stream is not None:
                batch = wanted.pop(member.name)
                if member.size > MAX_MEMBER:
                    raise ValueError(f"{archive}: {batch} has {member.size} bytes, more than {MAX_MEMBER}")
                labels[batch], pixels = _unpickle(stream, key, num_classes, f"{archive}: {batch}")
                first[batch] = len(spool)
                spool.append(pixels)
    if wanted:
        raise ValueError(f"{archive}: {min(wanted)} is missing")

    def chunks(names: list[str]) -> Any:
        return chain.from_iterable(spool.chunks(first[name], first[name] + len(labels[name])) for name in names)

    return {
        split: Images(np.concatenate([labels[name] for name in names]), partial(chunks, names))
        for split, names in batches.items()
    }


def _unpickle(stream: IO[bytes], key: str, num_classes: int, name: str) -> tuple[NDArray[np.int64], Pixels]:
    """Return the labels (N,) and images (N, 3, 32, 32) of a batch; raise `ValueError` if it is not a batch."""
    try:
        content = _Unpickler(stream, encoding="bytes").load()
        labels, pixels = content[key.encode()], content[b"data"].values
        labels = np.array(labels, np.int64)
        images = pixels.reshape(len(labels), *SHAPE)
    except Exception as error:
        raise ValueError(f"{name}: not a CIFAR batch: {error}") from error
    if labels.ndim != 1 or labels.min(initial=0) < 0 or labels.max(initial=0) >= num_classes:
        raise ValueError(f"{name}: labels outside 0..{num_classes - 1}")
    return labels, images


class _Array:
    """Replacement for `numpy.ndarray`: accepts only arrays of bytes."""

    values: Pixels

    def __setstate__(self, state: Any) -> None:
        _version, shape, kind, is_fortran, data = state
        if not isinstance(kind, _ByteType) or not isinstance(data, bytes):
            raise pickle.UnpicklingError("an array of something other than bytes")
        self.values = np.frombuffer(data, np.uint8).reshape(shape, order="F" if is_fortran else "C")


class _ByteType:
    """Replacement for `numpy.dtype`: accepts only unsigned bytes."""

    def __init__(self, name: str | bytes, *_: object) -> None:
        if name not in {"u1", b"u1"}:
            raise pickle.UnpicklingError(f"an array of {name!r}, not of bytes")

    def __setstate__(self, _state: object) -> None:
        """Ignore the byte order, which bytes do not have."""


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _encode(text: str, _encoding: str) -> bytes:
    return text.encode("latin1")  # Python 3 pickles bytes for Python 2 this way


_ALLOWED = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _ByteType,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,  # the name in numpy 2
    ("_codecs", "encode"): _encode,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _ALLOWED[module, name]
