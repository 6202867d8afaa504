import numpy as np
import pytest

from moeworks.errors import ConfigError
from moeworks.simulate.synthetic import synthetic_trace
from moeworks.trace import count_experts, validate_trace

SHAPE = dict(tokens=20_000, layers=2, num_experts=8, top_k=2)


def test_is_a_good_trace_and_repeats_by_its_seed():
    trace = synthetic_trace(**SHAPE, skew=0.5, stickiness=0.3)
    assert validate_trace(trace) == []
    again = synthetic_trace(**SHAPE, skew=0.5, stickiness=0.3)
    assert np.array_equal(trace.ids(1), again.ids(1))
    assert not np.array_equal(trace.ids(1), synthetic_trace(**SHAPE, seed=1).ids(1))
    assert len(np.unique(trace.tokens.sequence)) == -(-20_000 // 256)


def test_skew_of_first_choices_is_zipf():
    trace = synthetic_trace(**SHAPE, skew=1.0)
    first = np.sort(np.bincount(trace.ids(0)[:, 0], minlength=8))[::-1] / 20_000
    zipf = 1 / np.arange(1, 9)
    np.testing.assert_allclose(first, zipf / zipf.sum(), atol=0.01)
    even = count_experts(synthetic_trace(**SHAPE)).total() / 40_000
    np.testing.assert_allclose(even, 1 / 8, atol=0.01)


def test_stickiness_is_the_share_that_stays():
    trace = synthetic_trace(**SHAPE, stickiness=0.7)
    same = (trace.ids(0)[1:] == trace.ids(0)[:-1]).all(axis=1)
    inside = np.diff(trace.tokens.sequence) == 0
    chance = 1 / (8 * 7)
    assert same[inside].mean() == pytest.approx(0.7 + 0.3 * chance, abs=0.02)
    assert same[~inside].mean() < 0.2
    frozen = synthetic_trace(**SHAPE, stickiness=1.0)
    assert (frozen.ids(0).reshape(-1, 2)[:256] == frozen.ids(0)[0]).all()


@pytest.mark.parametrize(
    "wrong", [{"tokens": 0}, {"skew": -1}, {"stickiness": 2}, {"sequence_length": 0}, {"top_k": 9}]
)
def test_rules(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        synthetic_trace(**SHAPE | wrong)
