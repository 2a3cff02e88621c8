"""The record that preprocess writes to `metrics/data.json`, and evaluate reads."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from imageclf.core import files


class Pair(NamedTuple):
    """A test image and the train image that is most like it, by their numbers in the split.

    details, whole: correlations of their details and of the whole images, 1 for equal ones.
    """

    test: int
    train: int
    details: float
    whole: float


@dataclass(frozen=True, kw_only=True)
class Near:
    """Test images that have a near-duplicate in train.

    count: their number; None if more than a tenth would count: such images are alike by nature, as digits are.
    share: the same as a fraction of the test images.
    pairs: the closest pairs, at most ten, the closest first.
    """

    count: int | None
    share: float | None
    pairs: list[Pair]


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """Content of `metrics/data.json`.

    counts: number of images by split and class.
    imbalance: train images of the largest class divided by those of the smallest.
    left_out: number of files that are not used, by reason.
    traits: number of your own image files by `preprocess.images.Trait`.
    repeated: number of further copies of an image within a split, by split. Copies have equal pixels.
    shared: number of images of val that are also in train, and of test that are also in train or val.
    relabeled: number of different images that are in more than one class.
    near: near-duplicates; None if they were not searched, for the reason `near_skipped`.
    warnings: sentences that name a problem and a remedy.
    """

    counts: dict[str, dict[str, int]]
    imbalance: float
    left_out: dict[str, int]
    traits: dict[str, int]
    repeated: dict[str, int]
    shared: dict[str, int]
    relabeled: int
    near: Near | None
    near_skipped: str | None
    warnings: list[str]

    def renumbered(self, numbers: NDArray[np.int64]) -> "DataReport":
        """Return the report after the train images got new `numbers`, (N,)."""
        if self.near is None:
            return self
        pairs = [pair._replace(train=int(numbers[pair.train])) for pair in self.near.pairs]
        return replace(self, near=replace(self.near, pairs=pairs))


def write(path: Path, report: DataReport) -> None:
    """Write the report as JSON."""
    files.write_json(path, asdict(report))


def read(path: Path) -> DataReport:
    """Read what `write` wrote."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    near = content.pop("near")
    if near is not None:
        near = Near(**{**near, "pairs": [Pair(*pair) for pair in near["pairs"]]})
    return DataReport(**content, near=near)
