"""Intervals of differences between arms, over seeds and documents.

Two arms with the same seed saw the same batches, and all were judged on the same documents: differences are
paired in both. Documents are drawn with replacement as in analyse/bootstrap.py. So are seeds; but there are
a handful, and resampling n values shows their mean (n - 1) / n of its variance and none of the thicker tails
that a t-distribution has. Deviations by seeds are therefore scaled by

    sqrt(n / (n - 1)) * t(n - 1) / z,    t and z the two-sided quantiles at the level,

so that with normal deviations the interval covers about what it says (tests/labs/test_intervals.py measures
it). With one seed nothing is known of other seeds: the interval is then over documents alone.
"""

import math
from dataclasses import dataclass

import numpy as np

from moeworks.analyse.bootstrap import Resampling
from moeworks.errors import check

T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Quantiles of Student's t at 0.975 with 1 to 9 degrees of freedom."""
Z_975 = 1.960
RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"


def bits_per_byte(nats_SN: np.ndarray, bytes_N: np.ndarray) -> Estimate:
    """Mean over seeds of bits per byte, from nats of seeds and documents [S, N] and bytes [N].

    Of differences of nats it is the difference in bits per byte.
    """
    check(nats_SN.ndim == 2 and nats_SN.size > 0, "nats", nats_SN.shape, "must be [seeds, documents]")
    seeds, documents = nats_SN.shape
    rng = np.random.default_rng(Resampling().seed)
    times_RN = rng.multinomial(documents, np.full(documents, 1 / documents), size=RESAMPLES)
    size_R = times_RN @ bytes_N.astype(np.float64)
    by_seed_RS = times_RN @ nats_SN.T.astype(np.float64) / (math.log(2) * size_R[:, None])
    mean_R = by_seed_RS.mean(axis=1)
    drawn_R = _draw_seeds(by_seed_RS, rng)
    value = float(nats_SN.sum(axis=1).mean() / (math.log(2) * bytes_N.sum()))
    return _interval(value, mean_R + (drawn_R - mean_R) * seed_scale(seeds))


def mean_over_seeds(values_S: np.ndarray) -> Estimate:
    """The mean of one number per seed, with a t-interval; with one seed it has no width."""
    seeds = len(values_S)
    check(seeds >= 1, "values", seeds, "must be of at least one seed")
    value = float(np.mean(values_S))
    if seeds == 1:
        return Estimate(value, value, value)
    half = _t(seeds) * float(np.std(values_S, ddof=1)) / math.sqrt(seeds)
    return Estimate(value, value - half, value + half)


def seed_scale(seeds: int) -> float:
    """What deviations by resampled seeds are multiplied with; see above."""
    return math.sqrt(seeds / (seeds - 1)) * _t(seeds) / Z_975 if seeds > 1 else 0.0


def _t(seeds: int) -> float:
    return T_975[min(seeds - 2, len(T_975) - 1)]


def _draw_seeds(by_seed_RS: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    resamples, seeds = by_seed_RS.shape
    chosen_RS = rng.integers(seeds, size=(resamples, seeds))
    return np.take_along_axis(by_seed_RS, chosen_RS, axis=1).mean(axis=1)


def _interval(value: float, drawn_R: np.ndarray) -> Estimate:
    low, high = np.quantile(drawn_R, [0.025, 0.975])
    return Estimate(value, float(low), float(high))
