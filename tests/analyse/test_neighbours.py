"""The graph of experts that work together, by hand."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from traces import random_trace, trace_of

from moeworks.analyse.coactivation import coactivation
from moeworks.analyse.neighbours import neighbours, spectral_order


def test_two_pairs_that_stay_together():
    """0 with 1 and 2 with 3, 30 times each: by their loads alone each pair would meet in 10 tokens."""
    ids = np.array([[0, 1], [2, 3]] * 30)[:, None]
    found = neighbours(coactivation(trace_of(ids, 4)), nearest=2)
    assert found.edges[0].tolist() == [[0, 1], [2, 3]]
    np.testing.assert_allclose(found.counts[0], [30, 30])
    np.testing.assert_allclose(found.expected[0], [10, 10])  # 30 times a third: three experts of equal load
    np.testing.assert_allclose(found.lifts[0], [3, 3])
    assert found.nearest[0].tolist() == [[1, -1], [0, -1], [3, -1], [2, -1]]
    place = np.argsort(found.order[0])
    assert sorted([*abs(place[[0, 2]] - place[[1, 3]])]) in ([1, 1], [1, 3])


def test_expected_pairs_of_independent_experts():
    """All pairs of 4 equally often: nothing is above 1, and all pairs together are as many as there are."""
    pairs = [[i, j] for i in range(4) for j in range(i)]
    found = neighbours(coactivation(trace_of(np.array(pairs * 25)[:, None], 4)))
    assert len(found.edges[0]) == 0
    assert (found.nearest == -1).all()


def test_rare_pairs_and_single_experts():
    ids = np.array([[0, 1]] + [[2, 3], [4, 5]] * 30)[:, None]
    found = neighbours(coactivation(trace_of(ids, 6)))
    assert found.edges[0].tolist() == [[2, 3], [4, 5]]  # one token is no evidence for 0 and 1
    assert found.looked_at == 15
    alone = neighbours(coactivation(trace_of([[[0]], [[1]]], 2)))
    assert len(alone.edges[0]) == 0
    assert (alone.nearest == -1).all()


@given(st.integers(0, 99), st.integers(1, 4))
def test_invariants(seed, limit):
    table = coactivation(random_trace(seed, tokens=200, experts=6))
    found = neighbours(table, edges=limit)
    for place, edges in enumerate(found.edges):
        assert sorted(found.order[place]) == list(range(6))
        assert len(edges) <= limit
        assert (edges[:, 0] < edges[:, 1]).all()
        assert (np.diff(found.bounds[place]) <= 0).all()
        assert (found.bounds[place] < found.lifts[place]).all()
        np.testing.assert_array_equal(found.counts[place], table.pairs[place][edges[:, 0], edges[:, 1]])
        np.testing.assert_allclose(found.lifts[place] * found.expected[place], found.counts[place])


def test_order_of_a_ring():
    """Experts in a ring, in mixed order: the tour goes round."""
    ring = np.array([3, 0, 5, 1, 4, 2])
    affinity = np.zeros((6, 6))
    affinity[ring, np.roll(ring, 1)] = affinity[np.roll(ring, 1), ring] = 1
    order = spectral_order(affinity)
    assert all(affinity[a, b] for a, b in zip(order, np.roll(order, 1), strict=True))
    assert spectral_order(np.zeros((4, 4))).tolist() == [0, 1, 2, 3]
    assert spectral_order(np.ones((2, 2))).tolist() == [0, 1]
