"""Intervals by resampling documents. Tokens of a document depend on each other: tokens are never
resampled."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from moeworks.errors import check
from moeworks.trace import RoutingTrace
from moeworks.trace.counts import count_groups

Statistic = Callable[..., np.ndarray]


@dataclass(frozen=True)
class Resampling:
    """How intervals are drawn."""

    resamples: int = 200
    """How often as many documents are drawn, with replacement."""
    level: float = 0.95
    """Coverage of the interval."""
    seed: int = 0
    """Of the draws."""

    def __post_init__(self) -> None:
        check(0 < self.level < 1, "level", self.level, "must lie between 0 and 1")
        check(self.resamples >= 1, "resamples", self.resamples, "must be at least 1")


@dataclass(frozen=True, eq=False)
class Interval:
    """An estimate and its percentile interval, in the shape of the statistic."""

    estimate: np.ndarray
    low: np.ndarray
    high: np.ndarray
    level: float
    documents: int
    """How many there were to draw from: with a handful the interval is too narrow."""


def bootstrap(
    per_document: Sequence[np.ndarray], statistic: Statistic, resampling: Resampling | None = None
) -> Interval:
    """The percentile bootstrap (Efron 1979) of a statistic of sums over documents.

    Args:
        per_document: arrays [documents, ...], whose sums over documents the statistic takes.
        statistic: from those sums, each [n, ...] for n samples at once, to values [n, ...].
        resampling: None is Resampling().

    Raises ConfigError without documents.
    """
    documents = len(per_document[0])
    check(documents >= 1, "documents", documents, "there must be at least 1")
    draws = resampling or Resampling()
    rng = np.random.default_rng(draws.seed)
    times = rng.multinomial(documents, np.full(documents, 1 / documents), size=draws.resamples)
    weights = np.concatenate([np.ones((1, documents)), times])
    sums = [
        (weights @ part.reshape(documents, -1).astype(np.float64)).reshape(-1, *part.shape[1:])
        for part in per_document
    ]
    values = statistic(*sums)
    low, high = np.quantile(values[1:], [(1 - draws.level) / 2, (1 + draws.level) / 2], axis=0)
    estimate = np.asarray(values[0])
    return Interval(estimate, np.asarray(low), np.asarray(high), draws.level, documents)


def document_codes(trace: RoutingTrace) -> tuple[np.ndarray, int]:
    """int64 [T]: the documents numbered from 0 without gaps, and how many there are."""
    numbers, codes = np.unique(trace.tokens.document, return_inverse=True)
    return codes, len(numbers)


def bootstrap_load(
    trace: RoutingTrace, statistic: Statistic, resampling: Resampling | None = None
) -> Interval:
    """Intervals [l] of a statistic of counts (`load.max_vio`, `load.gini`, ...) in every layer."""
    codes, documents = document_codes(trace)
    experts = trace.header.num_experts
    intervals = [
        bootstrap([count_groups(trace.ids(layer), codes, documents, experts)], statistic, resampling)
        for layer in trace.header.layers
    ]
    return stack_intervals(intervals)


def bootstrap_mean(trace: RoutingTrace, values: np.ndarray, resampling: Resampling | None = None) -> Interval:
    """The interval [...] of the mean over tokens of any values [T, ...]: entropies, margins, hits, losses."""
    codes, documents = document_codes(trace)
    flat = values.reshape(len(codes), -1).astype(np.float64)
    sums = np.stack([sum_by_document(column, codes, documents) for column in flat.T], axis=1)
    tokens = np.bincount(codes, minlength=documents)[:, None]
    per_document = [sums.reshape(documents, *values.shape[1:]), tokens.reshape(-1, *[1] * (values.ndim - 1))]
    return bootstrap(per_document, lambda total, count: total / count, resampling)


def stack_intervals(intervals: Sequence[Interval]) -> Interval:
    """Intervals of several layers as one, [l, ...]."""
    first = intervals[0]
    parts = {name: np.stack([getattr(i, name) for i in intervals]) for name in ("estimate", "low", "high")}
    return Interval(**parts, level=first.level, documents=first.documents)


def sum_by_document(values: np.ndarray, codes: np.ndarray, documents: int) -> np.ndarray:
    """float [documents]: the sum of values [n] of each document, whose number is in codes [n]."""
    return np.bincount(codes, weights=values, minlength=documents)
