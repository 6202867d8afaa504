import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from moeworks.analyse.bootstrap import (
    Resampling,
    bootstrap,
    bootstrap_load,
    bootstrap_mean,
    document_codes,
)
from traces import random_ids, trace_of

from moeworks.analyse.load import load_table, max_vio
from moeworks.errors import ConfigError
from moeworks.trace import count_experts


def ratio(total, count):
    return total / count


def test_mean_of_documents_has_the_interval_of_theory():
    rng = np.random.default_rng(0)
    values = rng.normal(3, 2, size=400)
    found = bootstrap([values, np.ones(400)], ratio, Resampling(resamples=4000))
    half = 1.96 * values.std() / 20
    assert found.estimate == pytest.approx(values.mean())
    assert found.high - found.low == pytest.approx(2 * half, rel=0.1)


def test_equal_documents_have_no_interval():
    found = bootstrap([np.full((10, 3), 2.0), np.full((10, 3), 4.0)], ratio)
    assert found.low.tolist() == found.high.tolist() == found.estimate.tolist() == [0.5] * 3


@given(st.integers(0, 99))
def test_estimate_is_that_of_the_whole_trace(seed):
    ids = random_ids(np.random.default_rng(seed), 90, 2, 6, 2)
    trace = trace_of(ids, 6, document=np.arange(90) // 9 * 3)
    found = bootstrap_load(trace, max_vio, Resampling(resamples=20, seed=seed))
    assert found.estimate == pytest.approx(load_table(count_experts(trace)).max_vio)
    assert found.documents == 10
    assert (found.low <= found.high).all()


def test_tokens_of_a_document_stay_together():
    """A document uses one expert: resampling tokens would give an interval about 7 times too narrow."""
    expert = np.random.default_rng(0).integers(4, size=40)
    trace = trace_of(np.repeat(expert, 50)[:, None, None], 4, document=np.repeat(np.arange(40), 50))
    found = bootstrap_load(trace, max_vio)
    assert found.high[0] - found.low[0] > 0.3


@pytest.mark.parametrize("shape", [(), (2,), (2, 3)])
def test_mean_of_values_of_tokens(shape):
    rng = np.random.default_rng(0)
    document = np.sort(rng.integers(30, size=900))
    trace = trace_of(np.zeros((900, 1, 1)), 2, document=document)
    values = rng.normal(size=(900, *shape)) + document.reshape(-1, *[1] * len(shape))
    found = bootstrap_mean(trace, values)
    np.testing.assert_allclose(found.estimate, values.mean(axis=0))
    assert found.low.shape == shape
    assert (found.low < found.estimate).all()
    # The documents differ far more than their tokens: about 30 independent values, not 900.
    assert ((found.high - found.low) > 4).all()


def test_documents_are_numbered_without_gaps():
    codes, documents = document_codes(trace_of([[[0]], [[0]], [[0]]], 2, document=[7, 2, 7]))
    assert (codes.tolist(), documents) == ([1, 0, 1], 2)


def test_rules():
    with pytest.raises(ConfigError, match="documents = 0"):
        bootstrap([np.zeros((0, 2))], lambda total: total)
    with pytest.raises(ConfigError, match="level = 95"):
        Resampling(level=95)
    with pytest.raises(ConfigError, match="resamples = 0"):
        Resampling(resamples=0)
