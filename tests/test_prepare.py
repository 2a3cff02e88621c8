"""What a net sees is what the knobs say: an honest split, the right pixels, the right statistics."""

import hashlib
import tracemalloc
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import names
from imports import ROOT
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

from imageclf import datasets, splits
from imageclf.errors import UserError
from imageclf.partition import stratified
from imageclf.prepare import prepare
from imageclf.raw import Images, RawData
from imageclf.splits import Prepared
from stages import download, preprocess

CLASSES = ("a", "b", "c")
SHAPE = (2, 6, 5)
KNOBS: dict[str, Any] = {
    "dataset": "made",
    "classes": None,
    "val_fraction": 0.2,
    "split_seed": 0,
    "grayscale": False,
    "image_size": None,
    "pad": 0,
    "normalize": "standard",
    "permute_seed": None,
    "one_hot": False,
}


def pixels(count: int, first: int = 0) -> NDArray[np.uint8]:
    """Random images, each numbered from `first` on in its first two pixels."""
    made = np.random.default_rng(first).integers(256, size=(count, *SHAPE), dtype=np.uint8)
    numbers = np.arange(first, first + count)
    made[:, 0, 0, 0], made[:, 0, 0, 1] = numbers % 256, numbers // 256
    return made


def numbers(images: NDArray[np.uint8]) -> list[int]:
    """The numbers of images that `pixels` made."""
    return (images[:, 0, 0, 0] + 256 * images[:, 0, 0, 1].astype(int)).tolist()


LABELS = np.random.default_rng(1).choice(3, size=300, p=[0.6, 0.3, 0.1])
TRAIN, TEST = pixels(300), pixels(50, first=1000)


def images_of(made: NDArray[np.uint8], labels: NDArray[np.int64], chunk: int = 64) -> Images:
    """Made images, in chunks."""
    return Images(labels, lambda: iter([made[start : start + chunk] for start in range(0, len(made), chunk)]))


def made_images(train: NDArray[np.uint8] = TRAIN, test: NDArray[np.uint8] = TEST, chunk: int = 64) -> dict[str, Images]:
    """The two splits of a made data set."""
    return {"train": images_of(train, LABELS, chunk), "test": images_of(test, LABELS[: len(test)], chunk)}


def run(
    folder: Path,
    images: dict[str, Images] | None = None,
    shape: tuple[int, int, int] = SHAPE,
    named: tuple[str, ...] = CLASSES,
    **knobs: Any,
) -> Prepared:
    """Prepare images, the made ones by default, and read the result."""
    prepare(RawData(images or made_images(), named, shape), folder, **{**KNOBS, **knobs})
    return splits.read(folder)


def digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file in a folder."""
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names(folder)}


# --- stratified ---


@pytest.mark.parametrize("count", [1, 2, 9, 10, 11, 99, 1000, 1797])
@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.1, 0.2, 1 / 3, 0.5, 0.77, 0.999])
def test_stratified_takes_the_exact_count_and_of_each_class_its_share(count: int, fraction: float) -> None:
    labels = np.random.default_rng(count).choice(4, size=count, p=[0.7, 0.2, 0.09, 0.01])
    mask = stratified(labels, fraction, seed=0)
    assert mask.shape == (count,)
    assert mask.sum() == int(fraction * count + 0.5)
    for label in range(4):
        here = labels == label
        assert abs(mask[here].sum() - fraction * here.sum()) < 1


def test_stratified_is_a_function_of_its_seed() -> None:
    first, again, other = (stratified(LABELS, 0.2, seed) for seed in (7, 7, 8))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_stratified_takes_random_rows_and_not_every_other() -> None:
    taken = np.flatnonzero(stratified(np.zeros(1000, np.int64), 0.5, seed=0))
    assert len(set(np.diff(taken))) > 3


# --- who is where ---


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


def test_val_has_its_share_of_train_and_of_each_class(tmp_path: Path) -> None:
    prepared = run(tmp_path, val_fraction=0.2)
    assert len(prepared["val"]) == 60
    assert np.all(np.abs(np.bincount(prepared["val"].labels) - 0.2 * np.bincount(LABELS)) < 1)


def test_the_split_is_a_function_of_its_seed(tmp_path: Path) -> None:
    first, again, other = (
        numbers(run(tmp_path / str(number), split_seed=seed)["val"].images) for number, seed in enumerate((3, 3, 4))
    )
    assert first == again
    assert first != other


@pytest.mark.parametrize(
    "knobs", [{"val_fraction": 0.0}, {"val_fraction": 0.5}, {"split_seed": 9}, {"permute_seed": 3}]
)
def test_where_a_source_names_no_test_split_it_is_the_same_for_everyone(tmp_path: Path, knobs: dict[str, Any]) -> None:
    images = {"train": images_of(TRAIN, LABELS)}
    reference = run(tmp_path / "reference", images)
    prepared = run(tmp_path / "changed", images, **knobs)
    original = splits.unpermute(prepared["test"].images, prepared.permutation)
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
    with pytest.raises(UserError, match=r"val_fraction: 0.001 of these 300 images leaves none for val; 0 trains on"):
        run(tmp_path, val_fraction=0.001)
    assert names(tmp_path) == []


def test_a_val_fraction_that_leaves_a_class_no_training_image_is_refused_and_a_working_one_named(
    tmp_path: Path,
) -> None:
    with pytest.raises(UserError, match=r"0.999 leaves no image of 'a', 'b', 'c' to train on; .* one: 0.964 works"):
        run(tmp_path, val_fraction=0.999)
    assert names(tmp_path) == []
    assert np.bincount(run(tmp_path, val_fraction=0.964)["train"].labels).min() >= 1


def test_too_few_images_for_a_test_split_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="these 2 images leave none for test"):
        run(tmp_path, {"train": images_of(TRAIN[:2], LABELS[:2])}, val_fraction=0.0)
    assert names(tmp_path) == []


def test_the_counts_are_those_of_the_files(tmp_path: Path) -> None:
    prepared = run(tmp_path)
    assert prepared.manifest["counts"] == {name: len(prepared[name].images) for name in ("train", "val", "test")}


# --- classes ---


@pytest.mark.parametrize("chunk", [1, 7, 300])
def test_chosen_classes_keep_their_images_and_are_numbered_in_the_order_given(tmp_path: Path, chunk: int) -> None:
    prepared = run(tmp_path, made_images(chunk=chunk), classes=["c", "a"], val_fraction=0.25)
    assert prepared.classes == ["c", "a"]
    found: dict[int, int] = {}
    for name in ("train", "val", "test"):
        found |= dict(zip(numbers(prepared[name].images), prepared[name].labels.tolist(), strict=True))
    everything = {**dict(enumerate(LABELS)), **{1000 + row: LABELS[row] for row in range(50)}}
    assert found == {number: {2: 0, 0: 1}[label] for number, label in everything.items() if label != 1}
    assert len(prepared["val"]) == round(0.25 * np.isin(LABELS, [0, 2]).sum())


def test_all_classes_chosen_in_their_order_are_the_same_data(tmp_path: Path) -> None:
    assert run(tmp_path / "all", classes=["a", "b", "c"]).sha256 == run(tmp_path / "null").sha256


def test_a_class_that_is_not_there_is_told_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"classes: 'cta' is not among the 2 here; the nearest is 'cat'"):
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
    assert prepared.image_shape == SHAPE
    assert prepared["val"].images.dtype == np.uint8
    assert np.array_equal(prepared["val"].images, TRAIN[numbers(prepared["val"].images)])


@pytest.mark.parametrize("size", [3, 9])
def test_resize_makes_squares_channel_by_channel(tmp_path: Path, size: int) -> None:
    prepared = run(tmp_path, image_size=size)
    stored = prepared["test"].images
    assert prepared.image_shape == (2, size, size)
    assert stored.shape == (50, 2, size, size)
    for image, original in zip(stored[:3], TEST[:3], strict=True):
        for plane, original_plane in zip(image, original, strict=True):
            resized = Image.fromarray(original_plane).resize((size, size), Image.Resampling.BILINEAR)
            assert np.array_equal(plane, np.asarray(resized))


def test_resize_leaves_an_even_grey_even(tmp_path: Path) -> None:
    grey = np.full_like(TEST, 77)
    assert np.all(run(tmp_path, made_images(test=grey), image_size=11)["test"].images == 77)


def test_pad_puts_black_around_the_resized_image(tmp_path: Path) -> None:
    padded = run(tmp_path / "padded", image_size=4, pad=3)
    resized = run(tmp_path / "resized", image_size=4)
    assert padded.image_shape == (2, 10, 10)
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


def test_the_permutation_is_a_function_of_its_own_seed_alone(tmp_path: Path) -> None:
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
    assert splits.PERMUTATION not in names(tmp_path)
    assert prepared.manifest["permute_seed"] is None


# --- statistics ---


def test_mean_and_std_are_those_of_train_per_channel(tmp_path: Path) -> None:
    prepared = run(tmp_path)
    train = prepared["train"].images / 255
    assert np.allclose(prepared.manifest["mean"], train.mean(axis=(0, 2, 3)), rtol=0, atol=1e-12)
    assert np.allclose(prepared.manifest["std"], train.std(axis=(0, 2, 3)), rtol=0, atol=1e-12)


def test_mean_and_std_know_nothing_of_val_and_test(tmp_path: Path) -> None:
    before = run(tmp_path / "before")
    changed = TRAIN.copy()
    changed[numbers(before["val"].images)] = 255
    after = run(tmp_path / "after", made_images(changed, np.zeros_like(TEST)))
    assert np.all(after["val"].images == 255)
    assert (after.manifest["mean"], after.manifest["std"]) == (before.manifest["mean"], before.manifest["std"])


def normalized(prepared: Prepared) -> NDArray[np.float64]:
    """The train split as a net sees it, one row a channel."""
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
    knobs: dict[str, Any] = {"permute_seed": 1, "image_size": 7}
    run(tmp_path / "reference", **knobs)
    run(tmp_path / "other", made_images(chunk=chunk), **knobs)
    assert digests(tmp_path / "other") == digests(tmp_path / "reference")


def test_twice_the_same_gives_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("first", "second"):
        run(tmp_path / folder, permute_seed=1, one_hot=True)
    assert digests(tmp_path / "first") == digests(tmp_path / "second")
    assert len(digests(tmp_path / "first")) == 8


@pytest.mark.parametrize("normalize", ["unit", "none"])
def test_another_normalization_is_other_data(tmp_path: Path, normalize: str) -> None:
    """Train's cached result is known by this digest."""
    assert run(tmp_path / "a").sha256 != run(tmp_path / "b", normalize=normalize).sha256


def test_the_manifest_holds_the_digest_of_every_other_file(tmp_path: Path) -> None:
    prepared = run(tmp_path, permute_seed=1)
    found = digests(tmp_path)
    del found[splits.MANIFEST]
    assert prepared.manifest["files"] == found


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


def test_the_whole_set_is_never_in_memory(tmp_path: Path) -> None:
    chunks, each = 60, 100
    shape = (1, 32, 32)

    def made() -> Iterator[NDArray[np.uint8]]:
        for seed in range(chunks):
            yield np.random.default_rng(seed).integers(256, size=(each, *shape), dtype=np.uint8)

    images = {"train": Images(np.arange(chunks * each) % 3, made)}
    tracemalloc.start()
    run(tmp_path, images, shape, permute_seed=0, pad=1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    whole = sum((tmp_path / f"{name}_images.npy").stat().st_size for name in ("train", "val", "test"))
    assert peak < whole / 2


def test_one_chunk_enlarged_is_never_in_memory(tmp_path: Path) -> None:
    images = {"train": Images(np.arange(2000) % 3, lambda: iter([np.zeros((2000, 1, 4, 4), np.uint8)]))}
    tracemalloc.start()
    run(tmp_path, images, (1, 4, 4), image_size=128)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2000 * 128 * 128 / 2


def test_a_chunk_may_hold_no_image_of_a_split(tmp_path: Path) -> None:
    """As where val is six of MNIST's 60,000."""
    prepared = run(tmp_path, made_images(chunk=30), val_fraction=0.005)
    assert len(prepared["val"].images) == 2
    assert np.array_equal(prepared["val"].images, TRAIN[numbers(prepared["val"].images)])


# --- the real thing ---


def test_digits_are_prepared_as_the_table_says(tmp_path: Path) -> None:
    digits = datasets.DATASETS["digits"]
    theirs: Any = load_digits()
    pixels = (theirs["images"].astype(int) * 255 // 16).astype(np.uint8)[:, None]
    images = {"train": images_of(pixels, theirs["target"])}
    prepared = run(tmp_path, images, digits.image_shape, digits.classes, val_fraction=0.1)
    assert prepared.manifest["counts"] == {"train": 1294, "val": 144, "test": 359}
    assert prepared.classes == list("0123456789")
    everything = np.concatenate([prepared[name].images for name in ("train", "val", "test")])
    assert sorted(image.tobytes() for image in everything) == sorted(image.tobytes() for image in pixels)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to run stages in, with the committed parameters."""
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    monkeypatch.setenv("IMAGECLF_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_first_two_stages_prepare_digits(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    download.main()
    preprocess.main()
    assert capsys.readouterr().out == "359 test, 1,294 train, 144 val images of 1x8x8\n"
    assert splits.read(project / "data" / "processed").manifest["permute_seed"] is None


def test_preprocess_takes_the_knobs_of_params_yaml(project: Path) -> None:
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
    prepared = splits.read(project / "data" / "processed")
    assert prepared.manifest["counts"] == {"train": 719, "val": 719, "test": 359}
    assert prepared.image_shape == (1, 8, 8)
    assert prepared.manifest["normalize"] == "unit"
    assert prepared.manifest["permute_seed"] == 4
    assert prepared["val"].targets.ndim == 1


def test_two_digits_make_a_binary_case(project: Path) -> None:
    path = project / "params.yaml"
    path.write_text(path.read_text().replace("classes: ", "classes: [3, 8] "))
    download.main()
    preprocess.main()
    prepared = splits.read(project / "data" / "processed")
    assert prepared.classes == ["3", "8"]
    assert sum(prepared.manifest["counts"].values()) == 183 + 174
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
    with pytest.raises(UserError, match=r"digits\.csv\.gz is missing: run `dvc repro download`"):
        preprocess.main()
