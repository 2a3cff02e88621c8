"""The contract between preprocess and its readers: what `data/processed` holds, and its verified reader.

    {train,val,test}_images.npy    uint8 (N, channels, height, width), pixels permuted if `permute_seed` is a number
    {train,val,test}_targets.npy   one-hot uint8 (N, K), or class indices int64 (N,)
    permutation.npy                int64 (height * width,), if permuted: stored[i] = original[permutation[i]]
    whitening_mean.npy             float32 (d,) and
    whitening.npy                  float32 (d, d) over the d = channels * height * width pixels, if whitened
    dataset.json                   `DatasetManifest`

There is no `val` pair if `val_fraction` is 0. The net is fitted to `train`, chosen on `val`, and tested on `test`. With
the parameter `shards`, the train images are not in a file, but in the shards that `dataset.json` lists.
"""

import hashlib
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imageclf.contracts.preparation import Preparation, Shape
from imageclf.contracts.raw import LeftOut
from imageclf.contracts.shards import ShardedImages, ShardList
from imageclf.core import files

MANIFEST = "dataset.json"
PERMUTATION = "permutation.npy"
WHITENING, WHITENING_MEAN = "whitening.npy", "whitening_mean.npy"

Normalization = tuple[list[float], list[float]]
"""Mean and standard deviation per channel, for pixels on a scale of 0..1."""


def split_files(split: str) -> tuple[str, str]:
    """Return the names of the two files of a split: images and targets."""
    return f"{split}_images.npy", f"{split}_targets.npy"


@dataclass(frozen=True, kw_only=True)
class Census:
    """Counts of your own image files: found = used + skipped + other_classes.

    found, used: number of files (without those of the operating system), and number of images in the splits.
    other_classes: number of images of classes that the parameter `classes` does not name.
    drawn: the fraction and the seed of each split that was drawn.
    traits: number of used images by `preprocess.images.Trait`.
    duplicates: number of identical files: `val`, `test` (also in an earlier split), `repeated`, `relabeled`.
    """

    found: int
    used: int
    other_classes: int
    drawn: dict[str, dict[str, float]]
    traits: dict[str, int]
    duplicates: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class DatasetManifest:
    """Content of `dataset.json`.

    dataset: the parameter `dataset`.
    classes: the name of each class index.
    image_shape, raw_shape: shape of the stored images, and of the images before the preparation.
    counts: number of images by split.
    skipped: each file that gave no image, with the reason.
    preparation: the steps that turned raw images into stored images.
    normalize: the parameter `normalize`.
    mean, std: per channel, measured on the train split, for pixels on a scale of 0..1.
    notes: the sentences that preprocess prints.
    census: counts of your own image files; None for published data sets.
    gray16_bits: number of bits of 16-bit gray images that are used; None if there are no such images.
    files: SHA-256 by file name.
    shards: where the train images are, if they are not in a file.
    sha256: SHA-256 of the content above, which identifies the whole data. Empty until it is written.
    """

    dataset: str
    classes: list[str]
    image_shape: Shape
    counts: dict[str, int]
    skipped: list[LeftOut]
    raw_shape: Shape
    preparation: Preparation
    normalize: str
    mean: list[float]
    std: list[float]
    files: dict[str, str]
    notes: list[str] = field(default_factory=list)
    census: Census | None = None
    gray16_bits: int | None = None
    shards: ShardList | None = None
    sha256: str = ""

    def images_sha256(self, split: str) -> str:
        """Return a SHA-256 that identifies the images of a split."""
        if self.shards and split == "train":
            return hashlib.sha256("".join(self.shards.sha256).encode()).hexdigest()
        return self.files[split_files(split)[0]]


def write_manifest(folder: Path, manifest: DatasetManifest) -> DatasetManifest:
    """Write `dataset.json`, and return the manifest with its SHA-256.

    In the file, preparation and census are not nested, and keys without content are left out.
    """
    content = {**asdict(manifest), "skipped": [each.line() for each in manifest.skipped]}
    content |= content.pop("preparation")
    content |= content.pop("census") or {}
    del content["sha256"]
    content = {key: value for key, value in content.items() if value or key not in {"notes", "gray16_bits", "shards"}}
    return replace(manifest, sha256=files.write_manifest(folder / MANIFEST, content))


def read_manifest(folder: Path) -> DatasetManifest:
    """Read `dataset.json`. Raises `UserError` if it is missing or damaged."""
    return files.read_manifest(folder / MANIFEST, made_by="preprocess", parse=_parse)


def _parse(content: dict[str, Any]) -> DatasetManifest:
    preparation = Preparation(**{each.name: content.pop(each.name) for each in fields(Preparation)})
    census = Census(**{each.name: content.pop(each.name) for each in fields(Census)}) if "found" in content else None
    content |= {key: tuple(content[key]) for key in ("image_shape", "raw_shape")}
    content["skipped"] = list(map(LeftOut.parse, content["skipped"]))
    if "shards" in content:
        content["shards"] = ShardList(**content["shards"])
    return DatasetManifest(**content, preparation=preparation, census=census)


@dataclass(frozen=True)
class Split:
    """One split, memory-mapped: images uint8 (N, C, H, W), targets uint8 (N, K) or int64 (N,).

    Images in shards are `ShardedImages`, which have the shape, the size and the indexing of an array.
    """

    images: NDArray[np.uint8]
    targets: NDArray[Any]

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class indices (N,), for both forms of targets."""
        return self.targets.argmax(axis=1) if self.targets.ndim == 2 else self.targets

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True)
class Prepared:
    """The content of `data/processed`: its manifest, and its splits, which are read on demand.

    cache_gib: GiB of shards to keep on this machine.
    """

    folder: Path
    manifest: DatasetManifest
    cache_gib: int = 1

    @property
    def normalization(self) -> Normalization:
        """Mean and std per channel to apply to pixels on a scale of 0..1."""
        channels = self.manifest.image_shape[0]
        match self.manifest.normalize:
            case "standard":
                # At least half a gray level: a channel that is constant in train has std 0.
                return self.manifest.mean, [max(std, 0.5 / 255) for std in self.manifest.std]
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
        if WHITENING not in self.manifest.files:
            return None
        return self._load(WHITENING_MEAN), self._load(WHITENING)

    @property
    def mean_level(self) -> int:
        """Mean gray level of the train split over all channels, 0..255."""
        return round(255 * sum(self.manifest.mean) / len(self.manifest.mean))

    @property
    def permutation(self) -> NDArray[np.int64] | None:
        """Order of the height * width positions, stored[i] = original[permutation[i]]; None if not permuted."""
        return self._load(PERMUTATION) if PERMUTATION in self.manifest.files else None

    def __contains__(self, split: str) -> bool:
        return split in self.manifest.counts

    def __getitem__(self, split: str) -> Split:
        """Return a split. Raises `UserError` if its files are not the ones that the manifest names."""
        images, targets = split_files(split)
        if self.manifest.shards and split == "train":
            count, shape = self.manifest.counts[split], self.manifest.image_shape
            sharded: Any = ShardedImages(self.manifest.shards, count, shape, self.cache_gib)
            return Split(sharded, self._load(targets))
        return Split(self._load(images), self._load(targets))

    def _load(self, file: str) -> NDArray[Any]:
        path = self.folder / file
        files.verify(path, self.manifest.files[file], made_by="preprocess")
        # Copy-on-write, because torch warns about read-only memory. Nothing is written to the file.
        return np.load(path, mmap_mode="c", allow_pickle=False)


def unpermute(images: NDArray[np.uint8], permutation: NDArray[np.int64] | None) -> NDArray[np.uint8]:
    """Undo the permutation of stored images (n, C, H, W), if there was one."""
    if permutation is None:
        return images
    original = np.empty_like(images).reshape(*images.shape[:2], -1)
    original[:, :, permutation] = images.reshape(original.shape)  # stored[i] = original[permutation[i]]
    return original.reshape(images.shape)


def read(folder: Path, cache_gib: int = 1) -> Prepared:
    """Open prepared data. Raises `UserError` if its manifest is missing or damaged."""
    return Prepared(folder, read_manifest(folder), cache_gib)
