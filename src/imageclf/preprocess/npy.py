"""Writer for .npy files that appends rows and computes the SHA-256 at the same time."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from imageclf.core import files


class Writer:
    """Writer of one array, to which rows are appended."""

    def __init__(self, file: BinaryIO, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self, header)  # type: ignore[arg-type] - it calls only write

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes."""
        self._hash.update(data)
        self._file.write(data)

    def append(self, rows: NDArray[Any]) -> None:
        """Append rows of the array."""
        if rows.size:  # a memoryview of zero bytes cannot be cast
            self.write(np.ascontiguousarray(rows).data.cast("B"))

    def digest(self) -> str:
        """Return the SHA-256 of the bytes written so far."""
        return self._hash.hexdigest()


@contextmanager
def writing(path: Path, shape: tuple[int, ...], digests: dict[str, str], dtype: Any = np.uint8) -> Iterator[Writer]:
    """Give a writer; the file appears at `path`, and its SHA-256 in `digests`, when it is complete."""
    with files.replacing(path) as temporary:
        with temporary.open("wb") as file:
            writer = Writer(file, shape, np.dtype(dtype))
            yield writer
        digests[path.name] = writer.digest()


def write(path: Path, array: NDArray[Any], digests: dict[str, str]) -> None:
    """Write a whole array."""
    with writing(path, array.shape, digests, array.dtype) as writer:
        writer.append(array)
