import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from traces import random_trace, real_trace, trace_of

from moeworks.errors import ConfigError
from moeworks.simulate.synthetic import synthetic_trace
from moeworks.simulate.touched import batch_experts, distinct_in_rows, speculation, window_experts


@given(st.integers(0, 99))
def test_distinct_against_sets(seed):
    values = np.random.default_rng(seed).integers(6, size=(10, 7))
    assert distinct_in_rows(values).tolist() == [len(set(row)) for row in values.tolist()]


def test_independent_tokens_meet_both_formulas():
    trace = synthetic_trace(tokens=20_000, layers=2, num_experts=16, top_k=3, sequence_length=100)
    for found in (batch_experts(trace, (1, 4, 12), samples=4000), window_experts(trace, (1, 4, 12))):
        np.testing.assert_allclose(found.distinct, [found.uniform] * 2, rtol=0.01)
        np.testing.assert_allclose(found.by_load, [found.uniform] * 2, rtol=0.01)
    skewed = synthetic_trace(tokens=20_000, layers=1, num_experts=16, top_k=3, skew=1, sequence_length=100)
    found = batch_experts(skewed, (4,), samples=8000)
    assert found.distinct[0, 0] == pytest.approx(found.by_load[0, 0], rel=0.01)
    assert found.distinct[0, 0] < found.uniform[0] * 0.9


def test_stickiness_helps_a_sequence_and_not_a_batch():
    trace = synthetic_trace(tokens=20_000, layers=1, num_experts=16, top_k=2, stickiness=0.8)
    window, batch = window_experts(trace, (8,)), batch_experts(trace, (8,))
    assert window.distinct[0, 0] < 0.6 * batch.distinct[0, 0]
    assert batch.distinct[0, 0] == pytest.approx(batch.uniform[0], rel=0.05)


def test_windows_stay_inside_sequences():
    trace = trace_of([[[0]], [[0]], [[1]], [[1]]], 2, sequence=[0, 0, 1, 1])
    found = window_experts(trace, (2, 3))
    assert found.distinct[0, 0] == 1
    assert np.isnan(found.distinct[0, 1])


def test_more_sequences_than_there_are():
    assert np.isnan(batch_experts(random_trace(), (100,)).distinct).all()


def test_speculation_by_hand():
    """All tokens use the same experts: drafts cost nothing, and every accepted token is won."""
    trace = trace_of(np.tile([[[0, 1]]], (20, 2, 1)), 4)
    found = speculation(trace, (0, 1, 3), 0.5)
    assert found.accepted.tolist() == [1, 1.5, 1.875]
    assert found.cost.tolist() == [1, 1, 1]
    assert found.gain.tolist() == [1, 1.5, 1.875]
    assert found.touched.tokens == (1, 2, 4)


def test_speculation_loses_where_experts_do_not_repeat():
    trace = synthetic_trace(tokens=4000, layers=2, num_experts=128, top_k=2)
    found = speculation(trace, (1, 4), 0.6)
    assert (found.gain < 1).all()


def test_on_the_real_trace():
    """Neighbours share experts: a window touches fewer than a batch of as many sequences."""
    trace = real_trace()
    window, batch = window_experts(trace, (4,)), batch_experts(trace, (4,))
    assert window.distinct.mean() < batch.distinct.mean() < batch.uniform[0]


def test_rules():
    with pytest.raises(ConfigError, match=r"batch_sizes = \(0,\)"):
        batch_experts(random_trace(), (0,))
    with pytest.raises(ConfigError, match=r"windows = \(0,\)"):
        window_experts(random_trace(), (0,))
    with pytest.raises(ConfigError, match=r"drafts = \(-1,\)"):
        speculation(random_trace(), (-1,), 0.5)
    with pytest.raises(ConfigError, match="acceptance = 2"):
        speculation(random_trace(), (1,), 2)
