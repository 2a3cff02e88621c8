"""Tests of the report on the data: planted copies, near-duplicates and mistakes are found, and nothing else."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import encode, prepare_with
from numpy.typing import NDArray
from PIL import Image

from imageclf.contracts.raw import Images, RawData
from imageclf.preprocess.report import near
from imageclf.preprocess.report import record as contract
from imageclf.preprocess.report.measure import measure
from imageclf.preprocess.report.record import DataReport, Pair

Pixels = NDArray[np.uint8]


def scenes(count: int, seed: int, size: int = 32) -> Pixels:
    """Return made photographs (count, 3, size, size): smooth random colors, edges, and a little noise."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        coarse = Image.fromarray(random.integers(256, size=(6, 6, 3), dtype=np.uint8)).resize((size, size))
        pixels = np.asarray(coarse, np.float32).copy()
        for _ in range(6):
            top, left = random.integers(0, size - 8, 2)
            pixels[top : top + 8, left : left + 8] += random.normal(0, 60, 3)
        found.append((pixels + random.normal(0, 4, pixels.shape)).clip(0, 255).astype(np.uint8).transpose(2, 0, 1))
    return np.stack(found)


def as_jpeg(image: Pixels, quality: int = 60) -> Pixels:
    data = encode(Image.fromarray(image.transpose(1, 2, 0)), "JPEG", quality=quality)
    return np.asarray(Image.open(io.BytesIO(data))).transpose(2, 0, 1)


CHANGES: dict[str, Any] = {
    "compressed": as_jpeg,
    "brighter": lambda image: (image * 1.2).clip(0, 255).astype(np.uint8),
    "noisy": lambda image: (image + np.random.default_rng(9).normal(0, 6, image.shape)).clip(0, 255).astype(np.uint8),
    "moved": lambda image: np.roll(image, 1, axis=2),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_copies_are_near_duplicates(change: str) -> None:
    train, test = scenes(200, seed=0), scenes(100, seed=1)
    for number in range(5):
        test[7 * number] = CHANGES[change](train[30 * number])
    found = near.find(train, test)
    assert found.count == 5
    assert found.share == 0.05
    assert {(pair.test, pair.train) for pair in found.pairs} == {(7 * number, 30 * number) for number in range(5)}
    assert all(pair.details > 0.75 and pair.whole > 0.9 for pair in found.pairs)


def test_different_images_are_no_near_duplicates() -> None:
    assert near.find(scenes(300, seed=0), scenes(100, seed=1)) == contract.Near(count=0, share=0.0, pairs=[])


def test_skies_and_frames_are_no_near_duplicates() -> None:
    """Pictures of a clear sky are alike as a whole, and pictures in one frame in their details."""
    random = np.random.default_rng(0)
    sky = np.linspace(250, 120, 32)[None, None, :, None] * np.array([0.5, 0.7, 1.0])[None, :, None, None]
    skies = (sky + random.normal(0, 3, (60, 3, 32, 32))).clip(0, 255).astype(np.uint8)
    framed = scenes(60, seed=2)
    framed[:, :, :2] = framed[:, :, -2:] = 0
    assert near.find(skies[:40], skies[40:]).count == 0
    assert near.find(framed[:40], framed[40:]).count == 0


def test_images_that_are_alike_by_nature_have_no_number() -> None:
    one = scenes(1, seed=0)[0]
    alike = np.stack([CHANGES["brighter"](one // 2 + shade) for shade in range(40)])
    found = near.find(alike[:20], alike[20:])
    assert (found.count, found.share) == (None, None)
    assert len(found.pairs) == 10


def test_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = scenes(50, seed=0), scenes(30, seed=1)
    test[3] = as_jpeg(train[4])
    whole = near.find(train, test)
    monkeypatch.setattr(near, "BLOCK_BYTES", 20_000)
    assert near.find(train, test) == whole
    assert [(pair.test, pair.train) for pair in whole.pairs] == [(3, 4)]


@pytest.mark.parametrize("shape", [(1, 5, 7), (3, 20, 33)])
def test_any_size_can_be_compared(shape: tuple[int, int, int]) -> None:
    images = np.random.default_rng(0).integers(256, size=(30, *shape), dtype=np.uint8)
    found = near.find(images[:5], images[3:])
    assert found.count == 2
    assert [pair[:2] for pair in found.pairs] == [(0, 3), (1, 4)]


def raw_data(train: Pixels, labels: list[int], test: Pixels, test_labels: list[int], **changes: Any) -> RawData:
    splits = {
        name: Images(np.array(numbers), lambda images=images: iter([images]), np.zeros(len(images), contract_facts()))
        for name, images, numbers in (("train", train, labels), ("test", test, test_labels))
    }
    content = {"classes": ("cat", "dog"), "image_shape": train.shape[1:], "found": len(train) + len(test), **changes}
    return RawData(splits, **content)


def contract_facts() -> np.dtype[Any]:
    from imageclf.contracts.raw import FACTS

    return FACTS


def report_of(raw: RawData, folder: Path, **changes: Any) -> DataReport:
    manifest = prepare_with(raw, folder, val_fraction=0.0, **changes)
    return measure(folder, manifest)


@pytest.mark.parametrize("permute_seed", [None, 0])
def test_planted_mistakes_are_found(permute_seed: int | None, tmp_path: Path) -> None:
    train, test = scenes(60, seed=0), scenes(20, seed=1)
    labels = [0] * 55 + [1] * 5
    train[1] = train[0]  # a copy in the same class
    train[59] = train[2]  # a copy in the other class
    test[4] = train[10]
    test[5] = as_jpeg(train[11])
    found = report_of(raw_data(train, labels, test, [0, 1] * 10), tmp_path, permute_seed=permute_seed)
    assert found.repeated == {"train": 2, "test": 0}
    assert found.shared == {"test": 1}
    assert found.relabeled == 1
    assert found.imbalance == 11.0
    assert found.counts == {"train": {"cat": 55, "dog": 5}, "test": {"cat": 10, "dog": 10}}
    assert found.near is not None
    assert found.near.count == 2
    assert {pair[:2] for pair in found.near.pairs} == {(4, 10), (5, 11)}
    beginnings = [
        "1 of 20 test images have the same pixels as one in train or val",
        "2 of 20 test images have a near-duplicate in train",
        "1 picture is in more than one class, compared by the pixels",
        "1 class has fewer than 10 train images ('dog')",
        "the largest class has 11 times the train images of the smallest",
    ]
    assert len(found.warnings) == len(beginnings)
    assert all(map(str.startswith, found.warnings, beginnings))


def test_clean_data_has_no_warnings(tmp_path: Path) -> None:
    found = report_of(raw_data(scenes(40, seed=0), [0, 1] * 20, scenes(10, seed=1), [0, 1] * 5), tmp_path)
    assert found.warnings == []
    assert found.near == contract.Near(count=0, share=0.0, pairs=[])


def test_published_sets_are_not_searched_for_near_duplicates(tmp_path: Path) -> None:
    raw = raw_data(scenes(40, seed=0), [0, 1] * 20, scenes(10, seed=1), [0, 1] * 5, found=None)
    found = report_of(raw, tmp_path)
    assert (found.near, found.near_skipped) == (None, "only your own images are searched")


def test_the_report_reads_what_it_wrote(tmp_path: Path) -> None:
    written = DataReport(
        counts={"train": {"cat": 1}},
        imbalance=1.0,
        left_out={"not an image": 2},
        traits={},
        repeated={"train": 0},
        shared={},
        relabeled=0,
        near=contract.Near(count=1, share=0.5, pairs=[Pair(1, 2, 0.9, 0.95)]),
        near_skipped=None,
        warnings=["one"],
    )
    contract.write(tmp_path / "data.json", written)
    assert contract.read(tmp_path / "data.json") == written
