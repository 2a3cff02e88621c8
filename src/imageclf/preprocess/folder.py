"""Read your own images, which download packed in data/raw, as labeled images of one shape."""

from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from imageclf.contracts.raw import IMAGES_TAR, Images, LeftOut, RawData, Spool, read_packed
from imageclf.core.errors import UserError
from imageclf.preprocess.members import decode_members, measure_gray16, shape_of_first


def read(folder: Path, image_size: int | None, workers: int, progress: bool) -> RawData:
    """Decode the images in `folder`, resized to `image_size` if it is not None. Damaged files are skipped and listed.

    Decoded pixels are kept in an unnamed temporary file next to `folder`. The range of 16-bit gray is measured on the
    images in train/. Raises `UserError` if the images differ in size, or if a class has no image that can be read.
    """
    tar = folder / IMAGES_TAR
    manifest = read_packed(folder)
    members = manifest.members
    example = shape_of_first(tar, members, image_size)
    if example is None:
        raise UserError(f"none of the {len(members):,} files in {tar} is an image that can be read")
    spool = Spool(folder.parent, example[1])
    unreadable: dict[str, str] = {}
    facts: list[NDArray[np.void]] = []
    gray16_bits = measure_gray16(tar, [member for member in members if member.name.startswith("train/")], workers) or 16
    with tqdm(desc="decoding", total=len(members), unit=" images", disable=None if progress else True) as bar:
        for batch in decode_members(tar, members, example, image_size, workers, gray16_bits=gray16_bits):
            spool.append(batch.pixels)
            facts.append(batch.facts)
            unreadable |= batch.unreadable
            bar.update(len(batch.pixels) + len(batch.unreadable))
    names = [member.name for member in members if member.name not in unreadable]
    _check_classes(manifest.classes, [member.name for member in members], names)
    skipped = (*manifest.skipped, *(LeftOut(*pair) for pair in unreadable.items()))
    return RawData(
        _splits(names, manifest.classes, spool, np.concatenate(facts)),
        tuple(manifest.classes),
        example[1],
        skipped,
        manifest.found,
        gray16_bits,
    )


def _check_classes(classes: list[str], packed: list[str], names: list[str]) -> None:
    """Raise `UserError` if a class of a split has files among `packed`, but none among the readable `names`."""
    left = {name.rsplit("/", 1)[0] for name in names}
    counts = Counter({f"train/{name}": 0 for name in classes})  # a class in a damaged zip may have no packed file
    counts.update(name.rsplit("/", 1)[0] for name in packed)
    for place, count in counts.items():
        if place not in left:
            raise UserError(
                f"{place}: none of its {count:,} files is an image that can be read; remove the class or add images"
            )


def _splits(names: list[str], classes: list[str], spool: Spool, facts: NDArray[np.void]) -> dict[str, Images]:
    """Return the images by split. The names are sorted, so that each split is one range of rows."""
    index = {name: number for number, name in enumerate(classes)}
    splits: dict[str, Images] = {}
    for split in ("train", "val", "test"):
        rows = [row for row, name in enumerate(names) if name.startswith(f"{split}/")]
        if rows:
            first, last = rows[0], rows[-1] + 1
            labels = np.array([index[names[row].split("/")[1]] for row in rows], np.int64)
            splits[split] = Images(labels, partial(spool.chunks, first, last), facts[first:last])
    return splits
