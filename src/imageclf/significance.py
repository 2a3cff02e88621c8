"""Whether numbers differ by more than chance: means with intervals, Welch's test, McNemar's, and references.

Accuracies are shares, 0 to 1.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

LEVEL = 0.95
"""Of every interval; a difference is called one where its p is below 1 - LEVEL."""

Interval = tuple[float, float]


@dataclass(frozen=True)
class Summary:
    """Values in three numbers, and the t-interval of their mean; a single value has neither spread nor interval."""

    mean: float
    std: float | None
    n: int
    interval: Interval | None


def summarize(values: Sequence[float]) -> Summary:
    """Mean, standard deviation (n - 1), count, and the interval in which the true mean lies at `LEVEL`."""
    mean, n = statistics.fmean(values), len(values)
    if n == 1:
        return Summary(mean, None, 1, None)
    std = statistics.stdev(values)
    half = _quantile(n - 1) * std / math.sqrt(n)
    return Summary(mean, std, n, (mean - half, mean + half))


@dataclass(frozen=True)
class Welch:
    """How two means differ: first less second, the interval of that, and how probable chance alone makes it."""

    difference: float
    interval: Interval
    p: float


def welch(first: Summary, second: Summary) -> Welch:
    """Welch's t-test, two-sided, for means of groups of unequal spread (Welch 1947); both need two values or more."""
    assert first.std is not None
    assert second.std is not None
    difference = first.mean - second.mean
    shares = first.std**2 / first.n, second.std**2 / second.n
    error = math.sqrt(sum(shares))
    if error == 0:  # every seed gave the same number
        return Welch(difference, (difference, difference), 1.0 if difference == 0 else 0.0)
    freedom = sum(shares) ** 2 / (shares[0] ** 2 / (first.n - 1) + shares[1] ** 2 / (second.n - 1))
    half = _quantile(freedom) * error
    p = 2 * float(stats.t.sf(abs(difference) / error, freedom))
    return Welch(difference, (difference - half, difference + half), p)


def _quantile(freedom: float) -> float:
    return float(stats.t.ppf((1 + LEVEL) / 2, freedom))


@dataclass(frozen=True)
class McNemar:
    """Two nets on the same images: how many only the first got right, how many only the second, and the p of that."""

    only_first: int
    only_second: int
    p: float


def mcnemar(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> McNemar:
    """McNemar's exact test, two-sided (McNemar 1947): of the images that one net alone got right, half are each's.

    first, second: (n,), whether each image was recognized.
    """
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    either = only_first + only_second
    p = float(stats.binomtest(only_first, either).pvalue) if either else 1.0
    return McNemar(only_first, only_second, p)


def holm(ps: Sequence[float]) -> list[float]:
    """Each p raised for being one of several that were looked at (Holm 1979)."""
    adjusted, least = [0.0] * len(ps), 0.0
    for rank, place in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        least = max(least, min(1.0, (len(ps) - rank) * ps[place]))
        adjusted[place] = least
    return adjusted


@dataclass(frozen=True)
class Reference:
    """An accuracy measured elsewhere, over `n` seeds; without a spread it is taken as exact."""

    mean: float
    std: float = 0.0
    n: int = 1


def reaches(ours: Summary, reference: Reference) -> bool:
    """Whether our mean is not lower by more than two standard errors of the difference.

    A single value has no spread of its own: it is taken to have the reference's.
    """
    std = reference.std if ours.std is None else ours.std
    error = math.sqrt(std**2 / ours.n + reference.std**2 / reference.n)
    return ours.mean >= reference.mean - 2 * error
