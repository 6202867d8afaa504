"""Intervals over documents. Tokens of a document depend on each other, so documents are the sample.

Every figure here is a ratio of sums over documents. Its standard error is that of the documents' residuals
(Cochran 1977, section 6.3), its quantile Student's t with one degree of freedom less than there are documents
of equal size that would know as much. With fewer than two of those nothing is known of other documents: both
ends are NaN.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moeworks.analyse.distributions import student_quantile
from moeworks.errors import check
from moeworks.trace import RoutingTrace

LEVEL = 0.95
"""Coverage of all intervals."""


@dataclass(frozen=True, eq=False)
class Interval:
    """Estimates and the ends of their intervals, which always contain them; NaN where nothing is known."""

    estimate: np.ndarray
    low: np.ndarray
    high: np.ndarray
    level: float
    documents: int
    """Number of documents that the intervals rest on."""

    @property
    def known(self) -> np.ndarray:
        """bool [...]: whether there were documents enough for an interval."""
        return np.asarray(np.isfinite(self.low) & np.isfinite(self.high))


def ratio_interval(
    above: np.ndarray, below: np.ndarray, *, level: float = LEVEL, comparisons: int = 1
) -> Interval:
    """Interval of sum(above) / sum(below) over documents, both [documents, ...] and of shapes that broadcast.

    With `comparisons` above 1 the intervals of so many figures hold all together (Bonferroni). Ratios
    without anything below are NaN. Raises ConfigError without documents.
    """
    above, below = np.broadcast_arrays(np.asarray(above, np.float64), np.asarray(below, np.float64))
    check(len(below) >= 1, "documents", len(below), "there must be at least 1")
    total = below.sum(axis=0)
    present = np.where(total > 0, total, np.nan)
    estimate = above.sum(axis=0) / present
    taken = (below > 0).sum(axis=0)
    effective = present**2 / np.square(below).sum(axis=0)
    residual = np.square(above - estimate * below).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.sqrt(residual * taken / np.where(taken > 1, taken - 1, np.nan)) / present
    half = error * _quantiles(np.asarray(effective), 1 - (1 - level) / (2 * comparisons))
    ends = (estimate - half, estimate + half)
    return Interval(np.asarray(estimate), np.asarray(ends[0]), np.asarray(ends[1]), level, len(below))


def _quantiles(effective: np.ndarray, probability: float) -> np.ndarray:
    """Quantiles of t for a number of documents [...] each; NaN below two."""
    documents = np.rint(np.nan_to_num(effective)).astype(np.int64)
    known, place = np.unique(documents, return_inverse=True)
    quantiles = [student_quantile(probability, int(n) - 1) if n >= 2 else np.nan for n in known]
    return np.asarray(np.array(quantiles)[place]).reshape(documents.shape)


def document_codes(trace: RoutingTrace) -> tuple[np.ndarray, int]:
    """int64 [T]: the documents numbered from 0 without gaps, and how many there are."""
    numbers, codes = np.unique(trace.tokens.document, return_inverse=True)
    return codes, len(numbers)


def mean_interval(trace: RoutingTrace, values: np.ndarray, *, comparisons: int = 1) -> Interval:
    """Interval [...] of the mean over tokens of any values [T, ...]: entropies, margins, hits, losses.

    Tokens whose value is NaN are left out.
    """
    codes, documents = document_codes(trace)
    flat = values.reshape(len(codes), -1).astype(np.float64)
    present = ~np.isnan(flat)
    columns = zip(np.where(present, flat, 0).T, present.T, strict=True)
    parts = [
        (sum_by_document(column, codes, documents), sum_by_document(there.astype(float), codes, documents))
        for column, there in columns
    ]
    above, below = (
        np.stack(side, axis=1).reshape(documents, *values.shape[1:]) for side in zip(*parts, strict=True)
    )
    return ratio_interval(above, below, comparisons=comparisons)


def stack_intervals(intervals: Sequence[Interval]) -> Interval:
    """Intervals of several layers as one, [l, ...]."""
    first = intervals[0]
    parts = {name: np.stack([getattr(i, name) for i in intervals]) for name in ("estimate", "low", "high")}
    return Interval(**parts, level=first.level, documents=first.documents)


def sum_by_document(values: np.ndarray, codes: np.ndarray, documents: int) -> np.ndarray:
    """float [documents]: the sum of values [n] of each document, whose number is in codes [n]."""
    return np.bincount(codes, weights=values, minlength=documents)
