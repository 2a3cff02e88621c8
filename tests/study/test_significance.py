"""Tests of the statistics against scipy and against numbers computed by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from imageclf.study.significance import Reference, Summary, holm, mcnemar, reaches, summarize, welch

A = [0.9801, 0.9793, 0.9809, 0.9797, 0.9805]
B = [0.9788, 0.9783, 0.9793]


def test_a_summary_has_mean_standard_deviation_and_t_interval() -> None:
    found = summarize([1.0, 2.0, 3.0])
    assert (found.mean, found.std, found.n) == (2.0, 1.0, 3)
    # The 97.5% quantile of t with 2 degrees of freedom is 4.3027, the standard error of the mean is 1 / sqrt(3).
    assert found.interval == pytest.approx((2 - 2.4841, 2 + 2.4841), abs=1e-4)
    scipys = stats.ttest_1samp(A, 0).confidence_interval()
    assert summarize(A).interval == pytest.approx((scipys.low, scipys.high))


def test_a_single_value_has_neither_standard_deviation_nor_interval() -> None:
    assert summarize([0.5]) == Summary(0.5, None, 1, None)


@pytest.mark.parametrize(("first", "second"), [(A, B), (B, A), (A, A), (A, [0.5, 0.9])])
def test_welch_equals_scipys(first: list[float], second: list[float]) -> None:
    found, scipys = welch(summarize(first), summarize(second)), stats.ttest_ind(first, second, equal_var=False)
    assert found.p == pytest.approx(scipys[1])
    assert found.difference == pytest.approx(np.mean(first) - np.mean(second))
    interval = scipys.confidence_interval()
    assert found.interval == pytest.approx((interval.low, interval.high))


def test_welch_with_standard_deviations_of_0() -> None:
    assert welch(summarize([0.5, 0.5]), summarize([0.5, 0.5])).p == 1
    assert welch(summarize([0.5, 0.5]), summarize([0.25, 0.25])).p == 0


def test_mcnemar_counts_the_images_that_only_one_net_classified_correctly() -> None:
    first = np.array([True] * 8 + [False] * 1 + [True] * 5 + [False] * 3)
    second = np.array([False] * 8 + [True] * 1 + [True] * 5 + [False] * 3)
    found = mcnemar(first, second)
    assert (found.only_first, found.only_second) == (8, 1)
    # The two-sided binomial test gives 2 (C(9,0) + C(9,1)) / 2^9.
    assert found.p == pytest.approx(2 * 10 / 512)
    assert mcnemar(second, first).p == pytest.approx(found.p)


def test_mcnemar_of_equal_nets_gives_p_1() -> None:
    right = np.array([True, False, True])
    assert mcnemar(right, right).p == 1


def test_holm_multiplies_each_p_by_its_rank() -> None:
    # 0.01 * 4, 0.02 * 3, 0.03 * 2 (but at least the one before: 0.06), and 0.9.
    assert holm([0.03, 0.01, 0.9, 0.02]) == pytest.approx([0.06, 0.04, 0.9, 0.06])
    assert holm([0.7, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize(
    ("ours", "reference", "error"),
    [
        (Summary(0, 0.03, 9, None), Reference(0.5, 0.04, 16), math.hypot(0.01, 0.01)),
        (Summary(0, 0.03, 9, None), Reference(0.5), 0.01),
        (Summary(0, None, 1, None), Reference(0.5, 0.04, 16), math.hypot(0.04, 0.01)),
        (Summary(0, None, 1, None), Reference(0.5), 0.0),
    ],
)
def test_a_reference_is_reached_down_to_two_standard_errors_below_it(
    ours: Summary, reference: Reference, error: float
) -> None:
    threshold = reference.mean - 2 * error
    for mean, reached in ((threshold + 1e-6, True), (threshold - 1e-6, False), (1.0, True)):
        assert reaches(Summary(mean, ours.std, ours.n, None), reference) is reached
