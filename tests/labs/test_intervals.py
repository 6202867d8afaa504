"""Intervals over seeds and documents cover what they say."""

import math

import numpy as np
import pytest

from moeworks.errors import ConfigError
from moeworks.labs.intervals import bits_per_byte, mean_over_seeds


def test_value_is_total_nats_over_total_bytes() -> None:
    nats = np.array([[3.0, 6.0], [5.0, 8.0]])
    sizes = np.array([1, 2])
    estimate = bits_per_byte(nats, sizes)
    assert estimate.value == pytest.approx(11 / math.log(2) / 3)
    assert estimate.low <= estimate.value <= estimate.high


def test_equal_seeds_and_documents_have_no_width() -> None:
    estimate = bits_per_byte(np.full((3, 5), 2.0), np.full(5, 4))
    assert estimate.low == pytest.approx(estimate.value) == pytest.approx(estimate.high)


def test_one_seed_knows_documents_alone() -> None:
    nats = np.array([[1.0, 9.0, 5.0, 2.0]])
    estimate = bits_per_byte(math.log(2) * nats, np.ones(4))
    assert estimate.value == pytest.approx(4.25)
    assert estimate.high == pytest.approx(4.25 + 3.182 * np.std(nats, ddof=1) / 2, rel=1e-3)


def test_equal_documents_leave_a_t_interval_over_seeds() -> None:
    nats = math.log(2) * np.array([[1.0], [2.0], [3.0]]) * np.ones(8)
    estimate = bits_per_byte(nats, np.ones(8))
    assert estimate.high == pytest.approx(2 + 4.303 / math.sqrt(3), rel=1e-3)


def test_several_statements_hold_together() -> None:
    values = np.array([1.0, 2.0, 4.0])
    one, ten = mean_over_seeds(values), mean_over_seeds(values, comparisons=10)
    assert ten.low < one.low < one.high < ten.high


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("share_of_seeds", [0.0, 0.2, 0.5, 0.9])
def test_coverage(seeds: int, share_of_seeds: float) -> None:
    """Of 400 made-up experiments whose true difference is 0, at least 95 % have 0 in their interval.

    The binomial tolerance is three standard errors, 0.033.
    """
    rng = np.random.default_rng(seeds)
    documents, covered = 40, 0
    by_seed, by_document = math.sqrt(share_of_seeds), math.sqrt((1 - share_of_seeds) * documents)
    for _ in range(400):
        seed_part = by_seed * math.sqrt(seeds) * rng.standard_normal((seeds, 1))
        document_part = by_document * rng.standard_normal((1, documents))
        both = 0.5 * rng.standard_normal((seeds, documents))
        estimate = bits_per_byte(seed_part + document_part + both, np.ones(documents))
        covered += estimate.low <= 0 <= estimate.high
    assert covered / 400 >= 0.95 - 0.033


def test_mean_over_seeds_is_a_t_interval() -> None:
    estimate = mean_over_seeds(np.array([1.0, 2.0, 3.0]))
    assert estimate.value == 2.0
    assert estimate.high == pytest.approx(2 + 4.303 / math.sqrt(3), rel=1e-4)
    assert mean_over_seeds(np.array([7.0])).low == 7.0


def test_nothing_to_average() -> None:
    with pytest.raises(ConfigError, match="values = 0: must be of at least one seed"):
        mean_over_seeds(np.array([]))
    with pytest.raises(ConfigError, match="nats"):
        bits_per_byte(np.zeros((0, 3)), np.ones(3))
