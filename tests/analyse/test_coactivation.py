from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from traces import random_ids, random_trace, trace_of

from moeworks.analyse import coactivation as module
from moeworks.analyse.coactivation import coactivation


def test_by_hand():
    found = coactivation(trace_of([[[0, 1]], [[1, 0]], [[0, 2]], [[0, 3]]], 5))
    assert found.pairs[0, 0].tolist() == [0, 2, 1, 1, 0]
    assert found.rate[0].tolist() == [
        [0, 0.5, 0.25, 0.25, 0], [1, 0, 0, 0, 0], [1, 0, 0, 0, 0], [1, 0, 0, 0, 0], [0] * 5,
    ]  # fmt: skip
    # Beside expert 0 stand 2 uses of expert 1 and one each of 2 and 3.
    assert found.baseline[0, 0] == pytest.approx([0, 0.5, 0.25, 0.25, 0])
    assert found.baseline[0, 1] == pytest.approx([4 / 6, 0, 1 / 6, 1 / 6, 0])
    assert found.lift()[0, 1, 0] == pytest.approx(1.5)


@given(st.integers(0, 99), st.integers(1, 6))
def test_all_pairs_of_every_token_and_row_sums(seed, k):
    ids = random_ids(np.random.default_rng(seed), 30, 1, 6, k)
    found = coactivation(trace_of(ids, 6))
    expected = np.zeros((6, 6), int)
    for chosen in ids[:, 0]:
        for i, j in combinations(chosen, 2):
            expected[i, j] += 1
            expected[j, i] += 1
    assert np.array_equal(found.pairs[0], expected)
    used = np.isin(np.arange(6), ids)
    np.testing.assert_allclose(found.rate[0].sum(axis=1), (k - 1) * used, atol=1e-9)
    if used.sum() > 1:
        np.testing.assert_allclose(found.baseline[0].sum(axis=1), k - 1, atol=1e-9)


def test_independent_experts_meet_the_baseline():
    """Even loads: the baseline is exact in the mean."""
    rng = np.random.default_rng(0)
    ids = np.argsort(rng.random((40_000, 1, 8)), axis=2)[:, :, :3]
    lift = coactivation(trace_of(ids, 8)).lift()[0]
    np.testing.assert_allclose(lift[~np.eye(8, dtype=bool)], 1, atol=0.06)


def test_chunks_do_not_show(monkeypatch):
    trace = random_trace()
    whole = coactivation(trace)
    monkeypatch.setattr(module, "_CHUNK", 7)
    assert np.array_equal(coactivation(trace).pairs, whole.pairs)
