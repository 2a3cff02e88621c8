"""Counts of the images between the folder and the splits, and the sentences that report them."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from imageclf.contracts.dataset import Census
from imageclf.contracts.raw import RawData
from imageclf.preprocess.images import SQUEEZED, Trait
from imageclf.preprocess.partition import Part, first_names, missing_classes

SENTENCES = {
    Trait.TRANSPARENT: "with transparent pixels, placed on black",
    Trait.ANIMATED: "with several frames, of which the first is used",
    Trait.CMYK: "in CMYK, converted without color profiles",
    Trait.TURNED: "turned upright as their EXIF data says",
    Trait.SQUEEZED: f"squeezed to a square by image_size although one side is more than {SQUEEZED} times the other",
    Trait.COLOR16: "in 16-bit color, or 16-bit gray with transparency, of which the high byte is used",
    Trait.CLIPPED: "with 16-bit values above the range, which become white",
}


class Report(NamedTuple):
    """The sentences that preprocess prints, the counts, and the bits used of 16-bit gray images, if there are any."""

    notes: list[str]
    census: Census | None
    gray16_bits: int | None


def take_census(raw: RawData, parts: Sequence[Part], other_classes: int) -> Report:
    """Count the images; for published data sets, return only sentences.

    other_classes: number of images of classes that the parameter `classes` does not name.
    """
    notes = [*_rules(raw, parts), *_absent(raw, parts)]
    if raw.found is None:
        if other_classes:
            notes.append(f"{other_classes:,} images of the classes that `classes` does not name are left out")
        return Report(notes, None, None)
    facts = np.concatenate([_facts(raw, part) for part in parts])
    counted = {trait: int(((facts["traits"] & trait) == trait).sum()) for trait in (*Trait, Trait.HIDDEN)}
    traits = {trait: count for trait, count in counted.items() if count}
    same = duplicates(raw, parts)
    notes = [_balance(raw, len(facts), other_classes), *notes, *_on_duplicates(same)]
    counts = Census(
        found=raw.found,
        used=len(facts),
        other_classes=other_classes,
        drawn={part.split: dict(zip(("fraction", "seed"), part.drawn, strict=True)) for part in parts if part.drawn},
        traits={str(trait.name).lower(): count for trait, count in traits.items()},
        duplicates=same,
    )
    notes += _on_traits(traits, len(facts), raw.gray16_bits)
    return Report(notes, counts, raw.gray16_bits if Trait.GRAY16 in traits else None)


def duplicates(raw: RawData, parts: Sequence[Part]) -> dict[str, int]:
    """Count the images whose file is identical to that of another image.

    val: images of val whose file is also in train; test: images of test whose file is also in train or val.
    repeated: further copies within a split. relabeled: files that are in more than one class.
    """
    digests = {part.split: _facts(raw, part)["digest"] for part in parts}
    seen, counts = digests["train"], {}
    for split in ("val", "test"):
        if split in digests:
            counts[split] = int(np.isin(digests[split], seen).sum())
            seen = np.concatenate([seen, digests[split]])
    labels = np.concatenate([raw.splits[part.origin].labels[part.rows] for part in parts])
    pairs = np.rec.fromarrays([np.concatenate(list(digests.values())), labels])
    different = np.unique(pairs)
    _, classes = np.unique(different["f0"], return_counts=True)
    repeated = sum(len(each) - len(np.unique(each)) for each in digests.values())
    return {**counts, "repeated": repeated, "relabeled": int((classes > 1).sum())}


def _facts(raw: RawData, part: Part) -> NDArray[np.void]:
    facts = raw.splits[part.origin].facts
    assert facts is not None  # your own images always have them
    return facts[part.rows]


def _balance(raw: RawData, used: int, other_classes: int) -> str:
    skipped = f", {len(raw.skipped):,} skipped" if raw.skipped else ""
    left_out = f", {other_classes:,} of classes that `classes` does not name" if other_classes else ""
    return f"{raw.found:,} files found: {used:,} used{skipped}{left_out}"


def _rules(raw: RawData, parts: Sequence[Part]) -> Iterator[str]:
    """Say how the test and val splits of your own images were chosen."""
    for part in parts:
        if raw.found is not None and part.split == "test" and part.drawn:
            yield f"test: a stratified fifth of the images, drawn with seed {part.drawn[1]}"
        if raw.found is not None and part.split == "val" and not part.drawn:
            yield "val: the images in val/; val_fraction and split_seed do not apply"


def _absent(raw: RawData, parts: Sequence[Part]) -> Iterator[str]:
    for part in parts:
        if names := missing_classes(part, raw.splits, raw.classes):
            why = f": too few images for a share of {part.drawn[0]:g}" if part.drawn else ""
            classes = "1 class" if len(names) == 1 else f"{len(names):,} classes"
            yield f"{part.split} has no image of {classes} ({first_names(names)}){why}"


def _on_duplicates(same: dict[str, int]) -> Iterator[str]:
    found = [
        f"{same[split]:,} of {split} {'is' if same[split] == 1 else 'are'} also in {others}"
        for split, others in (("test", "train or val" if "val" in same else "train"), ("val", "train"))
        if same.get(split)
    ]
    if same["repeated"]:
        found.append(f"{same['repeated']:,} more within a split")
    if same["relabeled"]:
        found.append(f"{same['relabeled']:,} in more than one class")
    if found:
        yield f"identical files: {', '.join(found)}"


def _on_traits(traits: dict[Trait, int], used: int, gray16_bits: int) -> Iterator[str]:
    if deep := traits.get(Trait.GRAY16):
        others = f"; the other {used - deep:,} images keep their 8 bits" if deep < used else ""
        yield (
            f"{deep:,} images in 16-bit gray, scaled from 0..{2**gray16_bits - 1:,} to 0..255: "
            f"the {gray16_bits} bits that the largest value in train/ needs{others}"
        )
    if 0 < (gray := traits.get(Trait.GRAY, 0)) < used:
        yield f"{gray:,} of the {used:,} images are gray: they become color images with three equal channels"
    if counted := [f"{traits[trait]:,} {sentence}" for trait, sentence in SENTENCES.items() if trait in traits]:
        yield f"images: {'; '.join(counted)}"
    if flat := traits.get(Trait.FLAT, 0) - traits.get(Trait.HIDDEN, 0):  # the report has a warning for these
        yield (
            f"{flat:,} of the {used:,} images use less than a tenth of the levels 0..255: "
            "unless they are blank, scale their files to the whole range"
        )
