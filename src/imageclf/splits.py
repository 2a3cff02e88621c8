"""The prepared data: what `data/processed` holds, and its verified reader.

    {train,val,test}_images.npy    uint8 (N, channels, height, width), pixels permuted if asked for
    {train,val,test}_targets.npy   one-hot uint8 (N, K), or class indices int64 (N,)
    permutation.npy                int64 (height * width,), if asked for: stored[i] = original[permutation[i]]
    whitening_mean.npy             float32 (d,) and
    whitening.npy                  float32 (d, d) over the d = channels * height * width pixels, if asked for
    dataset.json                   everything else, with the SHA-256 of each file and of itself

There is no `val` pair where `val_fraction` is 0. `train` fits, `val` chooses, `test` reports once.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imageclf import files

MANIFEST = "dataset.json"
PERMUTATION = "permutation.npy"
WHITENING, WHITENING_MEAN = "whitening.npy", "whitening_mean.npy"


def split_files(split: str) -> tuple[str, str]:
    """The names of a split's two files: images, targets."""
    return f"{split}_images.npy", f"{split}_targets.npy"


@dataclass(frozen=True)
class Split:
    """One split, memory-mapped: images uint8 (N, C, H, W), targets uint8 (N, K) or int64 (N,)."""

    images: NDArray[np.uint8]
    targets: NDArray[Any]

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class indices, (N,), whatever form the targets have."""
        return self.targets.argmax(axis=1) if self.targets.ndim == 2 else self.targets

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True)
class Prepared:
    """`data/processed`: its description now, its splits when asked for."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def sha256(self) -> str:
        """The digest of the description, which holds the digest of every file: one name for all this data."""
        return self.manifest["sha256"]

    @property
    def classes(self) -> list[str]:
        """The name of each class index."""
        return self.manifest["classes"]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        channels, height, width = self.manifest["image_shape"]
        return channels, height, width

    @property
    def normalization(self) -> tuple[list[float], list[float]]:
        """Per channel the (mean, std) to apply to pixels on a scale of 0..1."""
        channels = self.image_shape[0]
        match self.manifest["normalize"]:
            case "standard":
                # Half a grey level: a channel that is constant in train must not be divided by 0.
                return self.manifest["mean"], [max(std, 0.5 / 255) for std in self.manifest["std"]]
            case "symmetric":
                return [0.5] * channels, [0.5] * channels
            case "unit" | "zca":
                return [0.0] * channels, [1.0] * channels
            case "none":
                return [0.0] * channels, [1 / 255] * channels
            case unknown:
                raise ValueError(f"normalize: {unknown!r}")

    @property
    def whitening(self) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        """Mean (d,) and ZCA matrix (d, d) over the d pixels of a stored image, scale 0..1; None if not whitened."""
        if WHITENING not in self.manifest["files"]:
            return None
        return self._load(WHITENING_MEAN), self._load(WHITENING)

    @property
    def preparation(self) -> dict[str, Any]:
        """What turned images of `raw_shape` into the stored ones, the permutation aside: knobs of params.yaml."""
        return {key: self.manifest[key] for key in ("grayscale", "image_size", "pad")}

    @property
    def mean_level(self) -> int:
        """The mean grey level of the train split, over all channels, 0..255."""
        return round(255 * sum(self.manifest["mean"]) / len(self.manifest["mean"]))

    @property
    def permutation(self) -> NDArray[np.int64] | None:
        """stored[i] = original[permutation[i]] over the height * width positions; None if not permuted."""
        return self._load(PERMUTATION) if PERMUTATION in self.manifest["files"] else None

    def __contains__(self, split: str) -> bool:
        return split_files(split)[0] in self.manifest["files"]

    def __getitem__(self, split: str) -> Split:
        """A split, its files verified against the manifest; raises `UserError` where they differ."""
        images, targets = (self._load(file) for file in split_files(split))
        return Split(images, targets)

    def _load(self, file: str) -> NDArray[Any]:
        path = self.folder / file
        files.verify(path, self.manifest["files"][file], made_by="preprocess")
        # Copy-on-write: torch warns of read-only memory, and nothing reaches the file.
        return np.load(path, mmap_mode="c", allow_pickle=False)


def unpermute(images: NDArray[np.uint8], permutation: NDArray[np.int64] | None) -> NDArray[np.uint8]:
    """Stored images (n, C, H, W) as they were before the permutation."""
    if permutation is None:
        return images
    original = np.empty_like(images).reshape(*images.shape[:2], -1)
    original[:, :, permutation] = images.reshape(original.shape)  # stored[i] = original[permutation[i]]
    return original.reshape(images.shape)


def read(folder: Path) -> Prepared:
    """Open prepared data; raises `UserError` if its description is missing or damaged."""
    return Prepared(folder, files.read_manifest(folder / MANIFEST, made_by="preprocess"))
