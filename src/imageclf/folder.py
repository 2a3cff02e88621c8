"""A folder of one's own images, as `pack` left it in data/raw, to labelled images of one shape."""

from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from imageclf import files
from imageclf.errors import UserError
from imageclf.images import Member, decode_members, shape_of_first
from imageclf.raw import IMAGES_MANIFEST, IMAGES_TAR, Images, LeftOut, RawData, Spool


def read(folder: Path, image_size: int | None, workers: int, progress: bool) -> RawData:
    """Decode the images in `folder`, resized to `image_size` if there is one; broken files are left out and told.

    Decoded pixels wait in a file without a name beside `folder`. Raises `UserError` where the images differ
    in size, and where a class is left without any.
    """
    tar = folder / IMAGES_TAR
    manifest = files.read_manifest(folder / IMAGES_MANIFEST, made_by="download")
    files.verify(tar, manifest["files"][IMAGES_TAR], made_by="download")
    members = [Member(*member) for member in manifest["members"]]
    example = shape_of_first(tar, members, image_size)
    if example is None:
        raise UserError(f"none of the {len(members):,} files in {tar} is an image that can be read")
    spool = Spool(folder.parent, example[1])
    unreadable: dict[str, str] = {}
    with tqdm(desc="decoding", total=len(members), unit=" images", disable=None if progress else True) as bar:
        for batch in decode_members(tar, members, example, image_size, workers):
            spool.append(batch.pixels)
            unreadable |= batch.unreadable
            bar.update(len(batch.pixels) + len(batch.unreadable))
    names = [member.name for member in members if member.name not in unreadable]
    _check_classes(manifest["classes"], [member.name for member in members], names)
    skipped = (*(LeftOut(*pair) for pair in manifest["skipped"]), *(LeftOut(*pair) for pair in unreadable.items()))
    return RawData(_splits(names, manifest["classes"], spool), tuple(manifest["classes"]), example[1], skipped)


def _check_classes(classes: list[str], packed: list[str], names: list[str]) -> None:
    """Raise `UserError` where of the files `packed` none is left among `names` for a class of a split."""
    left = {name.rsplit("/", 1)[0] for name in names}
    counts = Counter({f"train/{name}": 0 for name in classes})  # a damaged zip may have packed none
    counts.update(name.rsplit("/", 1)[0] for name in packed)
    for place, count in counts.items():
        if place not in left:
            raise UserError(f"{place}: none of its {count:,} files is an image that can be read; take the class away")


def _splits(names: list[str], classes: list[str], spool: Spool) -> dict[str, Images]:
    """The images by split: in the order of names each split is one piece."""
    index = {name: number for number, name in enumerate(classes)}
    splits: dict[str, Images] = {}
    for split in ("train", "test"):
        rows = [row for row, name in enumerate(names) if name.startswith(f"{split}/")]
        if rows:
            labels = np.array([index[names[row].split("/")[1]] for row in rows], np.int64)
            splits[split] = Images(labels, partial(spool.chunks, rows[0], rows[-1] + 1))
    return splits
