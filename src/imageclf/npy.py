"""An .npy file written piece by piece and hashed on the way."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from imageclf import files


class Writer:
    """The rows of one array, appended."""

    def __init__(self, file: BinaryIO, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self, header)  # type: ignore[arg-type] - it calls write alone

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes."""
        self._hash.update(data)
        self._file.write(data)

    def append(self, rows: NDArray[Any]) -> None:
        """Append rows of the array."""
        if rows.size:  # a memoryview of nothing cannot be cast
            self.write(np.ascontiguousarray(rows).data.cast("B"))

    def digest(self) -> str:
        """The SHA-256 of what is written so far."""
        return self._hash.hexdigest()


@contextmanager
def writing(path: Path, shape: tuple[int, ...], digests: dict[str, str], dtype: Any = np.uint8) -> Iterator[Writer]:
    """A file that appears, with its digest in `digests`, when it is whole."""
    with files.replacing(path) as temporary:
        with temporary.open("wb") as file:
            writer = Writer(file, shape, np.dtype(dtype))
            yield writer
        digests[path.name] = writer.digest()


def write(path: Path, array: NDArray[Any], digests: dict[str, str]) -> None:
    """Write a whole array."""
    with writing(path, array.shape, digests, array.dtype) as writer:
        writer.append(array)
