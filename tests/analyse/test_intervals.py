import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from traces import random_ids, trace_of

from moeworks.analyse.intervals import document_codes, mean_interval, ratio_interval
from moeworks.analyse.load import load_table, max_vio_interval
from moeworks.errors import ConfigError
from moeworks.trace import count_experts


def test_mean_of_documents_has_the_interval_of_theory():
    values = np.random.default_rng(0).normal(3, 2, size=400)
    found = ratio_interval(values, np.ones(400))
    half = 1.96593 * values.std(ddof=1) / 20  # Student's t with 399 degrees of freedom
    assert found.estimate == pytest.approx(values.mean())
    assert found.high - found.low == pytest.approx(2 * half, rel=1e-4)


def test_equal_documents_have_no_interval():
    found = ratio_interval(np.full((10, 3), 2.0), np.full((10, 3), 4.0))
    assert found.low.tolist() == found.high.tolist() == found.estimate.tolist() == [0.5] * 3


def test_one_document_knows_nothing_of_others():
    found = ratio_interval(np.array([[3.0, 1.0]]), np.array([[4.0, 4.0]]))
    assert found.estimate.tolist() == [0.75, 0.25]
    assert np.isnan(found.low).all() and np.isnan(found.high).all()
    assert not found.known.any()
    # A second document of one token beside one of a thousand is no sample of two.
    assert not ratio_interval(np.array([500.0, 1.0]), np.array([1000.0, 1.0])).known
    # Documents without anything below the line are none.
    assert not ratio_interval(np.array([3.0, 0.0]), np.array([4.0, 0.0])).known


@pytest.mark.parametrize("documents", [2, 3, 5, 20])
def test_coverage_of_a_ratio(documents):
    """Documents of 40 to 80 tokens: 95 % of 400 intervals hold the truth, less three standard errors."""
    rng = np.random.default_rng(documents)
    covered = 0
    for _ in range(400):
        size = rng.integers(40, 81, size=documents)
        hits = rng.binomial(size, rng.beta(6, 4, size=documents))
        found = ratio_interval(hits, size)
        covered += bool(found.low <= 0.6 <= found.high)
    assert covered / 400 >= 0.95 - 0.033


@given(st.integers(0, 99))
def test_estimate_is_that_of_the_whole_trace(seed):
    ids = random_ids(np.random.default_rng(seed), 90, 2, 6, 2)
    found = max_vio_interval(trace_of(ids, 6, document=np.arange(90) // 9 * 3))
    assert found.estimate == pytest.approx(load_table(count_experts(trace_of(ids, 6))).max_vio)
    assert found.documents == 10
    assert (found.low <= found.estimate).all() and (found.estimate <= found.high).all()


@pytest.mark.parametrize("spread", [0.0, 0.8])
@pytest.mark.parametrize("documents", [4, 40])
def test_coverage_of_max_vio(spread, documents):
    """Documents with likings of their own: the interval holds the MaxVio of all documents there could be.

    A percentile bootstrap of the maximum leaves out its own estimate here (E 64, top 4).
    """
    rng = np.random.default_rng(0)
    liking = np.linspace(0, spread, 64)
    many = np.argsort(-(liking + rng.gumbel(size=(200_000, 64))), axis=1)[:, :4]
    truth = np.bincount(many.reshape(-1)).max() / (200_000 * 4 / 64) - 1
    if not spread:
        truth = 0.0
    covered = 0
    for _ in range(30):
        ids = np.argsort(-(liking + rng.gumbel(size=(documents * 40, 64))), axis=1)[:, None, :4]
        found = max_vio_interval(trace_of(ids, 64, document=np.repeat(np.arange(documents), 40)))
        assert found.low[0] <= found.estimate[0] <= found.high[0]
        covered += bool(found.low[0] <= truth <= found.high[0])
    assert covered >= 27


def test_max_vio_lies_between_its_bounds_in_trying_cases():
    """One expert for all tokens, and a layer without any assignment in a trace with empty slots."""
    same = max_vio_interval(trace_of(np.zeros((40, 1, 1), int), 4, document=np.arange(40) // 10))
    assert (same.low.tolist(), same.high.tolist()) == ([3], [3])
    assert not max_vio_interval(
        trace_of(np.zeros((40, 1, 1), int), 4, document=np.zeros(40, int))
    ).known.any()


def test_tokens_of_a_document_stay_together():
    """A document uses one expert: tokens as the sample would give an interval about 7 times too narrow."""
    expert = np.random.default_rng(0).integers(4, size=40)
    trace = trace_of(np.repeat(expert, 50)[:, None, None], 4, document=np.repeat(np.arange(40), 50))
    found = max_vio_interval(trace)
    assert found.high[0] - found.low[0] > 0.3


@pytest.mark.parametrize("shape", [(), (2,), (2, 3)])
def test_mean_of_values_of_tokens(shape):
    rng = np.random.default_rng(0)
    document = np.sort(rng.integers(30, size=900))
    trace = trace_of(np.zeros((900, 1, 1)), 2, document=document)
    values = rng.normal(size=(900, *shape)) + document.reshape(-1, *[1] * len(shape))
    found = mean_interval(trace, values)
    np.testing.assert_allclose(found.estimate, values.mean(axis=0))
    assert found.low.shape == shape
    assert (found.low < found.estimate).all()
    # The documents differ far more than their tokens: about 30 independent values, not 900.
    assert ((found.high - found.low) > 4).all()


def test_tokens_without_a_value_are_left_out():
    trace = trace_of(np.zeros((4, 1, 1)), 2, document=[0, 0, 1, 1])
    assert mean_interval(trace, np.array([1, np.nan, 3, 5])).estimate == pytest.approx(3)


def test_documents_are_numbered_without_gaps():
    codes, documents = document_codes(trace_of([[[0]], [[0]], [[0]]], 2, document=[7, 2, 7]))
    assert (codes.tolist(), documents) == ([1, 0, 1], 2)


def test_there_must_be_a_document():
    with pytest.raises(ConfigError, match="documents = 0"):
        ratio_interval(np.zeros((0, 2)), np.ones((0, 2)))
