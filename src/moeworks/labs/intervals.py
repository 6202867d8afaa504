"""Intervals of differences between arms, over seeds and documents.

Two arms with the same seed saw the same batches, and all were judged on the same documents: differences are
paired in both. Seeds and documents are both samples, so the variance of the mean is the sum of two parts,

    var(means of seeds) / S  +  var(means of documents) / N,

which counts what belongs to neither twice. Few seeds make their part uncertain: each part is widened by its
own Student's t, with S - 1 and N - 1 degrees of freedom, and the half width is the root of the sum of squares
(Howe 1974; tests/labs/test_intervals.py measures the coverage). With one seed nothing is known of other
seeds: the interval is then over documents alone.
"""

import math
from dataclasses import dataclass

import numpy as np

from moeworks.analyse.distributions import student_quantile
from moeworks.errors import check

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"


def bits_per_byte(nats_SN: np.ndarray, bytes_N: np.ndarray, *, comparisons: int = 1) -> Estimate:
    """Mean over seeds of bits per byte, from nats of seeds and documents [S, N] and bytes [N].

    Of differences of nats it is the difference in bits per byte. With `comparisons` above 1 the intervals
    of so many statements hold all together (Bonferroni).
    """
    check(nats_SN.ndim == 2 and nats_SN.size > 0, "nats", nats_SN.shape, "must be [seeds, documents]")
    seeds, documents = nats_SN.shape
    size = math.log(2) * float(bytes_N.sum())
    value = float(nats_SN.sum(axis=1).mean() / size)
    by_seed = (_variance(nats_SN.sum(axis=1) / size) / seeds, seeds - 1)
    # Documents differ in size: the residuals of the ratio, as in analyse/intervals.py.
    residual_N = nats_SN.mean(axis=0) / size - value * bytes_N / float(bytes_N.sum())
    by_document = (_variance(residual_N) * documents, documents - 1)
    return _interval(value, (by_seed, by_document), comparisons)


def mean_over_seeds(values_S: np.ndarray, *, comparisons: int = 1) -> Estimate:
    """The mean of one number per seed, with a t-interval; with one seed it has no width."""
    seeds = len(values_S)
    check(seeds >= 1, "values", seeds, "must be of at least one seed")
    return _interval(float(np.mean(values_S)), ((_variance(values_S) / seeds, seeds - 1),), comparisons)


def _variance(values: np.ndarray) -> float:
    return float(np.var(values, ddof=1)) if len(values) > 1 else 0.0


def _interval(value: float, parts: tuple[tuple[float, int], ...], comparisons: int) -> Estimate:
    """The interval from variances of independent parts and their degrees of freedom."""
    probability = 1 - (1 - LEVEL) / (2 * comparisons)
    half = math.sqrt(
        sum(variance * student_quantile(probability, freedom) ** 2 for variance, freedom in parts if freedom)
    )
    return Estimate(value, value - half, value + half)
