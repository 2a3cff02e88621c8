"""Tests that splits, pixels and statistics are those that the parameters ask for."""

import hashlib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import names, peak_below
from helpers import prepare_with
from imports import ROOT
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

from imageclf.contracts import dataset
from imageclf.contracts.dataset import Prepared
from imageclf.contracts.raw import Images, RawData
from imageclf.core.errors import UserError
from imageclf.download import datasets
from imageclf.preprocess.partition import stratified
from stages import download, preprocess

CLASSES = ("a", "b", "c")
SHAPE = (2, 6, 5)


def pixels(count: int, first: int = 0) -> NDArray[np.uint8]:
    """Return random images; the first two pixels of each contain its number, starting at `first`."""
    made = np.random.default_rng(first).integers(256, size=(count, *SHAPE), dtype=np.uint8)
    numbers = np.arange(first, first + count)
    made[:, 0, 0, 0], made[:, 0, 0, 1] = numbers % 256, numbers // 256
    return made


def numbers(images: NDArray[np.uint8]) -> list[int]:
    """Return the numbers of images made by `pixels`."""
    return (images[:, 0, 0, 0] + 256 * images[:, 0, 0, 1].astype(int)).tolist()


LABELS = np.random.default_rng(1).choice(3, size=300, p=[0.6, 0.3, 0.1])
TRAIN, TEST = pixels(300), pixels(50, first=1000)


def images_of(made: NDArray[np.uint8], labels: NDArray[np.int64], chunk: int = 64) -> Images:
    """Return labeled images in chunks."""
    return Images(labels, lambda: iter([made[start : start + chunk] for start in range(0, len(made), chunk)]))


def made_images(train: NDArray[np.uint8] = TRAIN, test: NDArray[np.uint8] = TEST, chunk: int = 64) -> dict[str, Images]:
    """Return the splits train and test."""
    return {"train": images_of(train, LABELS, chunk), "test": images_of(test, LABELS[: len(test)], chunk)}


def run(
    folder: Path,
    images: dict[str, Images] | None = None,
    shape: tuple[int, int, int] = SHAPE,
    named: tuple[str, ...] = CLASSES,
    **changes: Any,
) -> Prepared:
    """Prepare images, by default `made_images()`, and read the result."""
    prepare_with(RawData(images or made_images(), named, shape), folder, **{"val_fraction": 0.2, **changes})
    return dataset.read(folder)


def digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file in a folder."""
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names(folder)}


# --- stratified ---


@pytest.mark.parametrize("count", [1, 2, 9, 10, 11, 99, 1000, 1797])
@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.1, 0.2, 1 / 3, 0.5, 0.77, 0.999])
def test_stratified_has_the_exact_count_and_the_fraction_of_each_class(count: int, fraction: float) -> None:
    labels = np.random.default_rng(count).choice(4, size=count, p=[0.7, 0.2, 0.09, 0.01])
    mask = stratified(labels, fraction, seed=0)
    assert mask.shape == (count,)
    assert mask.sum() == int(fraction * count + 0.5)
    for label in range(4):
        here = labels == label
        assert abs(mask[here].sum() - fraction * here.sum()) < 1


def test_stratified_depends_only_on_its_seed() -> None:
    first, again, other = (stratified(LABELS, 0.2, seed) for seed in (7, 7, 8))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_stratified_draws_random_rows() -> None:
    taken = np.flatnonzero(stratified(np.zeros(1000, np.int64), 0.5, seed=0))
    assert len(set(np.diff(taken))) > 3


# --- splits ---


def test_each_image_is_in_one_split_with_its_label(tmp_path: Path) -> None:
    prepared = run(tmp_path)
    found: dict[int, int] = {}
    for name in ("train", "val", "test"):
        split = prepared[name]
        assert found.keys().isdisjoint(numbers(split.images))
        found |= dict(zip(numbers(split.images), split.labels.tolist(), strict=True))
    assert found == {**dict(enumerate(LABELS)), **{1000 + row: LABELS[row] for row in range(50)}}


def test_the_named_test_split_is_kept_as_it_is(tmp_path: Path) -> None:
    prepared = run(tmp_path)
    assert np.array_equal(prepared["test"].images, TEST)
    assert np.array_equal(prepared["test"].labels, LABELS[:50])


def test_val_is_a_fraction_of_train_and_of_each_class(tmp_path: Path) -> None:
    prepared = run(tmp_path, val_fraction=0.2)
    assert len(prepared["val"]) == 60
    assert np.all(np.abs(np.bincount(prepared["val"].labels) - 0.2 * np.bincount(LABELS)) < 1)


def test_the_split_depends_on_its_seed(tmp_path: Path) -> None:
    first, again, other = (
        numbers(run(tmp_path / str(number), split_seed=seed)["val"].images) for number, seed in enumerate((3, 3, 4))
    )
    assert first == again
    assert first != other


@pytest.mark.parametrize(
    "changes", [{"val_fraction": 0.0}, {"val_fraction": 0.5}, {"split_seed": 9}, {"permute_seed": 3}]
)
def test_a_drawn_test_split_does_not_depend_on_parameters(tmp_path: Path, changes: dict[str, Any]) -> None:
    images = {"train": images_of(TRAIN, LABELS)}
    reference = run(tmp_path / "reference", images)
    prepared = run(tmp_path / "changed", images, **changes)
    original = dataset.unpermute(prepared["test"].images, prepared.permutation)
    assert len(original) == 60
    assert np.array_equal(original, reference["test"].images)


def test_the_three_splits_of_one_pool_are_disjoint_and_cover_it(tmp_path: Path) -> None:
    prepared = run(tmp_path, {"train": images_of(TRAIN, LABELS)}, val_fraction=0.25)
    parts = [numbers(prepared[name].images) for name in ("train", "val", "test")]
    assert [len(part) for part in parts] == [180, 60, 60]
    assert sorted(chain.from_iterable(parts)) == list(range(300))


def test_without_a_val_fraction_there_is_no_val(tmp_path: Path) -> None:
    prepared = run(tmp_path, val_fraction=0.0)
    assert "val" not in prepared
    assert "train" in prepared
    assert np.array_equal(prepared["train"].images, TRAIN)
    assert names(tmp_path) == [
        "dataset.json",
        "test_images.npy",
        "test_targets.npy",
        "train_images.npy",
        "train_targets.npy",
    ]


def test_a_val_split_that_would_be_empty_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"val_fraction: 0.001 of these 300 images leaves none for val; set it to 0 to train on"
    ):
        run(tmp_path, val_fraction=0.001)
    assert names(tmp_path) == []


def test_a_val_fraction_that_leaves_a_class_without_training_image_is_refused(
    tmp_path: Path,
) -> None:
    with pytest.raises(
        UserError, match=r"0.999 leaves no image of 'a', 'b', 'c' to train on; .* one; use at most 0.964"
    ):
        run(tmp_path, val_fraction=0.999)
    assert names(tmp_path) == []
    assert np.bincount(run(tmp_path, val_fraction=0.964)["train"].labels).min() >= 1


def test_too_few_images_for_a_test_split_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="these 2 images leave none for test"):
        run(tmp_path, {"train": images_of(TRAIN[:2], LABELS[:2])}, val_fraction=0.0)
    assert names(tmp_path) == []


def test_the_counts_are_those_of_the_files(tmp_path: Path) -> None:
    prepared = run(tmp_path)
    assert prepared.manifest.counts == {name: len(prepared[name].images) for name in ("train", "val", "test")}


# --- classes ---


@pytest.mark.parametrize("chunk", [1, 7, 300])
def test_selected_classes_keep_their_images_and_have_indices_in_the_given_order(tmp_path: Path, chunk: int) -> None:
    prepared = run(tmp_path, made_images(chunk=chunk), classes=["c", "a"], val_fraction=0.25)
    assert prepared.manifest.classes == ["c", "a"]
    found: dict[int, int] = {}
    for name in ("train", "val", "test"):
        found |= dict(zip(numbers(prepared[name].images), prepared[name].labels.tolist(), strict=True))
    everything = {**dict(enumerate(LABELS)), **{1000 + row: LABELS[row] for row in range(50)}}
    assert found == {number: {2: 0, 0: 1}[label] for number, label in everything.items() if label != 1}
    assert len(prepared["val"]) == round(0.25 * np.isin(LABELS, [0, 2]).sum())


def test_selecting_all_classes_in_order_changes_nothing(tmp_path: Path) -> None:
    assert run(tmp_path / "all", classes=["a", "b", "c"]).manifest.sha256 == run(tmp_path / "null").manifest.sha256


def test_for_an_unknown_class_the_nearest_one_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"classes: 'cta' is not one of the 2 classes; the nearest is 'cat'"):
        run(tmp_path, {"train": images_of(TRAIN, LABELS % 2)}, SHAPE, ("cat", "dog"), classes=["dog", "cta"])
    assert names(tmp_path) == []


# --- targets ---


def test_targets_are_indices_or_one_hot_rows_of_the_same_labels(tmp_path: Path) -> None:
    indices = run(tmp_path / "indices", one_hot=False)["train"]
    rows = run(tmp_path / "rows", one_hot=True)["train"]
    assert indices.targets.dtype == np.int64
    assert rows.targets.dtype == np.uint8
    assert np.array_equal(rows.targets, np.eye(3)[indices.targets])
    assert np.array_equal(rows.labels, indices.labels)


# --- pixels ---


def test_pixels_are_stored_as_they_are(tmp_path: Path) -> None:
    prepared = run(tmp_path)
    assert prepared.manifest.image_shape == SHAPE
    assert prepared["val"].images.dtype == np.uint8
    assert np.array_equal(prepared["val"].images, TRAIN[numbers(prepared["val"].images)])


@pytest.mark.parametrize("size", [3, 9])
def test_resize_makes_squares_channel_by_channel(tmp_path: Path, size: int) -> None:
    prepared = run(tmp_path, image_size=size)
    stored = prepared["test"].images
    assert prepared.manifest.image_shape == (2, size, size)
    assert stored.shape == (50, 2, size, size)
    for image, original in zip(stored[:3], TEST[:3], strict=True):
        for plane, original_plane in zip(image, original, strict=True):
            resized = Image.fromarray(original_plane).resize((size, size), Image.Resampling.BILINEAR)
            assert np.array_equal(plane, np.asarray(resized))


def test_resize_does_not_change_a_constant_image(tmp_path: Path) -> None:
    gray = np.full_like(TEST, 77)
    assert np.all(run(tmp_path, made_images(test=gray), image_size=11)["test"].images == 77)


def test_pad_puts_black_around_the_resized_image(tmp_path: Path) -> None:
    padded = run(tmp_path / "padded", image_size=4, pad=3)
    resized = run(tmp_path / "resized", image_size=4)
    assert padded.manifest.image_shape == (2, 10, 10)
    stored = padded["train"].images.copy()
    assert np.array_equal(stored[:, :, 3:-3, 3:-3], resized["train"].images)
    stored[:, :, 3:-3, 3:-3] = 0
    assert not stored.any()


def test_one_permutation_moves_the_pixels_of_every_split_and_channel(tmp_path: Path) -> None:
    plain = run(tmp_path / "plain", pad=1)
    permuted = run(tmp_path / "permuted", pad=1, permute_seed=5)
    order = permuted.permutation
    assert order is not None
    assert sorted(order) == list(range(8 * 7))
    assert not np.array_equal(order, np.arange(8 * 7))
    for name in ("train", "val", "test"):
        before, after = (prepared[name].images.reshape(-1, 2, 8 * 7) for prepared in (plain, permuted))
        assert np.array_equal(after, before[:, :, order])


def test_the_permutation_depends_only_on_its_own_seed(tmp_path: Path) -> None:
    first, again, other = (
        run(tmp_path / str(number), permute_seed=permute_seed, split_seed=split_seed).permutation
        for number, (permute_seed, split_seed) in enumerate([(5, 0), (5, 1), (6, 0)])
    )
    assert first is not None
    assert other is not None
    assert np.array_equal(first, again)  # type: ignore[arg-type] - equal to `first`, so not None
    assert not np.array_equal(first, other)


def test_without_permute_there_is_no_permutation(tmp_path: Path) -> None:
    prepared = run(tmp_path)
    assert prepared.permutation is None
    assert dataset.PERMUTATION not in names(tmp_path)
    assert prepared.manifest.preparation.permute_seed is None


# --- statistics ---


def test_mean_and_std_are_those_of_train_per_channel(tmp_path: Path) -> None:
    prepared = run(tmp_path)
    train = prepared["train"].images / 255
    assert np.allclose(prepared.manifest.mean, train.mean(axis=(0, 2, 3)), rtol=0, atol=1e-12)
    assert np.allclose(prepared.manifest.std, train.std(axis=(0, 2, 3)), rtol=0, atol=1e-12)


def test_mean_and_std_do_not_depend_on_val_and_test(tmp_path: Path) -> None:
    before = run(tmp_path / "before")
    changed = TRAIN.copy()
    changed[numbers(before["val"].images)] = 255
    after = run(tmp_path / "after", made_images(changed, np.zeros_like(TEST)))
    assert np.all(after["val"].images == 255)
    assert (after.manifest.mean, after.manifest.std) == (before.manifest.mean, before.manifest.std)


def normalized(prepared: Prepared) -> NDArray[np.float64]:
    """Return the normalized train split, one row per channel."""
    mean, std = (np.array(part)[:, None] for part in prepared.normalization)
    return (prepared["train"].images.swapaxes(0, 1).reshape(2, -1) / 255 - mean) / std


def test_standard_gives_each_channel_a_mean_of_0_and_a_std_of_1(tmp_path: Path) -> None:
    values = normalized(run(tmp_path, normalize="standard"))
    assert np.allclose(values.mean(axis=1), 0, atol=1e-12)
    assert np.allclose(values.std(axis=1), 1, atol=1e-12)


@pytest.mark.parametrize(("normalize", "most"), [("unit", 1), ("none", 255)])
def test_unit_and_none_give_the_whole_range(tmp_path: Path, normalize: str, most: int) -> None:
    values = normalized(run(tmp_path, normalize=normalize))
    assert np.array_equal(values.min(axis=1), [0, 0])
    assert np.allclose(values.max(axis=1), most, rtol=1e-12)


def test_a_channel_that_is_constant_in_train_becomes_0(tmp_path: Path) -> None:
    train = TRAIN.copy()
    train[:, 1] = 93
    values = normalized(run(tmp_path, made_images(train)))
    assert np.allclose(values[1], 0, atol=1e-12)
    assert np.isfinite(values).all()


# --- files ---


@pytest.mark.parametrize("chunk", [1, 7, 300])
def test_the_size_of_chunks_changes_no_bit(tmp_path: Path, chunk: int) -> None:
    changes: dict[str, Any] = {"permute_seed": 1, "image_size": 7}
    run(tmp_path / "reference", **changes)
    run(tmp_path / "other", made_images(chunk=chunk), **changes)
    assert digests(tmp_path / "other") == digests(tmp_path / "reference")


def test_a_second_preparation_gives_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("first", "second"):
        run(tmp_path / folder, permute_seed=1, one_hot=True)
    assert digests(tmp_path / "first") == digests(tmp_path / "second")
    assert len(digests(tmp_path / "first")) == 8


@pytest.mark.parametrize("normalize", ["unit", "none"])
def test_another_normalization_changes_the_digest(tmp_path: Path, normalize: str) -> None:
    """The digest is part of the key of a training."""
    assert run(tmp_path / "a").manifest.sha256 != run(tmp_path / "b", normalize=normalize).manifest.sha256


def test_the_manifest_has_the_digest_of_every_other_file(tmp_path: Path) -> None:
    prepared = run(tmp_path, permute_seed=1)
    found = digests(tmp_path)
    del found[dataset.MANIFEST]
    assert prepared.manifest.files == found


def test_any_npy_reader_reads_the_files(tmp_path: Path) -> None:
    run(tmp_path, one_hot=True, permute_seed=1)
    assert np.load(tmp_path / "train_images.npy", allow_pickle=False).shape == (240, *SHAPE)
    assert np.load(tmp_path / "val_targets.npy", allow_pickle=False).shape == (60, 3)
    assert np.load(tmp_path / "permutation.npy", allow_pickle=False).dtype == np.int64


def test_files_of_an_earlier_preparation_are_removed(tmp_path: Path) -> None:
    run(tmp_path, permute_seed=1)
    (tmp_path / "stray").mkdir()
    run(tmp_path, val_fraction=0.0)
    run(tmp_path.parent / "fresh", val_fraction=0.0)
    assert digests(tmp_path) == digests(tmp_path.parent / "fresh")


def test_a_preparation_that_fails_leaves_the_earlier_one(tmp_path: Path) -> None:
    run(tmp_path)
    before = digests(tmp_path)

    def broken() -> Iterator[NDArray[np.uint8]]:
        yield TRAIN[:64]
        raise EOFError

    with pytest.raises(EOFError):
        run(tmp_path, {"train": Images(LABELS, broken)}, split_seed=1)
    assert digests(tmp_path) == before


def test_images_and_labels_of_different_number_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="test: 50 images for 49 labels"):
        run(tmp_path, {**made_images(), "test": images_of(TEST, LABELS[:49])})
    with pytest.raises(ValueError, match="train: 299 images for 300 labels"):
        run(tmp_path, made_images(train=TRAIN[:299]))
    assert names(tmp_path) == []


def test_the_images_are_never_all_in_memory(tmp_path: Path) -> None:
    chunks, each = 60, 100
    shape = (1, 32, 32)

    def made() -> Iterator[NDArray[np.uint8]]:
        for seed in range(chunks):
            yield np.random.default_rng(seed).integers(256, size=(each, *shape), dtype=np.uint8)

    images = {"train": Images(np.arange(chunks * each) % 3, made)}
    with peak_below(chunks * each * 34 * 34 // 2):
        run(tmp_path, images, shape, permute_seed=0, pad=1)


def test_an_enlarged_chunk_is_never_in_memory(tmp_path: Path) -> None:
    images = {"train": Images(np.arange(2000) % 3, lambda: iter([np.zeros((2000, 1, 4, 4), np.uint8)]))}
    with peak_below(2000 * 128 * 128 // 2):
        run(tmp_path, images, (1, 4, 4), image_size=128)


def test_a_chunk_may_hold_no_image_of_a_split(tmp_path: Path) -> None:
    """This happens if `val_fraction` is small."""
    prepared = run(tmp_path, made_images(chunk=30), val_fraction=0.005)
    assert len(prepared["val"].images) == 2
    assert np.array_equal(prepared["val"].images, TRAIN[numbers(prepared["val"].images)])


# --- real data and stages ---


def test_digits_are_prepared_with_the_shape_and_classes_of_the_table(tmp_path: Path) -> None:
    digits = datasets.DATASETS["digits"]
    theirs: Any = load_digits()
    pixels = (theirs["images"].astype(int) * 255 // 16).astype(np.uint8)[:, None]
    images = {"train": images_of(pixels, theirs["target"])}
    prepared = run(tmp_path, images, digits.image_shape, digits.classes, val_fraction=0.1)
    assert prepared.manifest.counts == {"train": 1294, "val": 144, "test": 359}
    assert prepared.manifest.classes == list("0123456789")
    everything = np.concatenate([prepared[name].images for name in ("train", "val", "test")])
    assert sorted(image.tobytes() for image in everything) == sorted(image.tobytes() for image in pixels)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create a folder with the committed params.yaml, and work in it."""
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    monkeypatch.setenv("IMAGECLF_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_first_two_stages_prepare_digits(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    download.main()
    preprocess.main()
    assert capsys.readouterr().out == "359 test, 1,294 train, 144 val images of 1x8x8\n"
    assert dataset.read(project / "data" / "processed").manifest.preparation.permute_seed is None


def test_preprocess_uses_the_parameters_of_params_yaml(project: Path) -> None:
    path = project / "params.yaml"
    text = path.read_text()
    for old, new in [
        ("val_fraction: 0.1", "val_fraction: 0.5"),
        ("image_size: ", "image_size: 6 "),
        ("pad: 0", "pad: 1"),
        ("normalize: standard", "normalize: unit"),
        ("permute: false", "permute: true"),
        ("permute_seed: 0", "permute_seed: 4"),
        ("one_hot: true", "one_hot: false"),
    ]:
        assert text.count(f"\n{old} ") == 1
        text = text.replace(f"\n{old} ", f"\n{new} ")
    path.write_text(text)
    download.main()
    preprocess.main()
    prepared = dataset.read(project / "data" / "processed")
    assert prepared.manifest.counts == {"train": 719, "val": 719, "test": 359}
    assert prepared.manifest.image_shape == (1, 8, 8)
    assert prepared.manifest.normalize == "unit"
    assert prepared.manifest.preparation.permute_seed == 4
    assert prepared["val"].targets.ndim == 1


def test_two_digits_are_a_binary_data_set(project: Path) -> None:
    path = project / "params.yaml"
    path.write_text(path.read_text().replace("classes: ", "classes: [3, 8] "))
    download.main()
    preprocess.main()
    prepared = dataset.read(project / "data" / "processed")
    assert prepared.manifest.classes == ["3", "8"]
    assert sum(prepared.manifest.counts.values()) == 183 + 174
    assert prepared["train"].targets.shape[1] == 2


def test_preprocess_refuses_a_raw_file_that_is_not_the_published_one(project: Path) -> None:
    download.main()
    raw = project / "data" / "raw" / "digits.csv.gz"
    content = bytearray(raw.read_bytes())
    content[1000] ^= 1
    raw.write_bytes(content)
    with pytest.raises(UserError, match=r"digits\.csv\.gz is not what download wrote .* --single-item download`"):
        preprocess.main()
    raw.unlink()
    with pytest.raises(UserError, match=r"digits\.csv\.gz is missing: run `uv run dvc repro download`"):
        preprocess.main()
