"""Move the train images of prepared data to a server, in shuffled order, as `contracts.shards` describes."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from imageclf.contracts.dataset import DatasetManifest, split_files, write_manifest
from imageclf.contracts.shards import ShardList
from imageclf.core.remote import RemoteFolder
from imageclf.preprocess import npy

BLOCK_BYTES = 2**16
"""Bytes that are read at once: the order is that of random blocks, whose images are mixed."""

SHARD_BYTES = 2**26

MIXED = 4
"""Number of shards whose images are mixed in memory."""


def move(
    folder: Path, manifest: DatasetManifest, server: RemoteFolder, *, progress: bool, shard_bytes: int = SHARD_BYTES
) -> tuple[DatasetManifest, NDArray[np.int64]]:
    """Upload the train images in `folder` as shards, and delete their file.

    Returns the new manifest, and the new number of each image, (N,).
    """
    images, targets = split_files("train")
    count, shape = manifest.counts["train"], manifest.image_shape
    size = math.prod(shape)
    block = max(1, BLOCK_BYTES // size)
    rows = block * max(1, shard_bytes // (block * size))
    names: list[str] = []
    order: list[NDArray[np.int64]] = []
    with tqdm(desc="uploading shards", total=count, unit=" images", disable=None if progress else True) as bar:
        for numbers, mixed in _mixed(folder / images, (count, *shape), block, rows * MIXED):
            order.append(numbers)
            for start in range(0, len(mixed), rows):
                names.append(_upload(folder, mixed[start : start + rows], server))
                bar.update(len(mixed[start : start + rows]))
    new_order = np.concatenate(order)
    digests = dict(manifest.files)
    npy.write(folder / targets, np.load(folder / targets, allow_pickle=False)[new_order], digests)
    del digests[images]
    shards = ShardList(address=server.address, rows=rows, sha256=names)
    manifest = write_manifest(folder, replace(manifest, files=digests, shards=shards))
    (folder / images).unlink()
    return manifest, np.argsort(new_order)


def _upload(folder: Path, images: NDArray[np.uint8], server: RemoteFolder) -> str:
    """Upload a shard; return its SHA-256."""
    path, digests = folder / "shard.npy", dict[str, str]()
    npy.write(path, images, digests)
    server.put(path, digests[path.name])
    path.unlink()
    return digests[path.name]


def _mixed(
    path: Path, shape: tuple[int, ...], block: int, most: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
    """Yield all images of a file in random order, with their numbers: at most `most` at a time.

    Only the last ones may be fewer. The order depends on the size of the data alone.
    """
    stored = np.load(path, mmap_mode="r", allow_pickle=False)
    random, size = np.random.default_rng(0), math.prod(shape[1:])
    whole = len(stored) // block * block
    starts = np.append(random.permutation(np.arange(0, whole, block)), np.arange(whole, len(stored), block))
    with path.open("rb") as file:
        for group in np.split(starts, range(most // block, len(starts), most // block)):
            numbers = (np.sort(group)[:, None] + np.arange(block)).ravel()
            numbers = numbers[numbers < len(stored)]
            images = np.empty((len(numbers), *shape[1:]), np.uint8)
            for place in range(0, len(numbers), block):
                file.seek(stored.offset + int(numbers[place]) * size)  # the memory map would read megabytes
                file.readinto(images[place : place + block].data)
            mixing = random.permutation(len(numbers))
            yield numbers[mixing], images[mixing]
