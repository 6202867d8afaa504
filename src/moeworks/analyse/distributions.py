"""Quantiles that intervals and verdicts are judged by, without scipy."""

import math
from functools import lru_cache
from statistics import NormalDist

import numpy as np

_LARGE = 200  # degrees of freedom from which an expansion around the normal quantile is exact to 1e-6


@lru_cache(maxsize=4096)
def normal_quantile(probability: float) -> float:
    """Quantile of the standard normal distribution."""
    return NormalDist().inv_cdf(probability)


@lru_cache(maxsize=4096)
def student_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t with a whole number of degrees of freedom, for a probability above one half.

    >>> round(student_quantile(0.975, 2), 3)
    4.303
    """
    if freedom >= _LARGE:
        z = normal_quantile(probability)
        return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    low, high = 0.0, 1.0
    while _student_upper_tail(high, freedom) > 1 - probability:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if _student_upper_tail(middle, freedom) > 1 - probability else (low, middle)
        )
    return high


def _student_upper_tail(t: float, freedom: int) -> float:
    """P(T > t) for t >= 0, by the finite sums of Abramowitz & Stegun 1964, 26.7.3 and 26.7.4."""
    angle = math.atan2(t, math.sqrt(freedom))
    cosine, sine = math.cos(angle), math.sin(angle)
    odd = freedom % 2
    term = cosine if odd else 1.0
    total = 0.0
    for step in range(1 + odd, freedom, 2):
        total += term
        term *= cosine**2 * (step / (step + 1))
    if odd:
        return 0.5 - (angle + sine * total) / math.pi
    return 0.5 - sine * total / 2


def poisson_lower_bound(counts: np.ndarray, error: float) -> np.ndarray:
    """Lower confidence bound of the means of Poisson counts; above the mean with probability `error` at most.

    Byar's approximation of the exact bound (Breslow & Day 1987, section 2.3), which it meets to 0.2 from
    below at errors from 5 % down to one in a million. 0 where a count is too small for any bound.
    """
    z = normal_quantile(1 - error)
    number = np.maximum(np.asarray(counts, np.float64), 1e-12)
    root = np.maximum(1 - 1 / (9 * number) - z / (3 * np.sqrt(number)), 0)
    return number * root**3


def poisson_upper_bound(counts: np.ndarray, error: float) -> np.ndarray:
    """Upper confidence bound of the means of Poisson counts, by the same approximation."""
    z = normal_quantile(1 - error)
    number = np.asarray(counts, np.float64) + 1
    return number * (1 - 1 / (9 * number) + z / (3 * np.sqrt(number))) ** 3


def rank_p_value(observed: float, null: np.ndarray) -> float:
    """Share of a permutation null, with the observed value in it, that is at least as large.

    It is at most p with probability p when the observed value is exchangeable with those of the null.
    """
    return float((1 + np.count_nonzero(null >= observed - 1e-12)) / (1 + len(null)))
