"""Tests of the columns and numbers of the tables, and of the plots."""

import csv
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics
from helpers import png_size
from numpy.typing import NDArray
from PIL import Image

from imageclf.core import files
from imageclf.evaluation import plots, quality, tables

CLASSES = ["plain", "with, comma", 'with "quotes"', "Katze 猫 ß", " spaces ", "line\nbreak"]
TEN = [str(digit) for digit in range(10)]


def read(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def made_predictions(count: int, classes: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return labels, and probabilities whose largest value is right for about half of them."""
    random = np.random.default_rng(0)
    labels = random.integers(classes, size=count)
    scores = random.random((count, classes)) + 0.5 * np.eye(classes)[labels]
    return labels, (scores / scores.sum(axis=1, keepdims=True)).astype(np.float32)


def made_images(count: int, channels: int) -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(256, size=(count, channels, 8, 8), dtype=np.uint8)


@pytest.mark.parametrize(
    ("number", "cell"), [(0.1234567, "0.123457"), (1 / 70_000, "1.42857e-05"), (69_999 / 70_000, "0.999986")]
)
def test_floats_keep_six_digits(number: float, cell: str, tmp_path: Path) -> None:
    files.write_csv(tmp_path / "table.csv", ["x"], [[number], [np.float64(number)]])
    assert read(tmp_path / "table.csv") == [["x"], [cell], [cell]]


def test_integers_have_all_digits(tmp_path: Path) -> None:
    files.write_csv(tmp_path / "table.csv", ["x", "y"], [[12_345_678, np.int64(12_345_678)]])
    assert read(tmp_path / "table.csv")[1] == ["12345678", "12345678"]


def test_predictions_name_the_classes_and_their_probabilities(tmp_path: Path) -> None:
    probabilities = np.array([[0.75, 0.25, 0], [0.5, 0.125, 0.375]], np.float32)
    tables.write_predictions(tmp_path / "predictions.csv", ["cat", "dog", "owl"], np.array([0, 2]), probabilities)
    assert (tmp_path / "predictions.csv").read_bytes().decode() == (
        "index,actual,predicted,p_actual,p_predicted,p: cat,p: dog,p: owl\n"
        "0,cat,cat,0.75,0.75,0.75,0.25,0\n1,owl,cat,0.375,0.5,0.5,0.125,0.375\n"
    )


def test_of_many_classes_only_two_probabilities_are_written(tmp_path: Path) -> None:
    names = [f"c{number}" for number in range(tables.MOST_COLUMNS + 1)]
    probabilities = np.eye(len(names), dtype=np.float32)[:2]
    tables.write_predictions(tmp_path / "predictions.csv", names, np.array([0, 2]), probabilities)
    assert [len(row) for row in read(tmp_path / "predictions.csv")] == [5, 5, 5]


def test_class_names_are_unchanged_in_the_tables(tmp_path: Path) -> None:
    count = len(CLASSES)
    tables.write_predictions(tmp_path / "p.csv", CLASSES, np.arange(count), np.eye(count, dtype=np.float32))
    tables.write_per_class(tmp_path / "c.csv", CLASSES, quality.per_class(np.eye(count, dtype=np.int64)))
    assert [row[1] for row in read(tmp_path / "p.csv")[1:]] == CLASSES
    assert [row[2] for row in read(tmp_path / "p.csv")[1:]] == CLASSES
    assert [row[0] for row in read(tmp_path / "c.csv")[1:]] == CLASSES


def test_a_score_that_is_not_defined_is_an_empty_cell(tmp_path: Path) -> None:
    confusion = np.array([[3, 1, 0], [2, 0, 0], [0, 0, 0]])
    tables.write_per_class(tmp_path / "per_class.csv", ["cat", "dog", "owl"], quality.per_class(confusion))
    assert (tmp_path / "per_class.csv").read_bytes().decode() == (
        "class,images,accuracy,precision,f1\ncat,4,0.75,0.6,0.666667\ndog,2,0,0,0\nowl,0,,,\n"
    )


def test_the_confusion_matrix_equals_that_of_scikit_learn() -> None:
    labels, probabilities = made_predictions(200, 7)
    labels[labels == 6] = 0  # a class without images still has a row
    predicted = probabilities.argmax(axis=1)
    found = tables.confusion_matrix(labels, predicted, 8)
    expected = sklearn.metrics.confusion_matrix(labels, predicted, labels=range(8))
    np.testing.assert_array_equal(found, expected)
    assert found.sum() == 200


def test_the_most_confident_mistakes_come_first() -> None:
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.8, 0.2], [0.1, 0.9], [0.3, 0.7], [0.2, 0.8]], np.float32)
    labels = np.array([0, 0, 1, 0, 1, 0])  # rows 0 and 4 are right
    assert tables.most_confident_mistakes(labels, probabilities).tolist() == [3, 2, 5, 1]


def test_a_perfect_net_makes_no_mistakes() -> None:
    assert tables.most_confident_mistakes(np.arange(3), np.eye(3, dtype=np.float32)).tolist() == []


@pytest.mark.parametrize(("classes", "size"), [(2, (390, 290)), (10, (750, 650)), (25, (1425, 1325))])
def test_the_confusion_plot_grows_with_the_classes(classes: int, size: tuple[int, int], tmp_path: Path) -> None:
    confusion = np.random.default_rng(0).integers(9, size=(classes, classes))
    plots.plot_confusion(tmp_path / "plot.png", [f"class {row}" for row in range(classes)], confusion)
    assert png_size(tmp_path / "plot.png") == pytest.approx(size, abs=1)


def test_a_class_without_images_can_be_plotted(tmp_path: Path) -> None:
    plots.plot_confusion(tmp_path / "plot.png", ["cat", "dog"], np.array([[5, 1], [0, 0]]))
    assert png_size(tmp_path / "plot.png") == pytest.approx((390, 290), abs=1)


@pytest.mark.parametrize("channels", [1, 3], ids=["gray", "color"])
@pytest.mark.parametrize(
    ("count", "size"), [(0, (400, 100)), (1, (200, 350)), (3, (600, 350)), (8, (800, 700)), (11, (800, 700))]
)
def test_the_plot_of_predictions_has_room_for_its_images(
    count: int, size: tuple[int, int], channels: int, tmp_path: Path
) -> None:
    labels, probabilities = made_predictions(count, 10)
    plots.plot_predictions(tmp_path / "plot.png", made_images(count, channels), labels, probabilities, TEN)
    assert png_size(tmp_path / "plot.png") == size


@pytest.mark.parametrize("channels", [1, 3], ids=["gray", "color"])
def test_the_plot_of_predictions_shows_the_images(channels: int, tmp_path: Path) -> None:
    labels, probabilities = made_predictions(8, 10)
    pictures = []
    for level in (0, 255):
        images = np.full((8, channels, 8, 8), level, np.uint8)
        plots.plot_predictions(tmp_path / "plot.png", images, labels, probabilities, TEN)
        with Image.open(tmp_path / "plot.png") as picture:
            pictures.append(np.asarray(picture.convert("L"), dtype=int))
    black, white = pictures
    assert (white - black == 255).sum() > 8 * 110**2


def test_plots_drawn_twice_are_the_same_bytes(tmp_path: Path) -> None:
    labels, probabilities = made_predictions(8, 10)
    confusion = tables.confusion_matrix(labels, probabilities.argmax(axis=1), 10)
    for folder in ("1", "2"):
        plots.plot_confusion(tmp_path / folder / "confusion.png", TEN, confusion)
        plots.plot_predictions(tmp_path / folder / "samples.png", made_images(8, 3), labels, probabilities, TEN)
    for name in ("confusion.png", "samples.png"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def test_a_class_name_is_plotted_as_text_even_if_it_looks_like_a_formula(tmp_path: Path) -> None:
    names = [r"$\frac$", "b"]
    labels, probabilities = made_predictions(8, 2)
    plots.plot_confusion(tmp_path / "confusion.png", names, np.eye(2, dtype=np.int64))
    plots.plot_predictions(tmp_path / "samples.png", made_images(8, 1), labels, probabilities, names)
    assert png_size(tmp_path / "samples.png") == (800, 700)


@pytest.mark.parametrize("channels", [1, 3], ids=["gray", "color"])
@pytest.mark.parametrize("classes", [2, 30])
def test_the_picture_of_the_data_has_a_row_per_class(classes: int, channels: int, tmp_path: Path) -> None:
    images = made_images(100, channels)
    labels = np.arange(100) % classes
    labels[labels == 1] = 0  # a class without images has no row
    plots.plot_classes(tmp_path / "plot.png", images, labels, [f"class {row}" for row in range(classes)])
    rows = min(classes - 1, plots.MOST_ROWS)
    assert png_size(tmp_path / "plot.png") == pytest.approx((800, 100 + 70 * rows), abs=1)


def test_the_picture_of_the_data_shows_the_mean_of_a_class(tmp_path: Path) -> None:
    images = np.stack([np.full((1, 8, 8), level, np.uint8) for level in (40, 60)])
    plots.plot_classes(tmp_path / "plot.png", images, np.array([0, 0]), ["a", "b"])
    with Image.open(tmp_path / "plot.png") as picture:
        levels = {color for _, color in picture.convert("L").getcolors() or ()}
    assert {40, 50, 60} <= levels


def test_pairs_are_drawn_in_columns(tmp_path: Path) -> None:
    images = made_images(3, 3)
    plots.plot_pairs(tmp_path / "plot.png", images, images, ["1 and 2", "3 and 4", "5 and 6"])
    assert png_size(tmp_path / "plot.png") == (800, 450)
