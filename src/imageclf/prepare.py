"""Labelled images to pixels that a net can eat: split, resize, pad, permute, measure, write.

Everything streams: what is in memory is a chunk of images and the labels, however large the set is.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imageclf import files
from imageclf.datasets import Images, Source
from imageclf.errors import UserError
from imageclf.splits import MANIFEST, PERMUTATION, split_files

TEST_SEED = 0
"""Which images are the test split of a source that names none: a constant, so that all results compare."""

Chunk = NDArray[np.uint8]


def prepare(
    source: Source,
    images: dict[str, Images],
    folder: Path,
    *,
    val_fraction: float,
    split_seed: int,
    image_size: int | None,
    pad: int,
    normalize: str,
    permute_seed: int | None,
    one_hot: bool,
) -> dict[str, Any]:
    """Write the prepared files of `splits` into `folder` and return their manifest.

    The arguments are the knobs of params.yaml; `permute_seed` is None where the pixels stay in place.
    Raises `UserError` where a split would be left without an image.
    """
    parts = _assign(images, source.test_fraction, val_fraction, split_seed)
    transform, shape, permutation = _transform(source.image_shape, image_size, pad, permute_seed)
    digests: dict[str, str] = {}
    histogram = np.zeros((shape[0], 256), np.int64)
    with ExitStack() as stack:
        writers = {
            part.split: stack.enter_context(
                _writing(folder / split_files(part.split)[0], (len(part.rows), *shape), digests)
            )
            for part in parts
        }
        for origin, chunk, start in _chunks(images, transform):
            for part in parts:
                if part.origin == origin:
                    first, last = np.searchsorted(part.rows, (start, start + len(chunk)))
                    mine = chunk[part.rows[first:last] - start]
                    writers[part.split].append(mine)
                    if part.split == "train":
                        histogram += _histogram(mine)
    for part in parts:
        targets = images[part.origin].labels[part.rows]
        if one_hot:
            targets = np.eye(len(source.classes), dtype=np.uint8)[targets]
        _write_array(folder / split_files(part.split)[1], targets, digests)
    if permutation is not None:
        _write_array(folder / PERMUTATION, permutation, digests)
    mean, std = _moments(histogram)
    manifest = {
        "classes": list(source.classes),
        "image_shape": list(shape),
        "counts": {part.split: len(part.rows) for part in parts},
        "normalize": normalize,
        "mean": mean,
        "std": std,
        "permute_seed": permute_seed,
        "files": dict(sorted(digests.items())),
    }
    files.write_manifest(folder / MANIFEST, manifest)
    files.keep_only(folder, {MANIFEST, *digests})
    return manifest


def stratified(labels: NDArray[np.int64], fraction: float, seed: int) -> NDArray[np.bool_]:
    """A mask of round(fraction * N) random rows, with each class's share within one row of `fraction`."""
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    steps = np.floor(np.arange(len(labels) + 1) * fraction + 0.5)
    mask = np.zeros(len(labels), bool)
    mask[by_class[np.diff(steps) > 0]] = True
    return mask


class _Part(NamedTuple):
    """Which rows of an origin, ascending, make a split."""

    split: str
    origin: str
    rows: NDArray[np.intp]


def _assign(
    images: dict[str, Images], test_fraction: float | None, val_fraction: float, split_seed: int
) -> list[_Part]:
    labels = images["train"].labels
    rows = {"train": np.arange(len(labels))}
    if test_fraction is not None:
        rows["train"], rows["test"] = _hold_out(rows["train"], labels, test_fraction, TEST_SEED)
    if val_fraction > 0:
        rows["train"], rows["val"] = _hold_out(rows["train"], labels, val_fraction, split_seed)
    parts = [_Part(split, "train", kept) for split, kept in rows.items()]
    if "test" in images:
        parts.append(_Part("test", "test", np.arange(len(images["test"].labels))))
    for part in parts:
        if len(part.rows) == 0:
            raise UserError(
                f"val_fraction: {val_fraction} of these {len(labels):,} images leaves none for {part.split}; "
                "0 trains on all of them"
            )
    return parts


def _hold_out(
    rows: NDArray[np.intp], labels: NDArray[np.int64], fraction: float, seed: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    held = stratified(labels[rows], fraction, seed)
    return rows[~held], rows[held]


def _transform(
    shape: tuple[int, int, int], size: int | None, pad: int, permute_seed: int | None
) -> tuple[Callable[[Chunk], Chunk], tuple[int, int, int], NDArray[np.int64] | None]:
    """The chunk-to-chunk function (resize, pad, permute), the shape it gives, and the permutation or None."""
    channels, height, width = shape
    if size is not None:
        height, width = size, size
    height, width = height + 2 * pad, width + 2 * pad
    permutation = None if permute_seed is None else np.random.default_rng(permute_seed).permutation(height * width)

    def transform(chunk: Chunk) -> Chunk:
        if size is not None and chunk.shape[2:] != (size, size):
            chunk = _resize(chunk, size)
        if pad:
            chunk = np.pad(chunk, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
        if permutation is not None:
            flat = chunk.reshape(len(chunk), channels, height * width)
            chunk = flat[:, :, permutation].reshape(chunk.shape)
        return chunk

    return transform, (channels, height, width), permutation


def _resize(chunk: Chunk, size: int) -> Chunk:
    resized = np.empty((*chunk.shape[:2], size, size), np.uint8)
    for image, target in zip(chunk, resized, strict=True):
        for plane, target_plane in zip(image, target, strict=True):
            target_plane[:] = Image.fromarray(plane).resize((size, size), Image.Resampling.BILINEAR)
    return resized


def _chunks(images: dict[str, Images], transform: Callable[[Chunk], Chunk]) -> Iterator[tuple[str, Chunk, int]]:
    """(origin, transformed chunk, row of its first image) through all images."""
    for origin, part in images.items():
        start = 0
        for chunk in part.chunks():
            yield origin, transform(chunk), start
            start += len(chunk)
        if start != len(part.labels):
            raise ValueError(f"{origin}: {start} images for {len(part.labels)} labels")


def _histogram(chunk: Chunk) -> NDArray[np.int64]:
    """How often each grey level occurs, (channels, 256): sums of it are exact in any order."""
    planes = chunk.swapaxes(0, 1).reshape(chunk.shape[1], -1)
    return np.stack([np.bincount(plane, minlength=256) for plane in planes])


def _moments(histogram: NDArray[np.int64]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, pixels on a scale of 0..1."""
    levels = np.arange(256) / 255
    share = histogram / histogram.sum(axis=1, keepdims=True)
    mean = share @ levels
    variance = (share * (levels - mean[:, None]) ** 2).sum(axis=1)
    return mean.tolist(), np.sqrt(variance).tolist()


class _NpyWriter:
    """An .npy file written chunk by chunk, hashed on the way."""

    def __init__(self, file: BinaryIO, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self, header)  # type: ignore[arg-type] - it calls write alone

    def write(self, data: bytes | memoryview) -> None:
        self._hash.update(data)
        self._file.write(data)

    def append(self, rows: NDArray[Any]) -> None:
        self.write(np.ascontiguousarray(rows).data.cast("B"))

    def digest(self) -> str:
        return self._hash.hexdigest()


@contextmanager
def _writing(
    path: Path, shape: tuple[int, ...], digests: dict[str, str], dtype: Any = np.uint8
) -> Iterator[_NpyWriter]:
    """An array file that appears, with its digest in `digests`, when it is whole."""
    with files.replacing(path) as temporary:
        with temporary.open("wb") as file:
            writer = _NpyWriter(file, shape, np.dtype(dtype))
            yield writer
        digests[path.name] = writer.digest()


def _write_array(path: Path, array: NDArray[Any], digests: dict[str, str]) -> None:
    with _writing(path, array.shape, digests, array.dtype) as writer:
        writer.append(array)
