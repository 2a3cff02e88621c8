"""Tests of the scores per class, the calibration error, the intervals, and the remarks."""

from typing import Any

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from imageclf.evaluation import quality, tables

NAMES = ["cat", "dog", "owl", "emu"]


def test_scores_equal_those_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    labels = random.choice(6, size=500, p=[0.6, 0.2, 0.1, 0.06, 0.03, 0.01])
    predicted = np.where(random.random(500) < 0.6, labels, random.integers(5, size=500))  # class 5 is never predicted
    found = quality.per_class(tables.confusion_matrix(labels, predicted, 7))  # class 6 has no images
    reference: Any = sklearn.metrics.precision_recall_fscore_support
    precision, recall, f1, images = reference(labels, predicted, labels=range(6), zero_division=0)
    np.testing.assert_allclose(found.recall[:6], recall)
    np.testing.assert_allclose(np.nan_to_num(found.precision[:6]), precision)
    np.testing.assert_allclose(found.f1[:6], f1)
    np.testing.assert_array_equal(found.images, [*images, 0])
    assert np.isnan([found.recall[6], found.precision[6], found.f1[6]]).all()
    scores = quality.class_scores(found)
    assert scores["balanced_accuracy"] == pytest.approx(sklearn.metrics.balanced_accuracy_score(labels, predicted))
    assert scores["macro_f1"] == pytest.approx(f1.mean())


def test_the_calibration_error_of_a_hand_made_case() -> None:
    """Four predictions at 0.9, of which three are right, and one at 0.55, which is wrong."""
    probabilities = np.array([[0.9, 0.1]] * 4 + [[0.45, 0.55]], np.float32)
    found = quality.calibration(np.array([0, 0, 0, 1, 0]), probabilities)
    assert found.error == pytest.approx((4 * 0.15 + 1 * 0.55) / 5, abs=1e-6)
    assert found.images.sum() == 5
    assert found.images.nonzero()[0].tolist() == [8, 13]


def test_predictions_that_are_as_often_right_as_they_claim_have_no_calibration_error() -> None:
    random = np.random.default_rng(0)
    top = random.uniform(0.5, 1, 200_000)
    labels = (random.random(len(top)) > top).astype(np.int64)
    probabilities = np.stack([top, 1 - top], axis=1).astype(np.float32)
    assert quality.calibration(labels, probabilities).error < 0.005
    assert quality.calibration(1 - labels, probabilities).error > 0.4


def test_certain_predictions_fall_into_the_last_bin() -> None:
    found = quality.calibration(np.array([0, 1]), np.array([[1, 0], [1, 0]], np.float32))
    assert found.images[-1] == 2
    assert found.error == 0.5


@pytest.mark.parametrize(("right", "count"), [(0, 5), (5, 5), (1, 3), (983, 1000)])
def test_the_interval_equals_that_of_scipy(right: int, count: int) -> None:
    expected = scipy.stats.binomtest(right, count).proportion_ci(method="wilson")
    assert quality.interval(right / count, count) == pytest.approx((expected.low, expected.high))


def test_without_images_the_interval_says_nothing() -> None:
    assert quality.interval(0.0, 0) == (0.0, 1.0)


def remarks(train_accuracy: float, confusion: list[list[int]]) -> list[str]:
    counts = np.array(confusion)
    accuracy = counts.diagonal().sum() / counts.sum()
    return quality.remarks(train_accuracy, accuracy, quality.per_class(counts), NAMES[: len(counts)])


def test_a_large_gap_is_over_fitting() -> None:
    (found,) = remarks(0.99, [[800, 200], [200, 800]])
    assert found.startswith("over-fitting: the train accuracy is 19.0 points above the test accuracy; more images, ")


def test_a_gap_that_can_be_chance_is_not_over_fitting() -> None:
    assert remarks(0.88, [[4, 1], [1, 4]]) == []  # 8 of 10 test images
    assert remarks(0.84, [[800, 200], [200, 800]]) == []


def test_classes_that_are_never_recognized_are_named() -> None:
    (found,) = remarks(0.9, [[90, 0, 0, 0], [4, 0, 0, 0], [3, 0, 0, 0], [0, 0, 0, 0]])
    assert found.startswith("2 of 4 classes are never recognized: 'dog', 'owl'; class_weights=balanced gives")
