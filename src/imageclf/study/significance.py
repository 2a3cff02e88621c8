"""Statistics of results: means with confidence intervals, Welch's and McNemar's tests, reference accuracies.

Accuracies are fractions, 0 to 1.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

CONFIDENCE_LEVEL = 0.95
"""Confidence level of every interval; a difference is significant if its p is below 1 - CONFIDENCE_LEVEL."""

Interval = tuple[float, float]


@dataclass(frozen=True)
class Summary:
    """Mean, standard deviation and count of values, and the t-interval of the mean.

    A single value has neither standard deviation nor interval.
    """

    mean: float
    std: float | None
    n: int
    interval: Interval | None


def summarize(values: Sequence[float]) -> Summary:
    """Return mean, standard deviation (n - 1), count, and the confidence interval of the mean at `CONFIDENCE_LEVEL`."""
    mean, n = statistics.fmean(values), len(values)
    if n == 1:
        return Summary(mean, None, 1, None)
    std = statistics.stdev(values)
    half = _quantile(n - 1) * std / math.sqrt(n)
    return Summary(mean, std, n, (mean - half, mean + half))


def ends(accuracy: Summary) -> tuple[float, float] | None:
    """Return the ends of the interval in percent, cut at 0 and 100; None for a single value."""
    if accuracy.interval is None:
        return None
    low, high = accuracy.interval
    return max(0.0, 100 * low), min(100.0, 100 * high)


def percent(accuracy: Summary) -> str:
    """Return mean and standard deviation in percent: `98.01 ± 0.08`, or `98.01` for a single value."""
    spread = "" if accuracy.std is None else f" ± {100 * accuracy.std:.2f}"
    return f"{100 * accuracy.mean:.2f}{spread}"


@dataclass(frozen=True)
class Welch:
    """Result of Welch's test: the difference of the means (first minus second), its interval, and the p-value."""

    difference: float
    interval: Interval
    p: float


def welch(first: Summary, second: Summary) -> Welch:
    """Compare two means by Welch's two-sided t-test for unequal variances (Welch 1947).

    Each group needs at least two values.
    """
    assert first.std is not None
    assert second.std is not None
    difference = first.mean - second.mean
    variances = first.std**2 / first.n, second.std**2 / second.n
    error = math.sqrt(sum(variances))
    if error == 0:  # every seed gave the same number
        return Welch(difference, (difference, difference), 1.0 if difference == 0 else 0.0)
    df = sum(variances) ** 2 / (variances[0] ** 2 / (first.n - 1) + variances[1] ** 2 / (second.n - 1))
    half = _quantile(df) * error
    p = 2 * float(stats.t.sf(abs(difference) / error, df))
    return Welch(difference, (difference - half, difference + half), p)


def _quantile(df: float) -> float:
    return float(stats.t.ppf((1 + CONFIDENCE_LEVEL) / 2, df))


@dataclass(frozen=True)
class McNemar:
    """Result of McNemar's test: images that only the first, or only the second, net classified correctly; p-value."""

    only_first: int
    only_second: int
    p: float


def mcnemar(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> McNemar:
    """Compare two nets on the same images by McNemar's exact two-sided test (McNemar 1947).

    Null hypothesis: an image that only one net classifies correctly is equally likely to be the first or the second
    net's. `first` and `second` (n,) are True for each image that the net classified correctly.
    """
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    discordant = only_first + only_second
    p = float(stats.binomtest(only_first, discordant).pvalue) if discordant else 1.0
    return McNemar(only_first, only_second, p)


def holm(ps: Sequence[float]) -> list[float]:
    """Return the p-values adjusted for multiple tests (Holm 1979)."""
    adjusted, highest = [0.0] * len(ps), 0.0
    for rank, index in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        highest = max(highest, min(1.0, (len(ps) - rank) * ps[index]))
        adjusted[index] = highest
    return adjusted


@dataclass(frozen=True)
class Reference:
    """A published accuracy: the mean of `n` seeds; with a standard deviation of 0 it counts as exact."""

    mean: float
    std: float = 0.0
    n: int = 1


def reaches(ours: Summary, reference: Reference) -> bool:
    """Return True if our mean is at most two standard errors of the difference below the reference.

    A single value has no standard deviation; the reference's is used instead.
    """
    std = reference.std if ours.std is None else ours.std
    error = math.sqrt(std**2 / ours.n + reference.std**2 / reference.n)
    return ours.mean >= reference.mean - 2 * error
