import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from traces import random_ids, random_trace, trace_of

from moeworks.analyse.working_set import working_sets
from moeworks.errors import ConfigError


@given(st.integers(0, 99), st.integers(1, 12))
def test_against_every_window(seed, width):
    trace = random_trace(seed, tokens=40, sequences=3)
    found = working_sets(trace, (width, 1))
    for place, layer in enumerate(trace.header.layers):
        ids, sequence = trace.ids(layer), trace.tokens.sequence
        sizes = [
            len(np.unique(ids[i : i + width]))
            for i in range(len(ids) - width + 1)
            if sequence[i] == sequence[i + width - 1]
        ]
        assert found.number[0] == len(sizes)
        if sizes:
            assert found.mean[place, 0] == pytest.approx(np.mean(sizes))
        else:
            assert np.isnan(found.mean[place, 0])
        assert found.mean[place, 1] == pytest.approx(2)


def test_formulas_by_monte_carlo():
    """Independent tokens: what is measured, what the load says and what the closed form says agree."""
    rng = np.random.default_rng(0)
    even = np.argsort(rng.random((30_000, 1, 16)), axis=2)[:, :, :3]
    found = working_sets(trace_of(even, 16), (1, 2, 5, 20))
    np.testing.assert_allclose(found.mean[0], found.uniform, rtol=0.01)
    np.testing.assert_allclose(found.by_load[0], found.uniform, rtol=0.001)
    uneven = working_sets(trace_of(random_ids(rng, 30_000, 1, 16, 3), 16), (1, 2, 5, 20))
    np.testing.assert_allclose(uneven.mean[0], uneven.by_load[0], rtol=0.01)


def test_repetition_makes_small_sets():
    ids = np.tile([[[3, 1]]], (50, 1, 1))
    found = working_sets(trace_of(ids, 8), (1, 10, 50, 51))
    assert found.mean[0, :3].tolist() == [2, 2, 2]
    assert np.isnan(found.mean[0, 3])


def test_windows_are_checked():
    with pytest.raises(ConfigError, match=r"windows = \(0,\): must be at least 1"):
        working_sets(random_trace(), (0,))
